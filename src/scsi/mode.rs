//! MODE SENSE and MODE SELECT: the write cache, and what a CD drive can do (SPC-4 6.11, SBC-3 6.5, MMC-6 7).

use super::command::{Command, Done};
use super::disk::ScsiDisk;
use super::sense::Sense;

/// Pages.
const ERROR_RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CD_CAPABILITIES: u8 = 0x2a;
const ALL_PAGES: u8 = 0x3f;

/// Page control: present, changeable, default, saved values.
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;
/// Of the caching page: the write cache is on.
const WCE: u8 = 1 << 2;
/// Saving parameters is not supported (ILLEGAL REQUEST, 39h/00h).
const NO_SAVING: Sense = Sense(5, 0x39, 0);

/// Codes of the ten-byte forms.
const SENSE_10: u8 = 0x5a;
const SELECT_10: u8 = 0x55;
/// No block descriptors are wanted.
const DBD: u8 = 1 << 3;
/// Device-specific parameter: write protected; FUA is known.
const WRITE_PROTECTED: u8 = 1 << 7;
const FUA_KNOWN: u8 = 1 << 4;
/// The most parameters that are read.
const MAX_PARAMETERS: usize = 4096;

/// A page's values; `None`: the unit does not have it.
fn page(unit: &ScsiDisk, code: u8, control: u8) -> Option<Vec<u8>> {
    let changeable = control == CHANGEABLE;
    Some(match code {
        ERROR_RECOVERY if !unit.is_cd() => {
            // Bad blocks are given others, on writes and on reads.
            let mut page = vec![code, 10, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            page[2..].fill(0);
            page[2] = if changeable { 0 } else { 0x80 };
            page
        }
        CACHING => {
            let mut page = vec![0; 20];
            (page[0], page[1]) = (code, 18);
            let on = match (changeable, control) {
                (true, _) => unit.disk.info().write_back,
                (_, 2) => unit.disk.write_cache(),
                _ => unit.disk.write_back(),
            };
            page[2] = if on && !unit.is_cd() { WCE } else { 0 };
            page
        }
        CD_CAPABILITIES if unit.is_cd() => {
            let mut page = vec![0; 22];
            (page[0], page[1]) = (code, 20);
            if !changeable {
                // Reads CD-R, CD-RW and DVD-ROM; a tray that can be locked and opened.
                page[2] = 0x0b;
                page[6] = 0x29 | u8::from(unit.is_locked()) << 1;
                // Speeds of 50 times 176 KB/s, a buffer of 2 MiB.
                for at in [8, 14] {
                    page[at..at + 2].copy_from_slice(&(50u16 * 176).to_be_bytes());
                }
                page[12..14].copy_from_slice(&2048u16.to_be_bytes());
            }
            page
        }
        _ => return None,
    })
}

pub fn sense(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    let long = command.cdb[0] == SENSE_10;
    let (control, code, subpage) = (command.cdb[2] >> 6, command.cdb[2] & 0x3f, command.cdb[3]);
    if control == SAVED {
        return Err(NO_SAVING.into());
    }
    if subpage != 0 && subpage != 0xff {
        return Err(Sense::INVALID_FIELD.into());
    }
    let pages: Vec<u8> = match code {
        ALL_PAGES => {
            let all = [ERROR_RECOVERY, CACHING, CD_CAPABILITIES].into_iter();
            all.filter_map(|code| page(unit, code, control)).flatten().collect()
        }
        0 => Vec::new(),
        code => page(unit, code, control).ok_or(Sense::INVALID_FIELD)?,
    };
    let specific = match unit.is_cd() {
        true => 0,
        false => FUA_KNOWN | if unit.read_only() { WRITE_PROTECTED } else { 0 },
    };
    let mut descriptor = Vec::new();
    if !unit.is_cd() && command.cdb[1] & DBD == 0 {
        // Of 24 bits each: more blocks than that are none that can be said.
        let blocks = u32::try_from(unit.blocks()).ok().filter(|blocks| *blocks < 1 << 24).unwrap_or(0);
        descriptor.extend_from_slice(&blocks.to_be_bytes());
        descriptor.extend_from_slice(&unit.options.block.to_be_bytes());
    }
    let mut data = match long {
        true => vec![0, 0, 0, specific, 0, 0, 0, descriptor.len() as u8],
        false => vec![0, 0, specific, descriptor.len() as u8],
    };
    data.extend(descriptor);
    data.extend(pages);
    match long {
        true => {
            let len = (data.len() - 2) as u16;
            data[..2].copy_from_slice(&len.to_be_bytes());
        }
        // All pages together are shorter than 256 bytes.
        false => data[0] = (data.len() - 1) as u8,
    }
    let allocated = if long { usize::from(command.u16(7)) } else { usize::from(command.cdb[4]) };
    Ok(command.reply(&data, allocated))
}

/// Only the write cache can be switched; all else must be as it is.
pub fn select(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    /// Parameters follow the page format; they are to be saved.
    const PAGE_FORMAT: u8 = 1 << 4;
    const SAVE: u8 = 1;
    let long = command.cdb[0] == SELECT_10;
    let len = if long { usize::from(command.u16(7)) } else { usize::from(command.cdb[4]) };
    if command.cdb[1] & (PAGE_FORMAT | SAVE) != PAGE_FORMAT {
        return Err(Sense::INVALID_FIELD.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let data = command.parameters(len, MAX_PARAMETERS)?;
    let header = if long { 8 } else { 4 };
    let head = data.get(..header).ok_or(Sense::PARAMETER_LENGTH)?;
    let descriptors = match long {
        true => usize::from(u16::from_be_bytes([head[6], head[7]])),
        false => usize::from(head[3]),
    };
    let mut rest = data.get(header + descriptors..).ok_or(Sense::PARAMETER_LENGTH)?;
    let mut cache = None;
    while let [code, len, ..] = rest {
        let total = 2 + usize::from(*len);
        let given = rest.get(..total).ok_or(Sense::PARAMETER_LENGTH)?;
        let own = page(unit, code & 0x3f, 0).ok_or(Sense::INVALID_PARAMETER)?;
        let changeable = page(unit, code & 0x3f, CHANGEABLE).ok_or(Sense::INVALID_PARAMETER)?;
        let differs = |at: usize| (own[at] ^ given[at]) & !changeable[at] != 0;
        if own.len() != total || (2..total).any(differs) {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        if code & 0x3f == CACHING {
            cache = Some(given[2] & WCE != 0);
        }
        rest = &rest[total..];
    }
    if let Some(on) = cache {
        if unit.disk.write_back() && !on {
            // What was said to be done before must be on the medium, too.
            unit.disk.flush().map_err(|error| super::command::undone(error, Sense::WRITE_ERROR))?;
        }
        unit.disk.set_write_back(on && unit.disk.info().write_back);
    }
    Ok(len as u64)
}
