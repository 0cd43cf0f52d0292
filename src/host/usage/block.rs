//! Block devices of a PCI function and what stands on them: mounts, swap, device-mapper and RAID devices.
//!
//! NVMe drives, disks behind SCSI and ATA host adapters, virtio and USB disks all lie below their function in
//! /sys/devices. One kind does not: with native multipath (on by default) an NVMe namespace lies below
//! /sys/devices/virtual/nvme-subsystem, whose folder links to the controllers (kernel: drivers/nvme/host/multipath.c).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Use, leads_through};
use crate::host::{Host, read};

/// How many devices may be stacked: the kernel itself allows 8 levels of device-mapper and MD in practice.
const MAX_STACK: usize = 16;
/// Whose mounts are read: ours, and those of init in case we have a mount namespace of our own (as in a unit).
const MOUNT_TABLES: [&str; 2] = ["self/mountinfo", "1/mountinfo"];

/// The uses of the block devices of a function, or of a USB device, by its name in sysfs.
pub(super) fn uses(host: &Host, tables: &Tables, of: &str) -> Vec<Use> {
    let own: Vec<String> = read::names(host.sys("class/block"))
        .into_iter()
        .filter(|name| owners(host, name).iter().any(|path| leads_through(path, of)))
        .collect();
    let mut found = Vec::new();
    for device in &own {
        let mut stack = Vec::new();
        climb(host, tables, device, device, &mut stack, &mut found);
    }
    found
}

/// The folders of sysfs that a block device belongs to: its own, and its controllers' if it is a multipath one.
fn owners(host: &Host, name: &str) -> Vec<PathBuf> {
    let Some(path) = read::real(host.sys("class/block").join(name)) else { return Vec::new() };
    let mut owners = multipath_controllers(&path);
    owners.push(path);
    owners
}

/// The controllers of the NVMe subsystem that a path lies in: links `nvmeN` in the subsystem's folder.
fn multipath_controllers(path: &Path) -> Vec<PathBuf> {
    let in_subsystems =
        |folder: &&Path| folder.parent().and_then(Path::file_name).is_some_and(|name| name == "nvme-subsystem");
    let Some(subsystem) = path.ancestors().find(in_subsystems) else { return Vec::new() };
    let controllers = read::names(subsystem).into_iter().filter(|name| {
        name.strip_prefix("nvme").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    });
    controllers.filter_map(|name| read::real(subsystem.join(name))).collect()
}

/// Finds the uses of `device` and of all that is built on it; `stack` names what lies between it and `bottom`.
fn climb(host: &Host, tables: &Tables, bottom: &str, device: &str, stack: &mut Vec<String>, found: &mut Vec<Use>) {
    let folder = host.sys("class/block").join(device);
    let number = read::text(folder.join("dev")).unwrap_or_default();
    let holders = read::names(folder.join("holders"));
    let before = found.len();
    for at in tables.mounts_of(device, &number) {
        found.push(Use::Mounted { device: bottom.to_owned(), through: stack.clone(), at: at.to_owned() });
    }
    if tables.swaps.contains(device) {
        found.push(Use::Swap { device: bottom.to_owned(), through: stack.clone() });
    }
    let climbable = if stack.len() < MAX_STACK { holders.as_slice() } else { &[] };
    for holder in climbable {
        stack.push(label(host, holder));
        climb(host, tables, bottom, holder, stack, found);
        stack.pop();
    }
    // Nothing above it is in use by itself, yet the outermost holder needs it: a volume that is open, a RAID.
    if found.len() == before && climbable.is_empty() && !stack.is_empty() {
        found.push(Use::Held { device: bottom.to_owned(), holder: stack.join(" under ") });
    }
}

/// A block device's name, with the one that device-mapper's user gave it: `dm-0 (vg-root)`.
fn label(host: &Host, name: &str) -> String {
    match read::text(host.sys("class/block").join(name).join("dm/name")) {
        Some(given) => format!("{name} ({given})"),
        None => name.to_owned(),
    }
}

