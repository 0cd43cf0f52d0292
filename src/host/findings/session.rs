//! The user who would run the guest: which nodes and files that one may open, and how much memory lock.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, User, access, geteuid, initgroups, setgid, setuid};

use super::{Finding, Subject};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;
use crate::host::check::node::{Node, not_permitted};
use crate::host::files::FileUse;
use crate::host::limits::memlock::plan_memlock;
use crate::host::limits::{UNLIMITED, size_text};

/// Guests of less memory than this are rare.
const SMALL_GUEST: u64 = 1 << 30;

/// Who says how much memory may be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockRights {
    /// The limits of this process, which the guest's would have as well.
    OfTheProcess,
    /// The unit that runs the guest, which sets none.
    OfTheService,
}

/// How a file is opened.
type MayOpen = fn(&Path, AccessFlags) -> nix::Result<()>;

impl Host {
    /// Whether this process's user may open what a guest with these devices and files needs. `granted`: root gives the user all
    /// nodes before the guest runs (`passthru bind --vm --grant`).
    pub fn check_session(&self, devices: &[Bdf], files: &[FileUse], granted: bool, locks: LockRights) -> Vec<Finding> {
        let ask: MayOpen = |path, mode| access(path, mode);
        let (nodes, files): (Vec<_>, Vec<_>) = files.iter().cloned().partition(|file| self.is_node(&file.path));
        let mut findings = Vec::new();
        if granted {
            let what = "the nodes that it needs are given to it before the guest runs";
            findings.push(Finding::pass(Subject::Session, Code::NotPermitted, what));
        } else {
            findings.extend(self.check_nodes(devices, ask));
            findings.extend(nodes.iter().flat_map(|node| ways_to_open(&[vec![node.path.clone()]], mode(node), ask)));
        }
        findings.extend(check_files(&files, ask));
        findings.push(match locks {
            LockRights::OfTheProcess => self.check_lock_rights(),
            LockRights::OfTheService => {
                let what = "its service may lock any memory (LimitMEMLOCK=infinity)";
                Finding::pass(Subject::Session, Code::Memlock, what)
            }
        });
        findings
    }

    fn check_nodes(&self, devices: &[Bdf], may: MayOpen) -> Vec<Finding> {
        let mut sets: Vec<Vec<Vec<PathBuf>>> = vec![vec![vec![self.dev("kvm")]]];
        for &bdf in devices {
            let group = self.device(bdf).ok().and_then(|device| device.iommu_group);
            let by_group = group.map(|id| vec![self.dev("vfio/vfio"), self.group_node(id)]);
            let by_node = self.device_node(bdf).map(|node| vec![self.dev("iommu"), node]);
            sets.push(by_group.into_iter().chain(by_node).collect());
        }
        sets.iter().flat_map(|ways| ways_to_open(ways, AccessFlags::R_OK | AccessFlags::W_OK, may)).collect()
    }

    fn check_lock_rights(&self) -> Finding {
        let rights = self.lock_rights();
        let most = if rights.exempt || rights.hard == UNLIMITED { None } else { Some(rights.hard) };
        match (most, plan_memlock(SMALL_GUEST, &rights)) {
            (Some(_), Err(error)) => Finding::warn(Subject::Session, &error).evidence(format!(
                "asked for a guest of {}; `passthru check -m SIZE` asks for another",
                size_text(SMALL_GUEST)
            )),
            (Some(most), Ok(_)) => {
                Finding::pass(Subject::Session, Code::Memlock, format!("{} of memory may be locked", size_text(most)))
            }
            (None, _) => Finding::pass(Subject::Session, Code::Memlock, "any memory may be locked"),
        }
    }
}

