//! What the controller's threads have in common.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Mutex, RwLock};
use vm_memory::GuestMemoryMmap;

use super::features::Features;
use super::namespace::NvmeBus;
use super::queue::{Completion, Cq, Server, Shadow, Sq};
use super::registers::Admin;
use super::{admin, io};
use crate::error::{Error, Result};
use crate::guest_error;
use crate::memory::ram::{GuestRam, LiveRam};
use crate::pci::PciCore;
use crate::pci::pin::Pin;
use crate::virtio::{Source, Worker, worker_name};

/// What the user says of a controller.
#[derive(Debug, Clone)]
pub struct Options {
    pub serial: String,
    /// Pairs of queues for reading and writing.
    pub pairs: u16,
}

/// The controller without its registers.
pub struct Shared {
    pub options: Options,
    pub bus: Arc<NvmeBus>,
    core: Arc<PciCore>,
    pin: Arc<Pin>,
    ram: Arc<LiveRam>,
    /// By their numbers; 0 is the admin queue's.
    sqs: RwLock<Vec<Option<Running>>>,
    cqs: RwLock<Vec<Option<Arc<Cq>>>>,
    shadow: RwLock<Option<Shadow>>,
    pub features: Mutex<Features>,
    /// Identifiers of the commands that wait for an event.
    pub events: Mutex<VecDeque<u16>>,
    /// The vectors that have something to tell by the pin, and those that the driver has masked.
    pending: Mutex<u64>,
    masked: AtomicU64,
}

/// A submission queue and its thread.
struct Running {
    sq: Arc<Sq>,
    worker: Worker,
}

impl Shared {
    /// A controller that stands still.
    pub fn new(
        options: Options,
        bus: Arc<NvmeBus>,
        core: Arc<PciCore>,
        pin: Arc<Pin>,
        ram: Arc<LiveRam>,
    ) -> Arc<Shared> {
        let queues = usize::from(options.pairs) + 1;
        Arc::new(Shared {
            options,
            bus,
            core,
            pin,
            ram,
            sqs: RwLock::new((0..queues).map(|_| None).collect()),
            cqs: RwLock::new(vec![None; queues]),
            shadow: RwLock::default(),
            features: Mutex::default(),
            events: Mutex::default(),
            pending: Mutex::default(),
            masked: AtomicU64::new(0),
        })
    }

    pub fn name(&self) -> &Arc<str> {
        self.core.name()
    }

    pub fn ram(&self) -> Result<Arc<GuestRam>> {
        self.ram.now()
    }

    /// Whether the function may reach memory.
    pub fn may_run(&self) -> bool {
        self.core.bus_master() && self.core.power_state() == 0
    }

    /// Whether a queue number is one that the controller has.
    pub fn has_queue(&self, id: u16) -> bool {
        (1..=self.options.pairs).contains(&id)
    }

    /// Vectors that a queue can have.
    pub fn vectors(&self) -> u16 {
        self.core.msix().map_or(1, |msix| msix.spec().vectors)
    }

