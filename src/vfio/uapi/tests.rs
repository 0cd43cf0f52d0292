//! Answers of the kernel read, requests laid out.

use super::*;
use proptest::prelude::*;
use std::os::fd::AsFd;

/// A `struct vfio_iommu_type1_info` with these capabilities: id and the bytes after the header.
fn info(flags: u32, caps: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [0u32, flags] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(0x4020_1000u64.to_ne_bytes());
    let first = if caps.is_empty() { 0u32 } else { 24 };
    bytes.extend(first.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    for (index, (id, body)) in caps.iter().enumerate() {
        let len = 8 + body.len();
        let next = if index + 1 == caps.len() { 0 } else { (bytes.len() + len) as u32 };
        bytes.extend(id.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body);
    }
    bytes
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((pairs.len() as u32).to_ne_bytes());
    body.extend(0u32.to_ne_bytes());
    for (first, last) in pairs {
        body.extend(first.to_ne_bytes());
        body.extend(last.to_ne_bytes());
    }
    body
}

#[test]
fn ranges_limit_and_page_sizes_are_read() {
    let seen_in_the_lab = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];
    let bytes = info(3, &[(1, ranges(&seen_in_the_lab)), (2, vec![0; 24]), (3, 65535u32.to_ne_bytes().to_vec())]);
    let limits = parse_iommu_info(&bytes);
    assert_eq!(limits.usable, [0..0xfee0_0000, 0xfef0_0000..1 << 48]);
    assert_eq!(limits.available, Some(65535));
    assert_eq!(limits.granule(), 4096);
}

#[test]
fn a_kernel_that_says_nothing_keeps_the_interrupt_window_free() {
    let limits = parse_iommu_info(&info(1, &[]));
    assert_eq!(limits.usable, [0..0xfee0_0000, 0xfef0_0000..u64::MAX]);
    assert_eq!(limits.available, None);
    assert_eq!(parse_iommu_info(&[]).granule(), 4096);
}

#[test]
fn the_last_address_of_all_does_not_overflow() {
    let limits = parse_iommu_info(&info(3, &[(1, ranges(&[(0, u64::MAX), (5, 4)]))]));
    assert_eq!(limits.usable, [0..u64::MAX]);
}

#[test]
fn a_chain_that_loops_ends() {
    let mut bytes = info(3, &[(1, ranges(&[(0, 1)])), (3, vec![7, 0, 0, 0])]);
    let second = 24 + 8 + 8 + 16;
    bytes[second + 4..second + 8].copy_from_slice(&24u32.to_ne_bytes());
    assert_eq!(parse_iommu_info(&bytes).available, Some(7));
}

#[test]
fn irq_sets_have_the_layout_of_the_header() {
    assert_eq!(irq_set(2, 1, IrqAction::Trigger(&[5, -1])), [28, 0x24, 2, 1, 2, 5, u32::MAX]);
    assert_eq!(irq_set(2, 0, IrqAction::Trigger(&[])), [20, 0x21, 2, 0, 0]);
    assert_eq!(irq_set(0, 0, IrqAction::UnmaskBy(9)), [24, 0x14, 0, 0, 1, 9]);
    assert_eq!(irq_set(0, 0, IrqAction::Mask), [20, 0x9, 0, 0, 1]);
    assert_eq!(irq_set(0, 0, IrqAction::Unmask), [20, 0x11, 0, 0, 1]);
}

/// vfio-ioctls returns nothing and leaves old bytes in the buffer: a short or refused access is an error here.
#[test]
fn failed_accesses_are_errors() {
    let file = tempfile::tempfile().unwrap();
    write_all(file.as_fd(), 2, &[1, 2, 3]).unwrap();
    let mut data = [0; 4];
    read_exact(file.as_fd(), 1, &mut data).unwrap();
    assert_eq!(data, [0, 1, 2, 3]);
    assert_eq!(read_exact(file.as_fd(), 3, &mut data).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(read_exact(file.as_fd(), u64::MAX - 1, &mut data).is_err());
    let read_only = std::fs::File::open("/dev/null").unwrap();
    assert!(write_all(read_only.as_fd(), 0, &[1]).is_err());
}

#[test]
fn the_descriptor_of_an_open_node_is_found_and_no_other() {
    use std::os::unix::fs::MetadataExt;
    let open = std::fs::File::open("/dev/full").unwrap();
    let found = group_descriptor(Path::new("/dev/full")).unwrap();
    let found = std::fs::File::from(found);
    assert_eq!(found.metadata().unwrap().rdev(), open.metadata().unwrap().rdev());
    assert_eq!(group_descriptor(Path::new("/dev/port")).map_err(|error| error.kind()).err(), {
        // Not every container has the node at all; where it exists nobody in this process has opened it.
        Some(io::ErrorKind::NotFound)
    });
    assert!(group_descriptor(Path::new("/proc/self/exe")).is_err());
}

proptest! {
    #[test]
    fn no_answer_of_the_kernel_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let limits = parse_iommu_info(&bytes);
        prop_assert!(limits.usable.iter().all(|range| range.start <= range.end));
    }

    #[test]
    fn no_chain_panics(ids in prop::collection::vec((0u16..5, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
        parse_iommu_info(&info(3, &ids));
    }
}
