//! Which addresses a device's IOMMU cannot map, as sysfs has them before anything is opened.

use std::ops::Range;

use super::{Host, PciDevice, read};
use crate::bdf::Bdf;

/// Ranges of this kind VFIO lets a guest use (kernel: vfio_iommu_resv_exclude in vfio_iommu_type1.c).
const RELAXABLE: &str = "direct-relaxable";

impl Host {
    /// Addresses that are reserved for the device's group (Documentation/ABI/testing/sysfs-kernel-iommu_groups).
    pub fn reserved_addresses(&self, device: &PciDevice) -> Vec<Range<u64>> {
        let Some(group) = device.iommu_group else { return Vec::new() };
        let lines = read::lines(self.sys(format!("kernel/iommu_groups/{group}/reserved_regions")));
        lines.iter().filter_map(|line| region(line)).collect()
    }

    /// How many address bits the device's IOMMU translates, where it says so: Intel's by its capability register (VT-d
    /// 11.4.2, MGAW), AMD's by the levels that its page tables can have (AMD I/O virtualization 3.4.13, HATS).
    pub fn iommu_width(&self, device: Bdf) -> Option<u32> {
        let register = |name: &str| {
            let text = read::text(self.device_path(device).join("iommu").join(name))?;
            // AMD's is followed by the second register of its kind.
            let first = text.split(':').next()?.trim_start_matches("0x");
            u64::from_str_radix(first, 16).ok()
        };
        let intel = register("intel-iommu/cap").map(|capability| (capability >> 16 & 0x3f) as u32 + 1);
        intel.or_else(|| match register("amd-iommu/features")? >> 10 & 3 {
            0 => Some(48),
            1 => Some(57),
            2 => Some(64),
            _ => None,
        })
    }
}

/// `0x00000000fee00000 0x00000000feefffff msi`.
fn region(line: &str) -> Option<Range<u64>> {
    let mut words = line.split_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (start, last) = (address()?, address()?);
    (words.next() != Some(RELAXABLE) && start <= last).then(|| start..last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};
    use proptest::prelude::*;

    #[test]
    fn regions_and_widths_are_read() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").group(2).add();
        tree.pci("0000:02:00.0").group(3).add();
        tree.file(
            "sys/kernel/iommu_groups/2/reserved_regions",
            "0x00000000000a0000 0x00000000000bffff direct-relaxable\n0x00000000fee00000 0x00000000feefffff msi\n",
        );
        tree.attribute("0000:01:00.0", "iommu/intel-iommu/cap", "d2008c40660462\n");
        let host = tree.host();
        let device = host.device(bdf("01:00.0")).unwrap();
        assert_eq!(host.reserved_addresses(&device), vec![0xfee0_0000..0xfef0_0000]);
        assert_eq!(host.iommu_width(device.bdf), Some(39));
        assert_eq!(host.iommu_width(bdf("02:00.0")), None);
        for (text, width) in [
            ("246577efa2254afa:0\n", Some(64)),
            ("f77ef22294ada\n", Some(64)),
            ("29d3:0\n", Some(64)),
            ("1d3:0\n", Some(48)),
            ("5d3:0\n", Some(57)),
            ("dd3:0\n", None),
            ("\n", None),
        ] {
            tree.attribute("0000:02:00.0", "iommu/amd-iommu/features", text);
            assert_eq!(host.iommu_width(bdf("02:00.0")), width, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,60}") {
            let _ = region(&line);
        }
    }
}
