//! Ranges of blocks that are unmapped or filled (SBC-3 5.28, 5.49).

use super::blocks::{changes, range};
use super::command::{Command, Done, Trouble, undone};
use super::disk::ScsiDisk;
use super::sense::Sense;
use crate::backends::block::io::MAX_CHUNK;

/// The most blocks of one range, bytes of it: 2 GiB.
const MAX_RANGE: u64 = 2 << 30;
/// The most ranges of one UNMAP.
pub const MAX_RANGES: usize = 255;
/// Header of its parameters, and one range.
const HEADER: usize = 8;
const RANGE: usize = 16;
const ANCHOR_OF_UNMAP: u8 = 1;

/// Bits of WRITE SAME.
const NO_DATA: u8 = 1 << 0;
const UNMAP: u8 = 1 << 3;
const ANCHOR: u8 = 1 << 4;

/// The most blocks of one range.
pub fn max_blocks(unit: &ScsiDisk) -> u64 {
    MAX_RANGE / unit.block()
}

/// Ranges that nobody needs any more; all are checked before one is given back.
pub fn unmap(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    if command.cdb[1] & ANCHOR_OF_UNMAP != 0 {
        return Err(Sense::INVALID_FIELD.into());
    }
    if !unit.provisioned() {
        changes(unit)?;
        return Err(Sense::UNKNOWN_COMMAND.into());
    }
    let len = usize::from(command.u16(7));
    if len == 0 {
        return Ok(0);
    }
    let data = command.parameters(len, HEADER + RANGE * MAX_RANGES)?;
    let said = data.get(2..4).and_then(|len| Some(usize::from(u16::from_be_bytes(len.try_into().ok()?))));
    let list = data.get(HEADER..).zip(said).and_then(|(list, said)| list.get(..said));
    let list = list.ok_or(Sense::PARAMETER_LENGTH)?;
    let mut ranges = Vec::new();
    for one in list.chunks_exact(RANGE) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = one else { continue };
        let first = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
        let count = u64::from(u32::from_be_bytes([*i, *j, *k, *l]));
        if count > max_blocks(unit) {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        ranges.push(range(unit, first, count)?);
    }
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        unit.disk.discard(range).map_err(|error| undone(error, Sense::WRITE_ERROR))?;
    }
    Ok(len as u64)
}

/// One block's content for many.
pub fn write_same(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    changes(unit)?;
    let long = command.cdb[0] == 0x93;
    let flags = command.cdb[1];
    let (first, count) = match long {
        true => (command.u64(2), u64::from(command.u32(10))),
        false => (command.u32(2).into(), command.u16(7).into()),
    };
    let no_data = long && flags & NO_DATA != 0;
    // Zero blocks would mean all up to the end, which VPD page B0h says is not offered.
    if flags & ANCHOR != 0 || flags >> 5 != 0 || count == 0 || count > max_blocks(unit) {
        return Err(Sense::INVALID_FIELD.into());
    }
    let range = range(unit, first, count)?;
    let mut pattern = vec![0; unit.options.block as usize];
    let taken = if no_data { 0 } else { pattern.len() };
    if !no_data && command.out.read(&mut pattern) != taken {
        return Err(Trouble::Overrun);
    }
    let failed = |error| undone(error, Sense::WRITE_ERROR);
    if pattern.iter().all(|byte| *byte == 0) {
        unit.disk.write_zeroes(range, flags & UNMAP != 0).map_err(failed)?;
        return Ok(taken as u64);
    }
    let mut bytes = pattern.repeat((MAX_CHUNK / pattern.len()).max(1));
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(bytes.len() as u64);
        let part = vm_memory::VolatileSlice::from(&mut bytes[..len as usize]);
        unit.disk.write(at, &[part]).map_err(failed)?;
        at += len;
    }
    Ok(taken as u64)
}
