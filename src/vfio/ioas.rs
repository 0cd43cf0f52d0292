//! An I/O address space of iommufd (kernel: Documentation/userspace-api/iommufd.rst): what a container is to groups, for
//! devices that are opened by nodes of their own. One IOAS serves devices behind different IOMMUs: the kernel makes a
//! page table for each kind by itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings::iommufd as bindings;
use iommufd_ioctls::{IommuFd, IommufdError, IommufdIoas};
use vfio_ioctls::{VfioDevice as RawDevice, VfioError, VfioIommufd};

use super::backend::Backend;
use super::held::Held;
use super::peer::{BarRequests, DmaBufs};
use super::seams::{DmaLimits, DmaMapper};
use super::token::VfToken;
use super::uapi::iommufd as uapi;
use crate::error::{Code, Error, Result, explain_io};
use crate::memory::HostSlice;

const READ: u32 = bindings::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
const WRITE: u32 = bindings::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
const FIXED: u32 = bindings::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;

/// One address space of an iommufd. Dropping it unmaps everything and destroys it; the devices are closed before.
pub struct Ioas {
    /// The crate's pair of descriptor and address space, which devices share. KVM is told of the devices by
    /// [`super::space::Vfio`], as of groups.
    inner: Arc<VfioIommufd>,
    held: Held,
    dma_bufs: DmaBufs,
}

impl Ioas {
    /// Makes an address space with `iommufd`, which is a descriptor of /dev/iommu.
    pub fn new(iommufd: File) -> io::Result<Ioas> {
        let iommufd = Arc::new(IommuFd::new_from_fd(iommufd));
        let ioas = Arc::new(IommufdIoas::new(iommufd.clone()).map_err(answer)?);
        let inner = VfioIommufd::new(iommufd, Some(ioas), None).map_err(io::Error::other)?;
        Ok(Ioas { inner: Arc::new(inner), held: Held::default(), dma_bufs: DmaBufs::default() })
    }

    /// Binds a device's node to the iommufd and attaches it to the address space.
    pub(super) fn device(&self, node: File, token: Option<VfToken>) -> Result<RawDevice, VfioError> {
        let Some(token) = token else { return RawDevice::new_from_fd(node, self.inner.clone(), true) };
        uapi::bind_with_token(&node, &**self.inner.iommufd(), &token).map_err(|error| {
            VfioError::VfioDeviceBindIommufd(vmm_sys_util::errno::Error::new(error.raw_os_error().unwrap_or(libc::EIO)))
        })?;
        // Closing the node unbinds it, if it cannot be attached.
        RawDevice::new_from_bound_fd(node, self.inner.clone(), true)
    }

    fn map_memory(&self, iova: u64, host: &HostSlice, writable: bool) -> io::Result<()> {
        let map = bindings::iommu_ioas_map {
            size: size_of::<bindings::iommu_ioas_map>() as u32,
            flags: FIXED | READ | if writable { WRITE } else { 0 },
            ioas_id: self.inner.ioas().id(),
            user_va: host.addr(),
            length: host.len(),
            iova,
            ..Default::default()
        };
        self.inner.iommufd().map_iommu_ioas(&map).map_err(answer)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut unmap = bindings::iommu_ioas_unmap {
            size: size_of::<bindings::iommu_ioas_unmap>() as u32,
            ioas_id: self.inner.ioas().id(),
            iova,
            length: len,
        };
        self.inner.iommufd().unmap_iommu_ioas(&mut unmap).map_err(answer)
    }
}

/// A BAR that is to be mapped at an IOVA.
struct Bar<'a> {
    ioas: &'a Ioas,
    iova: u64,
    host: &'a HostSlice,
    device: BorrowedFd<'a>,
    /// Where the mapping's file position is.
    start: u64,
}

impl BarRequests for Bar<'_> {
    fn export(&self) -> io::Result<OwnedFd> {
        let start = self.start.checked_add(self.host.offset()).ok_or(io::ErrorKind::InvalidInput)?;
        let end = start.checked_add(self.host.len()).ok_or(io::ErrorKind::InvalidInput)?;
        uapi::export_dma_buf(self.device, start..end)
    }

    fn map_dma_buf(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let ioas = self.ioas.inner.ioas();
        ioas.map_file(fd.as_raw_fd(), 0, self.host.len(), self.iova, true).map_err(answer)
    }

    fn map_address(&self) -> io::Result<()> {
        self.ioas.map_memory(self.iova, self.host, true)
    }
}

impl DmaMapper for Ioas {
    fn map(&self, iova: u64, host: HostSlice, writable: bool) -> io::Result<()> {
        let slice = host.clone();
        self.held.map(iova, slice, || match host.mem().file() {
            // A device is behind the mapping: it is a BAR.
            Some((device, start)) if writable && uapi::may_be_device(device) => {
                self.dma_bufs.map(&Bar { ioas: self, iova, host: &host, device, start })
            }
            _ => self.map_memory(iova, &host, writable),
        })
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.held.unmap(iova, || self.unmap(iova, len))
    }

    fn backend(&self) -> Backend {
        Backend::Iommufd
    }

    fn limits(&self) -> Result<DmaLimits> {
        uapi::iova_ranges(&**self.inner.iommufd(), self.inner.ioas().id()).map_err(|error| {
            Error::new(Code::DeviceFailed, "the IOMMU's limits cannot be read")
                .evidence(format!("IOMMU_IOAS_IOVA_RANGES: {}", explain_io(&error)))
        })
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        self.held.end(|iova, len| self.unmap(iova, len));
    }
}

/// The kernel's answer inside an error of the crate.
fn answer(error: IommufdError) -> io::Error {
    match error {
        IommufdError::OpenIommufd(error) => error,
        IommufdError::IommuIoasAlloc(error)
        | IommufdError::IommuIoasMap(error)
        | IommufdError::IommuIoasMapFile(error)
        | IommufdError::IommuIoasUnmap(error)
        | IommufdError::IommuDestroy(error) => error.into(),
        other => io::Error::other(other),
    }
}
