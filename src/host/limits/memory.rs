//! Memory for the guest: all of it is taken and pinned at the start, so what is not there now will not be there later.
//!
//! Ordinary and transparent huge pages come out of MemAvailable (/proc/meminfo), explicit huge pages out of a pool for
//! each size (/sys/kernel/mm/hugepages, kernel: Documentation/admin-guide/mm/hugetlbpage.rst). The control groups of the
//! process may allow less of both ([`super::cgroup`]).

use serde::Serialize;

use super::cgroup::{GroupLimit, tightest};
use super::size_text;
use crate::error::{Code, Error, Result};
use crate::host::{Host, read};

/// Page tables that 4 KiB pages need in KVM and in the IOMMU, as a part of the guest's RAM: 8 bytes each for 4096.
const PAGE_TABLES: u64 = 4096 / (2 * 8);

/// Where the guest's RAM comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Ordinary pages, which may become transparent huge ones.
    Normal,
    /// Explicit huge pages of this many bytes.
    Huge(u64),
}

/// Memory that is free now. Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FreeMemory {
    /// What the kernel can hand out without swapping.
    pub available: u64,
    /// The pools of huge pages.
    pub huge: Vec<HugePool>,
    /// The limits of the control groups.
    pub groups: Vec<GroupLimit>,
}

/// A pool of explicit huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HugePool {
    /// Bytes of one page.
    pub page: u64,
    /// Pages that are free and not promised to another process.
    pub free: u64,
    /// Pages that the kernel may add to the pool out of ordinary memory (nr_overcommit_hugepages).
    pub extra: u64,
}

impl FreeMemory {
    /// The same where pages of this many bytes are added to their pool as they are missing (`grow-pool=on`).
    pub fn with_growing_pool(mut self, page: u64) -> FreeMemory {
        for pool in self.huge.iter_mut().filter(|pool| pool.page == page) {
            pool.extra = u64::MAX;
        }
        self
    }
}

/// Whether `guest_ram` bytes can be had; `Code::NoMemory` names needed and available.
pub fn check_memory(guest_ram: u64, kind: PageKind, free: &FreeMemory) -> Result<()> {
    match kind {
        PageKind::Normal => check_normal(guest_ram, free)?,
        PageKind::Huge(page) => check_huge(guest_ram, page, free)?,
    }
    check_groups(guest_ram, kind, &free.groups)
}

/// Control groups count page tables as memory of theirs, beside the guest's pages.
fn check_groups(guest_ram: u64, kind: PageKind, groups: &[GroupLimit]) -> Result<()> {
    let Some(group) = tightest(groups, kind) else { return Ok(()) };
    let (needed, most) = match kind {
        PageKind::Normal => (guest_ram.saturating_add(guest_ram / PAGE_TABLES), most_that_fits(group.left())),
        PageKind::Huge(page) => (guest_ram.checked_next_multiple_of(page.max(1)).unwrap_or(u64::MAX), group.left()),
    };
    if needed <= group.left() {
        return Ok(());
    }
    let file = group.file.display();
    let cause = format!(
        "the guest needs {}, and its control group may take {} more",
        size_text(guest_ram),
        size_text(group.left())
    );
    Err(Error::new(Code::NoMemory, cause)
        .evidence(format!("{file}: {} bytes, of which {} are used and not reclaimable", group.limit, group.used))
        .fix(format!(
            "raise it (`MemoryMax=`, `MemoryHigh=` in a systemd unit), or give the guest at most -m {}M",
            most >> 20
        )))
}

fn check_normal(guest_ram: u64, free: &FreeMemory) -> Result<()> {
    let tables = guest_ram / PAGE_TABLES;
    if guest_ram.saturating_add(tables) <= free.available {
        return Ok(());
    }
    let most = most_that_fits(free.available);
    Err(Error::new(
        Code::NoMemory,
        format!("the guest needs {}, and {} are available", size_text(guest_ram), size_text(free.available)),
    )
    .evidence(format!("MemAvailable in /proc/meminfo: {} bytes", free.available))
    .evidence(format!("the page tables for the guest may take {} more", size_text(tables)))
    .fix(format!("free memory, or give the guest less: at most -m {}M", most >> 20)))
}

/// The most RAM that fits into `available` bytes together with its page tables.
fn most_that_fits(available: u64) -> u64 {
    available - available.saturating_add(1) / (PAGE_TABLES + 1)
}

