//! The table of commands, and what a command comes to.

use super::disk::ScsiDisk;
use super::sense::{SENSE_LEN, Sense};
use super::{blocks, cd, inquiry, mode, ranges};
use crate::devices::disk::Undone;
use crate::memory::Buffers;

/// The longest command.
pub const MAX_CDB: usize = 32;

/// Operation codes that are told apart outside of the table.
pub mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const REPORT_LUNS: u8 = 0xa0;
}

/// A command with its data.
pub struct Command<'a> {
    /// The command descriptor block; what the driver has not written of it is zero.
    pub cdb: [u8; MAX_CDB],
    /// Data for the unit.
    pub out: Buffers<'a>,
    /// Room for data from the unit.
    pub into: Buffers<'a>,
}

/// What a command comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and so many bytes were transferred.
    Good(u64),
    /// CHECK CONDITION: something was wrong.
    Check(Sense),
    /// The driver's buffers are shorter than the command says.
    Overrun,
    /// It cannot be done now, and is to be tried again when the machine goes on.
    Later,
}

/// Why a command was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Check(Sense),
    Overrun,
    Later,
}

impl From<Sense> for Trouble {
    fn from(sense: Sense) -> Trouble {
        Trouble::Check(sense)
    }
}

/// What a row's function gives: the bytes that were transferred.
pub type Done = Result<u64, Trouble>;

/// A request of the node's that was not done, as a unit says it.
pub fn undone(undone: Undone, sense: Sense) -> Trouble {
    match undone {
        Undone::Stopped => Trouble::Later,
        Undone::Failed(error) if error.raw_os_error() == Some(libc::ENOSPC) => Sense::FULL.into(),
        Undone::Failed(_) => sense.into(),
    }
}

pub fn answer(done: Done) -> Answer {
    match done {
        Ok(transferred) => Answer::Good(transferred),
        Err(Trouble::Check(sense)) => Answer::Check(sense),
        Err(Trouble::Overrun) => Answer::Overrun,
        Err(Trouble::Later) => Answer::Later,
    }
}

/// Which units know a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    All,
    Disk,
    Cd,
}

/// One command.
pub struct Row {
    code: u8,
    pub who: Who,
    /// Whether it needs a medium.
    pub medium: bool,
    pub run: fn(&ScsiDisk, &mut Command<'_>) -> Done,
}

const fn row(code: u8, who: Who, medium: bool, run: fn(&ScsiDisk, &mut Command<'_>) -> Done) -> Row {
    Row { code, who, medium, run }
}

/// A command that there is nothing to do for.
fn nothing(_: &ScsiDisk, _: &mut Command<'_>) -> Done {
    Ok(0)
}

static TABLE: &[Row] = &[
    row(op::TEST_UNIT_READY, Who::All, true, nothing),
    row(op::REQUEST_SENSE, Who::All, false, |unit, command| {
        let sense = unit.take_attention().unwrap_or(Sense::NONE);
        Ok(command.reply(&sense.fixed(), usize::from(command.cdb[4])))
    }),
    row(0x08, Who::All, true, blocks::read),
    row(0x0a, Who::Disk, true, blocks::write),
    row(op::INQUIRY, Who::All, false, inquiry::inquiry),
    row(0x15, Who::All, false, mode::select),
    // RESERVE and RELEASE: there is one initiator.
    row(0x16, Who::Disk, false, nothing),
    row(0x17, Who::Disk, false, nothing),
    row(0x1a, Who::All, false, mode::sense),
    row(0x1b, Who::All, false, cd::start_stop),
    row(0x1e, Who::Cd, false, cd::prevent),
    row(0x25, Who::All, true, blocks::capacity_10),
    row(0x28, Who::All, true, blocks::read),
    row(0x2a, Who::Disk, true, blocks::write),
    // SEEK.
    row(0x2b, Who::All, true, nothing),
    row(0x2e, Who::Disk, true, blocks::write),
    row(0x2f, Who::All, true, blocks::verify),
    row(0x35, Who::All, true, blocks::synchronize),
    row(0x41, Who::Disk, true, ranges::write_same),
    row(0x42, Who::Disk, true, ranges::unmap),
    row(0x43, Who::Cd, true, cd::read_toc),
    row(0x46, Who::Cd, false, cd::configuration),
    row(0x4a, Who::Cd, false, cd::event_status),
    row(0x51, Who::Cd, true, cd::disc_information),
    row(0x55, Who::All, false, mode::select),
    row(0x5a, Who::All, false, mode::sense),
    row(0x88, Who::All, true, blocks::read),
    row(0x8a, Who::Disk, true, blocks::write),
    row(0x8e, Who::Disk, true, blocks::write),
    row(0x8f, Who::All, true, blocks::verify),
    row(0x91, Who::All, true, blocks::synchronize),
    row(0x93, Who::Disk, true, ranges::write_same),
    row(0x9e, Who::All, true, blocks::service_action_in),
    row(0xa8, Who::All, true, blocks::read),
    row(0xaa, Who::Disk, true, blocks::write),
    row(0xae, Who::Disk, true, blocks::write),
    row(0xaf, Who::All, true, blocks::verify),
    row(0xbd, Who::Cd, false, cd::mechanism_status),
];

/// The row of a command.
pub fn find(code: u8) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.code == code)
}

