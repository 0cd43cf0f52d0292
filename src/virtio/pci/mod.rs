//! Virtio over PCI (virtio 4.1): a function with the modern interface and no other.
//!
//! QEMU gives a device on a conventional bus or on pcie.0 the legacy interface beside the modern one, with a device id
//! of its own (1000h to 103fh). There is none here: every id is 1040h plus the type of the device, as QEMU has it behind
//! root ports, which drivers know since Linux 4.0.

mod common;
mod fields;
mod layout;
mod options;
mod transport;

use std::sync::Arc;

pub use options::PciOptions;
pub(crate) use options::virtio_props;

use layout::{BAR, CFG_BAR, CFG_DATA, CFG_LENGTH, CFG_OFFSET, MSIX_BAR, cfg_access};
use transport::Transport;

use super::VirtioDevice;
use crate::device::{Cx, Device, Plug};
use crate::error::Result;
use crate::irq::Router;
use crate::memory::{HostSlice, Memory};
use crate::pci::regs::{
    CAP_EXPRESS, CAP_POWER, CLASS, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, DEVICE,
    EXPRESS_DEVICE_CAP_FLR, INTERRUPT_PIN, POWER_CONTROL, POWER_NO_SOFT_RESET, POWER_STATE, REVISION, SUBSYSTEM,
    SUBSYSTEM_VENDOR, VENDOR,
};
use crate::pci::{BarContent, BarKind, Changes, ConfigSpace, Msix, MsixSpec, PciCore, PciFunction};

/// Vendor of virtio devices.
const VENDOR_VIRTIO: u16 = 0x1af4;
/// Device ids are this and the type of the device (virtio 4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem id, as QEMU has it; drivers of the modern interface do not look at it.
const SUBSYSTEM_ID: u16 = 0x1100;
/// Revision of devices without a legacy interface.
const REVISION_MODERN: u8 = 1;
/// Vendor-specific capability (PCI appendix H).
const CAP_VENDOR: u8 = 0x09;

/// Registers of the PCI Express capability (PCIe 7.5.3) of an endpoint behind a port, after id and link.
const EXPRESS_LEN: usize = 0x3c;
/// Version 2, endpoint.
const EXPRESS_ENDPOINT: u16 = 2;
/// Role-based error reporting, and the function can be reset alone.
const EXPRESS_CAP: u32 = 1 << 15 | EXPRESS_DEVICE_CAP_FLR;
/// Device control: error reporting, relaxed ordering, payload and request sizes, no snoop. Bit 15 resets and reads as 0.
const EXPRESS_CONTROL: (u16, u16) = (0x08, 0x78ff);
/// Link capabilities and status: 2.5 GT/s, one lane.
const EXPRESS_LINK: [(usize, u32); 2] = [(0x0c, 0x11), (0x10, 0x11 << 16)];

/// A virtio device on a PCI bus.
pub struct VirtioPci {
    id: Arc<str>,
    core: Arc<PciCore>,
    device: Arc<dyn VirtioDevice>,
    transport: Arc<Transport>,
    /// The capability by which firmware reaches the BAR.
    access: u16,
}

/// Puts a device behind a transport of its own.
///
/// # Errors
/// No descriptor is left.
pub fn plug(device: Arc<dyn VirtioDevice>, options: &PciOptions, cx: &Cx) -> Result<Plug> {
    let wiring =
        Wiring { id: cx.id.clone(), on_root_bus: cx.on_root_bus, memory: cx.memory.clone(), router: cx.router.clone() };
    Ok(Plug { function: VirtioPci::new(device, options, wiring)?, adds: None })
}

/// What a function is connected to.
pub struct Wiring {
    /// The device's id.
    pub id: Arc<str>,
    /// Whether it is on the root bus, where a device has no PCI Express capability.
    pub on_root_bus: bool,
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// The guest's interrupts.
    pub router: Arc<Router>,
}

