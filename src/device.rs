//! What every device of the machine has in common: what making one needs, and what can be asked of it.

use std::sync::Arc;

use crate::irq::Router;
use crate::memory::Memory;
use crate::pci::decode::Decode;
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

    /// Silences the host's side for good: no interrupt, no DMA. Later accesses by the guest read as ones. Idempotent.
    fn unplug(&self) {}
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
}

/// What making an object needs: something that devices name and that is no device itself.
pub struct ObjectCx {
    /// The id that the user gave.
    pub id: Arc<str>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
}

/// A device that was made and is not on a bus yet.
pub struct Plug {
    /// What goes to the bus.
    pub function: Arc<dyn PciFunction>,
    /// A bus that comes with it, named by its id.
    pub adds: Option<Arc<PciBus>>,
}
