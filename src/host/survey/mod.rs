//! All functions of the host by their IOMMU groups, with what each is used for and whether a guest can have it: what
//! `passthru devices` shows. Read-only, and everything is read once.

use serde::Serialize;

use super::names::Name;
use super::reset::Verdict as Reset;
use super::viable::blocks;
use super::{Host, Member, PciDevice, Use};
use crate::bdf::Bdf;
use crate::error::Error;

mod outlook;

pub use outlook::{Outlook, Prospect};

/// The host's functions and groups.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// Every group, by its number.
    pub groups: Vec<GroupSeen>,
    /// Functions in no group: no IOMMU confines them.
    pub ungrouped: Vec<Seen>,
    /// The kernel's option that makes groups look smaller than they are, as an error's cause and evidence.
    pub acs_override: Option<String>,
    /// Processes that could not be looked into: without root it is not known what they have open.
    pub hidden_processes: usize,
}

/// An IOMMU group.
#[derive(Debug, Serialize)]
pub struct GroupSeen {
    /// Its number.
    pub id: u32,
    /// What can be done with it.
    #[serde(flatten)]
    pub outlook: Outlook,
    /// Everything in it.
    pub members: Vec<MemberSeen>,
}

/// A member of a group.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum MemberSeen {
    /// A PCI function.
    Pci(Box<Seen>),
    /// Anything else that does DMA.
    Other {
        /// Its name in sysfs.
        name: String,
        /// The driver that is bound now.
        driver: Option<String>,
    },
}

/// A PCI function.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Its facts.
    #[serde(flatten)]
    pub device: PciDevice,
    /// Its names in devices.d.
    pub names: Vec<Name>,
    /// The bridge that it is behind.
    pub bridge_above: Option<Bdf>,
    /// What the host uses it for; nothing for bridges, which stay with the host.
    pub uses: Vec<Use>,
    /// How it would be reset.
    pub reset: Reset,
    /// Whether its driver keeps its group from a guest.
    pub blocks: bool,
    /// Why it is kept from guests.
    pub quarantine: Option<String>,
}

impl MemberSeen {
    /// The function, if it is one.
    pub fn pci(&self) -> Option<&Seen> {
        match self {
            MemberSeen::Pci(seen) => Some(seen),
            MemberSeen::Other { .. } => None,
        }
    }
}

impl Survey {
    /// Every function, by groups.
    pub fn functions(&self) -> impl Iterator<Item = &Seen> {
        self.groups.iter().flat_map(|group| &group.members).filter_map(MemberSeen::pci).chain(&self.ungrouped)
    }

    /// How many groups have this prospect.
    pub fn count(&self, prospect: Prospect) -> usize {
        self.groups.iter().filter(|group| group.outlook.prospect == prospect).count()
    }
}

impl Host {
    /// Looks at everything.
    pub fn survey(&self) -> Survey {
        let all = self.devices();
        let uses = self.read_uses();
        let names = self.all_names();
        let see = |device: &PciDevice| Seen {
            names: names.iter().filter(|(_, addr)| addr.contains(device.bdf)).map(|(name, _)| name.clone()).collect(),
            bridge_above: self.bridge_above(device.bdf).map(|(at, _)| at),
            uses: if device.bridge { Vec::new() } else { uses.of(device.bdf) },
            reset: self.reset_plan_among(device, &all).verdict,
            blocks: blocks(&Member { name: String::new(), pci: Some(device.clone()), driver: device.driver.clone() }),
            quarantine: self.refuse_quarantined(device).err().map(|error| error.cause().to_owned()),
            device: device.clone(),
        };
        let groups = self.groups().into_iter().map(|group| {
            let members = group.members.into_iter().map(|member| match &member.pci {
                Some(device) => MemberSeen::Pci(Box::new(see(device))),
                None => MemberSeen::Other { name: member.name, driver: member.driver },
            });
            let mut members: Vec<MemberSeen> = members.collect();
            // Names sort as text does; addresses as the buses do.
            members.sort_by_key(|member| member.pci().map(|seen| seen.device.bdf));
            let nodes = members.iter().filter_map(MemberSeen::pci).filter_map(|it| self.device_node(it.device.bdf));
            let nodes = nodes.chain([self.group_node(group.id)]);
            let holder = nodes.flat_map(|node| uses.holders(&node).first().cloned()).next();
            GroupSeen { id: group.id, outlook: outlook::of(&members, group.noiommu, holder.as_ref()), members }
        });
        let groups: Vec<GroupSeen> = groups.collect();
        Survey {
            ungrouped: all.iter().filter(|device| device.iommu_group.is_none()).map(see).collect(),
            acs_override: self.acs_overridden().as_ref().map(first_evidence),
            hidden_processes: uses.hidden_processes(),
            groups,
        }
    }
}

fn first_evidence(error: &Error) -> String {
    error.evidence_lines().first().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn groups_and_what_is_in_none() {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").bridge().driver("pcieport").group(1).add();
        tree.pci("0000:01:00.0").below("0000:00:01.0").driver("e1000e").group(10).add();
        tree.pci("0000:02:00.0").driver("nvme").add();
        let survey = tree.host().survey();
        assert_eq!(survey.groups.iter().map(|group| group.id).collect::<Vec<_>>(), [1, 10]);
        assert_eq!(survey.groups[1].members[0].pci().unwrap().bridge_above, Some(bdf("00:01.0")));
        assert_eq!(survey.ungrouped[0].device.bdf, bdf("02:00.0"));
        assert_eq!(survey.functions().count(), 3);
        assert_eq!((survey.count(Prospect::Host), survey.count(Prospect::AfterBind)), (1, 1));
    }

    #[test]
    fn the_virtual_machine_that_has_a_group_is_named() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(7).add();
        assert_eq!(tree.host().survey().groups[0].outlook.prospect, Prospect::Ready);
        tree.process(42, "qemu-system-x86", &[&tree.host().group_node(7)]);
        let outlook = &tree.host().survey().groups[0].outlook;
        assert_eq!(outlook.prospect, Prospect::InUse);
        assert_eq!(outlook.why, ["qemu-system-x86 (process 42) has it"]);
    }

    #[test]
    fn names_are_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(7).add();
        tree.pci("0000:01:00.1").driver("e1000e").group(7).add();
        let names =
            "[[device]]\nname = \"lan\"\naddress = \"01:00.1\"\n[[device]]\nname = \"card\"\naddress = \"01:00\"\n";
        tree.file("etc/passthru/devices.d/a.toml", names);
        let survey = tree.host().survey();
        let names = |seen: &Seen| seen.names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(survey.functions().map(names).collect::<Vec<_>>(), [vec!["card"], vec!["lan", "card"]]);
    }

    #[test]
    fn json_is_flat() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(7).add();
        let json = serde_json::to_value(tree.host().survey()).unwrap();
        let group = &json["groups"][0];
        assert_eq!((group["id"].as_u64(), group["prospect"].as_str()), (Some(7), Some("after_bind")));
        assert_eq!(group["bind"], serde_json::json!(["0000:01:00.0"]));
        assert_eq!(group["members"][0]["bdf"], "0000:01:00.0");
    }
}
