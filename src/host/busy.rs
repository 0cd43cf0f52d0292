//! Who holds a VFIO group or device: the processes that have its node open, found through /proc/PID/fd.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::{Host, PciDevice, read};
use crate::error::{Code, Error, explain_io};

/// A process that has a node open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as `ps` prints it.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Who has some nodes open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holders {
    /// Those that were found.
    pub processes: Vec<Process>,
    /// Processes that could not be looked into: without root, those of other users.
    pub hidden: usize,
}

impl Host {
    /// Who holds a device: its group's node, or its own.
    pub fn holders(&self, device: &PciDevice) -> Holders {
        self.holders_of(&self.vfio_nodes(device))
    }

    /// The nodes by which a process has a device: that of its group, and its own where the kernel makes one.
    pub(super) fn vfio_nodes(&self, device: &PciDevice) -> Vec<PathBuf> {
        let group = device.iommu_group.map(|id| self.group_node(id));
        group.into_iter().chain(self.device_node(device.bdf)).collect()
    }

    pub(super) fn holders_of(&self, nodes: &[PathBuf]) -> Holders {
        let mut processes = Vec::new();
        let hidden = self.each_process(|process, open| {
            if open.iter().any(|target| nodes.contains(target)) {
                processes.push(process.clone());
            }
        });
        Holders { processes, hidden }
    }

    /// Shows `look` every process with what its descriptors are open on, in order of the ids; gives the number of those
    /// that could not be looked into.
    pub(super) fn each_process(&self, mut look: impl FnMut(&Process, Vec<PathBuf>)) -> usize {
        let mut pids: Vec<u32> =
            read::names(self.proc("")).into_iter().filter_map(|name| name.parse::<u32>().ok()).collect();
        pids.sort_unstable();
        let mut hidden = 0;
        for pid in pids {
            let folder = self.proc(pid.to_string());
            match std::fs::read_dir(folder.join("fd")) {
                Ok(entries) => {
                    let name = read::text(folder.join("comm")).unwrap_or_else(|| "?".to_owned());
                    let open = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
                    look(&Process { pid, name }, open.collect());
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
                // It has ended in the meantime, and holds nothing any more.
                Err(_) => {}
            }
        }
        hidden
    }
}

/// `Code::Busy`: someone else has the group. `error` is the kernel's answer, if it was asked.
pub fn busy_error(device: &PciDevice, holders: &Holders, error: Option<&io::Error>) -> Error {
    let what = match device.iommu_group {
        Some(id) => format!("{} is in use: its IOMMU group {id} is held by another process", device.bdf),
        None => format!("{} is in use by another process", device.bdf),
    };
    let mut out = Error::new(Code::Busy, what);
    if let Some(error) = error {
        out = out.evidence(format!("the kernel's answer: {}", explain_io(error)));
    }
    for process in &holders.processes {
        out = out.evidence(format!("{process} has it open"));
    }
    match holders.processes.first() {
        Some(first) => out.fix(format!("stop that virtual machine first: `ps {}` shows it", first.pid)),
        None if holders.hidden > 0 => out
            .evidence(format!("{} processes of other users could not be looked into", holders.hidden))
            .fix("as root, `fuser -v /dev/vfio/*` names the process"),
        None => out.fix("`fuser -v /dev/vfio/*` as root names the process, if it is still there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn the_process_is_named() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(7).add();
        let host = tree.host();
        let device = host.device(bdf("01:00.0")).unwrap();
        assert_eq!(host.holders(&device), Holders::default());
        tree.process(41, "sleep", &[&host.dev("vfio/70"), &host.dev("null")]);
        tree.process(42, "qemu-system-x86", &[&host.dev("null"), &host.group_node(7)]);
        let holders = host.holders(&device);
        assert_eq!(holders.processes, [Process { pid: 42, name: "qemu-system-x86".into() }]);
        let error = busy_error(&device, &holders, Some(&io::Error::from_raw_os_error(libc::EBUSY)));
        assert_eq!(error.code(), Code::Busy);
        assert!(error.to_string().contains("process 42 (qemu-system-x86) has it open"), "{error}");
        assert!(error.to_string().contains("(EBUSY)"), "{error}");
    }

    #[test]
    fn the_node_of_the_device_itself_counts() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(7).add();
        std::fs::create_dir_all(tree.pci_path("0000:01:00.0").join("vfio-dev/vfio3")).unwrap();
        let host = tree.host();
        tree.process(42, "passthru", &[&host.dev("vfio/devices/vfio3")]);
        assert_eq!(host.holders(&host.device(bdf("01:00.0")).unwrap()).processes.len(), 1);
    }

    #[test]
    fn hidden_processes_are_counted_in_words() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").group(7).add();
        let device = tree.host().device(bdf("01:00.0")).unwrap();
        let error = busy_error(&device, &Holders { processes: vec![], hidden: 3 }, None);
        assert!(error.to_string().contains("3 processes of other users"), "{error}");
    }
}
