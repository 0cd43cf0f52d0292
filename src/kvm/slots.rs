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
    /// By guest address.
    slots: BTreeMap<u64, Slot>,
}

struct Slot {
    id: u32,
    /// Keeps the memory mapped while the kernel has its address.
    mem: Arc<HostMem>,
}

/// How a range is given to KVM.
#[derive(Debug, PartialEq)]
enum Plan<'a> {
    /// It traps by its nature.
    Trap,
    /// It could be a slot but its borders are not those of pages.
    Misaligned,
    /// A slot with these flags.
    Slot { mem: &'a HostSlice, flags: u32 },
}

/// Only whole pages can be slots: a part of a page would show the guest what else is on it.
fn plan(range: &FlatRange) -> Plan<'_> {
    let (mem, flags) = match &range.backing {
        Backing::Ram(mem) | Backing::Device(mem) => (mem, 0),
        // A write exits, then `Memory` hands it to the handler, or ignores it.
        Backing::Rom(mem) | Backing::RomDevice { mem, .. } => (mem, KVM_MEM_READONLY),
        Backing::Io { .. } => return Plan::Trap,
    };
    let aligned = [range.start, range.len, mem.addr()].iter().all(|value| value.is_multiple_of(PAGE));
    if aligned && range.len <= mem.len() { Plan::Slot { mem, flags } } else { Plan::Misaligned }
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

    fn map(&self, range: &FlatRange, mem: &HostSlice, flags: u32) -> Result<()> {
        let mut state = self.state.lock();
        let id = state.ids.allocate_id().map_err(|_| {
            Error::new(Code::KvmFailed, format!("no memory slot is left for {}", range.name))
                .evidence(format!("KVM_CAP_NR_MEMSLOTS is {}", self.vm.slots()))
        })?;
        let region = kvm_userspace_memory_region {
            slot: id,
            flags,
            guest_phys_addr: range.start,
            memory_size: range.len,
            userspace_addr: mem.addr(),
        };
        // SAFETY: the host range is inside `mem` (checked by `plan`), which stays mapped as long as the slot exists: the
        // slot is recorded with an `Arc` of the mapping, which is dropped only after the kernel has deleted the slot.
        let mapped = unsafe { self.vm.fd.set_user_memory_region(region) };
        if let Err(error) = mapped {
            // Just leased, so it can be returned.
            let _ = state.ids.free_id(id);
            let request = format!(
                "a memory slot for {} at {:#x}, {:#x} bytes (KVM_SET_USER_MEMORY_REGION)",
                range.name, range.start, range.len
            );
            return Err(refused(&request, error));
        }
        state.slots.insert(range.start, Slot { id, mem: mem.mem().clone() });
        Ok(())
    }

    fn unmap(&self, name: &str, start: u64, slot: Slot, ids: &mut IdAllocator) {
        let region = kvm_userspace_memory_region { slot: slot.id, guest_phys_addr: start, ..Default::default() };
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
            self.unmap(&range.name, range.start, slot, &mut state.ids);
        }
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        match plan(range) {
            Plan::Trap => Ok(()),
            Plan::Misaligned => {
                guest_error!(range.name, "at {:#x} it is no whole pages, so each access exits", range.start);
                Ok(())
            }
            Plan::Slot { mem, flags } => match self.map(range, mem, flags) {
                // A guest may move a BAR to where KVM can map nothing: then it traps there.
                Err(error) if !matches!(range.backing, Backing::Ram(_)) => {
                    guest_error!(range.name, "each access exits: {}", error.cause());
                    Ok(())
                }
                other => other,
            },
        }
    }
}

impl Drop for KvmSlots {
    fn drop(&mut self) {
        // Empty unless it was never registered, or its memory map is gone.
        let mut state = self.state.lock();
        let State { ids, slots } = &mut *state;
        while let Some((start, slot)) = slots.pop_first() {
            self.unmap("a region", start, slot, ids);
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
    fn whole_pages_are_slots_and_the_rest_traps() {
        let mem = memory();
        let io: Arc<dyn IoHandler> = Arc::new(Nothing);
        let rom_device = Backing::RomDevice { mem: mem.clone(), io: io.clone(), offset: 0 };
        let slot = |flags| Plan::Slot { mem: &mem, flags };
        assert_eq!(plan(&range(0, 4 * PAGE, Backing::Ram(mem.clone()))), slot(0));
        assert_eq!(plan(&range(0, PAGE, Backing::Device(mem.clone()))), slot(0));
        assert_eq!(plan(&range(0, PAGE, Backing::Rom(mem.clone()))), slot(KVM_MEM_READONLY));
        assert_eq!(plan(&range(0, PAGE, rom_device)), slot(KVM_MEM_READONLY));
        assert_eq!(plan(&range(0, PAGE, Backing::io(io))), Plan::Trap);
    }

    #[test]
    fn parts_of_pages_are_no_slots() {
        let mem = memory();
        assert_eq!(plan(&range(0x800, PAGE, Backing::Ram(mem.clone()))), Plan::Misaligned);
        assert_eq!(plan(&range(0, 0x800, Backing::Device(mem.clone()))), Plan::Misaligned);
        assert_eq!(plan(&range(0, PAGE, Backing::Device(mem.cut(0x800, PAGE)))), Plan::Misaligned);
        assert_eq!(plan(&range(0, 5 * PAGE, Backing::Ram(mem.clone()))), Plan::Misaligned);
    }
}
