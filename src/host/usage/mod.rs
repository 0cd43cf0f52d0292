//! What the host itself uses a PCI function for: the reason to refuse to take it away.
//!
//! Everything is read from the trees alone. A block device or network interface belongs to every PCI function above
//! it in sysfs, so a disk behind a host adapter, a USB stick behind a controller, and all that lies behind a bridge
//! are found by the same rule. Of programs, those are seen that have a node of the function open; without root, only
//! the caller's own. What user space keeps to itself is not seen: members of a ZFS pool, programs that have a disk open
//! directly.

use std::fmt;
use std::path::{Component, Path};

use serde::Serialize;

use super::busy::Process;
use super::{Host, PciDevice};
use crate::bdf::Bdf;

mod block;
mod cure;
mod net;
mod nodes;

pub(super) use cure::cures;

/// How many processes a use names; the others are counted.
const MAX_NAMED: usize = 2;
/// Sound cards let go of their nodes by themselves, and a sound server has all of them open all the time.
const SOUND_NODES: &str = "snd/";

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
    /// An interface of the function is up and has an address, and with it a route, but not the default one.
    InterfaceUp {
        /// The interface of the function.
        interface: String,
    },
    /// A display shows a picture.
    Display {
        /// The card: `card0`.
        card: String,
        /// Its connector: `DP-1`.
        connector: String,
    },
    /// Processes have a node of the function open.
    Opened {
        /// The node below /dev: `dri/card0`.
        node: String,
        /// Who.
        processes: Vec<Process>,
    },
    /// One of its virtual functions is in use, and goes with the physical function's driver.
    VirtualFunction {
        /// The virtual function.
        function: Bdf,
        /// By whom or for what.
        used: String,
    },
}

impl Use {
    /// Whether the host would lose something that it needs: such a device is only taken by force.
    pub fn is_vital(&self) -> bool {
        match self {
            // `bind` takes the consoles off a display, and a picture that nobody else draws is the console's.
            Use::Display { .. } => false,
            Use::Opened { node, .. } => !node.starts_with(SOUND_NODES),
            _ => true,
        }
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
            Use::Display { card, connector } => write!(f, "{card} shows a picture on {connector}"),
            Use::Opened { node, processes } => {
                let named = processes.iter().take(MAX_NAMED);
                let named: Vec<String> = named.map(|it| format!("{} (process {})", it.name, it.pid)).collect();
                write!(f, "{node} is open in {}", named.join(", "))?;
                match processes.len().saturating_sub(MAX_NAMED) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Use::VirtualFunction { function, used } => write!(f, "its virtual function {function}: {used}"),
        }
    }
}

struct Through<'a>(&'a [String]);

impl fmt::Display for Through<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, " under {name}"))
    }
}

/// The host's tables of mounts, routes and open nodes, read once for questions about many functions.
#[derive(Debug)]
pub struct Uses<'a> {
    host: &'a Host,
    block: block::Tables,
    routes: net::Routes,
    open: nodes::OpenNodes,
}

