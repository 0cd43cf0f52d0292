//! What a VMM asks of the kernel before the guest runs: ioctls by strace(1).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// ioctls before the first KVM_RUN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ioctls {
    pub total: u64,
    /// VFIO_IOMMU_MAP_DMA among them.
    pub map_dma: u64,
    /// All of them by strace's name.
    pub by_name: BTreeMap<String, u64>,
}

/// Reads the output of `strace -f -e trace=ioctl`. `None`: no KVM_RUN came.
///
/// VFIO_IOMMU_MAP_DMA has the number of VFIO_DEVICE_PCI_HOT_RESET; only the first is made on
/// the descriptor that VFIO_SET_IOMMU was made on.
pub fn parse(text: &str) -> Option<Ioctls> {
    let mut containers = Vec::new();
    let mut found = Ioctls::default();
    for line in text.lines() {
        // A call that another thread interrupts is ended by a second, "resumed" line.
        let Some((_, call)) = line.split_once("ioctl(") else {
            continue;
        };
        let mut words = call.splitn(3, [',', ')']);
        let (Some(fd), Some(request)) = (words.next(), words.next()) else {
            continue;
        };
        let request = request.trim();
        if request.starts_with("KVM_RUN") {
            return Some(found);
        }
        if request.contains("VFIO_SET_IOMMU") {
            containers.push(fd.to_owned());
        }
        let map = request.contains("VFIO_IOMMU_MAP_DMA") && containers.iter().any(|c| c == fd);
        found.total += 1;
        found.map_dma += u64::from(map);
        *found.by_name.entry(request.to_owned()).or_default() += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "VFIO_DEVICE_PCI_HOT_RESET or VFIO_IOMMU_MAP_DMA";

    #[test]
    fn counting_ends_at_the_first_run_and_tells_twins_apart() {
        let text = format!(
            "12 ioctl(3, KVM_GET_API_VERSION, 0) = 12\n\
             12 ioctl(9, VFIO_SET_IOMMU, 0x1) = 0\n\
             12 ioctl(9, {BOTH}, 0x7f) = 0\n\
             12 ioctl(11, {BOTH}, 0x7f) = -1 ENOTTY\n\
             12 ioctl(4, KVM_CREATE_VM, 0 <unfinished ...>\n\
             12 <... ioctl resumed>) = 5\n\
             13 ioctl(12, KVM_RUN, 0) = 0\n\
             12 ioctl(9, {BOTH}, 0x7f) = 0\n"
        );
        let found = parse(&text).unwrap();
        assert_eq!((found.total, found.map_dma), (5, 1));
        assert_eq!(found.by_name.get("KVM_CREATE_VM"), Some(&1));
        assert_eq!(parse("12 ioctl(3, KVM_GET_API_VERSION, 0) = 12\n"), None);
    }
}
