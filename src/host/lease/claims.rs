//! Huge pages that a guest counts on and has not taken yet. The kernel shows them as free; who adds pages for another guest
//! must not take them for its own.

use serde::{Deserialize, Serialize};

use super::store::{self, Record};
use crate::host::{Host, read};
use crate::placement::NodePages;

/// Pages of one pool that a guest needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    node: u32,
    page: u64,
    count: u64,
}

impl From<&NodePages> for Claim {
    fn from(pages: &NodePages) -> Claim {
        Claim { node: pages.node, page: pages.page, count: pages.needed }
    }
}

/// What the guests of other records than `own` are still going to take, one element for each pool of each guest. A record
/// that cannot be read counts for nothing here; `recover` tells of it.
pub(super) fn outstanding(host: &Host, own: &str) -> Vec<NodePages> {
    let others = store::names(host).into_iter().filter(|name| name != own);
    let records = others.filter_map(|name| store::read(host, &name).ok()?).filter(|record| record.is_alive(host));
    records.flat_map(|record| of_record(host, &record)).collect()
}

fn of_record(host: &Host, record: &Record) -> Vec<NodePages> {
    if record.claims.is_empty() {
        return Vec::new();
    }
    let maps: Vec<String> = record.processes(host).into_iter().flat_map(|pid| numa_maps(host, pid)).collect();
    let still = |claim: &Claim| {
        let taken = maps.iter().map(|line| pages_of(line, claim.node, claim.page)).fold(0, u64::saturating_add);
        NodePages { node: claim.node, page: claim.page, needed: claim.count.saturating_sub(taken), free: 0 }
    };
    record.claims.iter().map(still).collect()
}

/// How many pages of a pool are spoken for.
pub(super) fn count(claims: &[NodePages], node: u32, page: u64) -> u64 {
    claims
        .iter()
        .filter(|claim| (claim.node, claim.page) == (node, page))
        .fold(0, |sum, c| sum.saturating_add(c.needed))
}

/// A kernel without NUMA has no such file: all that its guests claim counts as not taken, and some pages too many are added.
fn numa_maps(host: &Host, pid: u32) -> Vec<String> {
    read::lines(host.proc(format!("{pid}/numa_maps")))
}

/// The pages of this size that one line of numa_maps (proc(5)) has on a node:
/// `7f0000000000 default file=/memfd:ram huge dirty=128 N0=100 N1=28 kernelpagesize_kB=2048`.
fn pages_of(line: &str, node: u32, page: u64) -> u64 {
    let value = |name: &str| {
        line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let huge = line.split_whitespace().any(|word| word == "huge");
    match huge && value("kernelpagesize_kB").and_then(|kib| kib.checked_mul(1 << 10)) == Some(page) {
        true => value(&format!("N{node}")).unwrap_or(0),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_are_counted_by_size_and_node() {
        let line =
            "7f2a80000000 default file=/memfd:ram\\040(deleted) huge dirty=130 N0=100 N1=30 kernelpagesize_kB=2048";
        for (node, page, pages) in [(0, 2 << 20, 100), (1, 2 << 20, 30), (2, 2 << 20, 0), (0, 1 << 30, 0)] {
            assert_eq!(pages_of(line, node, page), pages, "node {node}, {page}");
        }
        let small = "5581 default file=/usr/bin/passthru mapped=3 N0=3 kernelpagesize_kB=4";
        assert_eq!(pages_of(small, 0, 4096), 0, "no huge pages");
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,80}") {
            let _ = pages_of(&line, 0, 2 << 20);
        }
    }
}