/// Who uses which block device, by the tables of procfs.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Mount points by `major:minor`.
    by_number: BTreeMap<String, BTreeSet<String>>,
    /// Mount points by the kernel's name of the source: btrfs and others mount under a number of their own.
    by_name: BTreeMap<String, BTreeSet<String>>,
    /// The kernel's names of swap devices.
    swaps: BTreeSet<String>,
}

impl Tables {
    pub(super) fn read(host: &Host) -> Tables {
        let mut tables = Tables::default();
        let btrfs = btrfs_sets(host);
        for table in MOUNT_TABLES {
            for mount in read::lines(host.proc(table)).iter().filter_map(|line| Mount::parse(line)) {
                tables.by_number.entry(mount.number.to_owned()).or_default().insert(unescape(mount.at));
                let Some(name) = kernel_name(host, &unescape(mount.source)) else { continue };
                // A btrfs over several devices names one of them as its source and uses them all.
                let set = btrfs.iter().find(|set| mount.kind == "btrfs" && set.contains(&name));
                for name in set.into_iter().flatten().chain([&name]) {
                    tables.by_name.entry(name.clone()).or_default().insert(unescape(mount.at));
                }
            }
        }
        let swaps = read::lines(host.proc("swaps"));
        let paths = swaps.iter().skip(1).filter_map(|line| line.split_whitespace().next());
        tables.swaps = paths.filter_map(|path| kernel_name(host, &unescape(path))).collect();
        tables
    }

    fn mounts_of(&self, device: &str, number: &str) -> BTreeSet<&str> {
        let by_number = self.by_number.get(number).into_iter().flatten();
        by_number.chain(self.by_name.get(device).into_iter().flatten()).map(String::as_str).collect()
    }
}

/// The devices of every btrfs file system that is known to the kernel.
fn btrfs_sets(host: &Host) -> Vec<Vec<String>> {
    let all = host.sys("fs/btrfs");
    read::names(&all).iter().map(|id| read::names(all.join(id).join("devices"))).collect()
}

/// `/dev/mapper/vg-root` -> `dm-0`: what a path below /dev leads to. `None` for what is no device.
fn kernel_name(host: &Host, path: &str) -> Option<String> {
    let below = Path::new(path).strip_prefix("/dev").ok()?;
    let node = read::real(host.dev(below)).unwrap_or_else(|| host.dev(below));
    read::name_of(&node)
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    number: &'a str,
    at: &'a str,
    kind: &'a str,
    source: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        // Any number of optional fields stands before the lone hyphen.
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (number, at) = (front.next()?, front.nth(1)?);
        let mut back = back.split(' ');
        Some(Mount { number, at, kind: back.next()?, source: back.next()? })
    }
}

