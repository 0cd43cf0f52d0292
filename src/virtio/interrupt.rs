//! How a virtio device interrupts: by an MSI-X vector of each queue and one of the configuration, or by the pin and the
//! ISR status register (virtio 4.1.4.5 and 4.1.5.3).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::{IrqLine, Router};
use crate::pci::PciCore;
use crate::pci::regs::{STATUS, STATUS_INTERRUPT};

/// The driver wants no interrupt (VIRTIO_MSI_NO_VECTOR).
pub const NO_VECTOR: u16 = 0xffff;

/// The bits of the ISR status register.
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// How an interrupt comes to the guest.
pub(super) enum Way {
    /// Whoever signals this eventfd interrupts: KVM waits for it.
    Vector(EventFd),
    /// The driver wants none.
    Nowhere,
    /// Only by [`Interrupts::queue`].
    Pin,
}

/// The interrupts of one device. Callable from any thread; nothing of the transport's lock is taken.
pub struct Interrupts {
    core: Arc<PciCore>,
    router: Arc<Router>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    /// Changes whenever the configuration space does.
    generation: AtomicU8,
    needs_reset: AtomicBool,
    /// The ISR status register. Held while the pin's level follows it.
    isr: Mutex<u8>,
    /// The pin's wire, once the function is on a bus.
    line: OnceLock<IrqLine>,
}

impl Interrupts {
    pub(super) fn new(core: Arc<PciCore>, router: Arc<Router>, queues: u16) -> Arc<Interrupts> {
        Arc::new(Interrupts {
            core,
            router,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            isr: Mutex::new(0),
            line: OnceLock::new(),
        })
    }

    /// The device's name for people.
    pub fn name(&self) -> &Arc<str> {
        self.core.name()
    }

    /// Something was used in a queue.
    pub fn queue(&self, index: u16) {
        if let Some(vector) = self.queues.get(usize::from(index)) {
            self.raise(vector.load(Ordering::Relaxed), ISR_QUEUE);
        }
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(self.config.load(Ordering::Relaxed), ISR_CONFIG);
    }

    /// The device cannot go on before the driver resets it (virtio 2.1.2).
    pub(super) fn need_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(vector, Ordering::Relaxed);
    }

    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(queue) = self.queues.get(usize::from(index)) {
            queue.store(vector, Ordering::Relaxed);
        }
    }

    /// Reads the ISR status register, which clears it and lowers the pin.
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = self.isr.lock();
        let taken = std::mem::take(&mut *isr);
        self.follow(*isr);
        taken
    }

    /// The pin follows the command register's interrupt disable bit and MSI-X being switched.
    pub(super) fn pin_changed(&self) {
        self.follow(*self.isr.lock());
    }

    /// As after power-on.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.set_config_vector(NO_VECTOR);
        self.queues.iter().for_each(|queue| queue.store(NO_VECTOR, Ordering::Relaxed));
        self.take_isr();
    }

    /// How a queue's interrupt comes to the guest, as driver and function have it now.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn way(&self, index: u16) -> io::Result<Way> {
        let Some(msix) = self.core.msix().filter(|msix| msix.enabled()) else { return Ok(Way::Pin) };
        let vector = self.queues.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed));
        match msix.eventfds().get(usize::from(vector)) {
            Some(fd) => fd.try_clone().map(Way::Vector),
            None => Ok(Way::Nowhere),
        }
    }

    fn uses_msix(&self) -> bool {
        self.core.msix().is_some_and(|msix| msix.enabled())
    }

    fn raise(&self, vector: u16, cause: u8) {
        match self.core.msix() {
            Some(msix) if msix.enabled() => {
                if vector != NO_VECTOR {
                    msix.fire(usize::from(vector));
                }
            }
            _ => {
                let mut isr = self.isr.lock();
                *isr |= cause;
                self.follow(*isr);
            }
        }
    }

    /// Brings the pin and the status bit that mirrors it to what the register says. Called with the register's lock held.
    fn follow(&self, isr: u8) {
        let Some(gsi) = self.core.gsi() else { return };
        let asserted = isr != 0 && !self.uses_msix();
        self.core.with(|config| {
            let status = config.u16(STATUS);
            let wanted = if asserted { status | STATUS_INTERRUPT } else { status & !STATUS_INTERRUPT };
            if wanted != status {
                config.set_u16(STATUS, wanted);
            }
        });
        let line = self.line.get_or_init(|| self.router.line(gsi));
        line.set(asserted && !self.core.intx_disabled());
    }
}
