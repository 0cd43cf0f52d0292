//! A machine without processors: a root, its memory map, and functions that remember what they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::bar::{BARS, BarSpecs};
use super::ecam::Ecam;
use super::host_bridge::{self, HostBridge};
use super::regs::{BAR0, COMMAND, INTERRUPT_PIN};
use super::root_port::RootPort;
use super::{BarContent, BarKind, BarSpec, Changes, ConfigSpace, Decode, Devfn, PciCore, PciFunction, PciRoot, Slot};
use crate::backends::Backends;
use crate::device::{Cx, Device};
use crate::host::testtree::TestTree;
use crate::irq::Router;
use crate::memory::room::Room;
use crate::memory::{Backing, FlatView, HostSlice, IoHandler, Memory, Piece, Space};
use crate::vfio::Vfio;

/// Reads as one byte everywhere.
pub struct Filled(pub u8);

impl IoHandler for Filled {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(self.0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// An endpoint whose BARs are trapped.
pub struct Fake {
    id: String,
    core: PciCore,
    bars: BarSpecs,
    io: Arc<dyn IoHandler>,
    /// What it was told, with the names of what was mapped then.
    pub told: Mutex<Vec<(Changes, Vec<String>)>>,
    /// Whether its registers may be read from a page.
    pub quiet: AtomicBool,
    memory: Arc<Memory>,
}

impl Fake {
    pub fn with_config(id: &str, bars: BarSpecs, memory: &Arc<Memory>, config: ConfigSpace) -> Arc<Fake> {
        let core = PciCore::new(id, config, None, None);
        let io = Arc::new(Filled(0x5a));
        Arc::new(Fake {
            id: id.into(),
            core,
            bars,
            io,
            told: Mutex::default(),
            quiet: AtomicBool::default(),
            memory: memory.clone(),
        })
    }

    pub fn new(id: &str, bars: BarSpecs, memory: &Arc<Memory>) -> Arc<Fake> {
        let mut config = ConfigSpace::new();
        config.set_u32(0, 0x5678_1234);
        config.set_u8(INTERRUPT_PIN, 1);
        config.allow(COMMAND, &0x0407u16.to_le_bytes());
        Fake::with_config(id, bars, memory, config)
    }
}

impl Device for Fake {
    fn id(&self) -> &str {
        &self.id
    }
    fn reset(&self) {
        self.core.reset();
    }
}

impl PciFunction for Fake {
    fn core(&self) -> &PciCore {
        &self.core
    }
    fn bar(&self, index: usize) -> Option<BarContent> {
        let spec = self.bars[index]?;
        Some(BarContent {
            name: format!("{} BAR{index}", self.id).into(),
            size: spec.size,
            kind: spec.kind,
            prefetchable: spec.prefetchable,
            pieces: vec![Piece { range: 0..spec.size, backing: Backing::io(self.io.clone()) }],
        })
    }
    fn show_page(&self, page: &HostSlice) -> bool {
        let quiet = self.page_is_current();
        self.core.with(|config| config.mirror(quiet.then(|| page.clone())));
        quiet
    }
    fn page_is_current(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }
    fn changed(&self, what: Changes) {
        self.told.lock().push((what, names(&self.memory.view(Space::Mmio))));
    }
}

/// A memory BAR below 4 GiB, at this index and no other.
pub fn one_bar(index: usize, size: u64) -> BarSpecs {
    let mut specs = [None; BARS];
    specs[index] = Some(BarSpec { size, kind: BarKind::Mem32, prefetchable: false });
    specs
}

fn names(view: &FlatView) -> Vec<String> {
    view.ranges().iter().map(|range| range.name.to_string()).collect()
}

/// The machine.
pub struct Bench {
    pub memory: Arc<Memory>,
    pub decode: Arc<Decode>,
    pub router: Arc<Router>,
    pub root: Arc<PciRoot>,
    pub slots: Mutex<Vec<Slot>>,
}

impl Bench {
    pub fn new() -> Bench {
        let memory = Memory::new();
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new("pcie.0", &decode);
        Bench { memory, decode, router: Router::new(), root, slots: Mutex::default() }
    }

    /// What a device with this id is made with.
    pub fn cx(&self, id: &str, backends: &Arc<Backends>) -> Cx {
        Cx {
            id: id.into(),
            on_root_bus: true,
            next_slot: 1,
            memory: self.memory.clone(),
            room: Room::new(4 << 30..8 << 30),
            router: self.router.clone(),
            decode: self.decode.clone(),
            vfio: Vfio::new(TestTree::new().host(), self.memory.clone()),
            backends: backends.clone(),
            adds: format!("{id}.0").into(),
            bus: None,
            tell: Arc::new(|_, _| ()),
        }
    }

    /// Attaches to the root bus and keeps it there.
    pub fn plug(&self, function: Arc<dyn PciFunction>, addr: &str) {
        let slot = self.root.bus().attach(function, Some(addr)).unwrap();
        self.slots.lock().push(slot);
    }

    /// Attaches behind a port of the root bus and keeps it there.
    pub fn plug_behind(&self, port: &str, function: Arc<dyn PciFunction>, addr: &str) {
        let port = Devfn::parse(port).unwrap();
        let functions = self.root.bus().functions();
        let (_, port) = functions.iter().find(|(devfn, _)| *devfn == port).unwrap();
        self.slots.lock().push(port.secondary().unwrap().attach(function, Some(addr)).unwrap());
    }

    pub fn read32(&self, bus: u8, addr: &str, off: u16) -> u32 {
        let mut data = [0; 4];
        self.root.read(bus, Devfn::parse(addr).unwrap(), off, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, bus: u8, addr: &str, off: u16, value: u32, len: usize) {
        self.root.write(bus, Devfn::parse(addr).unwrap(), off, &value.to_le_bytes()[..len]);
    }

    /// Puts a 32-bit BAR somewhere and sets the command register.
    pub fn enable(&self, bus: u8, addr: &str, bar: u16, base: u32, command: u16) {
        self.write(bus, addr, BAR0 + 4 * bar, base, 4);
        self.write(bus, addr, COMMAND, u32::from(command), 2);
    }

    /// Name and first address of everything that is mapped.
    pub fn mapped(&self, space: Space) -> Vec<(String, u64)> {
        let view = self.memory.view(space);
        view.ranges().iter().map(|range| (range.name.to_string(), range.start)).collect()
    }
}

/// Where [`with_ecam`] has the ECAM window.
pub const ECAM: u64 = 0xe000_0000;

/// A machine with a window of two buses: a host bridge, the root port rp1 at 1 and the endpoint nic0 at 2.
pub fn with_ecam() -> (Bench, Arc<Ecam>) {
    let bench = Bench::new();
    bench.plug(HostBridge::new(), host_bridge::ADDRESS);
    bench.plug(RootPort::new("rp1", 1, &bench.decode, &bench.router).unwrap(), "1");
    bench.plug(Fake::new("nic0", one_bar(0, 0x1000), &bench.memory), "2");
    let ecam = Ecam::new(bench.root.clone());
    bench.memory.update(|layout| layout.add(Space::Mmio, ECAM, ecam.region(1))).unwrap();
    (bench, ecam)
}

/// A guest's read of a dword at an offset in that window.
pub fn ecam_read(bench: &Bench, offset: u64) -> u32 {
    let mut data = [0; 4];
    bench.memory.read(Space::Mmio, ECAM + offset, &mut data);
    u32::from_le_bytes(data)
}
