//! Virtio over PCI (virtio 4.1): a function with the modern interface, the legacy one, or both.
//!
//! As in QEMU, a device behind a port is modern only, with an id of 1040h plus its type. Elsewhere it is transitional: it
//! has an id of its own (1000h to 103fh) and legacy registers in ports beside the modern ones. Types of device that came
//! with virtio 1.0 are modern everywhere.

mod common;
mod fields;
mod layout;
mod options;
mod transport;

use std::sync::Arc;

pub use options::PciOptions;
pub(crate) use options::virtio_props;

use layout::{BAR, CFG_BAR, CFG_DATA, CFG_LENGTH, CFG_OFFSET, MEMORY_BAR, MSIX_BAR, cfg_access};
use options::Interfaces;
use transport::Transport;

use super::VirtioDevice;
use crate::device::{Balloon, Cx, Device, Plug, PluggableMemory};
use crate::error::Result;
use crate::irq::Router;
use crate::memory::{Backing, HostSlice, Memory, Piece};
use crate::pci::regs::{
    CLASS, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, DEVICE, INTERRUPT_PIN,
    REVISION, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR,
};
use crate::pci::{BarContent, BarKind, Changes, ConfigSpace, Msix, MsixSpec, PciCore, PciFunction, endpoint};

/// Vendor of virtio devices.
const VENDOR_VIRTIO: u16 = 0x1af4;
/// Device ids are this and the type of the device (virtio 4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
/// Ids of transitional devices by their type (virtio 4.1.2.1).
const TRANSITIONAL: [(u16, u16); 7] =
    [(1, 0x1000), (2, 0x1001), (5, 0x1002), (3, 0x1003), (8, 0x1004), (4, 0x1005), (9, 0x1009)];
/// Subsystem id without a legacy interface, as QEMU has it; with one it is the type of the device.
const SUBSYSTEM_ID: u16 = 0x1100;
/// Revision of devices without a legacy interface.
const REVISION_MODERN: u8 = 1;
/// The BAR with the legacy registers.
const LEGACY_BAR: u8 = 0;
/// Vendor-specific capability (PCI appendix H).
const CAP_VENDOR: u8 = 0x09;

/// A virtio device on a PCI bus.
pub struct VirtioPci {
    id: Arc<str>,
    core: Arc<PciCore>,
    device: Arc<dyn VirtioDevice>,
    transport: Arc<Transport>,
    interfaces: Interfaces,
    /// The capability by which firmware reaches the modern BAR, if there is one.
    access: Option<u16>,
}

