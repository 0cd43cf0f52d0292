//! Reading, writing and what goes with it (SBC-3 5).

use std::ops::Range;

use super::command::{Command, Done, Trouble, undone};
use super::disk::ScsiDisk;
use super::sense::Sense;
use crate::memory::Buffers;

/// Force unit access: what is written is on the medium before the command is done.
const FUA: u8 = 1 << 3;
/// Compare bytes: one of the driver's with the medium's.
const BYTE_CHECK: u8 = 3 << 1;
/// Service action of READ CAPACITY(16).
const READ_CAPACITY_16: u8 = 0x10;

/// First block and number of blocks, by the length that the operation code stands for (SPC-4 4.2.5.1).
fn place(command: &Command<'_>) -> (u64, u64) {
    match command.cdb[0] >> 5 {
        0 => {
            let count = if command.cdb[4] == 0 { 256 } else { u64::from(command.cdb[4]) };
            (u64::from(command.u32(0) & 0x1f_ffff), count)
        }
        1 | 2 => (command.u32(2).into(), command.u16(7).into()),
        5 => (command.u32(2).into(), command.u32(6).into()),
        _ => (command.u64(2), command.u32(10).into()),
    }
}

/// The bytes of so many blocks, if they are there.
pub(super) fn range(unit: &ScsiDisk, first: u64, count: u64) -> Result<Range<u64>, Sense> {
    match first.checked_add(count) {
        // As large as the node, in bytes.
        Some(end) if end <= unit.blocks() => Ok(first * unit.block()..end * unit.block()),
        _ => Err(Sense::OUT_OF_RANGE),
    }
}

/// The bytes of a command. Protection information (the upper bits of byte 1 of all but the short ones) there is none.
fn whole(unit: &ScsiDisk, command: &Command<'_>) -> Result<Range<u64>, Sense> {
    let (first, count) = place(command);
    match command.cdb[0] >> 5 != 0 && command.cdb[1] >> 5 != 0 {
        true => Err(Sense::INVALID_FIELD),
        false => range(unit, first, count),
    }
}

/// Cuts buffers to the length that a command says.
fn cut<'a>(buffers: &mut Buffers<'a>, len: u64) -> Result<(), Trouble> {
    if buffers.len() < len {
        return Err(Trouble::Overrun);
    }
    buffers.split_off(len);
    Ok(())
}

pub fn read(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    let range = whole(unit, command)?;
    let len = range.end - range.start;
    cut(&mut command.into, len)?;
    if len > 0 {
        unit.disk.read(range.start, command.into.slices()).map_err(|error| undone(error, Sense::READ_ERROR))?;
    }
    Ok(len)
}

/// Whether the unit can be changed.
pub(super) fn changes(unit: &ScsiDisk) -> Result<(), Sense> {
    if unit.read_only() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
}

pub fn write(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    changes(unit)?;
    let range = whole(unit, command)?;
    let len = range.end - range.start;
    cut(&mut command.out, len)?;
    let failed = |error| undone(error, Sense::WRITE_ERROR);
    if len > 0 {
        unit.disk.write(range.start, command.out.slices()).map_err(failed)?;
    }
    if command.cdb[0] >> 5 != 0 && command.cdb[1] & FUA != 0 {
        unit.disk.flush().map_err(failed)?;
    }
    Ok(len)
}

/// The medium is not read for it, unless the driver wants bytes compared, which there is not.
pub fn verify(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    if command.cdb[1] & BYTE_CHECK != 0 {
        return Err(Sense::INVALID_FIELD.into());
    }
    whole(unit, command)?;
    Ok(0)
}

/// Everything, whatever part is asked for.
pub fn synchronize(unit: &ScsiDisk, _: &mut Command<'_>) -> Done {
    unit.disk.flush().map_err(|error| undone(error, Sense::WRITE_ERROR))?;
    Ok(0)
}

/// The highest block, as far as 32 bits can say it (all ones: ask for more).
pub fn capacity_10(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    let last = unit.blocks().saturating_sub(1);
    let mut data = [0; 8];
    data[..4].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
    data[4..].copy_from_slice(&unit.options.block.to_be_bytes());
    Ok(command.reply(&data, data.len()))
}

pub fn service_action_in(unit: &ScsiDisk, command: &mut Command<'_>) -> Done {
    /// Logical block provisioning is there.
    const LBPME: u8 = 1 << 7;
    if command.cdb[1] & 0x1f != READ_CAPACITY_16 {
        return Err(Sense::INVALID_FIELD.into());
    }
    let mut data = [0; 32];
    data[..8].copy_from_slice(&unit.blocks().saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&unit.options.block.to_be_bytes());
    data[13] = unit.physical_exponent();
    data[14] = if unit.provisioned() { LBPME } else { 0 };
    let allocated = command.u32(10) as usize;
    Ok(command.reply(&data, allocated))
}

impl ScsiDisk {
    /// How many blocks make one of the medium, as a power of two.
    pub(super) fn physical_exponent(&self) -> u8 {
        let physical = self.options.physical.unwrap_or(self.disk.info().physical_block_size);
        (physical / self.options.block).max(1).ilog2() as u8
    }

    /// Whether the guest may say what it does not need any more.
    pub(super) fn provisioned(&self) -> bool {
        !self.read_only() && self.disk.info().discard.is_some()
    }
}
