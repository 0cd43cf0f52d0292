//! A machine with one PCI function of ours that is no virtio device: memory map, PCI root, and a driver's way to both.

use std::path::Path;
use std::sync::Arc;

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

/// Bytes of RAM, from address 0 on.
const RAM: u64 = 1 << 16;

/// The machine.
pub struct Machine {
    pub memory: Arc<Memory>,
    root: Arc<PciRoot>,
    function: Arc<dyn PciFunction>,
    slot: Slot,
}

impl Machine {
    /// A machine with the device that `line` describes, on `backends`; `None`: it cannot be made.
    pub fn new(line: &str, backends: Backends) -> Option<Machine> {
        let (memory, router) = (Memory::new(), Router::new());
        let ram = Arc::new(HostMem::anonymous(RAM, PageSize::Small).ok()?);
        let region = Region::whole("ram", RAM, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        memory.update(|layout| layout.add(Space::Mmio, 0, region)).ok()?;
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new("pcie.0", &decode);
        let mut args = Args::parse("--device", Some(DEVICES.key), line).ok()?;
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
        let function = device.as_function()?.clone();
        let slot = root.bus().attach(function.clone(), Some("2")).ok()?;
        Some(Machine { memory, root, function, slot })
    }

    /// Writes a register of the function's configuration space.
    pub fn config(&self, off: u16, value: u32) {
        if let Some(devfn) = Devfn::new(2, 0) {
            self.root.write(0, devfn, off & !3, &value.to_le_bytes());
        }
    }

    /// Resets the function.
    pub fn reset(&self) {
        self.function.reset();
    }

    /// Resets the function and takes it out.
    pub fn end(self) {
        self.reset();
        drop(self.slot);
        self.function.unplug();
    }
}
