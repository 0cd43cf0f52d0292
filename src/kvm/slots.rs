//! KVM's memory slots as a listener of the memory map: guest RAM, ROM and mapped BARs that the guest reaches without an
//! exit. What has no slot traps and is answered by [`crate::memory::Memory`].

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use parking_lot::Mutex;
use vm_allocator::IdAllocator;

use super::{Vm, refused};
use crate::error::{Code, Error, Result};
use crate::guest_error;
use crate::memory::host::PAGE;
use crate::memory::{Backing, FlatRange, HostMem, HostSlice, MemoryListener};

/// The slots of one VM. Register it with [`crate::memory::Stage::Guest`]; dropping the registration empties it.
pub struct KvmSlots {
    vm: Arc<Vm>,
    /// Taken after the layout lock, held over the ioctl; no other lock is taken inside.
    state: Mutex<State>,
}

struct State {
    ids: IdAllocator,
    /// By the guest address of their range.
    slots: BTreeMap<u64, Slot>,
}

struct Slot {
    id: u32,
    /// Where it is in the guest.
    start: u64,
    /// Keeps the memory mapped while the kernel has its address.
    mem: Arc<HostMem>,
}

/// The whole pages of a range, which can be a slot.
#[derive(Debug, PartialEq)]
struct Pages {
    start: u64,
    mem: HostSlice,
    flags: u32,
}

/// The slot that a range gets; none where every access traps.
///
/// Only whole pages can be slots: a part of a page would show the guest what else is on it. The parts of pages at the
/// ends of a range trap.
fn plan(range: &FlatRange) -> Option<Pages> {
    let (mem, flags) = match &range.backing {
        Backing::Ram(mem) | Backing::Device(mem) | Backing::Shared(mem) => (mem, 0),
        // A write exits, then `Memory` hands it to the handler, or ignores it.
        Backing::Rom(mem) | Backing::RomDevice { mem, .. } => (mem, KVM_MEM_READONLY),
        Backing::Io { .. } => return None,
    };
    let start = range.start.checked_next_multiple_of(PAGE)?;
    let end = (range.start + range.len.min(mem.len())) / PAGE * PAGE;
    let mem = mem.cut(start - range.start, end.checked_sub(start)?);
    (!mem.is_empty() && mem.addr().is_multiple_of(PAGE)).then_some(Pages { start, mem, flags })
}

impl KvmSlots {
    /// No slots yet.
    ///
    /// # Errors
    /// [`Code::KvmFailed`] if the kernel offers no slots at all.
    pub fn new(vm: Arc<Vm>) -> Result<Arc<KvmSlots>> {
        let last = vm.slots().checked_sub(1);
        let ids = last
            .and_then(|last| IdAllocator::new(0, last).ok())
            .ok_or_else(|| Error::new(Code::KvmFailed, "KVM offers no memory slots"))?;
        Ok(Arc::new(KvmSlots { vm, state: Mutex::new(State { ids, slots: BTreeMap::new() }) }))
    }

    /// How many slots are in use.
    pub fn in_use(&self) -> usize {
        self.state.lock().slots.len()
    }

    fn map(&self, range: &FlatRange, Pages { start, mem, flags }: Pages) -> Result<()> {
        let mut state = self.state.lock();
        let id = state.ids.allocate_id().map_err(|_| {
            Error::new(Code::KvmFailed, format!("no memory slot is left for {}", range.name))
                .evidence(format!("KVM_CAP_NR_MEMSLOTS is {}", self.vm.slots()))
        })?;
        let region = kvm_userspace_memory_region {
            slot: id,
            flags,
            guest_phys_addr: start,
            memory_size: mem.len(),
            userspace_addr: mem.addr(),
        };
        // SAFETY: `mem` is a part of a mapping that stays as long as the slot exists: the slot is recorded with an `Arc` of
        // the mapping, which is dropped only after the kernel has deleted the slot.
        let mapped = unsafe { self.vm.fd.set_user_memory_region(region) };
        if let Err(error) = mapped {
            // Just leased, so it can be returned.
            let _ = state.ids.free_id(id);
            let request = format!(
                "a memory slot for {} at {start:#x}, {:#x} bytes (KVM_SET_USER_MEMORY_REGION)",
                range.name,
                mem.len()
            );
            return Err(refused(&request, error));
        }
        state.slots.insert(range.start, Slot { id, start, mem: mem.mem().clone() });
        Ok(())
    }

