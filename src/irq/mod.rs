//! Interrupts: level-triggered lines, message-signalled vectors, and the one table of routes behind both.
//!
//! A [`MsiVector`] is an eventfd from its first moment. It gets a GSI, a route and an irqfd lazily, when it is first
//! unmasked, and loses the irqfd (not the eventfd) while it is masked: what fires meanwhile stays readable in the eventfd
//! and is injected by KVM when the irqfd is attached again. An [`IrqLine`] is a wire that several sources share.

mod level;
mod line;
mod router;

use std::io;

use vmm_sys_util::eventfd::EventFd;

pub use level::Resample;
pub use line::IrqLine;
pub use router::{MsiVector, Router};

/// Number of pins of the IOAPIC, which are GSI 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// Number of GSIs. KVM takes a table of 4096 routes, and the pins below 16 have two each.
pub const GSI_COUNT: u32 = 4096 - 16;

/// The address and data that a message-signalled interrupt writes (PCI Local Bus 3.0, section 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// What a GSI is wired to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A pin (0 to 7) of the master (0) or slave (1) 8259.
    Pic {
        /// 0: master, 1: slave.
        chip: u32,
        /// Pin of that chip.
        pin: u32,
    },
    /// A pin (0 to 23) of the IOAPIC.
    IoApic {
        /// The pin.
        pin: u32,
    },
    /// A message to local APICs.
    Msi(MsiMessage),
}

/// One entry of the table of routes. A GSI may have several, one for each chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Global system interrupt.
    pub gsi: u32,
    /// Where it goes.
    pub target: Target,
}

/// The interrupt controller as devices' code sees it: KVM's in-kernel chips, or a recorder in tests.
pub trait IrqChip: Send + Sync {
    /// Sets the level of a GSI that is wired to a pin.
    fn set_level(&self, gsi: u32, high: bool) -> io::Result<()>;
    /// Replaces the whole table of routes.
    fn commit_routes(&self, routes: &[Route]) -> io::Result<()>;
    /// From now on the eventfd triggers the GSI. With `resample`, the GSI is level-triggered: it stays high until the
    /// guest's end of interrupt, which lowers it and signals `resample`.
    fn attach(&self, gsi: u32, fd: &EventFd, resample: Option<&EventFd>) -> io::Result<()>;
    /// Ends `attach` of the same two.
    fn detach(&self, gsi: u32, fd: &EventFd) -> io::Result<()>;
}

/// The routes of the pins as a PC has them: GSI 0 to 15 to the 8259s (2 is the cascade), GSI 0 to 23 to the IOAPIC's pin
/// of the same number, except that the timer, IRQ 0, is wired to pin 2 (as MADT's override says).
pub fn pin_routes() -> Vec<Route> {
    let pic =
        (0..16).filter(|&gsi| gsi != 2).map(|gsi| Route { gsi, target: Target::Pic { chip: gsi / 8, pin: gsi % 8 } });
    let ioapic = (0..IOAPIC_PINS).filter(|&gsi| gsi != 2).map(|gsi| {
        let pin = if gsi == 0 { 2 } else { gsi };
        Route { gsi, target: Target::IoApic { pin } }
    });
    pic.chain(ioapic).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    //! A recorder in the place of KVM.
    use super::*;
    use parking_lot::Mutex;
    use std::os::fd::AsRawFd;

    /// Remembers every call, in order.
    #[derive(Default)]
    pub struct Recorder {
        pub calls: Mutex<Vec<String>>,
        pub routes: Mutex<Vec<Route>>,
        pub attached: Mutex<Vec<(u32, i32)>>,
    }

    impl Recorder {
        pub fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.calls.lock())
        }
    }

    impl IrqChip for Recorder {
        fn set_level(&self, gsi: u32, high: bool) -> io::Result<()> {
            self.calls.lock().push(format!("level {gsi} {high}"));
            Ok(())
        }
        fn commit_routes(&self, routes: &[Route]) -> io::Result<()> {
            let messages = routes.iter().filter(|route| matches!(route.target, Target::Msi(_))).count();
            self.calls.lock().push(format!("routes {messages}"));
            *self.routes.lock() = routes.to_vec();
            Ok(())
        }
        fn attach(&self, gsi: u32, fd: &EventFd, resample: Option<&EventFd>) -> io::Result<()> {
            let kind = if resample.is_some() { "resample" } else { "edge" };
            self.calls.lock().push(format!("attach {gsi} {kind}"));
            self.attached.lock().push((gsi, fd.as_raw_fd()));
            Ok(())
        }
        fn detach(&self, gsi: u32, fd: &EventFd) -> io::Result<()> {
            self.calls.lock().push(format!("detach {gsi}"));
            self.attached.lock().retain(|entry| *entry != (gsi, fd.as_raw_fd()));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_goes_to_pin_two_and_the_cascade_nowhere() {
        let routes = pin_routes();
        assert_eq!(routes.len(), 15 + 23);
        assert!(routes.iter().all(|route| route.gsi != 2));
        assert!(routes.contains(&Route { gsi: 0, target: Target::IoApic { pin: 2 } }));
        assert!(routes.contains(&Route { gsi: 9, target: Target::IoApic { pin: 9 } }));
        assert!(routes.contains(&Route { gsi: 9, target: Target::Pic { chip: 1, pin: 1 } }));
        assert!(routes.contains(&Route { gsi: 23, target: Target::IoApic { pin: 23 } }));
    }
}
