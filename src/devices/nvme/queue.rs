//! Submission and completion queues in guest memory (NVMe 4.1), and the thread that serves a submission queue.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use std::sync::{Arc, Weak};

use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::shared::Shared;
use super::status::Outcome;
use crate::guest_error;
use crate::virtio::Serve;

/// Bytes of a command and of a completion.
pub const COMMAND: u64 = 64;
pub const COMPLETION: u64 = 16;

/// A command.
pub struct Command {
    bytes: [u8; COMMAND as usize],
}

impl Command {
    /// A dword of it.
    pub fn dword(&self, index: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| self.bytes[4 * index + byte]))
    }

    /// Two dwords of it.
    pub fn qword(&self, index: usize) -> u64 {
        u64::from(self.dword(index + 1)) << 32 | u64::from(self.dword(index))
    }

    pub fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    /// Its identifier, which the completion repeats.
    pub fn id(&self) -> u16 {
        (self.dword(0) >> 16) as u16
    }

    pub fn namespace(&self) -> u32 {
        self.dword(1)
    }

    /// Whether its data are in a scatter gather list, which is not offered.
    pub fn has_sgl(&self) -> bool {
        self.bytes[1] >> 6 != 0
    }
}

/// A completion queue.
pub struct Cq {
    pub id: u16,
    base: u64,
    entries: u16,
    /// The vector of its interrupts, if it has any.
    pub vector: Option<u16>,
    state: Mutex<CqState>,
    /// Of the submission queues that complete here: rung when there is room again.
    waiting: Mutex<Vec<Weak<EventFd>>>,
}

#[derive(Default)]
struct CqState {
    head: u16,
    tail: u16,
    /// Whether the entries of this round have the phase bit clear.
    odd: bool,
}

/// A completion.
pub struct Completion {
    pub result: u32,
    pub sq: u16,
    pub sq_head: u16,
    pub command: u16,
    pub status: u16,
}

impl Cq {
    pub fn new(id: u16, base: u64, entries: u16, vector: Option<u16>) -> Arc<Cq> {
        Arc::new(Cq { id, base, entries, vector, state: Mutex::default(), waiting: Mutex::default() })
    }

    /// The driver has taken what is in front of `head`. Says whether there is something that it has not taken.
    pub fn set_head(&self, head: u16) -> bool {
        let mut state = self.state.lock();
        if head < self.entries {
            state.head = head;
        }
        let left = state.head != state.tail;
        drop(state);
        self.ring_waiting();
        left
    }

    pub fn is_inside(&self, index: u32) -> bool {
        index < self.entries.into()
    }

    /// Rings whoever waits for room.
    fn ring_waiting(&self) {
        for bell in std::mem::take(&mut *self.waiting.lock()).iter().filter_map(Weak::upgrade) {
            // EAGAIN would mean that the counter is at its maximum: rung all the same.
            let _ = bell.write(1);
        }
    }

    /// Whether there is room for a completion; if not, `bell` is rung when there is.
    fn has_room(&self, shared: &Shared, ram: &GuestMemoryMmap, bell: &Arc<EventFd>) -> bool {
        if let Some(head) = shared.shadow_of_cq(ram, self.id).filter(|head| self.is_inside(*head)) {
            self.state.lock().head = head as u16;
        }
        let is_full = || {
            let state = self.state.lock();
            (state.tail + 1) % self.entries == state.head
        };
        if !is_full() {
            return true;
        }
        let mut waiting = self.waiting.lock();
        if waiting.iter().all(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(bell))) {
            waiting.push(Arc::downgrade(bell));
        }
        drop(waiting);
        // The driver may have moved its head before it could see that somebody waits.
        let head = self.state.lock().head;
        if let Some(now) = shared.wait_for_cq(ram, self.id, head).filter(|head| self.is_inside(*head)) {
            self.state.lock().head = now as u16;
        }
        !is_full()
    }

    /// Shows the driver a completion, for which there is room.
    pub fn post(&self, ram: &GuestMemoryMmap, completion: &Completion) -> Result<(), vm_memory::GuestMemoryError> {
        let mut state = self.state.lock();
        let at = GuestAddress(self.base.wrapping_add(u64::from(state.tail) * COMPLETION));
        let mut front = [0; 12];
        front[..4].copy_from_slice(&completion.result.to_le_bytes());
        front[8..10].copy_from_slice(&completion.sq_head.to_le_bytes());
        front[10..].copy_from_slice(&completion.sq.to_le_bytes());
        let phase = u32::from(!state.odd);
        let last = u32::from(completion.status) << 17 | phase << 16 | u32::from(completion.command);
        ram.write_slice(&front, at)?;
        // The phase bit says that all of it is there.
        ram.store(last.to_le(), GuestAddress(at.0.wrapping_add(12)), Ordering::Release)?;
        state.tail = (state.tail + 1) % self.entries;
        if state.tail == 0 {
            state.odd = !state.odd;
        }
        Ok(())
    }
}

/// A submission queue.
pub struct Sq {
    pub id: u16,
    base: u64,
    entries: u16,
    pub cq: Arc<Cq>,
    /// What the driver has written to its doorbell.
    tail: AtomicU16,
    pub bell: Arc<EventFd>,
    /// No further command is taken.
    halted: AtomicBool,
    /// Where the next command is. Held for the length of a batch, by its thread.
    head: Mutex<u16>,
}

