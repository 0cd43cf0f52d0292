//! The requests of iommufd, and of VFIO for it, that the crates do not offer or get wrong.
//!
//! | request | why not the crate's |
//! |---|---|
//! | IOMMU_IOAS_IOVA_RANGES | not offered |
//! | VFIO_DEVICE_BIND_IOMMUFD | without a token there: used for devices that have none, this one for the others |
//! | VFIO_DEVICE_FEATURE_DMA_BUF | there a method of its device; here asked of the descriptor behind a mapped BAR |

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use iommufd_bindings::iommufd as bindings;
use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_io_nr;

use super::{MAX_IOVA_RANGES, result};
use crate::memory::host::PAGE;
use crate::vfio::seams::DmaLimits;
use crate::vfio::token::VfToken;

ioctl_io_nr!(IOMMU_IOAS_IOVA_RANGES, bindings::IOMMUFD_TYPE as u32, bindings::IOMMUFD_CMD_IOAS_IOVA_RANGES);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_FEATURE, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 17);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 18);

/// IOMMU_IOAS_IOVA_RANGES: what all devices of the address space can map.
pub fn iova_ranges(iommufd: &impl AsRawFd, ioas: u32) -> io::Result<DmaLimits> {
    let mut ranges = vec![bindings::iommu_iova_range::default(); MAX_IOVA_RANGES];
    let mut request = bindings::iommu_ioas_iova_ranges {
        size: size_of::<bindings::iommu_ioas_iova_ranges>() as u32,
        ioas_id: ioas,
        num_iovas: MAX_IOVA_RANGES as u32,
        allowed_iovas: ranges.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `num_iovas` ranges to the array, which has as many and outlives the call.
    match result(unsafe { ioctl_with_mut_ref(iommufd, IOMMU_IOAS_IOVA_RANGES(), &mut request) }) {
        // There are more ranges than fit: the first ones are filled in.
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
        other => other?,
    }
    ranges.truncate(request.num_iovas as usize);
    Ok(limits(&ranges, request.out_iova_alignment))
}

/// The limits that the kernel's answer means. It counts no mappings: locked memory is the only limit.
fn limits(ranges: &[bindings::iommu_iova_range], alignment: u64) -> DmaLimits {
    let whole = ranges.iter().filter(|range| range.start <= range.last);
    let mut usable: Vec<Range<u64>> = whole.map(|range| range.start..range.last.saturating_add(1)).collect();
    usable.sort_by_key(|range| range.start);
    DmaLimits { page_sizes: alignment.max(PAGE).next_power_of_two(), usable, available: None }
}

/// VFIO_DEVICE_BIND_IOMMUFD with the token of the device. A kernel that knows of none (before 6.17) says EINVAL.
pub fn bind_with_token(device: &File, iommufd: &impl AsRawFd, token: &VfToken) -> io::Result<()> {
    let mut request = uapi::vfio_device_bind_iommufd {
        argsz: size_of::<uapi::vfio_device_bind_iommufd>() as u32,
        flags: uapi::VFIO_DEVICE_BIND_FLAG_TOKEN,
        iommufd: iommufd.as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: token.bytes().as_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `argsz` bytes, the size of the structure, and reads 16 bytes at `token_uuid_ptr`,
    // which are the token's; both outlive the call.
    result(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_BIND_IOMMUFD(), &mut request) })
}

/// Whether a mapped descriptor may be a device's: its node, or the anonymous file that a group gives out. Memory is of
/// regular files.
pub fn may_be_device(fd: BorrowedFd<'_>) -> bool {
    let file = fd.try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|meta| !meta.is_file())
}

/// VFIO_DEVICE_FEATURE_DMA_BUF: a descriptor of `range` of a device's file, which must lie in one BAR. It stops working
/// (is revoked) whenever the device does not decode.
pub fn export_dma_buf(device: BorrowedFd<'_>, range: Range<u64>) -> io::Result<OwnedFd> {
    let regions = (uapi::VFIO_PCI_BAR0_REGION_INDEX..=uapi::VFIO_PCI_BAR5_REGION_INDEX).map(|index| {
        let mut info =
            uapi::vfio_region_info { argsz: size_of::<uapi::vfio_region_info>() as u32, index, ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of the structure, which outlives the call.
        result(unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_REGION_INFO(), &mut info) }).ok()?;
        Some((index, info.offset..info.offset.checked_add(info.size)?))
    });
    let (region, start) = regions
        .flatten()
        .find(|(_, file)| file.contains(&range.start) && range.end <= file.end)
        .map(|(index, file)| (index, range.start - file.start))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mut words = dma_buf_request(region, start, range.end - range.start);
    // SAFETY: the first field says how many bytes there are, the buffer has them, is aligned for the 64-bit fields of the
    // structure and outlives the call.
    let fd = unsafe { ioctl_with_mut_ptr(&device, VFIO_DEVICE_FEATURE(), words.as_mut_ptr()) };
    result(fd)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct vfio_device_feature` (argsz, flags) with `struct vfio_device_feature_dma_buf` (region, open flags, flags, number
/// of ranges) and one range (offset, length), as 64-bit words of the machine.
fn dma_buf_request(region: u32, offset: u64, len: u64) -> [u64; 5] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let flags = uapi::VFIO_DEVICE_FEATURE_GET | uapi::VFIO_DEVICE_FEATURE_DMA_BUF;
    let open = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
    [pair(size_of::<[u64; 5]>() as u32, flags), pair(region, open), pair(0, 1), offset, len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::PropValue;
    use std::os::fd::AsFd;

    #[test]
    fn ranges_are_half_open_and_ascending() {
        let range = |start, last| bindings::iommu_iova_range { start, last };
        let read = limits(&[range(0xfef0_0000, u64::MAX), range(0, 0xfedf_ffff), range(5, 4)], 1);
        assert_eq!(read.usable, [0..0xfee0_0000, 0xfef0_0000..u64::MAX]);
        assert_eq!((read.granule(), read.available), (PAGE, None));
        assert_eq!(limits(&[], 0x10000).granule(), 0x10000);
    }

    #[test]
    fn a_dma_buf_is_asked_for_as_the_kernel_lays_it_out() {
        let bytes: Vec<u8> = dma_buf_request(2, 0x3000, 0x1000).iter().flat_map(|word| word.to_le_bytes()).collect();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(4) & 0xffff, word(8), word(16), word(20)], [40, 11, 2, 0, 1]);
        assert_eq!([word(24), word(28), word(32)], [0x3000, 0, 0x1000]);
    }

    #[test]
    fn what_is_no_device_has_no_dma_buf() {
        let null = File::open("/dev/null").unwrap();
        assert!(may_be_device(null.as_fd()));
        assert!(export_dma_buf(null.as_fd(), 0..PAGE).is_err());
        let plain = tempfile::tempfile().unwrap();
        assert!(!may_be_device(plain.as_fd()));
        assert!(iova_ranges(&plain, 1).is_err());
        let token = VfToken::parse("2ab74924-c335-45f4-9b16-8569e5b08258").unwrap();
        assert!(bind_with_token(&plain, &null, &token).is_err());
    }
}
