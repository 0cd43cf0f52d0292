//! The commands of the other queues: reading, writing and what goes with it (NVMe 6).

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::namespace::Namespace;
use super::prp;
use super::queue::Command;
use super::shared::Shared;
use super::status::{Outcome, Status};
use crate::devices::disk::Undone;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Bits of dword 12: force unit access; deallocate.
const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
/// Of dword 11 of Dataset Management.
const DISCARD: u32 = 1 << 2;
/// Bytes of one of its ranges.
const RANGE: usize = 16;

/// Why a command was not done.
enum Failure {
    Status(Status),
    Undone(Undone, Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(status)
    }
}

/// What a request that a disk could not do comes to.
pub fn undone(undone: Undone, status: Status) -> Outcome {
    match undone {
        Undone::Failed(_) => status.into(),
        Undone::Stopped => Outcome::Later,
    }
}

/// Serves one command.
pub fn serve(shared: &Shared, ram: &GuestMemoryMmap, command: &Command) -> Outcome {
    let done = match command.has_sgl() {
        true => Err(Status::INVALID_FIELD.into()),
        false => execute(shared, ram, command),
    };
    match done {
        Ok(()) => Outcome::Done(0),
        Err(Failure::Status(status)) => status.into(),
        Err(Failure::Undone(error, status)) => undone(error, status),
    }
}

fn execute(shared: &Shared, ram: &GuestMemoryMmap, command: &Command) -> Result<(), Failure> {
    if command.opcode() == FLUSH && command.namespace() == u32::MAX {
        return shared.bus.all().iter().try_for_each(|(_, namespace)| changed(namespace.disk.flush()));
    }
    let namespace = shared.bus.find(command.namespace()).ok_or(Status::INVALID_NAMESPACE)?;
    match command.opcode() {
        FLUSH => changed(namespace.disk.flush()),
        READ => {
            let range = blocks(&namespace, command)?;
            let into = data(ram, command, &range)?;
            namespace
                .disk
                .read(range.start, into.slices())
                .map_err(|error| Failure::Undone(error, Status::UNRECOVERED_READ))
        }
        WRITE => {
            writable(&namespace)?;
            let range = blocks(&namespace, command)?;
            let from = data(ram, command, &range)?;
            changed(namespace.disk.write(range.start, from.slices()))?;
            on_medium(&namespace, command)
        }
        WRITE_ZEROES if namespace.disk.info().write_zeroes.is_some() => {
            writable(&namespace)?;
            let range = blocks(&namespace, command)?;
            changed(namespace.disk.write_zeroes(range, command.dword(12) & DEALLOCATE != 0))?;
            on_medium(&namespace, command)
        }
        DATASET_MANAGEMENT if namespace.disk.info().discard.is_some() => {
            writable(&namespace)?;
            manage(&namespace, ram, command)
        }
        _ => Err(Status::INVALID_OPCODE.into()),
    }
}

fn changed(done: Result<(), Undone>) -> Result<(), Failure> {
    done.map_err(|error| Failure::Undone(error, Status::WRITE_FAULT))
}

fn writable(namespace: &Namespace) -> Result<(), Status> {
    if namespace.disk.info().read_only { Err(Status::READ_ONLY) } else { Ok(()) }
}

/// With FUA what was changed is on the medium when the command is done.
fn on_medium(namespace: &Namespace, command: &Command) -> Result<(), Failure> {
    match command.dword(12) & FUA {
        0 => Ok(()),
        _ => changed(namespace.disk.flush()),
    }
}

/// The bytes of the blocks that a command names.
fn blocks(namespace: &Namespace, command: &Command) -> Result<Range<u64>, Status> {
    namespace.range(command.qword(10), u64::from(command.dword(12) & 0xffff) + 1)
}

fn data<'a>(
    ram: &'a GuestMemoryMmap,
    command: &Command,
    range: &Range<u64>,
) -> Result<crate::memory::Buffers<'a>, Status> {
    prp::buffers(ram, range.end - range.start, command.qword(6), command.qword(8))
}

/// Ranges that nobody needs any more; all are checked before one is given back. Other hints are heard and not used.
fn manage(namespace: &Namespace, ram: &GuestMemoryMmap, command: &Command) -> Result<(), Failure> {
    let count = (command.dword(10) & 0xff) as usize + 1;
    let mut from = prp::buffers(ram, (count * RANGE) as u64, command.qword(6), command.qword(8))?;
    if command.dword(11) & DISCARD == 0 {
        return Ok(());
    }
    let mut ranges = Vec::new();
    while let Some(range) = from.read_array::<RANGE>() {
        let [_, _, _, _, a, b, c, d, first @ ..] = range;
        ranges.push(namespace.range(u64::from_le_bytes(first), u32::from_le_bytes([a, b, c, d]).into())?);
    }
    let mut ranges = ranges.into_iter().filter(|range| !range.is_empty());
    ranges.try_for_each(|range| changed(namespace.disk.discard(range)))
}
