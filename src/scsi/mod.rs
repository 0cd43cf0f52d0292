//! SCSI disks and CD drives (SPC-4, SBC-3, MMC-6): the devices of a host adapter's bus, whatever the adapter is.
//!
//! | file | what |
//! |---|---|
//! | `bus` | who is at which address; the way of a command to its unit |
//! | `command` | the table of commands: their lengths, who knows them, what does them |
//! | `inquiry`, `mode` | what a unit says of itself, and what can be switched |
//! | `blocks`, `ranges` | reading and writing; ranges that are unmapped or filled |
//! | `cd` | what only a CD drive has |
//! | `sense` | how a unit says what was wrong |
//! | `disk`, `front_end` | a unit; the device types `scsi-hd` and `scsi-cd` |
//!
//! Units are called from the adapter's threads, several at once. **Locks**, outermost first: the bus's table, which is
//! read-held for the length of a command, so that a unit that is taken off its bus is not at work any more; a unit's state,
//! with which nothing is called.

mod blocks;
mod bus;
mod cd;
mod command;
mod disk;
mod front_end;
mod inquiry;
mod mode;
mod ranges;
mod sense;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use bus::{Address, Change, MAX_LUN, MAX_TARGET, ScsiBus};
pub use command::{Answer, Command};
pub use front_end::{CD, DISK};
pub use sense::{SENSE_LEN, Sense};