fn check_huge(guest_ram: u64, page: u64, free: &FreeMemory) -> Result<()> {
    let Some(pool) = free.huge.iter().find(|pool| pool.page == page) else {
        let sizes: Vec<String> = free.huge.iter().map(|pool| size_text(pool.page)).collect();
        let sizes = if sizes.is_empty() { "none".to_owned() } else { sizes.join(", ") };
        return Err(Error::new(Code::NoMemory, format!("the host has no huge pages of {}", size_text(page)))
            .evidence(format!("sizes in /sys/kernel/mm/hugepages: {sizes}"))
            .fix("take hugepages=thp or one of the sizes there are"));
    };
    let needed = guest_ram.div_ceil(page.max(1));
    // What is added to the pool comes out of ordinary memory, and must be there.
    let extra = pool.extra.min(free.available.checked_div(page).unwrap_or(0));
    if needed <= pool.free.saturating_add(extra) {
        return Ok(());
    }
    let folder = format!("/sys/kernel/mm/hugepages/{}", pool_name(page));
    Err(Error::new(
        Code::NoMemory,
        format!("the guest needs {needed} huge pages of {}, and {} are free", size_text(page), pool.free),
    )
    .evidence(format!("{folder}: {} free, {extra} more may be added", pool.free))
    .fix(format!("as root, raise {folder}/nr_hugepages by {}", needed - pool.free)))
}

/// The name of a pool's folder.
pub(in crate::host) fn pool_name(page: u64) -> String {
    format!("hugepages-{}kB", page >> 10)
}

