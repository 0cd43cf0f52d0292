//! A machine with one virtio device, and a driver of it.

use std::path::Path;
use std::sync::Arc;

use passthru::backends::Backends;
use passthru::device::{Adds, AnyDevice, Cx, Plug, Unit, UnitBus};
use passthru::host::Host;
use passthru::irq::Router;
use passthru::machine::types::DEVICES;
use passthru::memory::host::PageSize;
use passthru::memory::room::Room;
use passthru::memory::{Backing, HostMem, Memory, PRIORITY_PLATFORM, Region, Space};
use passthru::object::Args;
use passthru::pci::{Decode, PciFunction, PciRoot, Slot};
use passthru::vfio::space::Vfio;

use crate::guest::Chip;

/// What goes on the bus that a device adds.
fn unit(bus: &UnitBus) -> &'static str {
    match bus {
        UnitBus::Scsi(_) => "scsi-hd,drive=d0,serial=x",
        UnitBus::Nvme(_) => "nvme-ns,drive=d0",
        UnitBus::Isa(_) => "isa-serial,chardev=c0",
        UnitBus::Serial(_) => "virtconsole,chardev=c0,name=x",
    }
}
/// Where the legacy registers are, if there are any.
pub const PORTS: u32 = 0x1000;
/// Bytes of RAM.
const RAM: u64 = 1 << 16;
/// Where memory comes later, and how much of it there can be.
const ROOM: u64 = 4 << 30;
/// Where the BAR with the registers is, below that with the MSI-X table.
pub const COMMON: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
/// The upper half of where memory of the device's is, if it has any: behind [`ROOM`].
const SHARED: u32 = 4;
/// Rings are this far apart, from here on.
const RINGS: u64 = 0x1000;
/// Queues that the driver sets up.
pub const QUEUES: u64 = 4;

/// The machine, its device behind no port, decoding and mastering the bus.
pub struct Guest {
    /// Its memory map: RAM from 0 on, the registers at [`COMMON`].
    pub memory: Arc<Memory>,
    root: Arc<PciRoot>,
    device: Arc<dyn PciFunction>,
    unit: Option<Arc<dyn Unit>>,
    slot: Slot,
}

impl Guest {
    /// A machine with the device that `line` describes, and on the bus that it may add one unit; `None`: it cannot be made.
    pub fn new(line: &str, backends: Arc<Backends>) -> Option<Guest> {
        let (memory, router) = (Memory::new(), Router::new());
        router.set_chip(Arc::new(Chip)).ok()?;
        let ram = Arc::new(HostMem::memfd("ram", RAM, PageSize::Small).ok()?);
        let region = Region::whole("ram", RAM, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        memory.update(|layout| layout.add(Space::Mmio, 0, region)).ok()?;
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new("pcie.0", &decode);
        let mut args = Args::parse("--device", Some(DEVICES.key), line).ok()?;
        let of_type = DEVICES.take_type(&mut args).ok()?;
        let mut cx = Cx {
            id: "dev0".into(),
            on_root_bus: false,
            next_slot: 1,
            memory: memory.clone(),
            room: Room::new(ROOM..2 * ROOM),
            router,
            decode,
            vfio: Vfio::new(Host::copied_to(Path::new("/nonexistent")), memory.clone()),
            backends,
            adds: "dev0.0".into(),
            bus: None,
            tell: Arc::new(|_, _| ()),
        };
        let Plug { device, adds } = of_type.create(&mut args, &cx).ok()?;
        let device = device.as_function()?.clone();
        let unit = match adds {
            Some(Adds::Units(bus)) => {
                let mut args = Args::parse("--device", Some(DEVICES.key), unit(&bus)).ok()?;
                cx.bus = Some(bus);
                match DEVICES.take_type(&mut args).ok()?.create(&mut args, &cx).ok()?.device {
                    AnyDevice::Unit(unit) => Some(unit),
                    AnyDevice::Function(_) => None,
                }
            }
            _ => None,
        };
        unit.iter().cloned().try_for_each(Unit::attach).ok()?;
        let slot = root.bus().attach(device.clone(), Some("2")).ok()?;
        let guest = Guest { memory, root, device, unit, slot };
        for (off, value) in
            [(0x10, PORTS), (0x14, MSIX), (0x18, 0), (0x1c, SHARED), (0x20, COMMON as u32), (0x24, 0), (0x04, 7)]
        {
            guest.config(off, value, 4);
        }
        Some(guest)
    }

    /// The device.
    pub fn device(&self) -> &dyn PciFunction {
        &*self.device
    }

    /// Resets the device and takes it out.
    pub fn end(self) {
        self.device.reset();
        drop(self.slot);
        self.unit.iter().for_each(|unit| unit.detach());
        self.device.unplug();
    }

    /// Writes a register of its configuration space.
    pub fn config(&self, off: u16, value: u32, len: usize) {
        if let Some(devfn) = passthru::pci::Devfn::new(2, 0) {
            self.root.write(0, devfn, off & !3, &value.to_le_bytes()[..len]);
        }
    }

    /// Writes memory or a register.
    pub fn write(&self, addr: u64, value: u64, len: usize) {
        self.memory.write(Space::Mmio, addr, &value.to_le_bytes()[..len]);
    }

    /// A driver's way to DRIVER_OK, with the features of `wanted` that are offered.
    pub fn start(&self, wanted: u64) {
        self.write(COMMON + 0x14, 0, 1);
        self.write(COMMON + 0x14, 3, 1);
        for half in [0, 1] {
            self.write(COMMON, half, 4);
            let mut offered = [0; 4];
            self.memory.read(Space::Mmio, COMMON + 4, &mut offered);
            let chosen = u64::from(u32::from_le_bytes(offered)) & (wanted >> (32 * half) | half);
            self.write(COMMON + 8, half, 4);
            self.write(COMMON + 12, chosen, 4);
        }
        self.write(COMMON + 0x14, 0xb, 1);
        for queue in 0..QUEUES {
            self.write(COMMON + 0x16, queue, 2);
            self.write(COMMON + 0x18, 8, 2);
            for (at, ring) in [(0x20, 0), (0x28, 0x400), (0x30, 0x800)] {
                self.write(COMMON + at, RINGS * (queue + 1) + ring, 8);
            }
            self.write(COMMON + 0x1c, 1, 2);
        }
        self.write(COMMON + 0x14, 0xf, 1);
    }
}