/// Puts a device behind a transport of its own.
///
/// # Errors
/// [`crate::error::Code::BadProperty`] if it has no interface there; no descriptor is left.
pub fn plug(device: Arc<dyn VirtioDevice>, options: &PciOptions, cx: &Cx) -> Result<Plug> {
    let wiring =
        Wiring { id: cx.id.clone(), on_root_bus: cx.on_root_bus, memory: cx.memory.clone(), router: cx.router.clone() };
    Ok(Plug::function(VirtioPci::new(device, options, wiring)?))
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
    /// [`crate::error::Code::BadProperty`] if it has no interface there; no descriptor is left.
    pub fn new(device: Arc<dyn VirtioDevice>, options: &PciOptions, wiring: Wiring) -> Result<Arc<VirtioPci>> {
        let Wiring { id, on_root_bus, memory, router } = wiring;
        let info = device.info();
        let transitional = TRANSITIONAL.into_iter().find(|(of_type, _)| *of_type == info.device_type);
        let transitional = transitional.map(|(_, id)| id).filter(|_| !device.modern_only());
        let interfaces = options.interfaces(!on_root_bus, transitional.is_some())?;
        let (device_id, subsystem, revision) = match transitional.filter(|_| interfaces.legacy) {
            Some(id) => (id, info.device_type, 0),
            None => (DEVICE_BASE + info.device_type, SUBSYSTEM_ID, REVISION_MODERN),
        };
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, VENDOR_VIRTIO);
        config.set_u16(DEVICE, device_id);
        config.set_u8(REVISION, revision);
        config.set(CLASS, &info.class);
        config.set_u16(SUBSYSTEM_VENDOR, VENDOR_VIRTIO);
        config.set_u16(SUBSYSTEM, subsystem);
        config.set_u8(INTERRUPT_PIN, 1);
        let ports = if interfaces.legacy { COMMAND_IO } else { 0 };
        config.allow(COMMAND, &(ports | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        let vectors = options.vectors.unwrap_or(info.queues + 1);
        let msix = match vectors {
            0 => None,
            _ => Some(Msix::add(&mut config, MsixSpec::exclusive(MSIX_BAR, vectors), &router, &id)?),
        };
        let access = match interfaces.modern {
            true => Some(modern_capabilities(&mut config, &layout::Layout::new(info.config_len, info.queues))?),
            false => None,
        };
        if let Some(memory) = device.shared_memory() {
            config.add_capability(CAP_VENDOR, &layout::shared_memory(memory.len()))?;
        }
        if !on_root_bus {
            endpoint::express(&mut config)?;
        }
        let core = Arc::new(PciCore::new(id.clone(), config, None, msix));
        let transport = Transport::new(core.clone(), device.clone(), options.features(interfaces), &memory, &router)?;
        Ok(Arc::new(VirtioPci { id, core, device, transport, interfaces, access }))
    }

    /// The access that the capability's registers describe: offset in the BAR and length. `None`: there is none.
    fn window(&self, at: u16) -> Option<(u64, usize)> {
        let (bar, offset, length) = self
            .core
            .with(|config| (config.u8(at + CFG_BAR), config.u32(at + CFG_OFFSET), config.u32(at + CFG_LENGTH)));
        let possible = bar == BAR && matches!(length, 1 | 2 | 4) && offset % length == 0;
        possible.then_some((u64::from(offset), length as usize))
    }

    /// The offset of the capability's data and the access that they stand for, if an access to configuration space touches
    /// them.
    fn touched(&self, off: u16, len: usize) -> Option<(u16, u64, usize)> {
        let access = self.access?;
        let data = access + CFG_DATA;
        let touches = off < data + 4 && usize::from(data) < usize::from(off) + len;
        let (offset, len) = self.window(access).filter(|_| touches)?;
        Some((data, offset, len))
    }
}

/// The capabilities that lead to the modern registers. Gives the offset of the one by which firmware reaches the BAR.
fn modern_capabilities(config: &mut ConfigSpace, layout: &layout::Layout) -> Result<u16> {
    for body in layout.capabilities() {
        config.add_capability(CAP_VENDOR, &body)?;
    }
    let access = config.add_capability(CAP_VENDOR, &cfg_access())?;
    config.allow(access + CFG_BAR, &[0xff]);
    config.allow(access + CFG_OFFSET, &[0xff; 12]);
    Ok(access)
}

impl Device for VirtioPci {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        self.transport.reset();
    }

    fn reset_shared(&self) {
        self.device.power_on();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = self.transport.facts();
        facts.extend(self.device.facts());
        facts
    }

    fn resumed(&self) {
        self.transport.ring_all();
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        self.device.balloon()
    }

    fn pluggable_memory(&self) -> Option<&dyn PluggableMemory> {
        self.device.pluggable_memory()
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
            LEGACY_BAR if self.interfaces.legacy => {
                let (size, pieces) = self.transport.legacy_bar();
                let name = format!("{} legacy registers", self.id).into();
                Some(BarContent { name, size, kind: BarKind::Io, prefetchable: false, pieces })
            }
            MEMORY_BAR => {
                let memory = self.device.shared_memory()?;
                Some(BarContent {
                    name: format!("{} memory", self.id).into(),
                    size: memory.len().checked_next_power_of_two()?,
                    kind: BarKind::Mem64,
                    prefetchable: true,
                    pieces: vec![Piece { range: 0..memory.len(), backing: Backing::Shared(memory) }],
                })
            }
            BAR if self.interfaces.modern => Some(BarContent {
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
        if let Some((at, offset, len)) = self.touched(off, data.len()) {
            let mut value = [0; 4];
            self.transport.bar_read(offset, &mut value[..len]);
            self.core.with(|config| config.set(at, &value));
        }
        self.core.read(off, data);
    }

    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        let what = self.core.write(off, data);
        if let Some((at, offset, len)) = self.touched(off, data.len()) {
            let mut value = [0; 4];
            self.core.with(|config| config.read(at, &mut value));
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
            self.transport.interrupts_changed();
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        let current = self.page_is_current();
        self.core.with(|config| config.mirror(current.then(|| page.clone())));
        current
    }

    /// Not any more once somebody reaches the BAR by the capability: its data are what the BAR reads.
    fn page_is_current(&self) -> bool {
        self.access.is_none_or(|at| self.core.with(|config| config.u32(at + CFG_LENGTH)) == 0)
    }
}

#[cfg(test)]
mod tests;
