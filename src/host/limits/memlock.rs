//! Locked memory: what the guest's pinned pages need, and what RLIMIT_MEMLOCK allows.
//!
//! VFIO's type 1 driver counts every page of RAM once for each container that maps it, adds what the process has
//! locked already (VmLck), and refuses with ENOMEM above the soft limit. BARs are not counted. CAP_IPC_LOCK in the
//! first user namespace lifts the limit (kernel: drivers/vfio/vfio_iommu_type1.c, `vfio_lock_acct`). iommufd counts
//! what all processes of the user have pinned together (drivers/iommu/iommufd/pages.c), and not what is locked.

use std::io;

use nix::sys::resource::{Resource, setrlimit};
use serde::Serialize;

use super::size_text;
use crate::error::{Code, Error, Result};
use crate::host::{Host, read};

/// Number of the capability (kernel: include/uapi/linux/capability.h).
const CAP_IPC_LOCK: u32 = 14;

/// What this process may lock. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LockRights {
    /// The limit that is enforced.
    pub soft: u64,
    /// What the process may raise the soft limit to by itself.
    pub hard: u64,
    /// What is locked already.
    pub locked: u64,
    /// The limit does not apply: CAP_IPC_LOCK.
    pub exempt: bool,
}

/// What to do about the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemlockPlan {
    /// Nothing: it suffices or does not apply.
    Enough,
    /// Raise the soft limit to the hard one, which is this many bytes.
    Raise(u64),
}

/// Bytes that are to be locked, by who counts them. Each holds its own count against the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needed {
    /// By type 1, in the process's count.
    pub type1: u64,
    /// By iommufd, in the user's count.
    pub iommufd: u64,
}

/// Whether both can be locked; as [`plan_memlock`].
pub fn plan_needed(needed: Needed, rights: &LockRights) -> Result<MemlockPlan> {
    let type1 = plan_memlock(needed.type1, rights)?;
    let iommufd = plan_memlock(needed.iommufd, &LockRights { locked: 0, ..*rights })?;
    Ok(if type1 == MemlockPlan::Enough { iommufd } else { type1 })
}

/// Whether `needed` bytes more can be locked; `Code::Memlock` names needed and actual.
pub fn plan_memlock(needed: u64, rights: &LockRights) -> Result<MemlockPlan> {
    let total = needed.saturating_add(rights.locked);
    if needed == 0 || rights.exempt || total <= rights.soft {
        return Ok(MemlockPlan::Enough);
    }
    if total <= rights.hard {
        return Ok(MemlockPlan::Raise(rights.hard));
    }
    let error = Error::new(
        Code::Memlock,
        format!("{} of locked memory are needed, and the limit is {}", size_text(total), size_text(rights.hard)),
    );
    let error = match rights.locked {
        0 => error,
        locked => error.evidence(format!("{} of it are locked already", size_text(locked))),
    };
    let limit = format!("RLIMIT_MEMLOCK of this process: soft {} bytes, hard {} bytes", rights.soft, rights.hard);
    let kib = total.div_ceil(1 << 10);
    Err(error.evidence(limit).evidence("the process does not have CAP_IPC_LOCK").fix(format!(
        "`LimitMEMLOCK={total}` in the systemd unit; `prlimit --memlock={total}` or `ulimit -l {kib}` as root before it"
    )))
}

impl Host {
    /// What this process may lock.
    pub fn lock_rights(&self) -> LockRights {
        let status = read::lines(self.proc("self/status"));
        let field = |name: &str| status.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capable = field("CapEff:")
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1);
        let locked = field("VmLck:").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        let (soft, hard) = self.resource_limit("Max locked memory");
        LockRights {
            soft,
            hard,
            locked: locked.saturating_mul(1 << 10),
            exempt: capable && self.in_first_user_namespace(),
        }
    }

    /// A capability of another user namespace does not count for locked memory. Only the first maps every id to itself.
    fn in_first_user_namespace(&self) -> bool {
        let map = read::text(self.proc("self/uid_map")).unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    }
}

