//! The VFIO requests that vfio-ioctls does not offer or gets wrong, beneath it: on the descriptors that it opened.
//!
//! | request | why not the crate's |
//! |---|---|
//! | VFIO_IOMMU_GET_INFO | not offered: usable IOVA ranges, mapping limit |
//! | VFIO_IOMMU_MAP_DMA | always writable there: used for writable mappings, this one for read-only ones |
//! | VFIO_DEVICE_SET_IRQS | no start, no absent descriptor, no mask |
//! | VFIO_DEVICE_RESET | returns nothing there |
//! | VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET | not offered |
//! | region reads and writes | return nothing there and leave old bytes in the buffer |

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

use super::seams::DmaLimits;

mod hot_reset;
pub mod iommufd;

pub use hot_reset::{Owner, hot_reset, hot_reset_info};

ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 13);

/// Enough for the capabilities of every kernel so far: a dozen IOVA ranges, the mapping limit, migration.
const INFO_BYTES: usize = 4096;
/// Capabilities that are looked at before the chain is taken for broken.
const MAX_INFO_CAPS: usize = 32;
/// Ranges that are looked at; x86 hosts have two or three.
const MAX_IOVA_RANGES: usize = 256;
/// Where x86 writes of interrupt messages go: an IOMMU never maps it, and a kernel before 5.4 does not say so.
const MSI_WINDOW: Range<u64> = 0xfee0_0000..0xfef0_0000;

