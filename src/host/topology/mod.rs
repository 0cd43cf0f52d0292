//! The host's processors and memory nodes, as sysfs shows them (kernel: Documentation/admin-guide/cputopology.rst,
//! Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/ABI/stable/sysfs-devices-node).

use std::collections::BTreeMap;

use serde::Serialize;

use super::limits::memory::pool_size;
use super::{Host, read};

mod cpu_set;
mod guests;

pub use cpu_set::{CpuSet, MAX_CPUS};

/// What a core is built for, on processors that have two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CoreKind {
    /// The fast ones; all, where there is one kind.
    Performance,
    /// The small ones.
    Efficiency,
}

/// A CPU that is online: a thread of a core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// N of `cpuN`.
    pub id: u32,
    /// The lowest CPU of its core.
    pub core: u32,
    /// The lowest CPU that shares its third-level cache, or its node's where there is none.
    pub l3: u32,
    /// The memory node that it belongs to.
    pub node: u32,
    /// What its core is built for.
    pub kind: CoreKind,
}

/// A memory node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// N of `nodeN`.
    pub id: u32,
    /// How far each node is, by the firmware's table (SLIT): 10 is the node itself.
    pub distances: BTreeMap<u32, u32>,
    /// Bytes that are free, or hold only copies of files.
    pub free: u64,
    /// Its huge pages.
    pub pools: Vec<NodePool>,
}

/// A node's huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NodePool {
    /// Bytes of one page.
    pub page: u64,
    /// How many there are.
    pub all: u64,
    /// How many nobody uses.
    pub free: u64,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// The CPUs that are online, in ascending order.
    pub cpus: Vec<Cpu>,
    /// Bytes of each third-level cache, by its lowest CPU.
    pub l3_sizes: BTreeMap<u32, u64>,
    /// The memory nodes, in ascending order; one at least if there is any CPU.
    pub nodes: Vec<Node>,
    /// CPUs that the kernel's scheduler keeps free (`isolcpus=`).
    pub isolated: CpuSet,
    /// CPUs that this process may use at all.
    pub allowed: CpuSet,
    /// CPUs to which other virtual machines have pinned virtual CPUs.
    pub taken: CpuSet,
}

impl Topology {
    /// The CPUs that are online.
    pub fn online(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// A CPU that is online.
    pub fn cpu(&self, id: u32) -> Option<&Cpu> {
        self.cpus.binary_search_by_key(&id, |cpu| cpu.id).ok().map(|at| &self.cpus[at])
    }

    /// All CPUs of a core.
    pub fn core(&self, core: u32) -> CpuSet {
        self.cpus.iter().filter(|cpu| cpu.core == core).map(|cpu| cpu.id).collect()
    }

    /// A memory node.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Whether it has cores of two kinds.
    pub fn is_hybrid(&self) -> bool {
        let kind = |kind| self.cpus.iter().any(|cpu| cpu.kind == kind);
        kind(CoreKind::Performance) && kind(CoreKind::Efficiency)
    }
}

impl Host {
    /// Processors and memory nodes as they are now.
    pub fn topology(&self) -> Topology {
        let folder = self.sys("devices/system/cpu");
        let set = |path: std::path::PathBuf| read::text(path).and_then(|text| CpuSet::parse(&text));
        let online = set(folder.join("online")).unwrap_or_else(|| numbered(&read::names(&folder), "cpu").collect());
        let nodes = self.memory_nodes();
        let node_of: BTreeMap<u32, u32> = nodes
            .iter()
            .flat_map(|node| {
                let cpus = set(self.node_path(node.id).join("cpulist")).unwrap_or_default();
                cpus.iter().map(|cpu| (cpu, node.id)).collect::<Vec<_>>()
            })
            .collect();
        let small = set(self.sys("devices/cpu_atom/cpus")).unwrap_or_default();
        let mut l3_sizes = BTreeMap::new();
        let cpus = online.iter().map(|id| {
            let at = folder.join(format!("cpu{id}"));
            let lowest = |set: Option<CpuSet>| set.and_then(|set| set.iter().find(|cpu| online.contains(*cpu)));
            let siblings = set(at.join("topology/core_cpus_list"))
                .or_else(|| set(at.join("topology/thread_siblings_list")))
                .filter(|siblings| siblings.contains(id));
            let node = node_of.get(&id).copied().unwrap_or(0);
            let cache = read::names(at.join("cache")).into_iter().map(|name| at.join("cache").join(name));
            let cache = cache.into_iter().find(|cache| read::number::<u8>(cache.join("level")) == Some(3));
            let sharing = cache.as_ref().and_then(|cache| set(cache.join("shared_cpu_list")));
            let of_node = node_of.iter().find(|(cpu, of)| **of == node && online.contains(**cpu)).map(|(cpu, _)| *cpu);
            let l3 = lowest(sharing.filter(|set| set.contains(id))).or(of_node).unwrap_or(id);
            if let Some(size) = cache.and_then(|cache| read::text(cache.join("size"))).as_deref().and_then(cache_size) {
                l3_sizes.insert(l3, size);
            }
            let kind = if small.contains(id) { CoreKind::Efficiency } else { CoreKind::Performance };
            Cpu { id, core: lowest(siblings).unwrap_or(id), l3, node, kind }
        });
        let cpus: Vec<Cpu> = cpus.collect();
        let isolated = set(folder.join("isolated")).unwrap_or_default();
        let status = read::lines(self.proc("self/status"));
        let allowed = status.iter().find_map(|line| CpuSet::parse(line.strip_prefix("Cpus_allowed_list:")?));
        let taken = self.pinned_by_guests(&online.without(&isolated));
        Topology { cpus, l3_sizes, nodes, isolated, allowed: allowed.unwrap_or(online), taken }
    }