/// Undoes the kernel's octal escapes of white space and backslashes: `\040` is a space.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(u8::is_ascii);
        match (code, after.get(3..)) {
            (Some(code), Some(tail)) => {
                out.push(char::from(code));
                rest = tail;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};
    use proptest::prelude::*;

    const DRIVE: &str = "0000:01:00.0";

    fn drive() -> TestTree {
        let tree = TestTree::new();
        tree.pci(DRIVE).driver("nvme").add();
        tree
    }

    fn texts(tree: &TestTree) -> Vec<String> {
        tree.host().uses(bdf(DRIVE)).iter().map(Use::to_string).collect()
    }

    #[test]
    fn an_idle_drive_has_no_use() {
        let tree = drive();
        tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 3, 0);
        tree.mount(99, "/", "ext4", "/dev/sda1");
        assert!(texts(&tree).is_empty());
    }

    #[test]
    fn mounts_and_swap_of_every_kind_of_disk() {
        for path in [
            "nvme/nvme0/nvme0n1",
            "ata1/host0/target0:0:0/0:0:0:0/block/sda",
            "virtio0/block/vda",
            "usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sdb",
        ] {
            let tree = drive();
            let disk = path.rsplit('/').next().unwrap();
            let separator = if disk.starts_with("nvme") { "p" } else { "" };
            tree.disk(DRIVE, path, 3, 0);
            tree.mount(2, "/", "ext4", "/dev/root");
            tree.mount(1, "/boot\\040x", "vfat", &format!("/dev/{disk}{separator}1"));
            tree.append("proc/swaps", &format!("/dev/{disk}{separator}3 partition\t8388604\t0\t-2\n"));
            assert_eq!(
                texts(&tree),
                [
                    format!("{disk}{separator}1 mounted on /boot x"),
                    format!("{disk}{separator}2 mounted on /"),
                    format!("{disk}{separator}3 is swap space"),
                ]
            );
        }
    }

    #[test]
    fn a_multipath_namespace_belongs_to_its_controllers() {
        let tree = drive();
        tree.pci("0000:02:00.0").driver("nvme").add();
        let subsystem = tree.sys("devices/virtual/nvme-subsystem/nvme-subsys0");
        tree.disk_at(&subsystem.join("nvme0n1"), 1, 0);
        for (address, name) in [(DRIVE, "nvme0"), ("0000:02:00.0", "nvme1")] {
            let controller = tree.pci_path(address).join("nvme").join(name);
            std::fs::create_dir_all(&controller).unwrap();
            tree.link(subsystem.join(name), &controller);
        }
        tree.mount(1, "/", "ext4", "/dev/nvme0n1p1");
        assert_eq!(texts(&tree), ["nvme0n1p1 mounted on /"]);
        assert_eq!(tree.host().uses(bdf("02:00.0")).len(), 1);
    }

    #[test]
    fn what_is_built_on_a_disk_is_followed_up() {
        let tree = drive();
        tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 2, 0);
        tree.mapper("nvme0n1p1", "dm-0", "crypt", 50);
        tree.mapper("dm-0", "dm-1", "vg-root", 51);
        tree.mapper("dm-0", "dm-2", "vg-swap", 52);
        tree.mapper("nvme0n1p2", "dm-3", "spare", 53);
        tree.mount(51, "/", "ext4", "/dev/mapper/vg-root");
        tree.file("dev/dm-2", "");
        tree.link("dev/mapper/vg-swap", "../dm-2");
        tree.append("proc/swaps", "/dev/mapper/vg-swap partition\t8\t0\t-2\n");
        assert_eq!(
            texts(&tree),
            [
                "nvme0n1p1 under dm-0 (crypt) under dm-1 (vg-root) mounted on /",
                "nvme0n1p1 under dm-0 (crypt) under dm-2 (vg-swap) is swap space",
                "nvme0n1p2 is part of dm-3 (spare)",
            ]
        );
    }

    #[test]
    fn btrfs_uses_all_of_its_devices() {
        let tree = drive();
        tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 1, 0);
        tree.file("sys/fs/btrfs/5d0e/devices/sda1/x", "");
        tree.file("sys/fs/btrfs/5d0e/devices/nvme0n1p1/x", "");
        tree.append("proc/self/mountinfo", "31 1 0:44 /@ / rw - btrfs /dev/sda1 rw,subvol=/@\n");
        assert_eq!(texts(&tree), ["nvme0n1p1 mounted on /"]);
    }

    #[test]
    fn holders_in_a_circle_end() {
        let tree = drive();
        tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 0, 0);
        tree.mapper("nvme0n1", "dm-0", "a", 50);
        tree.mapper("dm-0", "dm-1", "b", 51);
        tree.mapper("dm-1", "dm-0", "a", 50);
        let uses = texts(&tree);
        assert_eq!(uses.len(), 1);
        assert!(uses[0].starts_with("nvme0n1 is part of dm-0 (a) under dm-1 (b) under dm-0"), "{uses:?}");
    }

    #[test]
    fn mounts_of_init_count() {
        let tree = drive();
        tree.disk(DRIVE, "nvme/nvme0/nvme0n1", 0, 0);
        tree.file("proc/1/mountinfo", "31 1 259:0 / /data rw shared:1 master:2 - xfs /dev/nvme0n1 rw\n");
        assert_eq!(texts(&tree), ["nvme0n1 mounted on /data"]);
    }

    proptest! {
        #[test]
        fn no_mount_line_panics(line in "\\PC{0,80}") {
            let _ = Mount::parse(&line);
            let _ = unescape(&line);
        }

        #[test]
        fn escapes_are_undone(text in "[ -~é\t\n]{0,40}") {
            let escaped: String = text.chars().map(|c| match c {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                other => other.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), text);
        }
    }
}
