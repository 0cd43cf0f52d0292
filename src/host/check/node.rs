//! A device node, who may open it, and the error when we may not.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use crate::error::{Code, Error, explain_io};

/// What stat(2) says about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its path.
    pub path: PathBuf,
    /// Mode, owner and group; `None` if it is absent.
    pub rights: Option<Rights>,
    /// Who asks.
    pub user: String,
}

/// Who may open a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Permission bits.
    pub mode: u32,
    /// The owner's name or number.
    pub owner: String,
    /// The group's name or number.
    pub group: String,
}

impl Node {
    /// Looks at a node.
    pub fn read(path: &Path) -> Node {
        let rights = fs::metadata(path).ok().map(|meta| Rights {
            mode: meta.mode() & 0o777,
            owner: user_name(Uid::from_raw(meta.uid())),
            group: group_name(Gid::from_raw(meta.gid())),
        });
        Node { path: path.to_owned(), rights, user: current_user() }
    }

    /// What the kernel answered to the open, as evidence.
    pub fn answer(&self, answer: &io::Error) -> String {
        format!("{}: {}", self.path.display(), explain_io(answer))
    }
}

/// The name of the user whom this process runs as.
pub fn current_user() -> String {
    user_name(nix::unistd::geteuid())
}

fn user_name(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn group_name(gid: Gid) -> String {
    Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// `Code::NotPermitted`: names the node, its mode and owner, and who asked.
pub fn not_permitted(node: &Node, answer: &io::Error) -> Error {
    let path = node.path.display();
    let error =
        Error::new(Code::NotPermitted, format!("user {} may not open {path}", node.user)).evidence(node.answer(answer));
    let Some(Rights { mode, owner, group }) = &node.rights else {
        return error.fix("run it as root, or let udev give the node to a group that you are in");
    };
    let error = error.evidence(format!("its mode is {mode:04o}, its owner {owner}, its group {group}"));
    let group_may = mode & 0o060 == 0o060;
    if mode & 0o006 == 0o006 || group_may && answer.raw_os_error() == Some(libc::EPERM) {
        return error
            .fix("the mode allows it: a cgroup, a container or a security module forbids it (DeviceAllow= in a unit)");
    }
    if group_may && group != "root" {
        return error.fix(format!("as root, `usermod -aG {group} {}`, then log in again", node.user));
    }
    error.fix(format!(
        "as root, `setfacl -m u:{}:rw {path}`, or a udev rule that gives it to a group of yours",
        node.user
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn node(mode: u32, group: &str) -> Node {
        let rights = Rights { mode, owner: "root".into(), group: group.into() };
        Node { path: "/dev/vfio/7".into(), rights: Some(rights), user: "alice".into() }
    }

    #[test]
    fn the_cure_follows_the_mode() {
        let table = [
            (node(0o660, "kvm"), libc::EACCES, "`usermod -aG kvm alice`"),
            (node(0o600, "root"), libc::EACCES, "`setfacl -m u:alice:rw /dev/vfio/7`"),
            (node(0o660, "root"), libc::EACCES, "setfacl"),
            (node(0o666, "root"), libc::EPERM, "DeviceAllow="),
            (node(0o660, "vfio"), libc::EPERM, "DeviceAllow="),
        ];
        for (node, errno, fix) in table {
            let error = not_permitted(&node, &io::Error::from_raw_os_error(errno));
            assert_eq!(error.code(), Code::NotPermitted);
            assert!(error.fix_text().unwrap().contains(fix), "{error}");
            assert!(error.to_string().contains("owner root"), "{error}");
            assert!(error.to_string().contains("/dev/vfio/7"), "{error}");
        }
    }

    #[test]
    fn a_real_node_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm");
        assert_eq!(Node::read(&path).rights, None);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let node = Node::read(&path);
        assert_eq!(node.rights.as_ref().unwrap().mode, 0o640);
        assert_eq!(node.rights.unwrap().owner, node.user);
    }
}
