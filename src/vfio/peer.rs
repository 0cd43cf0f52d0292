//! How a passed-through BAR comes into an IOAS, for DMA of other devices: by a dma-buf where the kernel offers it (VFIO
//! since Linux 6.19, iommufd later), by its address else. iommufd up to now refuses the latter (EFAULT), type1 takes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::explain_io;

/// The requests that it takes, for one BAR at one place.
pub(super) trait BarRequests {
    /// VFIO_DEVICE_FEATURE_DMA_BUF of the BAR's part.
    fn export(&self) -> io::Result<OwnedFd>;
    /// IOMMU_IOAS_MAP_FILE.
    fn map_dma_buf(&self, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// IOMMU_IOAS_MAP.
    fn map_address(&self) -> io::Result<()>;
}

/// Whether this kernel knows dma-bufs of BARs, found out with the first one.
#[derive(Debug, Default)]
pub(super) struct DmaBufs {
    unknown_to_kernel: AtomicBool,
}

impl DmaBufs {
    /// Maps a BAR by the first way that works. A dma-buf needs no descriptor once it is mapped: iommufd keeps it.
    ///
    /// # Errors
    /// Why neither way works, in words.
    pub(super) fn map(&self, bar: &impl BarRequests) -> io::Result<()> {
        let no_dma_buf = match self.by_dma_buf(bar) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        bar.map_address().map_err(|error| {
            io::Error::other(format!(
                "{no_dma_buf}, and iommufd does not map it by address: {}; iommu=type1 can",
                explain_io(&error)
            ))
        })
    }

    fn by_dma_buf(&self, bar: &impl BarRequests) -> Result<(), String> {
        let unknown = || "the kernel has no dma-buf of it".to_owned();
        if self.unknown_to_kernel.load(Ordering::Relaxed) {
            return Err(unknown());
        }
        let fd = bar.export().map_err(|error| {
            if error.raw_os_error() == Some(libc::ENOTTY) {
                self.unknown_to_kernel.store(true, Ordering::Relaxed);
                return unknown();
            }
            format!("VFIO refuses a dma-buf of it: {}", explain_io(&error))
        })?;
        bar.map_dma_buf(fd.as_fd()).map_err(|error| format!("iommufd refuses its dma-buf: {}", explain_io(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::fs::File;

    /// A BAR whose requests have these answers: 0, or an errno.
    struct Bar {
        export: i32,
        dma_buf: i32,
        address: i32,
        calls: RefCell<Vec<&'static str>>,
    }

    impl Bar {
        fn new(export: i32, dma_buf: i32, address: i32) -> Bar {
            Bar { export, dma_buf, address, calls: RefCell::default() }
        }

        fn answer(&self, call: &'static str, errno: i32) -> io::Result<()> {
            self.calls.borrow_mut().push(call);
            if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        }
    }

    impl BarRequests for Bar {
        fn export(&self) -> io::Result<OwnedFd> {
            self.answer("export", self.export)?;
            Ok(File::open("/dev/null")?.into())
        }

        fn map_dma_buf(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.answer("dma-buf", self.dma_buf)
        }

        fn map_address(&self) -> io::Result<()> {
            self.answer("address", self.address)
        }
    }

    #[test]
    fn each_way_is_tried_in_its_turn() {
        let table: [(Bar, &[&str], Option<&str>); 6] = [
            (Bar::new(0, 0, 0), &["export", "dma-buf"], None),
            (Bar::new(libc::ENOTTY, 0, 0), &["export", "address"], None),
            (Bar::new(libc::ENOTTY, 0, libc::EFAULT), &["export", "address"], Some("the kernel has no dma-buf of it")),
            (Bar::new(libc::EINVAL, 0, libc::EFAULT), &["export", "address"], Some("VFIO refuses a dma-buf of it")),
            (Bar::new(0, libc::EINVAL, 0), &["export", "dma-buf", "address"], None),
            (Bar::new(0, libc::ENODEV, libc::EFAULT), &["export", "dma-buf", "address"], Some("refuses its dma-buf")),
        ];
        for (bar, calls, why) in table {
            let mapped = DmaBufs::default().map(&bar);
            assert_eq!(*bar.calls.borrow(), calls);
            match (mapped, why) {
                (Ok(()), None) => {}
                (Err(error), Some(why)) => {
                    let text = error.to_string();
                    assert!(text.contains(why) && text.contains("(EFAULT)"), "{text}");
                }
                (mapped, _) => panic!("{mapped:?} instead of {why:?}"),
            }
        }
    }

    #[test]
    fn a_kernel_without_dma_bufs_is_asked_once() {
        let known = DmaBufs::default();
        let bar = Bar::new(libc::ENOTTY, 0, 0);
        known.map(&bar).unwrap();
        known.map(&bar).unwrap();
        assert_eq!(*bar.calls.borrow(), ["export", "address", "address"]);
        // One that refuses this BAR may take the next.
        let known = DmaBufs::default();
        let bar = Bar::new(libc::EINVAL, 0, 0);
        known.map(&bar).unwrap();
        known.map(&bar).unwrap();
        assert_eq!(*bar.calls.borrow(), ["export", "address", "export", "address"]);
    }
}
