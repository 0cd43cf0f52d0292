//! A virtio device behind its registers, and a driver that writes into them and into its rings what it likes.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use fuzz::input::Input;
use fuzz::wire::Wire;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::backends::block::null::{Null, Props};
use passthru::backends::chardev;
use passthru::device::{Adds, AnyDevice, Cx, Plug, Unit, UnitBus};
use passthru::host::Host;
use passthru::irq::Router;
use passthru::machine::types::DEVICES;
use passthru::memory::host::PageSize;
use passthru::memory::room::Room;
use passthru::memory::{Backing, HostMem, Memory, PRIORITY_PLATFORM, Region, Space};
use passthru::object::{Args, Size};
use passthru::pci::{Decode, PciFunction, PciRoot};
use passthru::vfio::space::Vfio;

/// Every virtio device, on back ends that hold nothing, some with the legacy interface, too.
const LINES: [&str; 7] = [
    "virtio-blk-pci,drive=d0,num-queues=2,queue-size=8,serial=x",
    "virtio-net-pci,netdev=n0,rx_queue_size=64",
    "virtio-rng-pci,filename=/dev/zero,disable-legacy=off",
    "virtio-scsi-pci,virtqueue_size=8",
    "virtio-balloon-pci,free-page-reporting=on,disable-legacy=off",
    "virtio-serial-pci,max_ports=2",
    "virtio-mem-pci,memdev=m0,requested-size=8M",
];
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
const PORTS: u32 = 0x1000;
const RAM: u64 = 1 << 16;
/// Where memory comes later, and how much of it there can be.
const ROOM: u64 = 4 << 30;
/// Where the BAR with the registers is, below that with the MSI-X table.
const COMMON: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
/// Rings are this far apart, from here on.
const RINGS: u64 = 0x1000;
const QUEUES: u64 = 4;
const MAX_STEPS: usize = 64;

fn backends() -> Option<Arc<Backends>> {
    let backends = Backends::default();
    let null = Null::new(Props { size: Size(1 << 20), read_zeroes: true, read_only: false });
    backends.nodes.add("d0".into(), "null-co", Arc::new(null), false).ok()?;
    let nowhere = Arc::new(chardev::null::Null);
    backends.chardevs.add("c0".into(), "null", nowhere, false).ok()?;
    let blocks = Arc::new(HostMem::anonymous(16 << 20, PageSize::Small).ok()?);
    backends.memories.add("m0".into(), "memory-backend-ram", blocks, false).ok()?;
    backends.netdevs.add("n0".into(), "wire", Arc::new(Wire::new()?), false).ok()?;
    Some(Arc::new(backends))
}

/// The machine, its device behind no port, decoding and mastering the bus.
struct Guest {
    memory: Arc<Memory>,
    root: Arc<PciRoot>,
    device: Arc<dyn PciFunction>,
    unit: Option<Arc<dyn Unit>>,
}

impl Guest {
    fn new(line: &str) -> Option<(Guest, passthru::pci::Slot)> {
        let (memory, router) = (Memory::new(), Router::new());
        let ram = Arc::new(HostMem::anonymous(RAM, PageSize::Small).ok()?);
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
            backends: backends()?,
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
        let guest = Guest { memory, root, device, unit };
        for (off, value) in [(0x10, PORTS), (0x14, MSIX), (0x20, COMMON as u32), (0x24, 0), (0x04, 7)] {
            guest.config(off, value, 4);
        }
        Some((guest, slot))
    }

    fn config(&self, off: u16, value: u32, len: usize) {
        if let Some(devfn) = passthru::pci::Devfn::new(2, 0) {
            self.root.write(0, devfn, off & !3, &value.to_le_bytes()[..len]);
        }
    }

    fn write(&self, addr: u64, value: u64, len: usize) {
        self.memory.write(Space::Mmio, addr, &value.to_le_bytes()[..len]);
    }

    /// A driver's way to DRIVER_OK, with the features of `wanted` that are offered.
    fn start(&self, wanted: u64) {
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

// The device, the features that are wanted, what is in memory, then a driver's steps.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let line = LINES[usize::from(input.u8()) % LINES.len()];
    let Some((guest, slot)) = Guest::new(line) else { panic!("{line} cannot be made") };
    let wanted = u64::from(input.u32()) << 16 | u64::from(input.u16());
    for _ in 0..input.u8() % 16 {
        let (at, len) = (u64::from(input.u16()), usize::from(input.u8() % 64));
        guest.memory.write(Space::Mmio, at, input.take(len));
    }
    // Workers look at every queue when they start, and end with the reset at the end.
    guest.start(wanted);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, at, value, more) = (input.u8(), input.u16(), input.u32(), input.u8());
        let len = [1, 2, 4, 8][usize::from(more & 3)];
        let value = u64::from(value) << (more >> 4);
        match kind % 9 {
            0 | 1 => guest.write(COMMON + u64::from(at & 0x3fff), value, len),
            2 => guest.memory.read(Space::Mmio, COMMON + u64::from(at & 0x3fff), &mut value.to_le_bytes()[..len]),
            3 => guest.write(u64::from(at), value, len),
            4 => guest.write(COMMON + 0x3000 + 4 * (u64::from(at) % QUEUES), 0, 2),
            5 => guest.config(at & 0xff, value as u32, 4),
            6 => guest.start(wanted ^ value),
            7 => guest.memory.write(
                Space::Pio,
                u64::from(PORTS) + u64::from(at & 0x3f),
                &value.to_le_bytes()[..len.min(4)],
            ),
            _ => guest.device.reset(),
        }
    }
    guest.device.reset();
    drop(slot);
    guest.unit.iter().for_each(|unit| unit.detach());
    guest.device.unplug();
});
