//! What every device of the machine has in common: what making one needs, and what can be asked of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::backends::Backends;
use crate::error::Result;
use crate::irq::Router;
use crate::memory::Memory;
use crate::object::prop_enum;
use crate::pci::decode::Decode;
use crate::pci::view::BarUse;
use crate::pci::{PciBus, PciFunction};
use crate::vfio::Vfio;

/// A device that was plugged. Its drop order is its unplug order: leases and mappings go when the last owner goes.
pub trait Device: Send + Sync {
    /// The id that the user gave, or one that the machine made.
    fn id(&self) -> &str;

    /// Puts the device into the state after power-on. Called with every vCPU stopped, at the start and at each guest
    /// reset; bus mastering is off when it returns, so that memory can be used anew.
    fn reset(&self);

    /// The second half of a reset: what resets several functions at once, after each of them has been through
    /// [`Device::reset`].
    fn reset_shared(&self) {}

    /// What there is to say of the device now, for people: name and value.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// How its BARs answer the guest, if it is passed through.
    fn bars(&self) -> Vec<BarUse> {
        Vec::new()
    }

    /// Whether all that the device may reach by DMA is mapped for it, so that a guest which runs can be shown it; `None`:
    /// not yet.
    fn mapped(&self) -> Option<Result<()>> {
        Some(Ok(()))
    }

    /// What the host may say of the device while it runs. Asked once, when it was plugged.
    ///
    /// # Errors
    /// The process may not have another descriptor.
    fn notices(&self) -> Result<Vec<NoticeFd>> {
        Ok(Vec::new())
    }

    /// What is done when the host says something.
    fn policy(&self) -> Policy {
        Policy::default()
    }

    /// The registers that tell of an error, as they are now.
    fn report_error(&self) -> ErrorReport {
        ErrorReport::default()
    }

    /// Silences the host's side for good: no interrupt, no DMA. Later accesses by the guest read as ones. Idempotent.
    fn unplug(&self) {}
}

/// What the host can say of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It wants the device back.
    Request,
    /// The device had an uncorrectable error.
    Error,
}

/// A descriptor that becomes readable when the host says something.
pub struct NoticeFd {
    /// What it says.
    pub notice: Notice,
    /// What to wait for.
    pub watch: OwnedFd,
    /// The same eventfd, to empty it.
    pub fd: Arc<EventFd>,
}

prop_enum! {
    /// What is done when a device had an uncorrectable error.
    #[derive(Default)]
    pub enum OnError {
        #[default]
        Pause = "pause",
        Reset = "reset",
        Detach = "detach",
        Poweroff = "poweroff",
        Ignore = "ignore",
    }
}

impl OnError {
    /// The word that the user writes.
    pub fn name(self) -> &'static str {
        match self {
            OnError::Pause => "pause",
            OnError::Reset => "reset",
            OnError::Detach => "detach",
            OnError::Poweroff => "poweroff",
            OnError::Ignore => "ignore",
        }
    }
}

/// What is done when the host says something of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// After an uncorrectable error.
    pub on_error: OnError,
    /// How long the guest has to give the device up when the host wants it back.
    pub request_timeout: Duration,
}

/// What the registers tell of a device's error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorReport {
    /// The host's address of the device.
    pub host: String,
    /// Names and values; `None`: the register cannot be read.
    pub registers: Vec<(&'static str, Option<u32>)>,
}

/// What making a device needs.
pub struct Cx {
    /// The id that the user gave, or one that was made.
    pub id: Arc<str>,
    /// Whether it goes to the root bus, where an endpoint is integrated into the root complex.
    pub on_root_bus: bool,
    /// A slot number that no root port has yet.
    pub next_slot: u16,
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// The guest's interrupts.
    pub router: Arc<Router>,
    /// The machine's decode lock.
    pub decode: Arc<Decode>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
    /// The machine's back ends.
    pub backends: Arc<Backends>,
}

/// What making an object needs: something that devices name and that is no device itself.
pub struct ObjectCx {
    /// The id that the user gave.
    pub id: Arc<str>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
    /// The back ends of the machine.
    pub backends: Arc<Backends>,
}

/// A device that was made and is not on a bus yet.
pub struct Plug {
    /// What goes to the bus.
    pub function: Arc<dyn PciFunction>,
    /// A bus that comes with it, named by its id.
    pub adds: Option<Arc<PciBus>>,
}
