//! A VFIO container of type 1: one IOMMU address space (kernel: Documentation/driver-api/vfio.rst, `vfio_iommu_type1`).

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_ioctls::{VfioContainer, VfioDevice as RawDevice, VfioError, VfioOps};

use super::held::Held;
use super::seams::{DmaLimits, DmaMapper};
use super::uapi;
use crate::error::{Code, Error, Result, explain_io};
use crate::memory::HostSlice;

/// A container. It has an IOMMU from the moment when its first device was opened; before that nothing can be mapped.
pub struct Container {
    inner: Arc<VfioContainer>,
    held: Held,
}

impl Container {
    /// Opens `/dev/vfio/vfio`. KVM is told of the groups by [`super::space::Vfio`], not by the crate, which forgets a
    /// whole group when one of its devices goes.
    pub fn open() -> Result<Container, VfioError> {
        Ok(Container { inner: Arc::new(VfioContainer::new(None)?), held: Held::default() })
    }

    /// Opens a device by its sysfs path; its group joins the container if it has not yet.
    pub(super) fn device(&self, sysfs: &Path) -> Result<(RawDevice, Arc<DeviceOps>), VfioError> {
        let ops = Arc::new(DeviceOps { container: self.inner.clone(), closing: AtomicBool::new(false) });
        let device = RawDevice::new(sysfs, ops.clone(), false)?;
        Ok((device, ops))
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        self.inner.vfio_dma_unmap(iova, size).map_err(answer)
    }
}

/// What a device of the crate believes to be its container.
///
/// The crate's Drop closes the device, reads the group's number from sysfs again and unwraps, which panics if the device
/// has been pulled out; and it releases the whole group, although siblings may still be open. It does so only if
/// `as_any` is a container: after [`DeviceOps::close`] it is not, and Drop leaves the descriptor and the group alone.
pub(super) struct DeviceOps {
    container: Arc<VfioContainer>,
    closing: AtomicBool,
}

impl DeviceOps {
    /// From now on the crate's Drop does nothing.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl VfioOps for DeviceOps {
    fn as_any(&self) -> &dyn Any {
        if self.closing.load(Ordering::Acquire) { self } else { &*self.container }
    }
}

impl DmaMapper for Container {
    fn map(&self, iova: u64, host: HostSlice, writable: bool) -> io::Result<()> {
        let len = usize::try_from(host.len()).map_err(io::Error::other)?;
        let (addr, size) = (host.addr(), host.len());
        self.held.map(iova, host, || {
            if writable {
                // SAFETY: `held` keeps the memory mapped until the kernel has confirmed that the range is unmapped, and
                // `HostMem` is only ever accessed by volatile copies.
                unsafe { self.inner.vfio_dma_map(iova, len, addr as *mut u8) }.map_err(answer)
            } else {
                // SAFETY: as above.
                unsafe { uapi::map_read_only(&*self.inner, iova, addr, size) }
            }
        })
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.held.unmap(iova, || self.unmap(iova, len))
    }

    fn limits(&self) -> Result<DmaLimits> {
        uapi::iommu_info(&*self.inner).map_err(|error| {
            Error::new(Code::DeviceFailed, "the IOMMU's limits cannot be read")
                .evidence(format!("VFIO_IOMMU_GET_INFO: {}", explain_io(&error)))
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.held.end(|iova, len| self.unmap(iova, len));
    }
}

/// The kernel's answer inside an error of the crate.
fn answer(error: VfioError) -> io::Error {
    match error {
        VfioError::IommuDmaMap(error) | VfioError::IommuDmaUnmap(error) => error.into(),
        other => io::Error::other(other),
    }
}
