//! The host bridge at 00:00.0. It shows the ids of a Q35's, which firmware insists on, and does nothing.

use std::sync::Arc;

use super::regs::{CLASS, DEVICE, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR};
use super::{ConfigSpace, PciCore, PciFunction};
use crate::device::Device;
use crate::memory::HostSlice;

/// Intel 82G33/P35/Q35 DRAM controller.
const IDS: (u16, u16) = (0x8086, 0x29c0);
/// The ids by which guests know a virtual machine's chipset.
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
/// Host bridge, class 06 subclass 00 (PCI appendix D).
const CLASS_HOST_BRIDGE: [u8; 3] = [0, 0, 6];

/// The name of the host bridge, where errors list what is on a bus.
pub const ID: &str = "host-bridge";
/// The address of the host bridge, as `addr=` takes it.
pub const ADDRESS: &str = "00.0";

/// The host bridge.
pub struct HostBridge {
    core: PciCore,
}

impl HostBridge {
    /// One that is not attached yet; it belongs at [`ADDRESS`].
    pub fn new() -> Arc<HostBridge> {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set(CLASS, &CLASS_HOST_BRIDGE);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        Arc::new(HostBridge { core: PciCore::new(ID, config, None, None) })
    }
}

impl Device for HostBridge {
    fn id(&self) -> &str {
        self.core.name()
    }

    fn reset(&self) {
        self.core.reset();
    }
}

impl PciFunction for HostBridge {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core().with(|config| config.mirror(Some(page.clone())));
        true
    }
}
