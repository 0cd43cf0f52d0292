//! What the host itself uses a PCI function for: the reason to refuse to take it away.
//!
//! Everything is read from the trees alone. A block device or network interface belongs to every PCI function above
//! it in sysfs, so a disk behind a host adapter, a USB stick behind a controller, and all that lies behind a bridge
//! are found by the same rule. What user space keeps to itself is not seen: members of a ZFS pool, programs that
//! have a disk open directly.

use std::fmt;
use std::path::{Component, Path};

use serde::Serialize;

use super::Host;
use crate::bdf::Bdf;

mod block;
mod net;

/// One use of a PCI function by the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Use {
    /// A file system on a block device of the function, or on something made of it, is mounted.
    Mounted {
        /// The block device of the function.
        device: String,
        /// What lies between, outermost last: `dm-0 (vg-root)`.
        through: Vec<String>,
        /// The mount point.
        at: String,
    },
    /// Swap space.
    Swap {
        /// The block device of the function.
        device: String,
        /// What lies between, outermost last.
        through: Vec<String>,
    },
    /// A block device is part of an LVM volume, an encrypted or RAID device that is not mounted itself.
    Held {
        /// The block device of the function.
        device: String,
        /// Who holds it.
        holder: String,
    },
    /// The default route leaves through an interface of the function.
    DefaultRoute {
        /// The interface of the function.
        interface: String,
        /// Bonds, bridges and VLANs on top of it up to the one that has the route.
        through: Vec<String>,
    },
    /// An interface of the function is up and has an address, but not the default route.
    InterfaceUp {
        /// The interface of the function.
        interface: String,
    },
}

impl Use {
    /// Whether the host would lose something that it needs: such a device is only taken by force.
    pub fn is_vital(&self) -> bool {
        !matches!(self, Use::InterfaceUp { .. })
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mounted { device, through, at } => write!(f, "{device}{} mounted on {at}", Through(through)),
            Use::Swap { device, through } => write!(f, "{device}{} is swap space", Through(through)),
            Use::Held { device, holder } => write!(f, "{device} is part of {holder}"),
            Use::DefaultRoute { interface, through } => {
                write!(f, "{interface}{} has the default route", Through(through))
            }
            Use::InterfaceUp { interface } => write!(f, "{interface} is up and has an address"),
        }
    }
}

struct Through<'a>(&'a [String]);

impl fmt::Display for Through<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, " under {name}"))
    }
}

impl Host {
    /// What the host uses a function for, and what lies behind it if it is a bridge; sorted, each use once.
    pub fn uses(&self, bdf: Bdf) -> Vec<Use> {
        let mut uses = block::uses(self, bdf);
        uses.extend(net::uses(self, bdf));
        uses.sort();
        uses.dedup();
        uses
    }
}

/// Whether a resolved path of sysfs leads through a function's folder.
pub(super) fn lies_below(path: &Path, bdf: Bdf) -> bool {
    path.components().any(|part| match part {
        Component::Normal(name) => name.to_str().and_then(|name| name.parse().ok()) == Some(bdf),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn paths_lead_through_functions() {
        let path = Path::new("/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0");
        assert!(lies_below(path, bdf("00:01.0")));
        assert!(lies_below(path, bdf("01:00.0")));
        assert!(!lies_below(path, bdf("00:00.0")));
    }

    #[test]
    fn a_bridge_has_the_uses_of_all_behind_it() {
        let tree = TestTree::new();
        tree.pci("0000:00:1c.0").bridge().add();
        tree.pci("0000:02:00.0").below("0000:00:1c.0").add();
        tree.pci("0000:03:00.0").add();
        tree.disk("0000:02:00.0", "nvme/nvme0/nvme0n1", 1, 0);
        tree.mount(1, "/", "ext4", "/dev/nvme0n1p1");
        let texts = |address| tree.host().uses(bdf(address)).iter().map(Use::to_string).collect::<Vec<_>>();
        assert_eq!(texts("02:00.0"), ["nvme0n1p1 mounted on /"]);
        assert_eq!(texts("00:1c.0"), texts("02:00.0"));
        assert!(texts("03:00.0").is_empty());
    }

    #[test]
    fn json_names_the_kind() {
        let used = Use::Held { device: "sda1".into(), holder: "md0".into() };
        assert_eq!(serde_json::to_string(&used).unwrap(), r#"{"kind":"held","device":"sda1","holder":"md0"}"#);
        assert!(used.is_vital());
    }
}
