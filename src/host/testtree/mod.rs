//! Made-up hosts for tests: a builder that writes sysfs, procfs and /dev trees as Linux lays them out, and a fake
//! kernel ([`kernel::FakeKernel`]) that answers writes to them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::Host;
use crate::bdf::Bdf;

pub(crate) mod cpus;
pub(crate) mod hosts;
pub(crate) mod kernel;

pub(crate) use kernel::{FakeKernel, Fault, Killed};

/// Reads an address that the test's author knows to be right.
pub(crate) fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// A made-up host. Addresses are full ones: `0000:01:00.0`.
#[derive(Debug)]
pub(crate) struct TestTree {
    dir: TempDir,
    kernel: Arc<FakeKernel>,
}

impl TestTree {
    /// A host without devices, on which the vfio-pci driver is loaded.
    pub(crate) fn new() -> TestTree {
        // In memory, if possible: the journal calls fsync for every step, and the tests take thousands of steps.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = dir.path().canonicalize().unwrap();
        let tree = TestTree { dir, kernel: Arc::new(FakeKernel::new(root)) };
        for folder in ["bus/pci/devices", "bus/pci/drivers", "class/block", "class/net", "kernel/iommu_groups"] {
            fs::create_dir_all(tree.sys(folder)).unwrap();
        }
        tree.file("sys/bus/pci/drivers_probe", "");
        tree.file("proc/self/mountinfo", "");
        tree.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        tree.file(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n",
        );
        tree.file("dev/vfio/vfio", "");
        tree.add_driver("vfio-pci");
        tree
    }

    /// The host as the code under test sees it.
    pub(crate) fn host(&self) -> Host {
        Host::at(self.kernel.root(), self.kernel.clone())
    }

    /// The fake kernel, to set faults and read what was written.
    pub(crate) fn kernel(&self) -> &FakeKernel {
        &self.kernel
    }

    /// A path below the tree's /sys.
    pub(crate) fn sys(&self, path: impl AsRef<Path>) -> PathBuf {
        self.kernel.root().join("sys").join(path)
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn file(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.kernel.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // The journal does not believe what others can write, whatever the umask of the tests is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(self.kernel.root())) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Appends to a file.
    pub(crate) fn append(&self, path: &str, text: &str) {
        let old = fs::read_to_string(self.kernel.root().join(path)).unwrap_or_default();
        self.file(path, &(old + text));
    }

    /// Makes a link, with the folders above it.
    pub(crate) fn link(&self, at: impl AsRef<Path>, target: impl AsRef<Path>) {
        let at = self.kernel.root().join(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
    }

    /// Writes an attribute of a PCI function.
    pub(crate) fn attribute(&self, address: &str, name: &str, text: &str) {
        let file = self.pci_path(address).join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Adds a USB device at `path` below its controller: `usb1/1-4`; attributes that matter and are not given are made up.
    pub(crate) fn usb(&self, controller: &str, path: &str, attributes: &[(&str, &str)]) {
        let at = self.pci_path(controller).join(path);
        fs::create_dir_all(&at).unwrap();
        for (name, text) in [("busnum", "1"), ("devnum", "2"), ("bDeviceClass", "00")].iter().chain(attributes) {
            fs::write(at.join(name), format!("{text}\n")).unwrap();
        }
        let name = at.file_name().unwrap().to_owned();
        let all = self.sys("bus/usb/devices");
        fs::create_dir_all(&all).unwrap();
        symlink(&at, all.join(name)).unwrap();
    }

    /// Adds a character device below a PCI function, at `path` below the function's folder, with the node `name`.
    pub(crate) fn node(&self, address: &str, path: &str, name: &str) {
        self.attribute(address, &format!("{path}/dev"), "226:0\n");
        self.attribute(address, &format!("{path}/uevent"), &format!("MAJOR=226\nMINOR=0\nDEVNAME={name}\n"));
    }

    /// Makes a driver's folder.
    pub(crate) fn add_driver(&self, name: &str) {
        self.kernel.add_driver(name);
    }

    /// Starts the description of a PCI function.
    pub(crate) fn pci(&self, address: &str) -> PciBuilder<'_> {
        PciBuilder {
            tree: self,
            address: address.to_owned(),
            parent: None,
            ids: (0x8086, 0x10d3),
            class: 0x020000,
            driver: None,
            group: None,
            bridge: false,
        }
    }

    /// The real folder of a PCI function.
    pub(crate) fn pci_path(&self, address: &str) -> PathBuf {
        self.sys("bus/pci/devices").join(address).canonicalize().unwrap()
    }

    /// Adds a disk below a PCI function, at `path` below the function's folder ("nvme/nvme0/nvme0n1"), with
    /// partitions 1 to `partitions`; minor numbers count up from `minor`, which is the disk's own.
    pub(crate) fn disk(&self, address: &str, path: &str, partitions: u32, minor: u32) {
        self.disk_at(&self.pci_path(address).join(path), partitions, minor);
    }

    /// Adds a disk at a folder anywhere in /sys/devices.
    pub(crate) fn disk_at(&self, at: &Path, partitions: u32, minor: u32) {
        let disk = at.file_name().unwrap().to_str().unwrap().to_owned();
        let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        self.block(at, &disk, minor);
        for number in 1..=partitions {
            let name = format!("{disk}{separator}{number}");
            self.block(&at.join(&name), &name, minor + number);
        }
    }

    fn block(&self, at: &Path, name: &str, minor: u32) {
        fs::create_dir_all(at.join("holders")).unwrap();
        fs::write(at.join("dev"), format!("259:{minor}\n")).unwrap();
        symlink(at, self.sys("class/block").join(name)).unwrap();
    }

    /// Puts a device-mapper device on top of a block device.
    pub(crate) fn mapper(&self, below: &str, name: &str, label: &str, minor: u32) {
        let at = self.sys("devices/virtual/block").join(name);
        if !at.exists() {
            self.block(&at, name, minor);
            fs::create_dir_all(at.join("dm")).unwrap();
            fs::write(at.join("dm/name"), format!("{label}\n")).unwrap();
        }
        symlink(&at, self.sys("class/block").join(below).join("holders").join(name)).unwrap();
    }

    /// Mounts a block device by its minor number.
    pub(crate) fn mount(&self, minor: u32, at: &str, kind: &str, source: &str) {
        self.append("proc/self/mountinfo", &format!("30 1 259:{minor} / {at} rw shared:1 - {kind} {source} rw\n"));
    }

    /// Adds a network interface below a PCI function.
    pub(crate) fn net(&self, address: &str, name: &str) {
        let at = self.pci_path(address).join("net").join(name);
        self.interface(&at, name);
    }

    /// Adds an interface without hardware on top of another: a bond, bridge or VLAN.
    pub(crate) fn upper(&self, below: &str, name: &str) {
        let at = self.sys("devices/virtual/net").join(name);
        self.interface(&at, name);
        symlink(&at, self.sys("class/net").join(below).join(format!("upper_{name}"))).unwrap();
    }

    fn interface(&self, at: &Path, name: &str) {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join("flags"), "0x1003\n").unwrap();
        symlink(at, self.sys("class/net").join(name)).unwrap();
    }

    /// Adds an IPv4 route; numbers as in /proc/net/route, hexadecimal.
    pub(crate) fn route(&self, interface: &str, destination: &str, mask: &str) {
        self.append(
            "proc/net/route",
            &format!("{interface}\t{destination}\t0100000A\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n"),
        );
    }

    /// Adds a process with these files open.
    pub(crate) fn process(&self, pid: u32, name: &str, open: &[&Path]) {
        self.file(format!("proc/{pid}/comm"), &format!("{name}\n"));
        fs::create_dir_all(self.kernel.root().join(format!("proc/{pid}/fd"))).unwrap();
        for (number, target) in open.iter().enumerate() {
            self.link(format!("proc/{pid}/fd/{number}"), target);
        }
    }

    /// Ends a process.
    pub(crate) fn end(&self, pid: u32) {
        fs::remove_dir_all(self.kernel.root().join(format!("proc/{pid}"))).unwrap();
    }

    /// Everything in /sys and in the journal: files with their text, links with their targets.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        collect(&self.sys(""), &mut all);
        collect(&self.kernel.root().join("run/passthru/devices"), &mut all);
        all
    }

    /// The folder that holds everything, kept until the tree is dropped.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }
}

fn collect(folder: &Path, all: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            all.insert(path.clone(), fs::read_link(&path).unwrap().display().to_string());
        } else if kind.is_dir() {
            collect(&path, all);
        } else {
            all.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// A PCI function in the making.
#[derive(Debug)]
pub(crate) struct PciBuilder<'a> {
    tree: &'a TestTree,
    address: String,
    parent: Option<String>,
    ids: (u16, u16),
    class: u32,
    driver: Option<String>,
    group: Option<u32>,
    bridge: bool,
}

impl PciBuilder<'_> {
    /// Puts it behind a bridge that was added before.
    pub(crate) fn below(mut self, parent: &str) -> Self {
        self.parent = Some(parent.to_owned());
        self
    }

