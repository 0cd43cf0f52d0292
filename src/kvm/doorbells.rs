//! Doorbells of emulated devices as a listener of the memory map: a write that only wakes a device's thread signals an
//! eventfd in the kernel (KVM_IOEVENTFD) and costs no exit to user space.

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;

use super::Vm;
use crate::error::Result;
use crate::guest_error;
use crate::memory::{Backing, FlatRange, MemoryListener};

/// The doorbells of one VM. Register it with [`crate::memory::Stage::Guest`]; dropping the registration takes them away.
pub struct KvmDoorbells {
    vm: Arc<Vm>,
    /// What KVM serves, by the guest address of the range that it lies in. Taken after the layout lock, held over the
    /// ioctl; no other lock is taken inside.
    served: Mutex<BTreeMap<u64, Vec<Bell>>>,
}

/// A doorbell at a guest address.
#[derive(Clone)]
struct Bell {
    address: u64,
    bell: Arc<EventFd>,
}

impl KvmDoorbells {
    /// None yet.
    pub fn new(vm: Arc<Vm>) -> Arc<KvmDoorbells> {
        Arc::new(KvmDoorbells { vm, served: Mutex::default() })
    }

    fn take(&self, bell: &Bell) {
        let (fd, address) = (borrowed(&bell.bell), IoEventAddress::Mmio(bell.address));
        if let Err(error) = self.vm.fd.unregister_ioevent(&fd, &address, NoDatamatch) {
            // The eventfd outlives the VM: a signal that still comes is one wake for nothing.
            crate::log::warn(format_args!("KVM did not let go of a doorbell at {:#x}: {error}", bell.address));
        }
    }
}

/// The doorbells of a range, at their guest addresses.
fn plan(range: &FlatRange) -> Vec<Bell> {
    let Backing::Io { io, offset } = &range.backing else { return Vec::new() };
    let inside = io.doorbells().iter().filter(|doorbell| (*offset..offset + range.len).contains(&doorbell.offset));
    inside.map(|it| Bell { address: range.start + (it.offset - offset), bell: it.bell.clone() }).collect()
}

/// The eventfd once more, as the type that rust-vmm's crates have for it.
///
/// # Errors
/// No descriptor is left.
pub fn duplicate(bell: &EventFd) -> io::Result<vmm_sys_util::eventfd::EventFd> {
    let fd = bell.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is an open eventfd, and this is its one owner from here on.
    Ok(unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// The eventfd as the KVM crate's type.
fn borrowed(bell: &EventFd) -> ManuallyDrop<vmm_sys_util::eventfd::EventFd> {
    // SAFETY: the descriptor is an eventfd that is open for as long as `bell` lives, which is longer than any use of what
    // is returned here; it is never dropped, so it does not close the descriptor.
    ManuallyDrop::new(unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(bell.as_fd().as_raw_fd()) })
}

impl MemoryListener for KvmDoorbells {
    fn remove(&self, range: &FlatRange) {
        for bell in self.served.lock().remove(&range.start).into_iter().flatten() {
            self.take(&bell);
        }
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        let mut served = Vec::new();
        for bell in plan(range) {
            // Without a length: a write of any width rings, and KVM on Intel need not decode the instruction.
            let address = IoEventAddress::Mmio(bell.address);
            match self.vm.fd.register_ioevent(&borrowed(&bell.bell), &address, NoDatamatch) {
                Ok(()) => served.push(bell),
                // KVM has room for a thousand of them. The device works without, by exits.
                Err(error) => {
                    guest_error!(range.name, "writes to a doorbell exit: {error} (KVM_IOEVENTFD)");
                    break;
                }
            }
        }
        if !served.is_empty() {
            self.served.lock().insert(range.start, served);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Doorbell, IoHandler};

    struct Bells(Vec<Doorbell>);
    impl IoHandler for Bells {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
        fn doorbells(&self) -> &[Doorbell] {
            &self.0
        }
    }

    #[test]
    fn doorbells_are_where_their_range_is() {
        let bell = Arc::new(EventFd::new().unwrap());
        let bells = [0, 4, 8, 0x1000].map(|offset| Doorbell { offset, bell: bell.clone() });
        let io: Arc<dyn IoHandler> = Arc::new(Bells(bells.to_vec()));
        let addresses = |start, len, offset| {
            let range = FlatRange { start, len, name: "r".into(), backing: Backing::Io { io: io.clone(), offset } };
            plan(&range).iter().map(|bell| bell.address).collect::<Vec<_>>()
        };
        assert_eq!(addresses(0x8000, 0x1000, 0), [0x8000, 0x8004, 0x8008]);
        // What a region of higher priority leaves of it.
        assert_eq!(addresses(0x8004, 4, 4), [0x8004]);
        assert_eq!(addresses(0x8010, 0x2000, 0x10), [0x9000]);
        assert!(addresses(0x8010, 0x10, 0x10).is_empty());
    }
}
