//! Guest RAM as the boot loader and emulated devices see it: vm-memory's checked guest memory over our mappings.

use std::sync::Arc;

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use super::{Backing, FlatView, HostMem, Memory, Space};
use crate::error::{Code, Error, Result};

/// A snapshot of the guest's RAM. It keeps the mappings alive that it points into.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    _keep: Vec<Arc<HostMem>>,
}

impl GuestRam {
    /// The RAM of a flat view: its ranges of [`Backing::Ram`] and [`Backing::Shared`].
    ///
    /// # Errors
    /// [`Code::SystemFailed`] if there is no RAM in the view, or a range overlaps another.
    pub fn of(view: &FlatView) -> Result<GuestRam> {
        let mut regions: Vec<Arc<GuestRegionMmap>> = Vec::new();
        let mut keep = Vec::new();
        for range in view.ranges() {
            if let Backing::Ram(slice) | Backing::Shared(slice) = &range.backing {
                let region = slice.guest_region(range.start).map_err(|e| Error::system("describe guest RAM", &e))?;
                regions.push(Arc::new(region));
                keep.push(slice.mem().clone());
            }
        }
        let memory = GuestMemoryMmap::from_arc_regions(regions)
            .map_err(|e| Error::new(Code::SystemFailed, "guest RAM cannot be described").evidence(e.to_string()))?;
        Ok(GuestRam { memory, _keep: keep })
    }

    /// Checked access by guest physical address.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

/// The guest's RAM as it is now, for a device that reads and writes it for as long as the guest runs. Asking costs a few
/// atomic operations while the memory map stays as it is; nothing is kept between two questions, so that what has gone is
/// given back though a device is idle.
pub struct LiveRam {
    memory: Arc<Memory>,
}

impl LiveRam {
    /// The RAM of `memory`.
    pub fn new(memory: Arc<Memory>) -> Arc<LiveRam> {
        Arc::new(LiveRam { memory })
    }

    /// The RAM. What the owner keeps of it stays mapped, and is not the guest's any more when the map has changed: ask
    /// again for each batch of work.
    ///
    /// # Errors
    /// As [`GuestRam::of`].
    pub fn now(&self) -> Result<Arc<GuestRam>> {
        self.memory.view(Space::Mmio).ram()
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::PageSize;
    use super::super::{PRIORITY_PLATFORM, Region};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn guest_ram_and_the_mapping_are_the_same_bytes() {
        let memory = Memory::new();
        let low = Arc::new(HostMem::anonymous(8192, PageSize::Small).unwrap());
        let region = Region::whole("ram", 8192, PRIORITY_PLATFORM, Backing::Ram(low.slice()));
        memory.update(|layout| layout.add(Space::Mmio, 0x10000, region)).unwrap();
        let ram = GuestRam::of(&memory.view(Space::Mmio)).unwrap();
        ram.memory().write_obj(0x1234_5678u32, GuestAddress(0x10004)).unwrap();
        let mut data = [0; 4];
        memory.read(Space::Mmio, 0x10004, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x1234_5678);
        assert!(ram.memory().write_obj(1u8, GuestAddress(0x12000)).is_err());
    }

    #[test]
    fn live_ram_follows_the_map() {
        let memory = Memory::new();
        let live = LiveRam::new(memory.clone());
        assert!(live.now().is_err());
        let region = || {
            let mem = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap());
            Region::whole("ram", 4096, PRIORITY_PLATFORM, Backing::Ram(mem.slice()))
        };
        let first = memory.update(|layout| layout.add(Space::Mmio, 0, region())).unwrap();
        let before = live.now().unwrap();
        assert!(Arc::ptr_eq(&before, &live.now().unwrap()));
        memory
            .update(|layout| {
                layout.remove(first);
                layout.add(Space::Mmio, 0x10000, region());
            })
            .unwrap();
        let after = live.now().unwrap();
        assert!(after.memory().write_obj(1u8, GuestAddress(0)).is_err());
        assert!(after.memory().write_obj(1u8, GuestAddress(0x10000)).is_ok());
        assert!(before.memory().write_obj(1u8, GuestAddress(0)).is_ok(), "what is held stays mapped");
        drop((before, after));
        let second = Arc::new(HostMem::anonymous(4096, PageSize::Small).unwrap());
        let (seen, whole) =
            (Arc::downgrade(&second), Region::whole("more", 4096, PRIORITY_PLATFORM, Backing::Ram(second.slice())));
        drop(second);
        let more = memory.update(|layout| layout.add(Space::Mmio, 0x20000, whole)).unwrap();
        live.now().unwrap();
        memory.update(|layout| layout.remove(more)).unwrap();
        assert!(seen.upgrade().is_none(), "who is idle holds nothing that has gone");
    }

    #[test]
    fn a_view_without_ram_is_an_error() {
        assert!(GuestRam::of(&FlatView::default()).is_err());
    }
}
