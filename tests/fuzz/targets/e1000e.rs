//! An e1000e behind its registers, and a driver that writes into them and into its rings what it likes.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use fuzz::input::Input;
use fuzz::wire::Wire;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::device::{Cx, Plug};
use passthru::host::Host;
use passthru::irq::Router;
use passthru::machine::types::DEVICES;
use passthru::memory::host::PageSize;
use passthru::memory::room::Room;
use passthru::memory::{Backing, HostMem, Memory, PRIORITY_PLATFORM, Region, Space};
use passthru::object::Args;
use passthru::pci::{Decode, Devfn, PciFunction, PciRoot, Slot};
use passthru::vfio::space::Vfio;

const RAM: u64 = 1 << 16;
const REGISTERS: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
/// The rings: their registers, and where they are. Tails are at 0x18.
const RINGS: [(u64, u32); 3] = [(0x3800, 0x1000), (0x2800, 0x2000), (0x3900, 0x3000)];
const ENTRIES: u32 = 16;
const MAX_STEPS: usize = 64;

struct Guest {
    memory: Arc<Memory>,
    root: Arc<PciRoot>,
    nic: Arc<dyn PciFunction>,
}

impl Guest {
    fn new() -> Option<(Guest, Slot)> {
        let (memory, router) = (Memory::new(), Router::new());
        let ram = Arc::new(HostMem::anonymous(RAM, PageSize::Small).ok()?);
        let region = Region::whole("ram", RAM, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        memory.update(|layout| layout.add(Space::Mmio, 0, region)).ok()?;
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new("pcie.0", &decode);
        let backends = Backends::default();
        backends.netdevs.add("n0".into(), "wire", Arc::new(Wire::new()?), false).ok()?;
        let mut args = Args::parse("--device", Some(DEVICES.key), "e1000e,netdev=n0").ok()?;
        let of_type = DEVICES.take_type(&mut args).ok()?;
        let cx = Cx {
            id: "dev0".into(),
            on_root_bus: false,
            next_slot: 1,
            memory: memory.clone(),
            room: Room::new(0..0),
            router,
            decode,
            vfio: Vfio::new(Host::copied_to(Path::new("/nonexistent")), memory.clone()),
            backends: Arc::new(backends),
            adds: "dev0".into(),
            bus: None,
            tell: Arc::new(|_, _| ()),
        };
        let Plug { device, .. } = of_type.create(&mut args, &cx).ok()?;
        let nic = device.as_function()?.clone();
        let slot = root.bus().attach(nic.clone(), Some("2")).ok()?;
        let guest = Guest { memory, root, nic };
        for (off, value) in [(0x10, REGISTERS as u32), (0x1c, MSIX), (0x04, 6)] {
            guest.config(off, value);
        }
        Some((guest, slot))
    }

    fn config(&self, off: u16, value: u32) {
        if let Some(devfn) = Devfn::new(2, 0) {
            self.root.write(0, devfn, off & !3, &value.to_le_bytes());
        }
    }

    fn register(&self, offset: u64, value: u32) {
        self.memory.write(Space::Mmio, REGISTERS + offset, &value.to_le_bytes());
    }

    /// A driver's way to packets both ways, with extended descriptors.
    fn start(&self) {
        for (at, base) in RINGS {
            self.register(at, base);
            self.register(at + 8, ENTRIES * 16);
        }
        self.register(0x5008, 1 << 15);
        self.register(0x0400, 1 << 1 | 1 << 3);
        self.register(0x0100, 1 << 1 | 1 << 3 | 1 << 4);
    }
}

// What is in memory, then a driver's steps.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some((guest, slot)) = Guest::new() else { panic!("it cannot be made") };
    guest.start();
    for _ in 0..input.u8() % 32 {
        let (at, len) = (u64::from(input.u16()), usize::from(input.u8() % 64));
        guest.memory.write(Space::Mmio, at, input.take(len));
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, at, value) = (input.u8(), input.u16(), input.u32());
        match kind % 8 {
            0 => guest.register(u64::from(at & !3), value),
            1 => guest.memory.read(Space::Mmio, REGISTERS + u64::from(at), &mut [0; 4]),
            2 | 3 => guest.memory.write(Space::Mmio, u64::from(at), &value.to_le_bytes()),
            4 | 5 => guest.register(RINGS[usize::from(at % 3)].0 + 0x18, value % (ENTRIES + 1)),
            6 => guest.start(),
            _ if at & 0x8000 == 0 => guest.config(at & 0xff, value),
            _ => guest.nic.reset(),
        }
    }
    guest.nic.reset();
    drop(slot);
    guest.nic.unplug();
});