/// Bytes of a page of the pool with this name.
pub(in crate::host) fn pool_size(name: &str) -> Option<u64> {
    name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

impl Host {
    /// The memory that is free now.
    pub fn free_memory(&self) -> FreeMemory {
        let meminfo = read::lines(self.proc("meminfo"));
        let available = meminfo.iter().find_map(|line| line.strip_prefix("MemAvailable:")).and_then(kib).unwrap_or(0);
        let pools = self.sys("kernel/mm/hugepages");
        let pool = |name: String| {
            let count = |file: &str| read::number::<u64>(pools.join(&name).join(file)).unwrap_or(0);
            Some(HugePool {
                page: pool_size(&name)?,
                free: count("free_hugepages").saturating_sub(count("resv_hugepages")),
                extra: count("nr_overcommit_hugepages").saturating_sub(count("surplus_hugepages")),
            })
        };
        let mut huge: Vec<HugePool> = read::names(&pools).into_iter().filter_map(pool).collect();
        huge.sort_by_key(|pool| pool.page);
        let sizes: Vec<u64> = huge.iter().map(|pool| pool.page).collect();
        FreeMemory { available, huge, groups: self.group_limits(&sizes) }
    }
}

/// ` 24684096 kB` in bytes.
fn kib(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn tree() -> TestTree {
        let tree = TestTree::new();
        tree.file("proc/meminfo", "MemTotal:        8000000 kB\nMemFree:  100 kB\nMemAvailable:    1048576 kB\n");
        for (pool, file, count) in [
            ("hugepages-2048kB", "free_hugepages", 100),
            ("hugepages-2048kB", "resv_hugepages", 36),
            ("hugepages-2048kB", "nr_overcommit_hugepages", 10),
            ("hugepages-2048kB", "surplus_hugepages", 4),
            ("hugepages-1048576kB", "free_hugepages", 1),
        ] {
            tree.file(format!("sys/kernel/mm/hugepages/{pool}/{file}"), &format!("{count}\n"));
        }
        tree
    }

    #[test]
    fn free_memory_is_read() {
        let wanted = FreeMemory {
            available: GIB,
            huge: vec![HugePool { page: 2 * MIB, free: 64, extra: 6 }, HugePool { page: GIB, free: 1, extra: 0 }],
            groups: vec![],
        };
        assert_eq!(tree().host().free_memory(), wanted);
        assert!(Host::real().free_memory().available > 0);
    }

    #[test]
    fn verdicts() {
        let free = tree().host().free_memory();
        let fits = |ram, kind| check_memory(ram, kind, &free).map_err(|error| error.code());
        assert_eq!(fits(1020 * MIB, PageKind::Normal), Ok(()));
        assert_eq!(fits(1021 * MIB, PageKind::Normal), Err(Code::NoMemory), "page tables count");
        assert_eq!(fits(u64::MAX, PageKind::Normal), Err(Code::NoMemory));
        assert_eq!(fits(140 * MIB, PageKind::Huge(2 * MIB)), Ok(()));
        assert_eq!(fits(141 * MIB, PageKind::Huge(2 * MIB)), Err(Code::NoMemory));
        assert_eq!(fits(512 * MIB, PageKind::Huge(GIB)), Ok(()));
        assert_eq!(fits(GIB + 1, PageKind::Huge(GIB)), Err(Code::NoMemory));
        assert_eq!(fits(MIB, PageKind::Huge(MIB)), Err(Code::NoMemory));
        assert_eq!(fits(MIB, PageKind::Huge(0)), Err(Code::NoMemory));
    }

    #[test]
    fn control_groups_allow_less() {
        let group = |kind, limit, used| GroupLimit { file: "/sys/fs/cgroup/vm/memory.max".into(), kind, limit, used };
        let mut free = tree().host().free_memory();
        free.groups = vec![group(PageKind::Normal, 768 * MIB, 256 * MIB), group(PageKind::Huge(2 * MIB), 64 * MIB, 0)];
        let fits = |ram, kind| check_memory(ram, kind, &free).map_err(|error| error.code());
        assert_eq!(fits(510 * MIB, PageKind::Normal), Ok(()));
        assert_eq!(fits(512 * MIB, PageKind::Normal), Err(Code::NoMemory), "page tables count");
        assert_eq!(fits(64 * MIB, PageKind::Huge(2 * MIB)), Ok(()));
        assert_eq!(fits(65 * MIB, PageKind::Huge(2 * MIB)), Err(Code::NoMemory));
        let error = check_memory(600 * MIB, PageKind::Normal, &free).unwrap_err();
        assert_eq!(error.cause(), "the guest needs 600 MiB, and its control group may take 512 MiB more");
        assert!(error.to_string().contains("memory.max: 805306368 bytes, of which 268435456"), "{error}");
        assert!(error.fix_text().unwrap().ends_with("-m 510M"), "{error}");
    }

    #[test]
    fn errors_name_needed_and_available() {
        let free = tree().host().free_memory();
        let error = check_memory(4 * GIB, PageKind::Normal, &free).unwrap_err();
        assert_eq!(error.cause(), "the guest needs 4 GiB, and 1 GiB are available");
        assert!(error.fix_text().unwrap().ends_with("-m 1020M"), "{error}");
        let error = check_memory(256 * MIB, PageKind::Huge(2 * MIB), &free).unwrap_err();
        assert_eq!(error.cause(), "the guest needs 128 huge pages of 2 MiB, and 64 are free");
        assert!(error.fix_text().unwrap().ends_with("hugepages-2048kB/nr_hugepages by 64"), "{error}");
        let error = check_memory(MIB, PageKind::Huge(MIB), &free).unwrap_err();
        assert!(error.to_string().contains("2 MiB, 1 GiB"), "{error}");
    }

    #[test]
    fn a_pool_that_grows_takes_what_is_available() {
        let free = tree().host().free_memory().with_growing_pool(2 * MIB);
        // 64 pages are free, and 1 GiB is available.
        assert!(check_memory(1152 * MIB, PageKind::Huge(2 * MIB), &free).is_ok());
        let error = check_memory(1154 * MIB, PageKind::Huge(2 * MIB), &free).unwrap_err();
        assert!(error.to_string().contains("64 free, 512 more may be added"), "{error}");
    }

    proptest! {
        #[test]
        fn the_size_that_is_offered_fits(available: u64, ram: u64) {
            let free = FreeMemory { available, ..FreeMemory::default() };
            let most = most_that_fits(available);
            prop_assert!(check_memory(most, PageKind::Normal, &free).is_ok());
            prop_assert!(most == available || check_memory(most + 1, PageKind::Normal, &free).is_err());
            prop_assert_eq!(check_memory(ram, PageKind::Normal, &free).is_ok(), ram <= most);
        }

        #[test]
        fn no_pool_panics(ram: u64, page: u64, free: u64, extra: u64, available: u64) {
            let _ = check_memory(ram, PageKind::Huge(page), &FreeMemory { available, huge: vec![HugePool { page, free, extra }], groups: vec![] });
        }
    }
}