    /// Begins with the admin queues.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn start(self: &Arc<Self>, admin: Admin) -> Result<()> {
        let cq = Cq::new(0, admin.cq, admin.cq_entries, Some(0));
        self.set_cq(0, Some(cq.clone()));
        self.run(0, admin.sq, admin.sq_entries, cq)
    }

    /// Starts the thread of a submission queue.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn run(self: &Arc<Self>, id: u16, base: u64, entries: u16, cq: Arc<Cq>) -> Result<()> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        let bell = Arc::new(bell);
        let sq = Sq::new(id, base, entries, cq, bell.clone());
        let name = worker_name(self.name(), id.into());
        let (shared, of) = (self.clone(), self.clone());
        let sources = vec![Source::Event(bell)];
        let worker = match id {
            0 => {
                let serve = move |ram: &GuestMemoryMmap, command: &_, _| admin::serve(&of, ram, command);
                Worker::start(&name, sources, Server { shared, sq: sq.clone(), serve })
            }
            _ => {
                let serve = move |ram: &GuestMemoryMmap, command: &_, _| io::serve(&of, ram, command);
                Worker::start(&name, sources, Server { shared, sq: sq.clone(), serve })
            }
        }?;
        if let Some(slot) = self.sqs.write().get_mut(usize::from(id)) {
            *slot = Some(Running { sq, worker });
        }
        Ok(())
    }

    /// Ends the thread of a submission queue; says whether there was one.
    pub fn end(&self, id: u16) -> bool {
        let running = self.sqs.write().get_mut(usize::from(id)).and_then(Option::take);
        let is_there = running.is_some();
        if let Some(Running { sq, worker }) = running {
            sq.halt();
            // Without the table's lock: waits for the command that it is at.
            drop(worker);
        }
        is_there
    }

    /// As after power-on: no queue is touched any more when it returns. Not for a thread of the controller.
    pub fn stop(&self) {
        // The first creates the others.
        for id in 0..=self.options.pairs {
            self.end(id);
        }
        self.cqs.write().fill(None);
        *self.shadow.write() = None;
        *self.features.lock() = Features::default();
        self.events.lock().clear();
        *self.pending.lock() = 0;
        self.pin.set(false);
    }

    pub fn cq(&self, id: u16) -> Option<Arc<Cq>> {
        self.cqs.read().get(usize::from(id)).cloned().flatten()
    }

    pub fn set_cq(&self, id: u16, cq: Option<Arc<Cq>>) {
        if let Some(slot) = self.cqs.write().get_mut(usize::from(id)) {
            *slot = cq;
        }
    }

    pub fn sq(&self, id: u16) -> Option<Arc<Sq>> {
        self.sqs.read().get(usize::from(id))?.as_ref().map(|running| running.sq.clone())
    }

    /// All submission queues.
    pub fn all(&self) -> Vec<Arc<Sq>> {
        self.sqs.read().iter().flatten().map(|running| running.sq.clone()).collect()
    }

    /// The driver wrote a doorbell: even numbers are of submission queues.
    pub fn doorbell(&self, number: u64, value: u32) {
        let id = u16::try_from(number / 2).unwrap_or(u16::MAX);
        if number.is_multiple_of(2) {
            if let Some(sq) = self.sq(id) {
                sq.set_tail(self, value);
            }
        } else if let Some(cq) = self.cq(id).filter(|cq| cq.is_inside(value)) {
            // Inside, so of 16 bits.
            let left = cq.set_head(value as u16);
            if let Some(vector) = cq.vector.filter(|_| !left) {
                *self.pending.lock() &= !bit(vector);
                self.settle_pin();
            }
        }
    }

    /// Shows a completion to the driver, and interrupts it.
    pub fn complete(&self, ram: &GuestMemoryMmap, cq: &Cq, completion: &Completion) {
        if let Err(error) = cq.post(ram, completion) {
            return guest_error!(self.name(), "completion queue {} is not in memory: {error}", cq.id);
        }
        let Some(vector) = cq.vector else { return };
        match self.core.msix().filter(|msix| msix.enabled()) {
            Some(msix) => msix.fire(usize::from(vector)),
            None => {
                *self.pending.lock() |= bit(vector);
                self.settle_pin();
            }
        }
    }

    /// The driver has masked these vectors of the pin.
    pub fn set_mask(&self, mask: u32) {
        self.masked.store(mask.into(), Ordering::Relaxed);
        self.settle_pin();
    }

    /// The pin follows what is pending.
    pub fn settle_pin(&self) {
        let pending = self.pending.lock();
        let msix = self.core.msix().is_some_and(|msix| msix.enabled());
        self.pin.set(!msix && *pending & !self.masked.load(Ordering::Relaxed) != 0);
    }

    pub fn set_shadow(&self, shadow: Shadow) {
        *self.shadow.write() = Some(shadow);
    }

    /// The admin queue has real doorbells only.
    fn shadow(&self, id: u16) -> Option<Shadow> {
        self.shadow.read().filter(|_| id != 0)
    }

    pub fn shadow_of_sq(&self, ram: &GuestMemoryMmap, id: u16) -> Option<u32> {
        self.shadow(id)?.load(ram, id, false)
    }

    pub fn shadow_of_cq(&self, ram: &GuestMemoryMmap, id: u16) -> Option<u32> {
        self.shadow(id)?.load(ram, id, true)
    }

    /// Wants to hear when the driver adds commands behind `head`, and gives how far it is.
    pub fn wait_for_sq(&self, ram: &GuestMemoryMmap, id: u16, head: u16) -> Option<u32> {
        self.shadow(id)?.arm(ram, id, false, head)
    }

    /// Wants to hear when the driver takes completions, and gives how far it is.
    pub fn wait_for_cq(&self, ram: &GuestMemoryMmap, id: u16, head: u16) -> Option<u32> {
        self.shadow(id)?.arm(ram, id, true, head)
    }
}

fn bit(vector: u16) -> u64 {
    1 << (vector % 64)
}