impl Uses<'_> {
    /// What the host uses a function for, and what lies behind it if it is a bridge; sorted, each use once.
    pub fn of(&self, bdf: Bdf) -> Vec<Use> {
        let mut uses = self.by_name(&bdf.to_string());
        if let Ok(device) = self.host.device(bdf) {
            uses.extend(nodes::uses(self.host, &self.open, &device));
            uses.extend(self.of_virtual_functions(&device));
        }
        uses.sort();
        uses.dedup();
        uses
    }

    /// What the virtual functions of a function are used for: its host driver takes them all away when it is unbound.
    fn of_virtual_functions(&self, device: &PciDevice) -> Vec<Use> {
        if device.driver.is_none() || device.on_vfio() {
            return Vec::new();
        }
        let functions = self.host.virtual_functions(device).into_iter();
        functions.filter_map(|function| self.of_virtual_function(&self.host.device(function).ok()?)).collect()
    }

    fn of_virtual_function(&self, device: &PciDevice) -> Option<Use> {
        let nodes = self.host.vfio_nodes(device);
        let holder = nodes.iter().flat_map(|node| self.holders(node)).next();
        let used = match holder {
            Some(Process { pid, name }) => format!("{name} (process {pid}) has it"),
            None => {
                let mut uses = self.by_name(&device.bdf.to_string());
                uses.extend(nodes::uses(self.host, &self.open, device));
                uses.iter().find(|used| used.is_vital())?.to_string()
            }
        };
        Some(Use::VirtualFunction { function: device.bdf, used })
    }

    /// The same of any device by its name in sysfs and its folder: a USB device.
    pub fn below(&self, name: &str, folder: &Path) -> Vec<Use> {
        let mut uses = self.by_name(name);
        uses.extend(nodes::uses_below(self.host, &self.open, folder, Vec::new()));
        uses.sort();
        uses.dedup();
        uses
    }

    fn by_name(&self, name: &str) -> Vec<Use> {
        let mut uses = block::uses(self.host, &self.block, name);
        uses.extend(net::uses(self.host, &self.routes, name));
        uses
    }

    /// Who has a node open.
    pub fn holders(&self, node: &Path) -> &[Process] {
        self.open.holders(self.host, node)
    }

    /// How many processes could not be looked into: without root, those of other users.
    pub fn hidden_processes(&self) -> usize {
        self.open.hidden(self.host)
    }
}

impl Host {
    /// Reads what tells the uses of all functions.
    pub fn read_uses(&self) -> Uses<'_> {
        Uses {
            host: self,
            block: block::Tables::read(self),
            routes: net::Routes::read(self),
            open: nodes::OpenNodes::default(),
        }
    }

    /// What the host uses a function for, and what lies behind it if it is a bridge; sorted, each use once.
    pub fn uses(&self, bdf: Bdf) -> Vec<Use> {
        self.read_uses().of(bdf)
    }
}

/// Whether a resolved path of sysfs leads through a function's folder.
pub(super) fn lies_below(path: &Path, bdf: Bdf) -> bool {
    leads_through(path, &bdf.to_string())
}

/// Whether a resolved path of sysfs leads through the folder of the device of this name.
fn leads_through(path: &Path, device: &str) -> bool {
    path.components().any(|part| matches!(part, Component::Normal(name) if name == device))
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
    fn a_card_has_the_uses_of_its_virtual_functions() {
        let tree = TestTree::new();
        tree.pci("0000:04:00.0").driver("igb").group(1).add();
        tree.attribute("0000:04:00.0", "sriov_numvfs", "2\n");
        for (number, driver) in [(0, "vfio-pci"), (1, "igbvf")] {
            let address = format!("0000:04:10.{number}");
            tree.pci(&address).driver(driver).group(10 + number).add();
            tree.link(tree.pci_path("0000:04:00.0").join(format!("virtfn{number}")), format!("../{address}"));
        }
        let texts = || tree.host().uses(bdf("04:00.0")).iter().map(Use::to_string).collect::<Vec<_>>();
        assert!(texts().is_empty(), "that they are there is no use");
        tree.process(42, "passthru", &[&tree.host().group_node(10)]);
        tree.net("0000:04:10.1", "eth1");
        tree.route("eth1", "0000A8C0", "00FFFFFF");
        assert_eq!(
            texts(),
            [
                "its virtual function 0000:04:10.0: passthru (process 42) has it",
                "its virtual function 0000:04:10.1: eth1 is up and has an address",
            ]
        );
        assert!(tree.host().uses(bdf("04:00.0")).iter().all(Use::is_vital));
    }

    #[test]
    fn json_names_the_kind() {
        let used = Use::Held { device: "sda1".into(), holder: "md0".into() };
        assert_eq!(serde_json::to_string(&used).unwrap(), r#"{"kind":"held","device":"sda1","holder":"md0"}"#);
        assert!(used.is_vital());
    }
}
