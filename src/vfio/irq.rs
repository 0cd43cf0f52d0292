//! Interrupts of a passed-through function: which kind VFIO delivers, and by which eventfds.
//!
//! When the guest switches MSI-X or MSI on, all of the device's eventfds go to VFIO in one request: some devices count a
//! vector as used only if it is enabled when a queue is made, and a VMM that arms at the first unmask loses the first
//! interrupt. What is masked is disconnected from KVM only ([`crate::irq::Router`]), so the eventfd counts and stays
//! pending. The enable bits are never forwarded: VFIO sets the hardware's when it gets the eventfds.
//!
//! The pin's interrupt goes from VFIO to KVM by one eventfd, and the guest's end of interrupt back by another; VFIO masks
//! the pin when it fires and unmasks it then. A pin that is on stays armed while the command register disables it: the bit
//! goes to VFIO, which masks the pin by it and keeps an end of interrupt from unmasking it. Drivers such as
//! uio_pci_generic set and clear the bit at each interrupt.
//!
//! Where a device cannot mask its pin by that bit (before PCI 2.3, or broken), the kernel masks the line of the host's
//! interrupt controller instead, and asks for that line alone: another driver on it is a refusal (EBUSY). Nothing else
//! differs.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::seams::{HostPci, IrqKind};
use crate::error::explain_io;
use crate::guest_error;
use crate::irq::{Resample, Router};
use crate::pci::{PciCore, regs};

/// What the guest has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// No interrupt.
    #[default]
    Off,
    /// The pin, wired to this GSI.
    Intx {
        /// Global system interrupt.
        gsi: u32,
    },
    /// MSI with this number of vectors.
    Msi {
        /// Vectors that the guest allows.
        vectors: usize,
    },
    /// MSI-X, all vectors.
    Msix,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Off => f.write_str("none"),
            Mode::Intx { gsi } => write!(f, "INTx on GSI {gsi}"),
            Mode::Msi { vectors } => write!(f, "MSI with {vectors} messages"),
            Mode::Msix => f.write_str("MSI-X"),
        }
    }
}

impl Mode {
    fn kind(self) -> Option<IrqKind> {
        match self {
            Mode::Off => None,
            Mode::Intx { .. } => Some(IrqKind::Intx),
            Mode::Msi { .. } => Some(IrqKind::Msi),
            Mode::Msix => Some(IrqKind::Msix),
        }
    }
}

/// What the registers ask for. MSI-X goes before MSI and MSI before the pin (PCI 6.8.3.1); the pin is used once the guest
/// lets the function answer at all, so a device that nobody drives costs nothing. `now` is what is armed: the disable bit
/// keeps a pin from being armed, and does not disarm it.
pub fn wanted(core: &PciCore, now: Mode) -> Mode {
    let command = core.command();
    let vectors = core.msi().map_or(0, |msi| msi.enabled_vectors());
    if core.msix().is_some_and(|msix| msix.enabled()) {
        return Mode::Msix;
    }
    if vectors > 0 {
        return Mode::Msi { vectors };
    }
    let answers = command & (regs::COMMAND_IO | regs::COMMAND_MEMORY | regs::COMMAND_BUS_MASTER) != 0;
    let enabled = command & regs::COMMAND_INTX_DISABLE == 0;
    match (core.pin(), core.gsi()) {
        (Some(_), Some(gsi)) if answers && (enabled || now == Mode::Intx { gsi }) => Mode::Intx { gsi },
        _ => Mode::Off,
    }
}

/// The interrupts of one function.
pub struct Interrupts {
    host: Arc<dyn HostPci>,
    router: Arc<Router>,
    /// Held while VFIO is told, so that it sees the changes in their order.
    armed: Mutex<Armed>,
    /// Called when VFIO delivers another kind, with `armed` held: it may only post a task.
    changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Armed {
    mode: Mode,
    /// What VFIO refused to take back: it delivers no other kind before that has worked.
    kept: Option<IrqKind>,
    /// The pin's connection to KVM.
    pin: Option<Resample>,
}

impl Interrupts {
    /// Nothing is armed.
    pub fn new(host: Arc<dyn HostPci>, router: Arc<Router>) -> Interrupts {
        Interrupts { host, router, armed: Mutex::default(), changed: OnceLock::new() }
    }