impl Command<'_> {
    /// Big-endian numbers of the command.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(std::array::from_fn(|index| self.cdb[at + index]))
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|index| self.cdb[at + index]))
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|index| self.cdb[at + index]))
    }

    /// Whether it asks for the units of a target, which any of them answers, and none as well.
    pub fn is_report_luns(&self) -> bool {
        self.cdb[0] == op::REPORT_LUNS
    }

    /// Gives the driver data, of which it wants `allocated` bytes at most. A buffer that is shorter gets less.
    pub fn reply(&mut self, data: &[u8], allocated: usize) -> u64 {
        self.into.write(&data[..data.len().min(allocated)]) as u64
    }

    /// Reads `len` bytes of parameters, of which there may be `most`.
    pub fn parameters(&mut self, len: usize, most: usize) -> Result<Vec<u8>, Trouble> {
        if len > most {
            return Err(Sense::INVALID_FIELD.into());
        }
        let mut data = vec![0; len];
        match self.out.read(&mut data) == len {
            true => Ok(data),
            false => Err(Trouble::Overrun),
        }
    }
}

/// The units of a target (SPC-4 6.33).
pub fn report_luns(luns: &[u16], command: &mut Command<'_>) -> Done {
    /// Select report: only well known units, of which there is none.
    const WELL_KNOWN_ONLY: u8 = 1;
    const LEAST: u32 = 16;
    let (select, allocated) = (command.cdb[2], command.u32(6));
    if select > 2 || allocated < LEAST {
        return Err(Sense::INVALID_FIELD.into());
    }
    let mut data = vec![0; 8];
    // Unit 0 is always listed: a driver asks there.
    let zero = (!luns.contains(&0)).then_some(0);
    for lun in zero.iter().chain(luns).filter(|_| select != WELL_KNOWN_ONLY) {
        data.extend_from_slice(&encode_lun(*lun));
        data.extend_from_slice(&[0; 6]);
    }
    let len = (data.len() - 8) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    Ok(command.reply(&data, allocated as usize))
}

/// The first level of a LUN: peripheral device addressing below 256, flat addressing above (SAM-5 4.7).
pub fn encode_lun(lun: u16) -> [u8; 2] {
    if lun < 256 { lun.to_be_bytes() } else { (lun | 0x4000).to_be_bytes() }
}

/// A command to a unit that there is not, of a target that there is.
pub fn without_unit(command: &mut Command<'_>) -> Done {
    match command.cdb[0] {
        op::INQUIRY => inquiry::without_unit(command),
        op::REQUEST_SENSE => {
            let allocated = usize::from(command.cdb[4]).min(SENSE_LEN);
            Ok(command.reply(&Sense::NO_UNIT.fixed(), allocated))
        }
        _ => Err(Sense::NO_UNIT.into()),
    }
}