/// Findings about one thing that can be opened in several ways: well if one of them may be taken. What is not there is
/// said where the device or the host is looked at.
fn ways_to_open(ways: &[Vec<PathBuf>], mode: AccessFlags, may: MayOpen) -> Vec<Finding> {
    let there: Vec<&Vec<PathBuf>> = ways.iter().filter(|nodes| nodes.iter().all(|node| node.exists())).collect();
    let text =
        |nodes: &[PathBuf]| nodes.iter().map(|node| node.display().to_string()).collect::<Vec<_>>().join(" and ");
    if let Some(nodes) = there.iter().find(|nodes| nodes.iter().all(|node| may(node, mode).is_ok())) {
        return vec![Finding::pass(Subject::Session, Code::NotPermitted, format!("{} may be opened", text(nodes)))];
    }
    let refused = there.first().into_iter().flat_map(|nodes| nodes.iter()).filter_map(|node| {
        let answer = io::Error::from(may(node, mode).err()?);
        Some(Finding::fail(Subject::Session, &not_permitted(&Node::read(node), &answer)))
    });
    refused.collect()
}

fn mode(file: &FileUse) -> AccessFlags {
    if file.write { AccessFlags::R_OK | AccessFlags::W_OK } else { AccessFlags::R_OK }
}

fn check_files(files: &[FileUse], may: MayOpen) -> Vec<Finding> {
    let finding = |file: &FileUse| {
        let path = file.path.display();
        // What is made is written only; where it is not there, its folder is written.
        let folder = file.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let answer = match (file.made, may(&file.path, AccessFlags::F_OK)) {
            (true, Err(nix::Error::ENOENT)) => may(folder, AccessFlags::W_OK | AccessFlags::X_OK),
            (true, _) => may(&file.path, AccessFlags::W_OK),
            (false, _) => may(&file.path, mode(file)),
        };
        let verb = match (file.made, file.write) {
            (true, _) => "written",
            (false, true) => "read and written",
            (false, false) => "read",
        };
        let access = if file.write { "that access" } else { "read access" };
        match answer {
            Ok(()) => Finding::pass(Subject::Session, Code::FileUnusable, format!("{path} can be {verb}")),
            Err(errno) => {
                let fix = match errno {
                    nix::Error::ENOENT => "put the file there, or name the one that is meant".to_owned(),
                    _ => format!("give the user {access} to the file, and search access (x) to every folder above it"),
                };
                let error = Error::new(Code::FileUnusable, format!("{path} cannot be {verb}"))
                    .evidence(explain_io(&io::Error::from(errno)))
                    .fix(fix);
                Finding::fail(Subject::Session, &error)
            }
        }
    };
    files.iter().map(finding).collect()
}