    fn unmap(&self, name: &str, slot: Slot, ids: &mut IdAllocator) {
        let region = kvm_userspace_memory_region { slot: slot.id, guest_phys_addr: slot.start, ..Default::default() };
        // SAFETY: a length of 0 deletes the slot; no memory is given to the kernel.
        match unsafe { self.vm.fd.set_user_memory_region(region) } {
            Ok(()) => {
                // Leased when the slot was made.
                let _ = ids.free_id(slot.id);
            }
            Err(error) => {
                crate::log::warn(format_args!("KVM did not let go of the memory of {name}: {error}"));
                // The guest can still reach these host addresses: nothing else may ever be mapped there.
                std::mem::forget(slot.mem);
            }
        }
    }
}

impl MemoryListener for KvmSlots {
    fn remove(&self, range: &FlatRange) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.remove(&range.start) {
            self.unmap(&range.name, slot, &mut state.ids);
        }
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        let pages = plan(range);
        if range.backing.host().is_some() && pages.as_ref().is_none_or(|pages| pages.mem.len() != range.len) {
            guest_error!(range.name, "at {:#x} it has parts of pages, where each access exits", range.start);
        }
        match pages.map_or(Ok(()), |pages| self.map(range, pages)) {
            // A guest may move a BAR to where KVM can map nothing: then it traps there.
            Err(error) if !matches!(range.backing, Backing::Ram(_)) => {
                guest_error!(range.name, "each access exits: {}", error.cause());
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for KvmSlots {
    fn drop(&mut self) {
        // Empty unless it was never registered, or its memory map is gone.
        let mut state = self.state.lock();
        let State { ids, slots } = &mut *state;
        while let Some((_, slot)) = slots.pop_first() {
            self.unmap("a region", slot, ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::IoHandler;
    use crate::memory::host::PageSize;

    struct Nothing;
    impl IoHandler for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn memory() -> HostSlice {
        Arc::new(HostMem::anonymous(4 * PAGE, PageSize::Small).unwrap()).slice()
    }

    fn range(start: u64, len: u64, backing: Backing) -> FlatRange {
        FlatRange { start, len, name: "r".into(), backing }
    }

    #[test]
    fn each_backing_has_its_kind_of_slot() {
        let mem = memory();
        let io: Arc<dyn IoHandler> = Arc::new(Nothing);
        let rom_device = Backing::RomDevice { mem: mem.clone(), io: io.clone(), offset: 0 };
        let flags = |backing| plan(&range(0, PAGE, backing)).map(|pages| pages.flags);
        assert_eq!(flags(Backing::Ram(mem.clone())), Some(0));
        assert_eq!(flags(Backing::Device(mem.clone())), Some(0));
        assert_eq!(flags(Backing::Rom(mem.clone())), Some(KVM_MEM_READONLY));
        assert_eq!(flags(rom_device), Some(KVM_MEM_READONLY));
        assert_eq!(flags(Backing::io(io)), None);
    }

    #[test]
    fn slots_are_the_whole_pages_of_a_range() {
        let mem = memory();
        // Guest address and length of the range, its first byte in the mapping; start, offset and length of the slot.
        let table = [
            ((0x10000, 0x4000, 0), Some((0x10000, 0, 0x4000))),
            ((0x10800, 0x1800, 0x800), Some((0x11000, 0x1000, 0x1000))),
            ((0x10800, 0x2000, 0x800), Some((0x11000, 0x1000, 0x1000))),
            ((0x10000, 0x1800, 0x1000), Some((0x10000, 0x1000, 0x1000))),
            ((0x10000, 0x800, 0), None),
            ((0x10800, 0x1000, 0x800), None),
            // The guest's page borders are not those of the host.
            ((0x10000, 0x2000, 0x800), None),
            ((0x10800, 0x2000, 0), None),
            // Longer than the memory behind it.
            ((0x10000, 0x4000, 0x2000), Some((0x10000, 0x2000, 0x2000))),
            ((0x10000, 0x1000, 0x4000), None),
        ];
        for ((start, len, offset), expected) in table {
            let backing = Backing::Ram(mem.cut(offset, len));
            let slot = plan(&range(start, len, backing)).map(|it| (it.start, it.mem.offset(), it.mem.len()));
            assert_eq!(slot, expected, "{start:#x} {len:#x} {offset:#x}");
        }
    }
}