/// Does what the plan says to this process.
pub fn apply(plan: MemlockPlan) -> Result<()> {
    match plan {
        MemlockPlan::Enough => Ok(()),
        MemlockPlan::Raise(hard) => setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
            .map_err(|errno| Error::system("raise the soft limit of locked memory", &io::Error::from(errno))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::limits::UNLIMITED;
    use crate::host::testtree::TestTree;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn rights(soft: u64, hard: u64) -> LockRights {
        LockRights { soft, hard, locked: 0, exempt: false }
    }

    fn tree(limits: &str, capabilities: &str, uid_map: &str) -> TestTree {
        let tree = TestTree::new();
        tree.file(
            "proc/self/limits",
            &format!("Limit   Soft Limit  Hard Limit  Units\nMax locked memory   {limits} bytes\n"),
        );
        tree.file("proc/self/status", &format!("Name:\tpassthru\nVmLck:\t    2048 kB\nCapEff:\t{capabilities}\n"));
        tree.file("proc/self/uid_map", uid_map);
        tree
    }

    #[test]
    fn rights_are_read() {
        let first = "         0          0 4294967295\n";
        let none = "0000000000000000";
        let all = "000001ffffffffff";
        let read = |limits, capabilities, map| tree(limits, capabilities, map).host().lock_rights();
        let wanted = LockRights { soft: 8 * MIB, hard: UNLIMITED, locked: 2 * MIB, exempt: false };
        assert_eq!(read("8388608   unlimited", none, first), wanted);
        assert!(read("8388608   8388608", all, first).exempt);
        assert!(read("8388608   8388608", "0000000000004000", first).exempt);
        assert!(!read("8388608   8388608", all, "0 1000 1\n").exempt);
    }

    #[test]
    fn the_kernels_own_files_are_read() {
        let rights = Host::real().lock_rights();
        let (soft, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert_eq!((rights.soft, rights.hard), (soft, hard));
    }

    #[test]
    fn each_count_is_held_against_the_limit_by_itself() {
        let rights = LockRights { locked: 2 * MIB, ..rights(8 * MIB, 16 * MIB) };
        let plan = |type1, iommufd| {
            let needed = Needed { type1: type1 * MIB, iommufd: iommufd * MIB };
            plan_needed(needed, &rights).map_err(|error| error.code())
        };
        assert_eq!(plan(6, 8), Ok(MemlockPlan::Enough), "8 MiB each, and not 16");
        assert_eq!(plan(7, 8), Ok(MemlockPlan::Raise(16 * MIB)));
        assert_eq!(plan(0, 9), Ok(MemlockPlan::Raise(16 * MIB)));
        assert_eq!(plan(15, 0), Err(Code::Memlock));
        assert_eq!(plan(0, 16), Ok(MemlockPlan::Raise(16 * MIB)), "what is locked does not count here");
        assert_eq!(plan(0, 17), Err(Code::Memlock));
    }

    #[test]
    fn verdicts() {
        let plan = |needed, rights: LockRights| plan_memlock(needed, &rights).map_err(|error| error.code());
        assert_eq!(plan(8 * MIB, rights(8 * MIB, 8 * MIB)), Ok(MemlockPlan::Enough));
        assert_eq!(plan(9 * MIB, rights(8 * MIB, 16 * MIB)), Ok(MemlockPlan::Raise(16 * MIB)));
        assert_eq!(plan(17 * MIB, rights(8 * MIB, 16 * MIB)), Err(Code::Memlock));
        assert_eq!(plan(0, rights(0, 0)), Ok(MemlockPlan::Enough));
        assert_eq!(plan(8 * MIB, LockRights { locked: 1, ..rights(8 * MIB, 8 * MIB) }), Err(Code::Memlock));
        assert_eq!(plan(1 << 40, LockRights { exempt: true, ..rights(0, 0) }), Ok(MemlockPlan::Enough));
    }

    #[test]
    fn the_error_names_needed_and_actual() {
        let error = plan_memlock(256 * MIB, &rights(8 * MIB, 8 * MIB)).unwrap_err();
        assert_eq!(error.cause(), "256 MiB of locked memory are needed, and the limit is 8 MiB");
        assert!(error.to_string().contains("LimitMEMLOCK=268435456"), "{error}");
        assert!(error.to_string().contains("ulimit -l 262144"), "{error}");
    }

    proptest! {
        #[test]
        fn what_fits_is_what_the_kernel_takes(needed: u64, soft: u64, hard: u64, locked: u64) {
            let rights = LockRights { soft: soft.min(hard), hard, locked, exempt: false };
            let fits = |limit: u64| needed == 0 || needed.checked_add(locked).is_some_and(|total| total <= limit);
            let wanted = match (fits(rights.soft), fits(hard)) {
                (true, _) => Ok(MemlockPlan::Enough),
                (_, true) => Ok(MemlockPlan::Raise(hard)),
                _ => Err(Code::Memlock),
            };
            // A sum that saturates equals an unlimited limit, and nothing else.
            prop_assume!(hard != UNLIMITED);
            prop_assert_eq!(plan_memlock(needed, &rights).map_err(|error| error.code()), wanted);
        }
    }
}
