//! Why an IOMMU group cannot be handed out: the kernel's rule, applied to each member.
//!
//! A group is viable if no member is bound to a driver that does DMA on the host's behalf (kernel:
//! drivers/iommu/iommu.c, `iommu_device_use_default_domain`, and `driver_managed_dma` in the drivers that are
//! excepted; before Linux 5.19 drivers/vfio/vfio.c, `vfio_dev_viable`, with the same outcome).

use std::fmt;

use serde::Serialize;

use super::pci::is_vfio_driver;
use super::{Group, Host, Member, PciDevice, Use};
use crate::error::{Code, Error};

/// Drivers besides those of VFIO whose devices do no DMA of their own.
const HARMLESS: [&str; 3] = ["pci-stub", "pcieport", "shpchp"];

/// A member of a group and whether it keeps the group from being handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The member.
    pub member: Member,
    /// Whether it blocks the group.
    pub blocks: bool,
    /// What the host uses it for.
    pub uses: Vec<Use>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Member { name, pci, driver } = &self.member;
        let what = pci.as_ref().map_or("not a PCI device".to_owned(), PciDevice::name);
        write!(f, "{name} {what}: ")?;
        match driver {
            Some(driver) => write!(f, "driver {driver}")?,
            None => write!(f, "no driver")?,
        }
        write!(f, ", {}", if self.blocks { "blocks" } else { "fine" })?;
        self.uses.iter().try_for_each(|used| write!(f, "; {used}"))
    }
}

/// Whether a member on its present driver blocks its group.
pub fn blocks(member: &Member) -> bool {
    let bridge = member.pci.as_ref().is_some_and(|device| device.bridge);
    let driver = member.driver.as_deref();
    !bridge && driver.is_some_and(|name| !is_vfio_driver(name) && !HARMLESS.contains(&name))
}

impl Host {
    /// The verdict on every member of a group, in order.
    pub fn verdicts(&self, group: &Group) -> Vec<Verdict> {
        let verdict = |member: &Member| Verdict {
            blocks: blocks(member),
            // A bridge stays with the host, and so does what lies behind it in other groups.
            uses: member.pci.iter().filter(|device| !device.bridge).flat_map(|device| self.uses(device.bdf)).collect(),
            member: member.clone(),
        };
        group.members.iter().map(verdict).collect()
    }
}

/// `Code::GroupNotViable`, with every member and what it does; `None` if nothing blocks the group.
pub fn not_viable_error(id: u32, verdicts: &[Verdict]) -> Option<Error> {
    let blocking: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.blocks).collect();
    if blocking.is_empty() {
        return None;
    }
    let have = if blocking.len() == 1 { "has a host driver" } else { "have host drivers" };
    let count = match (blocking.len(), verdicts.len()) {
        // Asked about the others of a device that is known not to be bound.
        (1, 1) => "another member has a host driver".to_owned(),
        (blocking, all) => format!("{blocking} of its {all} members {have}"),
    };
    let error = Error::new(Code::GroupNotViable, format!("IOMMU group {id} cannot be given to a guest: {count}"));
    let error = verdicts.iter().fold(error, |error, verdict| error.evidence(verdict.to_string()));
    let used = blocking.iter().any(|verdict| verdict.uses.iter().any(Use::is_vital));
    let commands: Vec<String> = blocking
        .iter()
        .filter_map(|verdict| verdict.member.pci.as_ref())
        .map(|device| format!("`passthru bind {}`", device.bdf))
        .collect();
    Some(match (used, commands.is_empty()) {
        (true, _) => error.fix("the host needs a member of the group: move the card to a slot with a group of its own"),
        (false, false) => error.fix(commands.join(", ")),
        (false, true) => error.fix("move the card to a slot with a group of its own"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    fn group() -> TestTree {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").bridge().driver("pcieport").group(1).add();
        tree.pci("0000:01:00.0")
            .below("0000:00:01.0")
            .ids(0x10de, 0x2206)
            .class(0x030000)
            .driver("vfio-pci")
            .group(1)
            .add();
        tree.pci("0000:01:00.1").below("0000:00:01.0").ids(0x10de, 0x1aef).class(0x040300).group(1).add();
        tree
    }

    #[test]
    fn bridges_vfio_stubs_and_driverless_members_are_fine() {
        let tree = group();
        tree.pci("0000:01:00.2").driver("pci-stub").group(1).add();
        let host = tree.host();
        assert!(not_viable_error(1, &host.verdicts(&host.group(1))).is_none());
    }

    #[test]
    fn each_member_is_listed_with_its_driver() {
        let tree = group();
        tree.pci("0000:01:00.2").below("0000:00:01.0").class(0x040300).driver("snd_hda_intel").group(1).add();
        let host = tree.host();
        let error = not_viable_error(1, &host.verdicts(&host.group(1))).unwrap();
        assert_eq!(error.code(), Code::GroupNotViable);
        assert_eq!(error.evidence_lines().len(), 4);
        assert!(error.evidence_lines()[0].ends_with("driver pcieport, fine"), "{error}");
        assert!(error.evidence_lines()[2].ends_with("no driver, fine"), "{error}");
        assert!(error.evidence_lines()[3].ends_with("driver snd_hda_intel, blocks"), "{error}");
        assert_eq!(error.fix_text(), Some("`passthru bind 0000:01:00.2`"));
    }

    #[test]
    fn a_member_that_the_host_needs_is_not_to_be_bound() {
        let tree = group();
        tree.pci("0000:01:00.2").below("0000:00:01.0").driver("e1000e").group(1).add();
        tree.net("0000:01:00.2", "eth0");
        tree.route("eth0", "00000000", "00000000");
        let host = tree.host();
        let error = not_viable_error(1, &host.verdicts(&host.group(1))).unwrap();
        assert!(error.evidence_lines()[3].ends_with("blocks; eth0 has the default route"), "{error}");
        assert!(error.evidence_lines()[0].ends_with("fine"), "{error}");
        assert!(error.fix_text().unwrap().contains("slot"), "{error}");
    }
}