    pub(crate) fn ids(mut self, vendor: u16, device: u16) -> Self {
        self.ids = (vendor, device);
        self
    }

    pub(crate) fn class(mut self, class: u32) -> Self {
        self.class = class;
        self
    }

    /// Binds it to a driver, which is also the one that the kernel picks when it is free to choose.
    pub(crate) fn driver(mut self, driver: &str) -> Self {
        self.driver = Some(driver.to_owned());
        self
    }

    pub(crate) fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    pub(crate) fn bridge(mut self) -> Self {
        self.bridge = true;
        self.class = 0x060400;
        self
    }

    /// Writes it into the tree.
    pub(crate) fn add(self) {
        let tree = self.tree;
        let parent = match &self.parent {
            Some(parent) => tree.pci_path(parent),
            None => tree.sys(format!("devices/pci{}", &self.address[..7])),
        };
        let at = parent.join(&self.address);
        fs::create_dir_all(&at).unwrap();
        symlink(&at, tree.sys("bus/pci/devices").join(&self.address)).unwrap();
        let mut config = [0u8; 64];
        config[0x0e] = u8::from(self.bridge);
        fs::write(at.join("config"), config).unwrap();
        for (name, text) in [
            ("vendor", format!("0x{:04x}\n", self.ids.0)),
            ("device", format!("0x{:04x}\n", self.ids.1)),
            ("class", format!("0x{:06x}\n", self.class)),
            ("driver_override", "(null)\n".to_owned()),
        ] {
            fs::write(at.join(name), text).unwrap();
        }
        if let Some(group) = self.group {
            let folder = tree.sys(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(folder.join("devices")).unwrap();
            symlink(&folder, at.join("iommu_group")).unwrap();
            symlink(&at, folder.join("devices").join(&self.address)).unwrap();
        }
        if let Some(driver) = &self.driver {
            tree.add_driver(driver);
            tree.kernel.set_natural(&self.address, driver);
            tree.kernel.attach(&self.address, driver);
        }
    }
}
