//! One open VFIO device: [`HostPci`] on its descriptor.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vfio_bindings::bindings::vfio as bindings;
use vfio_ioctls::{VfioDevice as RawDevice, VfioError, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;

use super::backend::DeviceReport;
use super::container::{Container, DeviceOps};
use super::dma::Gate;
use super::ioas::Ioas;
use super::seams::{HostPci, IrqInfo, IrqKind, RegionIndex, RegionInfo};
use super::space::Vfio;
use super::token::{Alias, VfToken};
use super::uapi::{self, IrqAction};
use crate::bdf::Bdf;
use crate::guest_error;
use crate::host::reset::{Affected, Alone};
use crate::memory::HostMem;
use crate::memory::host::PAGE;

/// Regions that are asked for: the BARs, the ROM, configuration space and, where there is one, the VGA region.
const REGIONS: u32 = bindings::VFIO_PCI_VGA_REGION_INDEX + 1;
/// The bits of an offset in the descriptor that are the region's number (kernel: VFIO_PCI_OFFSET_SHIFT).
const OFFSET_SHIFT: u32 = 40;
/// Sparse areas of one region that are looked at; the kernel's drivers have up to four.
const MAX_AREAS: usize = 64;

/// Whom KVM is told of for a device, and what is given back with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seat {
    /// Its whole group, whose devices share one descriptor.
    Group(u32),
    /// The device alone, opened by its own node.
    Device(Bdf),
}

/// A device's descriptor as vfio-ioctls opened it, and the ways to close it.
pub(super) struct Handle {
    raw: RawDevice,
    /// Of a device of a container.
    ops: Option<Arc<DeviceOps>>,
    sysfs: PathBuf,
    /// The path that the crate has of it, if it has a token: that of an [`Alias`] that is gone.
    alias: Option<PathBuf>,
    group: u32,
    bdf: Bdf,
}

/// A device that is to be opened.
pub(super) struct Target<'a> {
    pub bdf: Bdf,
    pub group: u32,
    pub sysfs: &'a Path,
    pub token: Option<VfToken>,
}

impl Handle {
    /// Opens the device, by its alias if there is one; its group joins the container if it has not yet.
    pub(super) fn open(container: &Container, what: &Target<'_>, alias: Option<&Alias>) -> Result<Handle, VfioError> {
        let alias = alias.map(Alias::path);
        let (raw, ops) = container.device(alias.unwrap_or(what.sysfs))?;
        Ok(Handle::new(raw, Some(ops), what, alias.map(Path::to_owned)))
    }

    /// Binds a device's own node to an iommufd and attaches it to the address space.
    pub(super) fn bind(ioas: &Ioas, node: File, what: &Target<'_>) -> Result<Handle, VfioError> {
        Ok(Handle::new(ioas.device(node, what.token)?, None, what, None))
    }

    fn new(raw: RawDevice, ops: Option<Arc<DeviceOps>>, what: &Target<'_>, alias: Option<PathBuf>) -> Handle {
        Handle { raw, ops, sysfs: what.sysfs.to_owned(), alias, group: what.group, bdf: what.bdf }
    }

    /// The host's address.
    pub(super) fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The IOMMU group's number.
    pub(super) fn group(&self) -> u32 {
        self.group
    }

    /// What of it KVM is told of.
    pub(super) fn seat(&self) -> Seat {
        match self.ops {
            Some(_) => Seat::Group(self.group),
            None => Seat::Device(self.bdf),
        }
    }

