//! The interrupt pin of an emulated function: its line, the status bit that reports it, and the command bit that keeps it
//! low (PCI 6.2.2 and 6.2.3).

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::PciCore;
use super::regs::{COMMAND, COMMAND_INTX_DISABLE, STATUS, STATUS_INTERRUPT};
use crate::irq::{IrqLine, Router};

/// A function's pin. Its owner calls it with the owner's own lock held; it takes the core's registers and the line's lock,
/// and never calls back.
pub struct Pin {
    core: Arc<PciCore>,
    router: Arc<Router>,
    /// The wire is known from the function's attachment on.
    line: OnceLock<IrqLine>,
    /// Whether the function wants an interrupt. Held while the registers and the line follow, so that two threads cannot
    /// leave them at a stale level.
    wanted: Mutex<bool>,
}

impl Pin {
    /// The pin of `core`'s function.
    pub fn new(core: Arc<PciCore>, router: Arc<Router>) -> Pin {
        Pin { core, router, line: OnceLock::new(), wanted: Mutex::new(false) }
    }

    /// Whether the function wants an interrupt from now on.
    pub fn set(&self, wanted: bool) {
        let mut now = self.wanted.lock();
        if *now != wanted {
            *now = wanted;
            self.drive(wanted);
        }
    }

    /// Follows the registers, after the guest has changed the command register or the function was reset.
    pub fn settle(&self) {
        self.drive(*self.wanted.lock());
    }

    fn drive(&self, wanted: bool) {
        let allowed = self.core.with(|config| {
            let status = config.u16(STATUS) & !STATUS_INTERRUPT;
            config.set_u16(STATUS, if wanted { status | STATUS_INTERRUPT } else { status });
            config.u16(COMMAND) & COMMAND_INTX_DISABLE == 0
        });
        let asserted = wanted && allowed;
        match (self.line.get(), self.core.gsi()) {
            (Some(line), _) => line.set(asserted),
            (None, Some(gsi)) if asserted => self.line.get_or_init(|| self.router.line(gsi)).set(true),
            _ => {}
        }
    }
}
