//! What the control groups of this process leave of the host's memory (cgroup v2, kernel:
//! Documentation/admin-guide/cgroup-v2.rst, "Memory" and "HugeTLB").
//!
//! A group's limit holds for all that is below it, so every group from the process's own up to the root of the mount is
//! looked at. Above `memory.max` the kernel kills; above `memory.high` it reclaims and slows down, and pinned memory can
//! not be reclaimed, so a guest above it would never get its speed back: both are limits here.

use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::memory::PageKind;
use crate::host::{Host, read};

/// A limit of a control group, and what is left of it. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupLimit {
    /// The file that says so.
    pub file: PathBuf,
    /// What it is a limit of: ordinary memory or huge pages of one size.
    #[serde(skip)]
    pub kind: PageKind,
    /// The limit.
    pub limit: u64,
    /// What is used and cannot be reclaimed.
    pub used: u64,
}

impl GroupLimit {
    /// What may still be taken.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The limits that concern memory of this kind, the tightest first.
pub fn tightest(limits: &[GroupLimit], kind: PageKind) -> Option<&GroupLimit> {
    limits.iter().filter(|limit| limit.kind == kind).min_by_key(|limit| limit.left())
}

impl Host {
    /// The limits of this process's control groups; none on a host without cgroup v2. `huge` are the sizes of huge pages
    /// in bytes.
    pub(super) fn group_limits(&self, huge: &[u64]) -> Vec<GroupLimit> {
        let lines = read::lines(self.proc("self/cgroup"));
        let Some(own) = lines.iter().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
        let mount = self.sys("fs/cgroup");
        let unified = mount.join("unified");
        let mount = if unified.is_dir() { unified } else { mount };
        folders(&mount, own).iter().flat_map(|folder| limits_of(folder, huge)).collect()
    }
}

/// The group's folder and those above it. A group outside of the mount's root (`/../other`) is not visible: the root then
/// is what there is.
fn folders(mount: &Path, own: &str) -> Vec<PathBuf> {
    let names: Vec<_> = Path::new(own).components().filter(|part| *part != Component::RootDir).collect();
    if names.iter().any(|part| !matches!(part, Component::Normal(_))) {
        return vec![mount.to_owned()];
    }
    (0..=names.len()).rev().map(|depth| mount.join(names[..depth].iter().collect::<PathBuf>())).collect()
}

fn limits_of(folder: &Path, huge: &[u64]) -> Vec<GroupLimit> {
    let number = |file: &str| read::number::<u64>(folder.join(file));
    let mut found = Vec::new();
    // `max` is no number: no limit.
    let mut take = |file: String, kind, used: u64| {
        if let Some(limit) = number(&file) {
            found.push(GroupLimit { file: folder.join(file), kind, limit, used });
        }
    };
    let used = number("memory.current").unwrap_or(0).saturating_sub(reclaimable(folder));
    take("memory.max".into(), PageKind::Normal, used);
    take("memory.high".into(), PageKind::Normal, used);
    for &page in huge {
        let size = if page >> 30 > 0 { format!("{}GB", page >> 30) } else { format!("{}MB", page >> 20) };
        for prefix in [format!("hugetlb.{size}"), format!("hugetlb.{size}.rsvd")] {
            let used = number(&format!("{prefix}.current")).unwrap_or(0);
            take(format!("{prefix}.max"), PageKind::Huge(page), used);
        }
    }
    found
}

/// Caches that the kernel gives up before it refuses memory.
fn reclaimable(folder: &Path) -> u64 {
    let caches = ["active_file ", "inactive_file ", "slab_reclaimable "];
    let stat = read::lines(folder.join("memory.stat"));
    let value = |line: &String| caches.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    stat.iter().filter_map(value).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn tree(own: &str) -> TestTree {
        let tree = TestTree::new();
        tree.file("proc/self/cgroup", &format!("1:name=systemd:/x\n0::{own}\n"));
        for (file, text) in [
            ("vm.slice/memory.max", "max"),
            ("vm.slice/memory.high", "1073741824"),
            ("vm.slice/memory.current", "536870912"),
            ("vm.slice/memory.stat", "anon 1\nactive_file 104857600\ninactive_file 104857600\nslab_reclaimable 0"),
            ("vm.slice/a.service/memory.max", "2147483648"),
            ("vm.slice/a.service/memory.high", "max"),
            ("vm.slice/a.service/memory.current", "0"),
            ("vm.slice/a.service/hugetlb.2MB.max", "8388608"),
            ("vm.slice/a.service/hugetlb.2MB.current", "2097152"),
            ("vm.slice/a.service/hugetlb.1GB.rsvd.max", "0"),
        ] {
            tree.file(format!("sys/fs/cgroup/{file}"), &format!("{text}\n"));
        }
        tree
    }

    #[test]
    fn every_group_above_counts_and_caches_do_not() {
        let limits = tree("/vm.slice/a.service").host().group_limits(&[2 * MIB, 1024 * MIB]);
        assert_eq!(limits.len(), 4, "{limits:?}");
        let normal = tightest(&limits, PageKind::Normal).unwrap();
        assert!(normal.file.ends_with("vm.slice/memory.high"), "{normal:?}");
        assert_eq!((normal.limit, normal.used, normal.left()), (1024 * MIB, 312 * MIB, 712 * MIB));
        assert_eq!(tightest(&limits, PageKind::Huge(2 * MIB)).unwrap().left(), 6 * MIB);
        assert_eq!(tightest(&limits, PageKind::Huge(1024 * MIB)).unwrap().left(), 0);
        assert_eq!(tightest(&limits, PageKind::Huge(MIB)), None);
    }

    #[test]
    fn groups_that_cannot_be_seen_are_not_looked_for() {
        for own in ["/../other", "/", "/absent/group"] {
            assert!(tree(own).host().group_limits(&[]).is_empty(), "{own}");
        }
        assert!(TestTree::new().host().group_limits(&[]).is_empty(), "no control groups");
        Host::real().group_limits(&[2 * MIB]);
    }

    proptest! {
        #[test]
        fn no_folder_is_outside_of_the_mount(own in "(/|\\.\\.|a|b){0,8}") {
            let mount = Path::new("/sys/fs/cgroup");
            let all = folders(mount, &own);
            prop_assert!(!all.is_empty());
            for folder in all {
                prop_assert!(folder.starts_with(mount) && !folder.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
