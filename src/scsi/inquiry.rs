//! INQUIRY: what a unit is, and its vital product data (SPC-4 6.6 and 7.8, SBC-3 6.6).

use super::command::{Command, Done};
use super::disk::ScsiDisk;
use super::ranges::{MAX_RANGES, max_blocks};
use super::sense::Sense;

/// Peripheral device types.
const TYPE_DISK: u8 = 0;
const TYPE_CD: u8 = 5;
/// There is no unit at this address, and cannot be one (qualifier 3, type 1fh).
const NOBODY: u8 = 0x7f;
/// The medium can be taken out.
const REMOVABLE: u8 = 1 << 7;
/// SPC-3.
const VERSION: u8 = 5;
/// Hierarchical LUNs; data of this format.
const FORMAT: u8 = 1 << 4 | 2;
/// Bytes of the standard data.
const STANDARD: usize = 36;

/// Bits of the command.
const WANTS_PAGE: u8 = 1;

/// The vital product data pages.
mod page {
    pub const SUPPORTED: u8 = 0x00;
    pub const SERIAL: u8 = 0x80;
    pub const IDENTIFICATION: u8 = 0x83;
    pub const LIMITS: u8 = 0xb0;
    pub const CHARACTERISTICS: u8 = 0xb1;
    pub const PROVISIONING: u8 = 0xb2;
}

pub fn inquiry(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    let kind = if unit.is_cd() { TYPE_CD } else { TYPE_DISK };
    let allocated = usize::from(command.u16(3));
    let data = match (command.cdb[1] & WANTS_PAGE != 0, command.cdb[2]) {
        (true, code) => {
            let body = vital(unit, code).ok_or(Sense::INVALID_FIELD)?;
            let mut data = vec![kind, code];
            // Every page is shorter than 64 KiB.
            data.extend_from_slice(&(body.len() as u16).to_be_bytes());
            data.extend_from_slice(&body);
            data
        }
        (false, 0) => standard(unit, kind).to_vec(),
        (false, _) => return Err(Sense::INVALID_FIELD.into()),
    };
    Ok(command.reply(&data, allocated))
}

/// At an address without a unit.
pub fn without_unit(command: &mut Command<'_>) -> Done {
    if command.cdb[1] & WANTS_PAGE != 0 || command.cdb[2] != 0 {
        return Err(Sense::INVALID_FIELD.into());
    }
    let mut data = [0; STANDARD];
    (data[0], data[2], data[3], data[4]) = (NOBODY, VERSION, FORMAT, STANDARD as u8 - 5);
    let allocated = usize::from(command.u16(3));
    Ok(command.reply(&data, allocated))
}

fn standard(unit: &ScsiDisk, kind: u8) -> [u8; STANDARD] {
    /// Commands are queued.
    const QUEUES: u8 = 1 << 1;
    let mut data = [0; STANDARD];
    data[0] = kind;
    data[1] = if unit.is_cd() { REMOVABLE } else { 0 };
    (data[2], data[3], data[4], data[7]) = (VERSION, FORMAT, STANDARD as u8 - 5, QUEUES);
    padded(&mut data[8..16], &unit.options.vendor);
    padded(&mut data[16..32], &unit.options.product);
    padded(&mut data[32..36], &unit.options.version);
    data
}

/// ASCII, with blanks behind it.
fn padded(field: &mut [u8], text: &str) {
    let text = text.bytes().chain(std::iter::repeat(b' '));
    field.iter_mut().zip(text).for_each(|(to, from)| *to = from);
}

/// The pages that a unit has.
fn pages(unit: &ScsiDisk) -> Vec<u8> {
    let mut pages = vec![page::SUPPORTED];
    if !unit.options.serial.is_empty() {
        pages.push(page::SERIAL);
    }
    pages.push(page::IDENTIFICATION);
    if !unit.is_cd() {
        pages.extend([page::LIMITS, page::CHARACTERISTICS, page::PROVISIONING]);
    }
    pages
}

/// What a page has behind its header; `None`: there is no such page.
fn vital(unit: &ScsiDisk, code: u8) -> Option<Vec<u8>> {
    let pages = pages(unit);
    if !pages.contains(&code) {
        return None;
    }
    Some(match code {
        page::SUPPORTED => pages,
        page::SERIAL => unit.options.serial.clone().into_bytes(),
        page::IDENTIFICATION => identification(unit),
        page::LIMITS => limits(unit),
        page::CHARACTERISTICS => {
            let mut data = vec![0; 0x3c];
            data[..2].copy_from_slice(&unit.options.rotation.to_be_bytes());
            data
        }
        // Threshold exponent; UNMAP and both WRITE SAME give blocks back; thin.
        _ if unit.provisioned() => vec![0, 0xe0, 2, 0],
        _ => vec![0; 4],
    })
}

/// The unit's name, then its world wide name (SPC-4 7.8.5).
fn identification(unit: &ScsiDisk) -> Vec<u8> {
    const ASCII: u8 = 2;
    const BINARY: u8 = 1;
    const VENDOR_SPECIFIC: u8 = 0;
    const NAA: u8 = 3;
    let name = unit.options.device_id.as_bytes();
    let name = &name[..name.len().min(usize::from(u8::MAX))];
    let mut data = Vec::new();
    if !name.is_empty() {
        data.extend([ASCII, VENDOR_SPECIFIC, 0, name.len() as u8]);
        data.extend_from_slice(name);
    }
    if let Some(wwn) = unit.options.wwn {
        data.extend([BINARY, NAA, 0, 8]);
        data.extend(wwn.to_be_bytes());
    }
    data
}

/// Block limits (SBC-3 6.6.4).
fn limits(unit: &ScsiDisk) -> Vec<u8> {
    /// WRITE SAME of zero blocks is not offered.
    const WSNZ: u8 = 1;
    let mut data = vec![0; 0x3c];
    let most = u32::try_from(max_blocks(unit)).unwrap_or(u32::MAX);
    data[0] = WSNZ;
    if let Some(unit_bytes) = unit.disk.info().discard.filter(|_| unit.provisioned()) {
        let bytes = unit.options.granularity.unwrap_or(unit_bytes).max(unit.options.block);
        data[16..20].copy_from_slice(&most.to_be_bytes());
        data[20..24].copy_from_slice(&(MAX_RANGES as u32).to_be_bytes());
        data[24..28].copy_from_slice(&(bytes / unit.options.block).to_be_bytes());
    }
    data[32..40].copy_from_slice(&u64::from(most).to_be_bytes());
    data
}
