//! Huge pages that are added to a node's pool and taken away again (kernel: Documentation/admin-guide/mm/hugetlbpage.rst).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Lease, Returned, claims, store};
use crate::error::{Code, Error, Result, explain_io};
use crate::host::limits::memory::pool_name;
use crate::host::limits::size_text;
use crate::host::{Host, read};
use crate::placement::NodePages;

/// How often the kernel is asked, each time after it has moved memory together.
const TRIES: u32 = 4;
/// The kernel's limit of nodes on x86 (CONFIG_NODES_SHIFT is 10 at most).
const MAX_NODES: u32 = 1 << 10;
/// The sizes that x86 has.
const SIZES: [u64; 2] = [2 << 20, 1 << 30];

/// Pages that were added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Added {
    node: u32,
    page: u64,
    /// How many, or how many are wanted.
    count: u64,
    /// How many there were, until it is known how many the kernel added.
    before: Option<u64>,
}

impl Added {
    pub(super) fn check(&self) -> Result<(), String> {
        let good = self.node < MAX_NODES && SIZES.contains(&self.page);
        good.then_some(()).ok_or_else(|| format!("node {} has no huge pages of {} bytes", self.node, self.page))
    }

    /// Takes as many away, as far as there are so many: others may have changed the pool meanwhile.
    pub(super) fn undo(&self, host: &Host) -> Result<Option<Returned>> {
        let Added { node, page, count, before } = *self;
        let file = pool_file(host, node, page);
        let now: u64 = read::number(&file).unwrap_or(0);
        let count = count.min(now.saturating_sub(before.unwrap_or(0)));
        if count == 0 {
            return Ok(None);
        }
        host.effects().write(&file, &format!("{}\n", now - count)).map_err(|error| {
            Error::new(Code::HugePages, format!("{count} huge pages of {} stay reserved", size_text(page)))
                .evidence(format!("{}: {}", file.display(), explain_io(&error)))
                .fix("as root, `passthru recover` tries it again")
        })?;
        Ok(Some(Returned::Pages { node, page, count }))
    }
}

/// Adds the pages that a node is short of, beside those that other guests are going to take. The caller has the lock of the
/// journal: two who add at a time would count the same free pages.
pub(super) fn add(lease: &mut Lease, wanted: &NodePages, others: &[NodePages]) -> Result<()> {
    let host = lease.host.clone();
    let (node, page) = (wanted.node, wanted.page);
    let file = pool_file(&host, node, page);
    let free = read::number(file.with_file_name("free_hugepages")).unwrap_or(wanted.free);
    let missing = wanted.needed.saturating_sub(free.saturating_sub(claims::count(others, node, page)));
    if missing == 0 {
        return Ok(());
    }
    let refused = |why: String| {
        Error::new(
            Code::HugePages,
            format!("{missing} more huge pages of {} cannot be had on node {node}", size_text(page)),
        )
        .evidence(format!("{}: {why}", file.display()))
    };
    let before: u64 = read::number(&file).ok_or_else(|| {
        refused("it cannot be read".to_owned()).fix("take hugepages=thp, or a size that /sys/kernel/mm/hugepages has")
    })?;
    let target = before.saturating_add(missing);
    lease.record.pages.push(Added { node, page, count: missing, before: Some(before) });
    if let Err(error) = store::write(&host, &lease.record) {
        lease.record.pages.pop();
        return Err(error);
    }
    let mut now = before;
    for attempt in 0..TRIES {
        if attempt > 0 {
            // Free memory is there, in small pieces: the kernel moves what lies between. Refused where it is built without.
            let _ = host.effects().write(&host.proc("sys/vm/compact_memory"), "1\n");
        }
        host.effects().write(&file, &format!("{target}\n")).map_err(|error| {
            // Nothing was added in this step, and what was in those before is noted.
            refused(explain_io(&error)).fix("run it as root, or reserve the pages before and leave grow-pool out")
        })?;
        now = read::number(&file).unwrap_or(now);
        if now >= target {
            break;
        }
    }
    if let Some(last) = lease.record.pages.last_mut() {
        (last.count, last.before) = (now.saturating_sub(before), None);
    }
    store::write(&host, &lease.record)?;
    if now < target {
        return Err(refused(format!("{} of them, after {TRIES} tries with compaction", now.saturating_sub(before)))
            .fix("free memory of that node; pages of 1 GiB are best reserved on the host's command line, `hugepagesz=1G hugepages=N`"));
    }
    Ok(())
}

/// A kernel without NUMA has one pool for each size.
fn pool_file(host: &Host, node: u32, page: u64) -> PathBuf {
    let of_node = host.node_path(node);
    let folder = if of_node.exists() { of_node.join("hugepages") } else { host.sys("kernel/mm/hugepages") };
    folder.join(pool_name(page)).join("nr_hugepages")
}