    /// A memory node's folder.
    pub(in crate::host) fn node_path(&self, node: u32) -> std::path::PathBuf {
        self.sys(format!("devices/system/node/node{node}"))
    }

    /// A kernel without NUMA shows none, and has one.
    fn memory_nodes(&self) -> Vec<Node> {
        let mut ids: Vec<u32> = numbered(&read::names(self.sys("devices/system/node")), "node").collect();
        ids.sort_unstable();
        if ids.is_empty() {
            let free = self.free_memory();
            let pools = free.huge.iter().map(|pool| NodePool { page: pool.page, all: pool.free, free: pool.free });
            return vec![Node { free: free.available, pools: pools.collect(), ..Node::default() }];
        }
        let node = |&id: &u32| {
            let at = self.node_path(id);
            let far = read::text(at.join("distance")).unwrap_or_default();
            // One number for each node that is online, in their order.
            let far = far.split_whitespace().map(|word| word.parse().unwrap_or(u32::MAX));
            Node {
                id,
                distances: ids.iter().copied().zip(far).collect(),
                free: self.node_free(id),
                pools: self.node_pools(id),
            }
        };
        ids.iter().map(node).collect()
    }

    /// What is free, and what only holds copies of files: what the kernel gives up first.
    fn node_free(&self, node: u32) -> u64 {
        let lines = read::lines(self.node_path(node).join("meminfo"));
        let value = |name: &str| {
            let words = lines.iter().find_map(|line| line.split_once(name).map(|(_, rest)| rest));
            words.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        let kib = ["MemFree:", "Active(file):", "Inactive(file):"].map(value);
        kib.iter().fold(0, |sum: u64, kib| sum.saturating_add(*kib)).saturating_mul(1 << 10)
    }

    /// The huge pages of a node.
    pub(in crate::host) fn node_pools(&self, node: u32) -> Vec<NodePool> {
        let at = self.node_path(node).join("hugepages");
        let pools = read::names(&at).into_iter().filter_map(|name| {
            let count = |file: &str| read::number::<u64>(at.join(&name).join(file)).unwrap_or(0);
            Some(NodePool { page: pool_size(&name)?, all: count("nr_hugepages"), free: count("free_hugepages") })
        });
        let mut pools: Vec<NodePool> = pools.collect();
        pools.sort_by_key(|pool| pool.page);
        pools
    }
}

/// The numbers of the names `prefixN`.
fn numbered<'a>(names: &'a [String], prefix: &'a str) -> impl Iterator<Item = u32> + 'a {
    names.iter().filter_map(move |name| name.strip_prefix(prefix)?.parse().ok()).filter(|number| *number < MAX_CPUS)
}

/// `32768K` in bytes.
fn cache_size(text: &str) -> Option<u64> {
    text.strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;
    use crate::host::testtree::cpus;

    #[test]
    fn a_host_that_shows_nothing_has_no_cpu() {
        let topology = TestTree::new().host().topology();
        assert_eq!((topology.cpus.len(), topology.nodes.len()), (0, 1));
    }

    #[test]
    fn siblings_caches_nodes_and_kinds() {
        for (name, make, cpus, cores, caches, nodes, hybrid) in [
            ("adjacent", cpus::ryzen_5800x as fn() -> TestTree, 16, 8, 1, 1, false),
            ("two CCDs", cpus::ryzen_7950x3d, 32, 16, 2, 1, false),
            ("hybrid", cpus::core_12900k, 24, 16, 1, 1, true),
            ("two sockets", cpus::two_xeons, 80, 40, 2, 2, false),
            ("no SMT", cpus::core_9700k, 8, 8, 1, 1, false),
            ("small", cpus::core_6700k, 8, 4, 1, 1, false),
        ] {
            let topology = make().host().topology();
            let count = |of: fn(&Cpu) -> u32| topology.cpus.iter().map(of).collect::<CpuSet>().len();
            let seen = (topology.cpus.len(), count(|cpu| cpu.core), count(|cpu| cpu.l3), topology.nodes.len());
            assert_eq!(seen, (cpus, cores, caches, nodes), "{name}");
            assert_eq!(topology.is_hybrid(), hybrid, "{name}");
        }
    }

    #[test]
    fn what_is_offline_is_no_cpu_and_no_sibling() {
        let tree = cpus::core_6700k();
        tree.file("sys/devices/system/cpu/online", "1-7\n");
        let topology = tree.host().topology();
        assert_eq!(topology.online().to_string(), "1-7");
        assert_eq!((topology.cpu(4).unwrap().core, topology.core(4).to_string()), (4, "4".to_owned()));
        assert_eq!(topology.cpu(4).unwrap().l3, 1);
    }

    #[test]
    fn distances_are_those_of_the_nodes_that_there_are() {
        let topology = cpus::two_xeons().host().topology();
        assert_eq!(topology.node(1).unwrap().distances, BTreeMap::from([(0, 21), (1, 10)]));
        assert_eq!(topology.node(0).unwrap().pools[0].page, 2 << 20);
    }
}
