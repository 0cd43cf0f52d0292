//! Device nodes of a function and who has them open: a display server its card, a logger its serial port. And displays
//! that show a picture, which needs no open node: the kernel's console draws on them as well.
//!
//! Only character devices: a disk that is in use is mounted, swap or held (`block`), and udev opens every block
//! device for a moment.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Use;
use crate::bdf::Bdf;
use crate::host::busy::Process;
use crate::host::{Host, PciDevice, read};

/// How deep below its function a node is looked for: a keyboard behind two USB hubs is 9 folders down.
const MAX_DEPTH: usize = 16;

/// Who has which node open, read at the first question: it takes a look into every process.
#[derive(Debug, Default)]
pub(super) struct OpenNodes {
    seen: OnceCell<Seen>,
}

/// What the file descriptors of all processes say.
#[derive(Debug, Default)]
struct Seen {
    by_node: BTreeMap<PathBuf, Vec<Process>>,
    hidden: usize,
}

impl OpenNodes {
    fn seen(&self, host: &Host) -> &Seen {
        self.seen.get_or_init(|| {
            let mut seen = Seen::default();
            let dev = host.dev("");
            seen.hidden = host.each_process(|process, open| {
                for node in open.into_iter().filter(|node| node.starts_with(&dev)) {
                    let holders = seen.by_node.entry(node).or_default();
                    if !holders.contains(process) {
                        holders.push(process.clone());
                    }
                }
            });
            seen
        })
    }

    /// Who has a node open.
    pub(super) fn holders(&self, host: &Host, node: &Path) -> &[Process] {
        self.seen(host).by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// How many processes could not be looked into.
    pub(super) fn hidden(&self, host: &Host) -> usize {
        self.seen(host).hidden
    }
}

/// The open nodes and the displays of a function.
pub(super) fn uses(host: &Host, open: &OpenNodes, device: &PciDevice) -> Vec<Use> {
    // Without a driver there is no node, and vfio's own is who has the device, not what it is used for.
    if device.driver.is_none() || device.on_vfio() {
        return Vec::new();
    }
    let Some(folder) = read::real(host.device_path(device.bdf)) else { return Vec::new() };
    uses_below(host, open, &folder, nvidia_node(host, device.bdf).into_iter().collect())
}

/// The open ones of `nodes` and of those below a folder of sysfs, and the displays there.
pub(super) fn uses_below(host: &Host, open: &OpenNodes, folder: &Path, mut nodes: Vec<String>) -> Vec<Use> {
    let mut found = Vec::new();
    walk(folder, MAX_DEPTH, &mut nodes, &mut found);
    for name in nodes {
        let processes = open.holders(host, &host.dev(&name));
        if !processes.is_empty() {
            found.push(Use::Opened { node: name, processes: processes.to_vec() });
        }
    }
    found
}

/// Finds the names of nodes (`dri/card0`) below a folder of sysfs, and the connectors that show a picture.
fn walk(folder: &Path, depth: usize, nodes: &mut Vec<String>, found: &mut Vec<Use>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            walk(&entry.path(), depth - 1, nodes, found);
        } else if entry.file_name() == "dev" && kind.is_file() {
            nodes.extend(node_name(folder));
        } else if entry.file_name() == "enabled" && read::text(entry.path()).as_deref() == Some("enabled") {
            found.extend(connector(folder));
        }
    }
}

/// The name below /dev of the character device that a folder stands for.
fn node_name(folder: &Path) -> Option<String> {
    if read::link_name(folder.join("subsystem")).as_deref() == Some("block") {
        return None;
    }
    let uevent = read::lines(folder.join("uevent"));
    uevent.iter().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

/// `…/drm/card0/card0-DP-1` -> DP-1 of card0.
fn connector(folder: &Path) -> Option<Use> {
    let (name, card) = (read::name_of(folder)?, read::name_of(folder.parent()?)?);
    let connector = name.strip_prefix(&card)?.strip_prefix('-')?.to_owned();
    card.starts_with("card").then_some(Use::Display { card, connector })
}

/// NVIDIA's own driver makes nodes that sysfs does not know; procfs has their numbers.
fn nvidia_node(host: &Host, bdf: Bdf) -> Option<String> {
    let lines = read::lines(host.proc("driver/nvidia/gpus").join(bdf.to_string()).join("information"));
    let minor = lines.iter().find_map(|line| line.strip_prefix("Device Minor:"))?.trim();
    minor.bytes().all(|digit| digit.is_ascii_digit()).then(|| format!("nvidia{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    const CARD: &str = "0000:01:00.0";

    fn card() -> TestTree {
        let tree = TestTree::new();
        tree.pci(CARD).class(0x030000).driver("amdgpu").add();
        tree.node(CARD, "drm/card0", "dri/card0");
        tree
    }

    fn texts(tree: &TestTree) -> Vec<String> {
        tree.host().uses(bdf(CARD)).iter().map(Use::to_string).collect()
    }

    #[test]
    fn an_open_node_is_a_use_and_a_closed_one_is_not() {
        let tree = card();
        assert!(texts(&tree).is_empty());
        tree.process(812, "Xorg", &[&tree.host().dev("dri/card0"), &tree.host().dev("dri/card0")]);
        assert_eq!(texts(&tree), ["dri/card0 is open in Xorg (process 812)"]);
        assert!(tree.host().uses(bdf(CARD))[0].is_vital());
        for pid in 900..905 {
            tree.process(pid, "browser", &[&tree.host().dev("dri/card0")]);
        }
        let wanted = "dri/card0 is open in Xorg (process 812), browser (process 900) and 4 more";
        assert_eq!(texts(&tree), [wanted]);
    }

    #[test]
    fn sound_that_is_open_is_told_but_not_vital() {
        let tree = TestTree::new();
        tree.pci(CARD).class(0x040300).driver("snd_hda_intel").add();
        tree.node(CARD, "sound/card1/controlC1", "snd/controlC1");
        tree.process(1001, "pipewire", &[&tree.host().dev("snd/controlC1")]);
        let uses = tree.host().uses(bdf(CARD));
        assert_eq!(uses.len(), 1);
        assert!(!uses[0].is_vital());
    }

    #[test]
    fn a_picture_on_a_connector_is_told() {
        let tree = card();
        tree.attribute(CARD, "drm/card0/card0-DP-1/enabled", "enabled\n");
        tree.attribute(CARD, "drm/card0/card0-DP-2/enabled", "disabled\n");
        assert_eq!(texts(&tree), ["card0 shows a picture on DP-1"]);
        assert!(!tree.host().uses(bdf(CARD))[0].is_vital());
    }

    #[test]
    fn nodes_of_a_driver_that_sysfs_does_not_know() {
        let tree = TestTree::new();
        tree.pci(CARD).class(0x030000).driver("nvidia").add();
        tree.file(format!("proc/driver/nvidia/gpus/{CARD}/information"), "Model: \t\t RTX\nDevice Minor: \t 0\n");
        tree.process(9, "python3", &[&tree.host().dev("nvidia0")]);
        assert_eq!(texts(&tree), ["nvidia0 is open in python3 (process 9)"]);
    }

    #[test]
    fn a_device_on_vfio_is_not_searched() {
        let tree = TestTree::new();
        tree.pci(CARD).driver("vfio-pci").group(1).add();
        tree.node(CARD, "vfio-dev/vfio0", "vfio/devices/vfio0");
        tree.process(7, "passthru", &[&tree.host().dev("vfio/devices/vfio0")]);
        assert!(texts(&tree).is_empty());
    }
}