impl Sq {
    pub fn new(id: u16, base: u64, entries: u16, cq: Arc<Cq>, bell: Arc<EventFd>) -> Arc<Sq> {
        let (tail, halted) = (AtomicU16::new(0), AtomicBool::new(false));
        Arc::new(Sq { id, base, entries, cq, tail, bell, halted, head: Mutex::new(0) })
    }

    /// The driver's doorbell; a tail that is none is not taken.
    pub fn set_tail(&self, shared: &Shared, tail: u32) {
        match u16::try_from(tail).ok().filter(|tail| *tail < self.entries) {
            Some(tail) => self.tail.store(tail, Ordering::Release),
            None => guest_error!(shared.name(), "tail {tail} of queue {} with {} entries", self.id, self.entries),
        }
        self.ring();
    }

    /// Wakes its thread.
    pub fn ring(&self) {
        // EAGAIN would mean that the counter is at its maximum: rung all the same.
        let _ = self.bell.write(1);
    }

    /// Takes no further command.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::Release);
    }

    /// Returns when no command is at work any more, as long as none may begin.
    pub fn settle(&self) {
        drop(self.head.lock());
    }

    /// How far the driver is.
    fn tail_now(&self, shared: &Shared, ram: &GuestMemoryMmap) -> u16 {
        match shared.shadow_of_sq(ram, self.id) {
            Some(tail) if tail < self.entries.into() => tail as u16,
            Some(_) | None => self.tail.load(Ordering::Acquire),
        }
    }

    /// Serves what is there, at most once round, so that the thread hears of a stop.
    fn drain(&self, shared: &Arc<Shared>, serve: &mut dyn FnMut(&GuestMemoryMmap, &Command, u16) -> Outcome) {
        let mut head = self.head.lock();
        let ram = match shared.ram() {
            Ok(ram) => ram,
            Err(error) => return guest_error!(shared.name(), "there is no memory: {error}"),
        };
        let ram = ram.memory();
        for _ in 0..self.entries {
            if *head == self.tail_now(shared, ram) {
                // Before its thread sleeps the driver is told from where on to ring.
                let tail = shared.wait_for_sq(ram, self.id, *head).filter(|tail| *tail < self.entries.into());
                if tail.is_none_or(|tail| tail == u32::from(*head)) {
                    return;
                }
            }
            // Memory is only touched while the function masters the bus, which is asked for each command.
            if self.halted.load(Ordering::Acquire) || !shared.may_run() || !self.cq.has_room(shared, ram, &self.bell) {
                return;
            }
            let mut bytes = [0; COMMAND as usize];
            let at = GuestAddress(self.base.wrapping_add(u64::from(*head) * COMMAND));
            if let Err(error) = ram.read_slice(&mut bytes, at) {
                return guest_error!(shared.name(), "queue {} is not in memory: {error}", self.id);
            }
            let command = Command { bytes };
            let next = (*head + 1) % self.entries;
            let (result, status) = match serve(ram, &command, next) {
                Outcome::Later => return,
                Outcome::Kept => {
                    *head = next;
                    continue;
                }
                Outcome::Done(result) => (result, 0),
                Outcome::Failed(status) => (0, status.0),
            };
            *head = next;
            let done = Completion { result, sq: self.id, sq_head: next, command: command.id(), status };
            shared.complete(ram, &self.cq, &done);
        }
        self.ring();
    }
}

/// What the thread of a submission queue does.
pub struct Server<F> {
    pub shared: Arc<Shared>,
    pub sq: Arc<Sq>,
    pub serve: F,
}

impl<F: FnMut(&GuestMemoryMmap, &Command, u16) -> Outcome + Send> Serve for Server<F> {
    fn ready(&mut self, _: usize) {
        self.sq.drain(&self.shared, &mut self.serve);
    }
}

/// Where the driver writes its doorbells besides, so that most of them need no exit (NVMe 5.7, Doorbell Buffer Config).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow {
    /// The doorbells.
    pub doorbells: u64,
    /// From where on the driver is to write to the real ones.
    pub events: u64,
}

impl Shadow {
    /// Offset of a queue's doorbell in both.
    fn offset(id: u16, completion: bool) -> u64 {
        8 * u64::from(id) + if completion { 4 } else { 0 }
    }

    /// A doorbell.
    pub fn load(self, ram: &GuestMemoryMmap, id: u16, completion: bool) -> Option<u32> {
        let at = GuestAddress(self.doorbells.wrapping_add(Shadow::offset(id, completion)));
        ram.load(at, Ordering::Acquire).ok().map(u32::from_le)
    }

    /// Wants to hear of what lies behind `index`, and gives what the driver has written by then.
    pub fn arm(self, ram: &GuestMemoryMmap, id: u16, completion: bool, index: u16) -> Option<u32> {
        let at = GuestAddress(self.events.wrapping_add(Shadow::offset(id, completion)));
        ram.store(u32::from(index).to_le(), at, Ordering::Release).ok()?;
        // The driver writes its doorbell, then looks at this; it must not have looked before it was written.
        fence(Ordering::SeqCst);
        self.load(ram, id, completion)
    }
}