    /// A second descriptor of the device.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is open as long as the handle, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Closes the device and leaves its group in the container, for its siblings. A device that was bound by itself
    /// leaves its address space and is unbound.
    pub(super) fn close(self) {
        let Some(ops) = &self.ops else { return self.close_bound() };
        ops.close();
        let fd = self.raw.as_raw_fd();
        drop(self.raw);
        // SAFETY: the crate keeps its descriptor in a `ManuallyDrop` and, after `DeviceOps::close`, does not close it;
        // nobody else has the number, because every borrow of it ended with `self`.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    /// Closes the device and takes its group out of a container that goes on: it is the last device of the group.
    pub(super) fn close_with_group(self) {
        // The crate reads the group's number from sysfs again and unwraps it. If the device has been removed the link is
        // gone; the group then leaves with the container, which the kernel does by itself.
        if self.ops.is_none() || group_of(&self.sysfs) != Some(self.group) {
            return self.close();
        }
        // The crate looks there.
        let alias = self.alias.as_ref().map(|path| Alias::again(path, &self.sysfs)).transpose();
        let Ok(_alias) = alias else { return self.close() };
        let Handle { raw, sysfs, .. } = self;
        // A removal that waits for the close goes on in the moment before the crate looks.
        if catch_unwind(AssertUnwindSafe(|| drop(raw))).is_err() {
            guest_error!(sysfs.display(), "the device vanished while it was closed");
        }
    }

    fn close_bound(self) {
        let fd = self.raw.as_raw_fd();
        // The crate unwraps the answer to VFIO_DEVICE_DETACH_IOMMUFD_PT, which fails for a device that cannot be woken.
        if catch_unwind(AssertUnwindSafe(|| drop(self.raw))).is_err() {
            // SAFETY: the crate panicked before it closed its descriptor, which it keeps in a `ManuallyDrop`. The close
            // unbinds the device, and that detaches it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// The number of a device's IOMMU group, by the link in its sysfs folder.
pub fn group_of(sysfs: &Path) -> Option<u32> {
    std::fs::read_link(sysfs.join("iommu_group")).ok()?.file_name()?.to_str()?.parse().ok()
}

/// A device that a process may use. Dropping it closes it, and with the last one of its group gives the group back.
pub struct VfioDevice {
    name: String,
    /// Taken by Drop only.
    handle: ManuallyDrop<Handle>,
    regions: Vec<Placed>,
    gate: Arc<Gate>,
    home: Arc<Vfio>,
}

/// A region and where it is in the descriptor.
#[derive(Clone, Default)]
struct Placed {
    offset: u64,
    info: RegionInfo,
}

impl VfioDevice {
    pub(super) fn new(handle: Handle, gate: Arc<Gate>, home: Arc<Vfio>) -> VfioDevice {
        let regions = (0..REGIONS).map(|index| placed(&handle.raw, index)).collect();
        VfioDevice { name: handle.bdf.to_string(), handle: ManuallyDrop::new(handle), regions, gate, home }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the handle, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.handle.raw.as_raw_fd()) }
    }

    fn placed(&self, region: RegionIndex) -> io::Result<&Placed> {
        self.regions.get(region.number() as usize).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Where `len` bytes at `offset` of a region are in the descriptor.
    fn position(&self, region: RegionIndex, offset: u64, len: u64) -> io::Result<u64> {
        let placed = self.placed(region)?;
        let end = offset.checked_add(len).filter(|end| *end <= placed.info.size);
        end.and_then(|_| placed.offset.checked_add(offset)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn set_irqs(&self, kind: IrqKind, start: u32, action: IrqAction<'_>) -> io::Result<()> {
        match uapi::set_irqs(&self.handle.raw, kind.number(), start, action)? {
            None => Ok(()),
            Some(_) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

/// A region's facts, from what the crate asked when it opened the device.
fn placed(raw: &RawDevice, index: u32) -> Placed {
    // The crate leaves a missing VGA region out, so that a device-specific one may stand in its place.
    if index == bindings::VFIO_PCI_VGA_REGION_INDEX && raw.get_region_offset(index) >> OFFSET_SHIFT != u64::from(index)
    {
        return Placed::default();
    }
    let flags = raw.get_region_flags(index);
    let size = raw.get_region_size(index);
    let sparse = raw.get_region_caps(index).into_iter().find_map(|cap| match cap {
        VfioRegionInfoCap::SparseMmap(sparse) => {
            Some(sparse.areas.iter().take(MAX_AREAS).map(|area| (area.offset, area.size)).collect())
        }
        _ => None,
    });
    Placed { offset: raw.get_region_offset(index), info: region_info(flags, size, sparse) }
}

/// The mappable areas of a region: the sparse ones that the kernel lists, cut to the region, else all of it.
fn region_info(flags: u32, size: u64, sparse: Option<Vec<(u64, u64)>>) -> RegionInfo {
    let mappable = match (flags & bindings::VFIO_REGION_INFO_FLAG_MMAP != 0, sparse) {
        (false, _) => Vec::new(),
        (true, None) => std::iter::once(0..size).filter(|area| !area.is_empty()).collect(),
        (true, Some(areas)) => {
            let cut = areas.into_iter().map(|(start, len)| start.min(size)..start.saturating_add(len).min(size));
            cut.filter(|area| !area.is_empty()).collect()
        }
    };
    RegionInfo {
        size,
        readable: flags & bindings::VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & bindings::VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable,
    }
}

impl HostPci for VfioDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn region(&self, region: RegionIndex) -> RegionInfo {
        self.placed(region).map(|placed| placed.info.clone()).unwrap_or_default()
    }

    fn read(&self, region: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = self.position(region, offset, data.len() as u64)?;
        uapi::read_exact(self.fd(), at, data)
    }

    fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.position(region, offset, data.len() as u64)?;
        uapi::write_all(self.fd(), at, data)
    }

    fn map(&self, region: RegionIndex, area: Range<u64>) -> io::Result<Arc<HostMem>> {
        let len = area.end.checked_sub(area.start).ok_or(io::ErrorKind::InvalidInput)?;
        let placed = self.placed(region)?;
        // The page of a BAR that is smaller is mapped as a whole.
        if area.end > placed.info.size.next_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = placed.offset.checked_add(area.start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Arc::new(HostMem::shared(self.fd(), at, len)?))
    }

    fn irq(&self, kind: IrqKind) -> IrqInfo {
        let Some(irq) = self.handle.raw.get_irq_info(kind.number()) else { return IrqInfo::default() };
        let usable = irq.flags & bindings::VFIO_IRQ_INFO_EVENTFD != 0;
        IrqInfo {
            count: if usable { irq.count } else { 0 },
            automasked: irq.flags & bindings::VFIO_IRQ_INFO_AUTOMASKED != 0,
        }
    }

    fn arm(&self, kind: IrqKind, first: u32, fds: &[Option<&EventFd>]) -> io::Result<()> {
        if fds.is_empty() {
            return Ok(());
        }
        let fds: Vec<RawFd> = fds.iter().map(|fd| fd.map_or(-1, AsRawFd::as_raw_fd)).collect();
        match uapi::set_irqs(&self.handle.raw, kind.number(), first, IrqAction::Trigger(&fds))? {
            None => Ok(()),
            Some(fewer) => {
                guest_error!(self.name, "the host has {fewer} interrupt vectors left for its {}", fds.len());
                let fds = fds.get(..fewer).unwrap_or(&fds);
                self.set_irqs(kind, first, IrqAction::Trigger(fds))
            }
        }
    }

    fn disarm(&self, kind: IrqKind) -> io::Result<()> {
        self.set_irqs(kind, 0, IrqAction::Trigger(&[]))
    }

    fn mask(&self, kind: IrqKind, masked: bool) -> io::Result<()> {
        self.set_irqs(kind, 0, if masked { IrqAction::Mask } else { IrqAction::Unmask })
    }

    fn unmask_fd(&self, kind: IrqKind, fd: &EventFd) -> io::Result<()> {
        self.set_irqs(kind, 0, IrqAction::UnmaskBy(fd.as_raw_fd()))
    }

    fn reset(&self) -> io::Result<bool> {
        self.home.hot_resets().forget(self.handle.bdf);
        uapi::reset(&self.handle.raw)
    }

    fn resets_alone(&self) -> Alone {
        self.home.host().resets_alone(self.handle.bdf)
    }

    fn hot_reset_reach(&self) -> io::Result<Vec<Affected>> {
        self.home.hot_reset_reach(self.fd())
    }

    fn hot_reset(&self) -> io::Result<()> {
        self.home.hot_reset(self.handle.bdf, self.fd())
    }

    fn quarantine(&self, reason: &str) {
        if let Err(error) = self.home.host().quarantine(self.handle.bdf, reason) {
            crate::log::warn(format_args!("{error}"));
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let reports = self.home.describe().into_iter();
        reports.filter(|report| report.host == self.name).flat_map(DeviceReport::into_facts).collect()
    }

    fn gate(&self) -> Option<&Gate> {
        Some(&self.gate)
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        // SAFETY: `self.handle` is not used again: this is its owner's Drop.
        let handle = unsafe { ManuallyDrop::take(&mut self.handle) };
        self.home.close(handle);
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables of ranges")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MMAP: u32 = bindings::VFIO_REGION_INFO_FLAG_MMAP;

    #[test]
    fn mappable_areas_lie_inside_the_region() {
        let cases: [(u32, u64, Option<Vec<(u64, u64)>>, Vec<Range<u64>>); 6] = [
            (0, 0x4000, None, vec![]),
            (MMAP, 0x4000, None, vec![0..0x4000]),
            (MMAP, 0, None, vec![]),
            (MMAP, 0x4000, Some(vec![(0, 0x2000), (0x3000, 0x1000)]), vec![0..0x2000, 0x3000..0x4000]),
            (MMAP, 0x4000, Some(vec![(0x3000, u64::MAX), (u64::MAX, 1)]), vec![0x3000..0x4000]),
            (MMAP, 0x4000, Some(vec![]), vec![]),
        ];
        for (flags, size, sparse, expected) in cases {
            assert_eq!(region_info(flags, size, sparse.clone()).mappable, expected, "{sparse:?}");
        }
    }

    /// vfio-ioctls unwraps this link when it drops a device, which panics after a surprise removal.
    #[test]
    fn a_vanished_device_has_no_group() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(group_of(dir.path()), None);
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/17", dir.path().join("iommu_group")).unwrap();
        assert_eq!(group_of(dir.path()), Some(17));
        assert_eq!(group_of(&dir.path().join("gone")), None);
    }

    proptest! {
        #[test]
        fn no_sparse_area_reaches_beyond_the_region(size: u64, areas in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8)) {
            for area in region_info(MMAP, size, Some(areas)).mappable {
                prop_assert!(area.start < area.end && area.end <= size);
            }
        }
    }
}