impl VirtioPci {
    /// The function of `device`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(device: Arc<dyn VirtioDevice>, options: &PciOptions, wiring: Wiring) -> Result<Arc<VirtioPci>> {
        let Wiring { id, on_root_bus, memory, router } = wiring;
        let info = device.info();
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, VENDOR_VIRTIO);
        config.set_u16(DEVICE, DEVICE_BASE + info.device_type);
        config.set_u8(REVISION, REVISION_MODERN);
        config.set(CLASS, &info.class);
        config.set_u16(SUBSYSTEM_VENDOR, VENDOR_VIRTIO);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_ID);
        config.set_u8(INTERRUPT_PIN, 1);
        config.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        let vectors = options.vectors.unwrap_or(info.queues + 1);
        let msix = match vectors {
            0 => None,
            _ => Some(Msix::add(&mut config, MsixSpec::exclusive(MSIX_BAR, vectors), &router, &id)?),
        };
        for body in layout::Layout::new(info.config_len, info.queues).capabilities() {
            config.add_capability(CAP_VENDOR, &body)?;
        }
        let access = config.add_capability(CAP_VENDOR, &cfg_access())?;
        config.allow(access + CFG_BAR, &[0xff]);
        config.allow(access + CFG_OFFSET, &[0xff; 12]);
        if !on_root_bus {
            express(&mut config)?;
        }
        let core = Arc::new(PciCore::new(id.clone(), config, None, msix));
        let transport = Transport::new(core.clone(), device.clone(), options.features(), &memory, &router)?;
        Ok(Arc::new(VirtioPci { id, core, device, transport, access }))
    }

    /// The access that the capability's registers describe: offset in the BAR and length. `None`: there is none.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.access;
        let (bar, offset, length) = self
            .core
            .with(|config| (config.u8(at + CFG_BAR), config.u32(at + CFG_OFFSET), config.u32(at + CFG_LENGTH)));
        let possible = bar == BAR && matches!(length, 1 | 2 | 4) && offset % length == 0;
        possible.then_some((u64::from(offset), length as usize))
    }

    /// Whether an access to configuration space touches the capability's data.
    fn touches_data(&self, off: u16, len: usize) -> bool {
        let data = self.access + CFG_DATA;
        off < data + 4 && usize::from(data) < usize::from(off) + len
    }
}

/// Power management and PCI Express, which a device has behind a port.
fn express(config: &mut ConfigSpace) -> Result<()> {
    let power = config.add_capability(CAP_POWER, &[3, 0, POWER_NO_SOFT_RESET as u8, 0, 0, 0])?;
    config.allow(power + POWER_CONTROL, &POWER_STATE.to_le_bytes());
    let mut cap = [0; EXPRESS_LEN];
    cap[2..4].copy_from_slice(&EXPRESS_ENDPOINT.to_le_bytes());
    cap[4..8].copy_from_slice(&EXPRESS_CAP.to_le_bytes());
    for (at, value) in EXPRESS_LINK {
        cap[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let at = config.add_capability(CAP_EXPRESS, &cap[2..])?;
    config.allow(at + EXPRESS_CONTROL.0, &EXPRESS_CONTROL.1.to_le_bytes());
    Ok(())
}

impl Device for VirtioPci {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        self.transport.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = self.transport.facts();
        facts.extend(self.device.facts());
        facts
    }

    fn unplug(&self) {
        self.transport.unplug();
    }
}

impl PciFunction for VirtioPci {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        match u8::try_from(index).ok()? {
            MSIX_BAR => Some(self.core.msix()?.exclusive_bar()),
            BAR => Some(BarContent {
                name: format!("{} registers", self.id).into(),
                size: self.transport.bar_size(),
                kind: BarKind::Mem64,
                prefetchable: true,
                pieces: self.transport.pieces(),
            }),
            _ => None,
        }
    }

    fn config_read(&self, off: u16, data: &mut [u8]) {
        if self.touches_data(off, data.len())
            && let Some((offset, len)) = self.window()
        {
            let mut value = [0; 4];
            self.transport.bar_read(offset, &mut value[..len]);
            self.core.with(|config| config.set(self.access + CFG_DATA, &value));
        }
        self.core.read(off, data);
    }

    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        let what = self.core.write(off, data);
        if self.touches_data(off, data.len())
            && let Some((offset, len)) = self.window()
        {
            let mut value = [0; 4];
            self.core.with(|config| config.read(self.access + CFG_DATA, &mut value));
            self.transport.bar_write(offset, &value[..len]);
        }
        what
    }

    fn changed(&self, what: Changes) {
        if what.contains(Changes::RESET) {
            self.transport.reset();
        }
        if what.intersects(Changes::BUS_MASTER | Changes::POWER) {
            self.transport.follow();
        }
        if what.intersects(Changes::INTX_DISABLE | Changes::MSIX) {
            self.transport.interrupts().pin_changed();
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        let current = self.page_is_current();
        self.core.with(|config| config.mirror(current.then(|| page.clone())));
        current
    }

    /// Not any more once somebody reaches the BAR by the capability: its data are what the BAR reads.
    fn page_is_current(&self) -> bool {
        self.core.with(|config| config.u32(self.access + CFG_LENGTH)) == 0
    }
}

#[cfg(test)]
mod tests;
