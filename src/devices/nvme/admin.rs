//! The commands of the admin queue (NVMe 5).

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::queue::{Command, Cq, Shadow};
use super::registers::{MAX_ENTRIES, PAGE};
use super::shared::Shared;
use super::status::{Outcome, Status};
use super::{features, identify, prp};
use crate::guest_error;

/// Serves one command.
pub fn serve(shared: &Arc<Shared>, ram: &GuestMemoryMmap, command: &Command) -> Outcome {
    if command.has_sgl() {
        return Status::INVALID_FIELD.into();
    }
    let done = match command.opcode() {
        0x00 => delete_sq(shared, command),
        0x01 => create_sq(shared, command),
        0x02 => log(ram, command),
        0x04 => delete_cq(shared, command),
        0x05 => create_cq(shared, command),
        0x06 => identify::structure(shared, command.dword(10) as u8, command.namespace())
            .and_then(|data| give(ram, command, &data)),
        // Every other queue has its own thread: by the time that this is answered nothing can be aborted any more.
        0x08 => Ok(1),
        0x09 => return features::set(shared, command),
        0x0a => return features::get(shared, command),
        0x0c => return keep_event(shared, command),
        0x7c => doorbell_buffer(shared, command),
        _ => Err(Status::INVALID_OPCODE),
    };
    done.map_or_else(Outcome::Failed, Outcome::Done)
}

/// Gives the driver data where the command says.
fn give(ram: &GuestMemoryMmap, command: &Command, data: &[u8]) -> Result<u32, Status> {
    let mut into = prp::buffers(ram, data.len() as u64, command.qword(6), command.qword(8))?;
    into.write(data);
    Ok(0)
}

fn log(ram: &GuestMemoryMmap, command: &Command) -> Result<u32, Status> {
    let dwords = u64::from(command.dword(11) & 0xffff) << 16 | u64::from(command.dword(10) >> 16);
    let len = (dwords + 1) * 4;
    let offset = usize::try_from(command.qword(12)).map_err(|_| Status::INVALID_FIELD)?;
    let mut data = identify::log(command.dword(10) as u8)?;
    let behind = data.get(offset..).ok_or(Status::INVALID_FIELD)?.len();
    if len > prp::MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    // What is behind the end of the page reads as zeros.
    data.drain(..data.len() - behind);
    data.resize(len as usize, 0);
    give(ram, command, &data)
}

/// Number, entries and address of a queue to make.
fn queue(shared: &Shared, command: &Command) -> Result<(u16, u16, u64), Status> {
    let id = command.dword(10) as u16;
    let entries = (command.dword(10) >> 16) + 1;
    if !shared.has_queue(id) {
        return Err(Status::QID_INVALID);
    }
    if !(2..=u32::from(MAX_ENTRIES)).contains(&entries) {
        return Err(Status::QUEUE_SIZE);
    }
    // Only queues in one piece are known.
    if command.dword(11) & 1 == 0 {
        return Err(Status::INVALID_FIELD);
    }
    if !command.qword(6).is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET);
    }
    Ok((id, entries as u16, command.qword(6)))
}

fn create_cq(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let (id, entries, base) = queue(shared, command)?;
    if shared.cq(id).is_some() {
        return Err(Status::QID_INVALID);
    }
    let vector = (command.dword(11) >> 16) as u16;
    if vector >= shared.vectors() {
        return Err(Status::VECTOR_INVALID);
    }
    let interrupts = command.dword(11) & 2 != 0;
    shared.set_cq(id, Some(Cq::new(id, base, entries, interrupts.then_some(vector))));
    Ok(0)
}

fn create_sq(shared: &Arc<Shared>, command: &Command) -> Result<u32, Status> {
    let (id, entries, base) = queue(shared, command)?;
    let cq = (command.dword(11) >> 16) as u16;
    let cq = shared.cq(cq).filter(|_| cq != 0).ok_or(Status::CQ_INVALID)?;
    if shared.sq(id).is_some() {
        return Err(Status::QID_INVALID);
    }
    shared.run(id, base, entries, cq).map_err(|error| {
        guest_error!(shared.name(), "queue {id} has no thread: {error}");
        Status::INVALID_FIELD
    })?;
    Ok(0)
}

fn delete_sq(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let id = command.dword(10) as u16;
    match shared.has_queue(id) && shared.end(id) {
        true => Ok(0),
        false => Err(Status::QID_INVALID),
    }
}

fn delete_cq(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let id = command.dword(10) as u16;
    let cq = shared.cq(id).filter(|_| id != 0).ok_or(Status::QID_INVALID)?;
    if shared.all().iter().any(|sq| Arc::ptr_eq(&sq.cq, &cq)) {
        return Err(Status::QUEUE_DELETION);
    }
    shared.set_cq(id, None);
    Ok(0)
}

/// A command that would be answered if something happened, which nothing does: it ends with the queue.
fn keep_event(shared: &Shared, command: &Command) -> Outcome {
    let mut events = shared.events.lock();
    if events.len() >= identify::MAX_EVENTS {
        return Status::TOO_MANY_EVENTS.into();
    }
    events.push_back(command.id());
    Outcome::Kept
}

fn doorbell_buffer(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let (doorbells, events) = (command.qword(6), command.qword(8));
    if !doorbells.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET);
    }
    shared.set_shadow(Shadow { doorbells, events });
    Ok(0)
}
