//! Files and nodes that a guest uses besides those of its devices.

use std::path::{Path, PathBuf};

use super::Host;

/// Folders of /dev that hold no nodes of devices: memory, message queues, terminals.
const NO_DEVICES: [&str; 4] = ["shm", "hugepages", "mqueue", "pts"];
/// Nodes that systemd lets every service open (systemd.resource-control(5), `DevicePolicy=closed`), and their modes everybody.
const EVERYBODYS: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// A file or node, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileUse {
    /// Its name.
    pub path: PathBuf,
    /// Whether it is written.
    pub write: bool,
    /// Whether it is made if it is not there.
    pub made: bool,
}

impl Host {
    /// Whether `path` is by its name a device's node, which not everybody may open.
    pub fn is_node(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(self.dev("")) else { return false };
        !EVERYBODYS.iter().any(|name| rest == Path::new(name)) && !NO_DEVICES.iter().any(|name| rest.starts_with(name))
    }
}

#[cfg(test)]
mod tests {
    use crate::host::testtree::TestTree;

    #[test]
    fn nodes_of_devices_are_known_by_their_names() {
        let tree = TestTree::new();
        let host = tree.host();
        for (path, is) in
            [("sdb", true), ("disk/by-id/a", true), ("vhost-net", true), ("urandom", false), ("shm/a", false)]
        {
            assert_eq!(host.is_node(&host.dev(path)), is, "{path}");
        }
        assert!(!host.is_node("/srv/dev/sdb".as_ref()));
    }
}