    /// Has `changed` called whenever VFIO has begun to deliver another kind of interrupt; the first call counts. It is
    /// called with a lock held, and may only post a task.
    pub fn on_change(&self, changed: Box<dyn Fn() + Send + Sync>) {
        let _ = self.changed.set(changed);
    }

    /// What VFIO delivers now.
    pub fn mode(&self) -> Mode {
        self.armed.lock().mode
    }

    /// Brings VFIO to what the registers ask for. VFIO delivers one kind at a time: the old one goes first.
    pub fn follow(&self, core: &PciCore) {
        let mut armed = self.armed.lock();
        let mode = wanted(core, armed.mode);
        if mode == armed.mode {
            return;
        }
        self.disarm(&mut armed);
        let done = match mode {
            Mode::Off => Ok(()),
            Mode::Intx { gsi } => self.arm_pin(&mut armed, gsi),
            Mode::Msi { vectors } => {
                self.arm_messages(IrqKind::Msi, core.msi().map(|msi| msi.eventfds()).unwrap_or_default(), vectors)
            }
            Mode::Msix => {
                let fds = core.msix().map(|msix| msix.eventfds()).unwrap_or_default();
                let vectors = fds.len();
                self.arm_messages(IrqKind::Msix, fds, vectors)
            }
        };
        match done {
            Ok(()) => {
                armed.mode = mode;
                if let (true, Some(changed)) = (mode != Mode::Off, self.changed.get()) {
                    changed();
                }
            }
            Err(error) => {
                guest_error!(self.host.name(), "no interrupts by {mode}: {}{}", explain_io(&error), hint(mode, &error));
            }
        }
    }

    /// Silences the device: a reset, or the end.
    pub fn off(&self) {
        self.disarm(&mut self.armed.lock());
    }

    fn disarm(&self, armed: &mut Armed) {
        if let Some(kind) = armed.mode.kind().or(armed.kept) {
            self.take_back(armed, kind);
        }
        armed.mode = Mode::Off;
        // After VFIO: the eventfds have no writer any more.
        armed.pin = None;
    }

    fn take_back(&self, armed: &mut Armed, kind: IrqKind) {
        armed.kept = self.host.disarm(kind).err().map(|error| {
            guest_error!(self.host.name(), "VFIO kept its interrupts: {}", explain_io(&error));
            kind
        });
    }

    fn arm_messages(&self, kind: IrqKind, fds: Vec<&EventFd>, vectors: usize) -> io::Result<()> {
        let fds: Vec<Option<&EventFd>> = fds.into_iter().take(vectors).map(Some).collect();
        if fds.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.host.arm(kind, 0, &fds)
    }

    fn arm_pin(&self, armed: &mut Armed, gsi: u32) -> io::Result<()> {
        // KVM first: an interrupt that fires at once finds its way.
        let pin = self.router.resample(gsi).map_err(|error| io::Error::other(error.to_string()))?;
        self.host.arm(IrqKind::Intx, 0, &[Some(pin.trigger())])?;
        if let Err(error) = self.host.unmask_fd(IrqKind::Intx, pin.unmask()) {
            // Without it the first interrupt would be the last.
            self.take_back(armed, IrqKind::Intx);
            return Err(error);
        }
        armed.pin = Some(pin);
        Ok(())
    }
}

/// What a refusal means, where the kernel's answer alone does not say it.
fn hint(mode: Mode, error: &io::Error) -> &'static str {
    match (mode, error.raw_os_error()) {
        (Mode::Intx { .. }, Some(libc::EBUSY)) => {
            "; the device cannot mask its pin, and another driver of the host has the same line (/proc/interrupts): \
             unbind that driver, or use another slot"
        }
        (_, Some(libc::EMFILE)) => "; raise the limit of open files",
        _ => "",
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.off();
    }
}
