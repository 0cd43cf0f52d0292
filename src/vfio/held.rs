//! What an IOMMU address space maps, kept mapped in this process for as long as a device could reach it.

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;

use crate::memory::HostSlice;

/// The mappings of one address space, by IOVA.
///
/// The lock is held during each request, so that the kernel's state and this one never differ.
#[derive(Default)]
pub(super) struct Held(Mutex<BTreeMap<u64, HostSlice>>);

impl Held {
    /// Keeps `host` if `request` has mapped it at `iova`.
    pub(super) fn map(&self, iova: u64, host: HostSlice, request: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut held = self.0.lock();
        request()?;
        held.insert(iova, host);
        Ok(())
    }

    /// Lets go of what is at `iova` if `request` has unmapped it.
    pub(super) fn unmap(&self, iova: u64, request: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut held = self.0.lock();
        request()?;
        held.remove(&iova);
        Ok(())
    }

    /// The address space ends: unmaps all that is left by `request`, of an IOVA and a length.
    ///
    /// The kernel unmaps what remains when the last descriptor goes, which may be later than this: memory that it did not
    /// unmap now stays mapped in this process for good, so that it never becomes something else under a device.
    pub(super) fn end(&self, request: impl Fn(u64, u64) -> io::Result<()>) {
        for (iova, host) in std::mem::take(&mut *self.0.lock()) {
            if request(iova, host.len()).is_err() {
                std::mem::forget(host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostMem;
    use crate::memory::host::{PAGE, PageSize};
    use std::sync::Arc;

    #[test]
    fn memory_is_held_exactly_as_long_as_it_is_mapped() {
        let mem = Arc::new(HostMem::anonymous(PAGE, PageSize::Small).unwrap());
        let held = Held::default();
        let refuse = || Err(io::Error::from_raw_os_error(libc::EFAULT));
        assert!(held.map(0, mem.slice(), refuse).is_err());
        assert_eq!(Arc::strong_count(&mem), 1);
        held.map(0, mem.slice(), || Ok(())).unwrap();
        assert!(held.unmap(0, refuse).is_err());
        assert_eq!(Arc::strong_count(&mem), 2);
        held.unmap(0, || Ok(())).unwrap();
        assert_eq!(Arc::strong_count(&mem), 1);
        held.map(0x1000, mem.slice(), || Ok(())).unwrap();
        held.end(|iova, len| {
            assert_eq!((iova, len), (0x1000, PAGE));
            Ok(())
        });
        assert_eq!(Arc::strong_count(&mem), 1);
        held.map(0x1000, mem.slice(), || Ok(())).unwrap();
        held.end(|_, _| refuse());
        assert_eq!(Arc::strong_count(&mem), 2, "a device may still reach it");
    }
}