/// Makes this process one of another user for good: what is looked at from then on is seen as that user sees it.
///
/// # Errors
/// [`Code::Usage`] if there is no such user, or the caller is not root.
pub fn become_user(name: &str) -> Result<()> {
    let user = User::from_name(name).ok().flatten();
    let Some(user) = user else {
        return Err(Error::new(Code::Usage, format!("there is no user {name}")).fix("`getent passwd` lists the users"));
    };
    if user.uid == geteuid() {
        return Ok(());
    }
    let change = || -> nix::Result<()> {
        let name = CString::new(user.name.as_str()).map_err(|_| nix::Error::EINVAL)?;
        // Groups first: without the user's rights they cannot be changed any more.
        initgroups(&name, user.gid)?;
        setgid(user.gid)?;
        setuid(user.uid)
    };
    change().map_err(|errno| {
        Error::new(Code::Usage, format!("only root can see what {name} may do"))
            .evidence(explain_io(&io::Error::from(errno)))
            .fix(format!("run it as root, or as {name} without --user"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::findings::Level;
    use crate::host::testtree::{TestTree, bdf};

    fn tree() -> TestTree {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(7).add();
        for node in ["kvm", "vfio/7", "iommu", "vfio/devices/vfio0"] {
            tree.file(format!("dev/{node}"), "");
        }
        std::fs::create_dir_all(tree.pci_path("0000:01:00.0").join("vfio-dev/vfio0")).unwrap();
        tree
    }

    fn levels(may: MayOpen) -> Vec<(Level, String)> {
        let tree = tree();
        let findings = tree.host().check_nodes(&[bdf("01:00.0")], may);
        let root = tree.host().dev("").display().to_string();
        findings.into_iter().map(|finding| (finding.level, finding.what.replace(&root, ""))).collect()
    }

    #[test]
    fn one_way_to_open_a_device_suffices() {
        let well = |what: &str| (Level::Pass, format!("{what} may be opened"));
        assert_eq!(levels(|_, _| Ok(())), [well("kvm"), well("vfio/vfio and vfio/7")]);
        let by_node: MayOpen = |path, _| if path.ends_with("vfio/7") { Err(nix::Error::EACCES) } else { Ok(()) };
        assert_eq!(levels(by_node)[1], well("iommu and vfio/devices/vfio0"));
        let none = levels(|_, _| Err(nix::Error::EACCES));
        assert_eq!(none.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [Level::Fail; 3]);
        assert!(none[2].1.ends_with("may not open vfio/7"), "{none:?}");
    }

    #[test]
    fn files_are_asked_for() {
        let file = |write, made| FileUse { path: "/srv/a".into(), write, made };
        let seen = |file: FileUse, may: MayOpen| {
            let finding = check_files(&[file], may).remove(0);
            assert_eq!(finding.code, Code::FileUnusable);
            (finding.level, finding.what)
        };
        let read_only: MayOpen =
            |_, mode| if mode.contains(AccessFlags::W_OK) { Err(nix::Error::EACCES) } else { Ok(()) };
        let absent: MayOpen = |path, _| if path.ends_with("a") { Err(nix::Error::ENOENT) } else { Ok(()) };
        let (pass, fail) = (Level::Pass, Level::Fail);
        for (file, may, level, what) in [
            (file(false, false), read_only, pass, "/srv/a can be read"),
            (file(true, false), read_only, fail, "/srv/a cannot be read and written"),
            (file(true, true), read_only, fail, "/srv/a cannot be written"),
            (file(true, true), absent, pass, "/srv/a can be written"),
            (file(true, false), absent, fail, "/srv/a cannot be read and written"),
        ] {
            assert_eq!(seen(file, may), (level, what.to_owned()));
        }
        for (may, mend) in [(absent, "put the file there"), (read_only, "give the user that access")] {
            let fix = check_files(&[file(true, false)], may).remove(0).fix.expect("what mends it");
            assert!(fix.starts_with(mend), "{fix}");
        }
        assert!(become_user("nobody-of-this-name").is_err());
    }

    #[test]
    fn memory_that_may_be_locked_is_told_with_what_a_guest_needs() {
        let tree = tree();
        let limits = |limit: &str| {
            tree.file(
                "proc/self/limits",
                &format!("Limit Soft Hard Units\nMax locked memory  {limit}  {limit}  bytes\n"),
            );
            let finding = tree.host().check_lock_rights();
            assert_eq!(finding.code, Code::Memlock);
            finding
        };
        let small = limits("8388608");
        assert_eq!(small.level, Level::Warn);
        let text = format!("{} {}", small.what, small.evidence.join(" "));
        assert!(text.contains("8 MiB") && text.contains("1 GiB"), "{text}");
        assert_eq!((limits("17179869184").level, limits("unlimited").level), (Level::Pass, Level::Pass));
    }

    #[test]
    fn who_is_given_the_nodes_need_not_have_them_yet() {
        let tree = tree();
        let (host, device) = (tree.host(), bdf("01:00.0"));
        let disk = FileUse { path: host.dev("sdb"), write: true, made: false };
        let findings = host.check_session(&[device], &[disk], true, LockRights::OfTheService);
        assert!(findings.iter().all(|finding| finding.level != Level::Fail), "{findings:?}");
        assert_eq!(findings.iter().filter(|finding| finding.code == Code::NotPermitted).count(), 1);
        assert!(findings.iter().all(|finding| finding.level != Level::Warn), "the unit lets it lock all: {findings:?}");
    }
}
