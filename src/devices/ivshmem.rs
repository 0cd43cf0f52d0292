//! `ivshmem-plain`: memory that guests and programs of the host share, in a BAR (QEMU's "Inter-VM Shared Memory device"
//! specification, revision 1). Looking Glass shows a guest's picture by it.

use std::sync::Arc;

use crate::backends::memory::MemoryRef;
use crate::backends::table::Claim;
use crate::device::{Cx, Device, Plug};
use crate::error::{Code, Error, Result};
use crate::memory::{Backing, HostMem, HostSlice, IoHandler, Piece};
use crate::object::{Create, TypeInfo, props};
use crate::pci::regs::{CLASS, COMMAND, COMMAND_MEMORY, DEVICE, REVISION, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR};
use crate::pci::{BarContent, BarKind, ConfigSpace, PciCore, PciFunction};

const IDS: (u16, u16) = (0x1af4, 0x1110);
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
/// The first revision has no interrupts without a server of its own, which a plain device does not have.
const REVISION_1: u8 = 1;
/// Memory controller, RAM: class 05, subclass 00.
const CLASS_RAM: [u8; 3] = [0, 0, 5];
/// Bytes of the registers in BAR 0.
const REGISTERS: u64 = 256;
/// The BAR that is the shared memory.
const MEMORY_BAR: usize = 2;

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<IvshmemType>();

props! {
    /// Memory that guests and programs of the host share.
    struct IvshmemProps {
        /// Its memory, whose size is a power of two: an object such as memory-backend-file with share=on
        memdev: MemoryRef,
    }
}

struct IvshmemType;

impl Create<Plug, Cx> for IvshmemType {
    const NAME: &'static str = "ivshmem-plain";
    const GROUP: &'static str = "Small devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = IvshmemProps;

    fn create(props: IvshmemProps, cx: &Cx) -> Result<Plug> {
        let memory = cx.backends.memories.claim(props.memdev.as_str(), &cx.id)?;
        if !memory.len().is_power_of_two() {
            return Err(Error::new(Code::BadProperty, "the memory of a BAR has a size that is a power of two")
                .evidence(format!("`{}` has {} bytes", memory.name(), memory.len())));
        }
        Ok(Plug::function(Arc::new(Ivshmem::new(cx.id.clone(), memory))))
    }
}

/// The function.
struct Ivshmem {
    id: Arc<str>,
    core: PciCore,
    memory: Claim<HostMem>,
}

impl Ivshmem {
    fn new(id: Arc<str>, memory: Claim<HostMem>) -> Ivshmem {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set_u8(REVISION, REVISION_1);
        config.set(CLASS, &CLASS_RAM);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        config.allow(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        Ivshmem { core: PciCore::new(id.clone(), config, None, None), id, memory }
    }
}

/// The registers of a device without interrupts: interrupt mask and status, the peer's number (IVPosition) and the doorbell
/// read as zero, and nothing follows from a write.
struct Registers;

impl IoHandler for Registers {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl Device for Ivshmem {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        // What is in the memory is not the guest's alone, and stays.
        self.core.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("memory", format!("{}, {} bytes", self.memory.name(), self.memory.len()))]
    }
}

impl PciFunction for Ivshmem {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        let name = format!("{} BAR{index}", self.id).into();
        match index {
            0 => Some(BarContent {
                name,
                size: REGISTERS,
                kind: BarKind::Mem32,
                prefetchable: false,
                pieces: vec![Piece { range: 0..REGISTERS, backing: Backing::io(Arc::new(Registers)) }],
            }),
            MEMORY_BAR => Some(BarContent {
                name,
                size: self.memory.len(),
                kind: BarKind::Mem64,
                prefetchable: true,
                pieces: vec![Piece {
                    range: 0..self.memory.len(),
                    backing: Backing::Shared(self.memory.back().slice()),
                }],
            }),
            _ => None,
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core.with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Backends;
    use crate::memory::Space;
    use crate::memory::host::PageSize;
    use crate::object::Args;
    use crate::pci::regs::BAR0;
    use crate::pci::testing::Bench;

    fn create(bench: &Bench, backends: &Arc<Backends>) -> Result<Plug> {
        let mut args = Args::parse("--device", None, "memdev=m0").unwrap();
        TYPE.create(&mut args, &bench.cx("shm", backends))
    }

    fn backends(len: u64) -> (Arc<Backends>, Arc<HostMem>) {
        let backends = Arc::new(Backends::default());
        let memory = Arc::new(HostMem::memfd("m0", len, PageSize::Small).unwrap());
        backends.memories.add("m0".into(), "memory-backend-memfd", memory.clone(), false).unwrap();
        (backends, memory)
    }

    #[test]
    fn the_guest_sees_the_memory_in_bar_2() {
        let bench = Bench::new();
        let (backends, memory) = backends(64 << 10);
        bench.plug(create(&bench, &backends).unwrap().device.as_function().unwrap().clone(), "3");
        assert_eq!(bench.read32(0, "3", 0), 0x1110_1af4);
        for (off, value) in [(0, 0xe000_0000), (8, 0xe010_0000), (12, 0)] {
            bench.write(0, "3", BAR0 + off, value, 4);
        }
        bench.write(0, "3", COMMAND, COMMAND_MEMORY.into(), 2);
        memory.slice().write(0x8000, b"frame");
        let mut data = [0; 5];
        bench.memory.read(Space::Mmio, 0xe010_8000, &mut data);
        assert_eq!(&data, b"frame");
        bench.memory.write(Space::Mmio, 0xe010_0000, b"input");
        memory.slice().read(0, &mut data);
        assert_eq!(&data, b"input");
        bench.memory.read(Space::Mmio, 0xe000_0008, &mut data);
        assert_eq!(data, [0; 5], "its number, where there is no server");
    }

    #[test]
    fn a_bar_is_a_power_of_two_and_the_memory_its_own() {
        let bench = Bench::new();
        let (odd, _) = backends(12 << 10);
        assert_eq!(create(&bench, &odd).err().unwrap().code(), Code::BadProperty);
        let (backends, _memory) = backends(4 << 10);
        let plug = create(&bench, &backends).unwrap();
        assert_eq!(create(&bench, &backends).err().unwrap().code(), Code::BackendInUse);
        drop(plug);
        assert!(create(&bench, &backends).is_ok());
    }
}
