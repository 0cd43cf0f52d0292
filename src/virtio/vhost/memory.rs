//! The guest's memory as the other side is told of it. Pure.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};

use vhost::VhostUserMemoryRegionInfo;

use super::Failure;
use crate::memory::{Backing, FlatRange, FlatView, HostMem, HostSlice};

/// The most regions that one message of vhost-user has room for (VHOST_MEMORY_BASELINE_NREGIONS).
pub const MAX_REGIONS: usize = 8;

/// A region for another process, which maps it.
#[derive(Clone)]
pub struct Remote {
    /// What it is told.
    pub info: VhostUserMemoryRegionInfo,
    /// Which memory that is: descriptor and address alone may be another's meanwhile.
    mem: Weak<HostMem>,
}

impl PartialEq for Remote {
    fn eq(&self, other: &Remote) -> bool {
        let place = |it: &Remote| (it.info.guest_phys_addr, it.info.memory_size, it.info.mmap_offset);
        place(self) == place(other) && self.mem.ptr_eq(&other.mem)
    }
}

/// What leaves and what comes when the other process knows `told` and is to know `wanted`.
pub fn difference(told: &[Remote], wanted: &[Remote]) -> (Vec<Remote>, Vec<Remote>) {
    let without =
        |these: &[Remote], those: &[Remote]| these.iter().filter(|region| !those.contains(region)).cloned().collect();
    (without(told, wanted), without(wanted, told))
}

/// RAM by its guest address.
#[derive(Clone, Default)]
pub struct Table(BTreeMap<u64, HostSlice>);

impl Table {
    /// All RAM of a view.
    pub fn of(view: &FlatView) -> Table {
        let mut table = Table::default();
        for range in view.ranges() {
            table.add(range);
        }
        table
    }

    /// The range has come; whether it is RAM.
    pub fn add(&mut self, range: &FlatRange) -> bool {
        let Backing::Ram(slice) = &range.backing else { return false };
        self.0.insert(range.start, slice.clone());
        true
    }

    /// The range has gone; whether it was RAM.
    pub fn remove(&mut self, range: &FlatRange) -> bool {
        matches!(range.backing, Backing::Ram(_)) && self.0.remove(&range.start).is_some()
    }

    /// Whether other processes can be given all of it.
    pub fn is_shared(&self) -> bool {
        self.0.values().all(|slice| slice.mem().file().is_some())
    }

    /// The address in this process of `len` bytes at a guest address.
    pub fn address(&self, at: u64, len: u64) -> Option<u64> {
        let (start, slice) = self.0.range(..=at).next_back()?;
        let offset = at - start;
        (offset.checked_add(len)? <= slice.len()).then(|| slice.addr() + offset)
    }

    /// The regions for the kernel, which finds them by their addresses in this process.
    pub fn local(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |(start, slice): (&u64, &HostSlice)| VhostUserMemoryRegionInfo {
            guest_phys_addr: *start,
            memory_size: slice.len(),
            userspace_addr: slice.addr(),
            mmap_offset: 0,
            mmap_handle: -1,
        };
        self.0.iter().map(region).collect()
    }

    /// The regions for another process, which maps them.
    ///
    /// # Errors
    /// One cannot be shared.
    pub fn remote(&self) -> Result<Vec<Remote>, Failure> {
        let region = |(start, slice): (&u64, &HostSlice)| {
            let (fd, offset) = slice.mem().file().ok_or("the guest's memory is not shared: -m share=on")?;
            let info = VhostUserMemoryRegionInfo {
                guest_phys_addr: *start,
                memory_size: slice.len(),
                userspace_addr: slice.addr(),
                mmap_offset: offset + slice.offset(),
                mmap_handle: fd.as_raw_fd(),
            };
            Ok(Remote { info, mem: Arc::downgrade(slice.mem()) })
        };
        self.0.iter().map(region).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::host::PageSize;
    use crate::memory::{HostMem, Memory, PRIORITY_PLATFORM, Region, Space};

    #[test]
    fn regions_are_ram_with_its_place_in_the_file() {
        let memory = Memory::new();
        let mem = Arc::new(HostMem::memfd("ram", 0x4000, PageSize::Small).unwrap());
        let ram = |slice: HostSlice| Region::whole("ram", slice.len(), PRIORITY_PLATFORM, Backing::Ram(slice));
        memory
            .update(|map| {
                map.add(Space::Mmio, 0, ram(mem.slice().cut(0, 0x1000)));
                map.add(Space::Mmio, 0x10_0000, ram(mem.slice().cut(0x1000, 0x3000)));
                let rom = Backing::Rom(mem.slice());
                map.add(Space::Mmio, 0x20_0000, Region::whole("rom", 0x1000, PRIORITY_PLATFORM, rom));
            })
            .unwrap();
        let table = Table::of(&memory.view(Space::Mmio));
        let regions = table.remote().unwrap();
        let shown: Vec<_> =
            regions.iter().map(|it| (it.info.guest_phys_addr, it.info.memory_size, it.info.mmap_offset)).collect();
        assert_eq!(shown, [(0, 0x1000, 0), (0x10_0000, 0x3000, 0x1000)]);
        for (at, len, expected) in [
            (0, 0x1000, Some(0)),
            (0xfff, 2, None),
            (0x1000, 1, None),
            (0x10_2ff0, 0x10, Some(0x3ff0)),
            (0x10_2ff0, u64::MAX, None),
        ] {
            assert_eq!(table.address(at, len), expected.map(|offset| mem.addr() + offset), "{at:#x}");
        }
        assert_eq!(table.local()[1].userspace_addr, mem.addr() + 0x1000);
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let memory = Memory::new();
        let own = Arc::new(HostMem::anonymous(0x1000, PageSize::Small).unwrap());
        let ram = |slice: HostSlice| Region::whole("ram", slice.len(), PRIORITY_PLATFORM, Backing::Ram(slice));
        memory.update(|map| map.add(Space::Mmio, 0, ram(own.slice()))).unwrap();
        let table = Table::of(&memory.view(Space::Mmio));
        assert!(!table.is_shared() && table.remote().is_err_and(|why| why.contains("share=on")));
    }

    #[test]
    fn the_difference_knows_memory_by_what_it_is() {
        let mem = |size| Arc::new(HostMem::memfd("ram", size, PageSize::Small).unwrap());
        let (first, second) = (mem(0x2000), mem(0x2000));
        let table = |parts: &[(u64, HostSlice)]| Table(parts.iter().cloned().collect()).remote().unwrap();
        let told = table(&[(0, first.slice().cut(0, 0x1000)), (0x1000, first.slice().cut(0x1000, 0x1000))]);
        let wanted = table(&[(0, first.slice().cut(0, 0x1000)), (0x1000, second.slice().cut(0x1000, 0x1000))]);
        let (gone, come) = difference(&told, &wanted);
        let at = |regions: &[Remote]| regions.iter().map(|it| it.info.guest_phys_addr).collect::<Vec<_>>();
        assert_eq!((at(&gone), at(&come)), (vec![0x1000], vec![0x1000]));
        assert!(gone[0] == told[1] && come[0] == wanted[1]);
        assert!(difference(&told, &told).0.is_empty());
        assert_eq!(at(&difference(&[], &told).1), [0, 0x1000]);
    }
}
