//! IOMMU groups: the sets of devices that the IOMMU cannot tell apart, read from /sys/kernel/iommu_groups
//! (kernel: Documentation/ABI/testing/sysfs-kernel-iommu_groups).

use std::path::PathBuf;

use serde::Serialize;

use super::{Host, PciDevice, read};
use crate::bdf::Bdf;

/// The name that VFIO gives to the group of a device without any IOMMU (module parameter
/// `enable_unsafe_noiommu_mode`): its DMA is confined by nothing.
const NOIOMMU_NAME: &str = "vfio-noiommu";

/// An IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number, as in /dev/vfio/NUMBER.
    pub id: u32,
    /// Not a real group: no IOMMU confines the device.
    pub noiommu: bool,
    /// Everything in it, in order of the names.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The device's name in sysfs: a PCI address, unless it is a platform device.
    pub name: String,
    /// The facts, of a PCI function.
    pub pci: Option<PciDevice>,
    /// The driver that is bound now.
    pub driver: Option<String>,
}

impl Group {
    /// The PCI functions of the group.
    pub fn devices(&self) -> impl Iterator<Item = &PciDevice> {
        self.members.iter().filter_map(|member| member.pci.as_ref())
    }
}

impl Host {
    /// The numbers of all groups; empty when no IOMMU is active.
    pub fn group_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> =
            read::names(self.sys("kernel/iommu_groups")).iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }

    /// All groups.
    pub fn groups(&self) -> Vec<Group> {
        self.group_ids().into_iter().map(|id| self.group(id)).collect()
    }

    /// One group; without members if there is none of that number.
    pub fn group(&self, id: u32) -> Group {
        let at = self.sys("kernel/iommu_groups").join(id.to_string());
        let members = read::names(at.join("devices")).into_iter().map(|name| {
            let pci = name.parse::<Bdf>().ok().and_then(|bdf| self.device(bdf).ok());
            let driver = read::link_name(at.join("devices").join(&name).join("driver"));
            Member { name, pci, driver }
        });
        let noiommu = read::text(at.join("name")).as_deref() == Some(NOIOMMU_NAME);
        Group { id, noiommu, members: members.collect() }
    }

    /// The node by which a group is opened: /dev/vfio/NUMBER.
    pub fn group_node(&self, id: u32) -> PathBuf {
        self.dev("vfio").join(id.to_string())
    }

    /// The device's own node, on kernels with VFIO_DEVICE_CDEV: /dev/vfio/devices/vfioN.
    pub fn device_node(&self, bdf: Bdf) -> Option<PathBuf> {
        let name = read::names(self.device_path(bdf).join("vfio-dev")).into_iter().next()?;
        Some(self.dev("vfio/devices").join(name))
    }
}

#[cfg(test)]
mod tests {
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn groups_have_their_members() {
        let tree = TestTree::new();
        tree.pci("0000:00:1f.0").ids(0x8086, 0x2918).group(10).add();
        tree.pci("0000:00:1f.2").ids(0x8086, 0x2922).driver("ahci").group(10).add();
        tree.pci("0000:01:00.0").driver("nvme").group(2).add();
        let host = tree.host();
        assert_eq!(host.group_ids(), [2, 10]);
        let group = host.group(10);
        assert!(!group.noiommu);
        assert_eq!(group.devices().map(|device| device.bdf).collect::<Vec<_>>(), [bdf("00:1f.0"), bdf("00:1f.2")]);
        assert_eq!(group.members[1].driver.as_deref(), Some("ahci"));
        assert!(host.group(99).members.is_empty());
        assert_eq!(host.group_node(10), host.dev("vfio/10"));
    }
}