fn result(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VFIO_IOMMU_GET_INFO: usable addresses, page sizes and the mapping limit, in one request.
pub fn iommu_info(container: &impl AsRawFd) -> io::Result<DmaLimits> {
    let mut buffer = vec![0u64; INFO_BYTES / 8];
    if let Some(first) = buffer.first_mut() {
        // argsz, then flags: the first two 32-bit fields of struct vfio_iommu_type1_info.
        *first = INFO_BYTES as u64;
    }
    // SAFETY: the kernel writes at most `argsz` bytes, which is the length of the buffer, and the buffer is aligned for
    // the structure's 64-bit fields.
    result(unsafe { ioctl_with_mut_ptr(container, VFIO_IOMMU_GET_INFO(), buffer.as_mut_ptr()) })?;
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(parse_iommu_info(&bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(field.try_into().ok()?))
}

/// Reads `struct vfio_iommu_type1_info` with its chain of capabilities.
pub fn parse_iommu_info(bytes: &[u8]) -> DmaLimits {
    let flags = u32_at(bytes, 4).unwrap_or(0);
    let page_sizes = if flags & uapi::VFIO_IOMMU_INFO_PGSIZES != 0 { u64_at(bytes, 8).unwrap_or(0) } else { 0 };
    let mut usable = None;
    let mut available = None;
    let mut next = if flags & uapi::VFIO_IOMMU_INFO_CAPS != 0 { u32_at(bytes, 16).unwrap_or(0) } else { 0 };
    for _ in 0..MAX_INFO_CAPS {
        let at = next as usize;
        let (Some(header), Some(after)) = (u32_at(bytes, at), u32_at(bytes, at.saturating_add(4))) else { break };
        if next == 0 {
            break;
        }
        // struct vfio_info_cap_header: id and version, 16 bits each, then the offset of the next one.
        match header & 0xffff {
            uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => usable = Some(iova_ranges(bytes, at)),
            uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => available = u32_at(bytes, at + 8),
            _ => {}
        }
        next = after;
    }
    let usable = usable.unwrap_or_else(|| vec![0..MSI_WINDOW.start, MSI_WINDOW.end..u64::MAX]);
    DmaLimits { page_sizes, usable, available }
}

/// `struct vfio_iommu_type1_info_cap_iova_range` at `at`: a count, padding, then pairs of first and last address.
fn iova_ranges(bytes: &[u8], at: usize) -> Vec<Range<u64>> {
    let count = (u32_at(bytes, at + 8).unwrap_or(0) as usize).min(MAX_IOVA_RANGES);
    let pair = |index: usize| Some(u64_at(bytes, at + 16 + index * 16)?..u64_at(bytes, at + 24 + index * 16)?);
    let mut ranges: Vec<_> = (0..count)
        .map_while(pair)
        .filter(|range| range.start <= range.end)
        .map(|range| range.start..range.end.saturating_add(1))
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// VFIO_IOMMU_MAP_DMA without write permission.
///
/// # Safety
/// The `len` bytes at `host` stay mapped in this process until the same range of `iova` has been unmapped.
pub unsafe fn map_read_only(container: &impl AsRawFd, iova: u64, host: u64, len: u64) -> io::Result<()> {
    let map = uapi::vfio_iommu_type1_dma_map {
        argsz: size_of::<uapi::vfio_iommu_type1_dma_map>() as u32,
        flags: uapi::VFIO_DMA_MAP_FLAG_READ,
        vaddr: host,
        iova,
        size: len,
    };
    // SAFETY: the structure is complete and outlives the call; the caller keeps the memory mapped.
    result(unsafe { ioctl_with_ref(container, VFIO_IOMMU_MAP_DMA(), &map) })
}

/// VFIO_DEVICE_RESET; `false`: the kernel has no way to reset this function alone.
pub fn reset(device: &impl AsRawFd) -> io::Result<bool> {
    // SAFETY: the request has no argument.
    match result(unsafe { ioctl(device, VFIO_DEVICE_RESET()) }) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL | Errno::ENOTTY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// What a VFIO_DEVICE_SET_IRQS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqAction<'a> {
    /// Signal these descriptors (-1: none) when the vectors fire. None at all disables the whole index.
    Trigger(&'a [RawFd]),
    /// Unmask when this descriptor is signalled.
    UnmaskBy(RawFd),
    /// Mask now.
    Mask,
    /// Unmask now.
    Unmask,
}

/// Builds the 32-bit words of `struct vfio_irq_set`: argsz, flags, index, start, count, data.
pub fn irq_set(index: u32, start: u32, action: IrqAction<'_>) -> Vec<u32> {
    let (flags, count, data): (u32, usize, &[RawFd]) = match &action {
        IrqAction::Trigger([]) => (uapi::VFIO_IRQ_SET_DATA_NONE | uapi::VFIO_IRQ_SET_ACTION_TRIGGER, 0, &[]),
        IrqAction::Trigger(fds) => {
            (uapi::VFIO_IRQ_SET_DATA_EVENTFD | uapi::VFIO_IRQ_SET_ACTION_TRIGGER, fds.len(), fds)
        }
        IrqAction::UnmaskBy(fd) => {
            (uapi::VFIO_IRQ_SET_DATA_EVENTFD | uapi::VFIO_IRQ_SET_ACTION_UNMASK, 1, std::slice::from_ref(fd))
        }
        IrqAction::Mask => (uapi::VFIO_IRQ_SET_DATA_NONE | uapi::VFIO_IRQ_SET_ACTION_MASK, 1, &[]),
        IrqAction::Unmask => (uapi::VFIO_IRQ_SET_DATA_NONE | uapi::VFIO_IRQ_SET_ACTION_UNMASK, 1, &[]),
    };
    let size = (5 + data.len()) * size_of::<u32>();
    let header = [size as u32, flags, index, start, count as u32];
    header.into_iter().chain(data.iter().map(|&fd| fd as u32)).collect()
}

/// VFIO_DEVICE_SET_IRQS. `Some(count)`: nothing was done, because the host has no more than `count` interrupt vectors left
/// for the device.
pub fn set_irqs(device: &impl AsRawFd, index: u32, start: u32, action: IrqAction<'_>) -> io::Result<Option<usize>> {
    let words = irq_set(index, start, action);
    // SAFETY: the first word says how many bytes there are, and the buffer outlives the call.
    let returned = unsafe { ioctl_with_ptr(device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) };
    result(returned)?;
    Ok(usize::try_from(returned).ok().filter(|count| *count > 0))
}

/// A second descriptor of an eventfd, for the event loop to wait for.
pub fn watch(fd: &vmm_sys_util::eventfd::EventFd) -> io::Result<OwnedFd> {
    // SAFETY: the eventfd is open as long as `fd` is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()
}

/// A descriptor of the group that vfio-ioctls has opened and does not hand out, for KVM's pseudo device.
///
/// A group can be opened once at a time, so the one descriptor of this process whose device number is the group's
/// belongs to the container.
pub fn group_descriptor(node: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let group = std::fs::metadata(node)?;
    if !group.file_type().is_char_device() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // Other threads close descriptors meanwhile: those are not it.
        let Ok(open) = std::fs::metadata(entry.path()) else { continue };
        if open.file_type().is_char_device() && open.rdev() == group.rdev() {
            // SAFETY: the container, whose lock the caller holds, keeps this descriptor open during the call.
            return unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Reads exactly `data.len()` bytes at `offset` of a device's descriptor. On an error the contents are unspecified.
pub fn read_exact(device: BorrowedFd<'_>, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match nix::sys::uio::pread(device, rest, position(offset, done)?) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes all of `data` at `offset` of a device's descriptor.
pub fn write_all(device: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match nix::sys::uio::pwrite(device, rest, position(offset, done)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn position(offset: u64, done: usize) -> io::Result<libc::off_t> {
    let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
    libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "tables of ranges")]
mod tests;
