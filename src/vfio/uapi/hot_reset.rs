//! Hot resets of a slot or a bus: VFIO_DEVICE_GET_PCI_HOT_RESET_INFO and VFIO_DEVICE_PCI_HOT_RESET, which vfio-ioctls does
//! not offer.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

use super::result;
use crate::bdf::Bdf;

ioctl_io_nr!(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 12);
ioctl_io_nr!(VFIO_DEVICE_PCI_HOT_RESET, uapi::VFIO_TYPE as u32, uapi::VFIO_BASE + 13);

/// `argsz`, `flags` and `count` of `struct vfio_pci_hot_reset_info`, in words.
const HEADER: usize = 3;
/// `struct vfio_pci_dependent_device`: group or device id, then segment, bus and devfn.
const DEPENDENT: usize = 2;
/// Functions of one bus: a hot reset of more cannot be ours.
const MAX_DEPENDENTS: usize = 256;

/// How the kernel names the owner of a function that a hot reset hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The IOMMU group that it is in (devices opened by their group).
    Group(u32),
    /// Whether the iommufd of this device has it, or another member of its group (devices opened by their own node).
    Ours(bool),
}

/// A function that a hot reset hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependent {
    /// Its address on the host.
    pub bdf: Bdf,
    /// Whose it is.
    pub owner: Owner,
}

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: all functions that a hot reset of the device hits, itself among them.
pub fn hot_reset_info(device: &impl AsRawFd) -> io::Result<Vec<Dependent>> {
    let mut words = vec![0u32; HEADER + MAX_DEPENDENTS * DEPENDENT];
    let bytes = size_of_val(words.as_slice()) as u32;
    if let Some(argsz) = words.first_mut() {
        *argsz = bytes;
    }
    // SAFETY: the kernel writes at most `argsz` bytes, which is the length of the buffer.
    result(unsafe { ioctl_with_mut_ptr(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), words.as_mut_ptr()) })?;
    Ok(parse(&words))
}

/// Reads the words of `struct vfio_pci_hot_reset_info`.
pub fn parse(words: &[u32]) -> Vec<Dependent> {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let by_device = word(1) & uapi::VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
    let count = (word(2) as usize).min(words.len().saturating_sub(HEADER) / DEPENDENT);
    let dependents = words.get(HEADER..).unwrap_or_default().chunks_exact(DEPENDENT).take(count);
    dependents
        .filter_map(|pair| {
            let [id, place] = *pair else { return None };
            let [low, high, bus, devfn] = place.to_ne_bytes();
            let bdf = Bdf { domain: u16::from_ne_bytes([low, high]), bus, device: devfn >> 3, function: devfn & 7 };
            let owner =
                if by_device { Owner::Ours(id as i32 != uapi::VFIO_PCI_DEVID_NOT_OWNED) } else { Owner::Group(id) };
            Some(Dependent { bdf, owner })
        })
        .collect()
}

/// VFIO_DEVICE_PCI_HOT_RESET. `groups` proves that all that is hit is ours; it is empty for a device that was opened by its
/// own node, for which the kernel looks at the iommufd.
pub fn hot_reset(device: &impl AsRawFd, groups: &[OwnedFd]) -> io::Result<()> {
    let fds = groups.iter().map(|group| group.as_raw_fd() as u32);
    let bytes = ((HEADER + groups.len()) * size_of::<u32>()) as u32;
    let words: Vec<u32> = [bytes, 0, groups.len() as u32].into_iter().chain(fds).collect();
    // SAFETY: the first word says how many bytes there are, and buffer and descriptors outlive the call.
    result(unsafe { ioctl_with_ptr(device, VFIO_DEVICE_PCI_HOT_RESET(), words.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read() {
        let place = |bus: u8, devfn: u8| u32::from_ne_bytes([0, 0, bus, devfn]);
        let groups = [28, 0, 2, 7, place(1, 0), 9, place(1, 0x81)];
        let seen: Vec<_> = parse(&groups).iter().map(|it| (it.bdf.to_string(), it.owner)).collect();
        let wanted = [("0000:01:00.0".into(), Owner::Group(7)), ("0000:01:10.1".into(), Owner::Group(9))];
        assert_eq!(seen, wanted);
        let devices = [36, 1, 3, 0, place(1, 0), 5, place(1, 1), u32::MAX, place(1, 2)];
        let owners: Vec<_> = parse(&devices).iter().map(|it| it.owner).collect();
        assert_eq!(owners, [Owner::Ours(true), Owner::Ours(true), Owner::Ours(false)]);
    }

    proptest! {
        #[test]
        fn no_answer_panics(words in prop::collection::vec(any::<u32>(), 0..40)) {
            prop_assert!(parse(&words).len() <= words.len() / 2);
        }
    }
}
