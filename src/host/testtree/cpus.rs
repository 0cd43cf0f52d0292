//! Made-up hosts with the processors of real ones: which CPUs are a core, share a third-level cache, and belong to a
//! memory node.

use super::TestTree;
use crate::host::topology::CpuSet;

/// Folders of one CPU.
fn cpu(tree: &TestTree, id: u32, siblings: &str, cache: &str, kib: u32) {
    let at = format!("sys/devices/system/cpu/cpu{id}");
    tree.file(format!("{at}/topology/core_cpus_list"), &format!("{siblings}\n"));
    for (index, level, shared, kib) in [(0, 1, siblings, 32), (2, 2, siblings, 1024), (3, 3, cache, kib)] {
        tree.file(format!("{at}/cache/index{index}/level"), &format!("{level}\n"));
        tree.file(format!("{at}/cache/index{index}/shared_cpu_list"), &format!("{shared}\n"));
        tree.file(format!("{at}/cache/index{index}/size"), &format!("{kib}K\n"));
    }
}

/// A memory node of 32 GiB, of which 20 are free, and which has no huge page yet.
fn node(tree: &TestTree, id: u32, cpus: &str, distance: &str) {
    let at = format!("sys/devices/system/node/node{id}");
    tree.file(format!("{at}/cpulist"), &format!("{cpus}\n"));
    tree.file(format!("{at}/distance"), &format!("{distance}\n"));
    tree.file(format!("{at}/meminfo"), &format!("Node {id} MemTotal: 33554432 kB\nNode {id} MemFree: 20971520 kB\n"));
    for pool in ["hugepages-2048kB", "hugepages-1048576kB"] {
        for file in ["nr_hugepages", "free_hugepages"] {
            tree.file(format!("{at}/hugepages/{pool}/{file}"), "0\n");
        }
    }
}

/// A host whose CPUs below `count` are all online. `siblings` and `cache` say who shares core and cache with a CPU.
fn host(count: u32, siblings: impl Fn(u32) -> Vec<u32>, cache: impl Fn(u32) -> (CpuSet, u32)) -> TestTree {
    let tree = TestTree::new();
    tree.file("sys/devices/system/cpu/online", &format!("0-{}\n", count - 1));
    tree.file("sys/devices/system/cpu/isolated", "\n");
    for id in 0..count {
        let (shared, kib) = cache(id);
        let siblings: CpuSet = siblings(id).into_iter().collect();
        cpu(&tree, id, &siblings.to_string(), &shared.to_string(), kib);
    }
    tree.file("proc/meminfo", "MemTotal: 33554432 kB\nMemFree: 20971520 kB\nMemAvailable: 24000000 kB\n");
    tree
}

fn all(range: std::ops::Range<u32>) -> CpuSet {
    range.collect()
}

/// AMD Ryzen 7 5800X as BIOS and kernel number it with adjacent threads: 8 cores, CPUs (0,1), (2,3) ..., one cache.
pub(crate) fn ryzen_5800x() -> TestTree {
    let tree = host(16, |id| vec![id & !1, id | 1], |_| (all(0..16), 32768));
    node(&tree, 0, "0-15", "10");
    tree
}

/// AMD Ryzen 9 7950X3D: 16 cores, split threads (0,16), two dies; the first has the larger cache.
pub(crate) fn ryzen_7950x3d() -> TestTree {
    let cache = |id: u32| match id % 16 {
        0..8 => (all(0..8).with(&all(16..24)), 98304),
        _ => (all(8..16).with(&all(24..32)), 32768),
    };
    let tree = host(32, |id| vec![id % 16, id % 16 + 16], cache);
    node(&tree, 0, "0-31", "10");
    tree
}

/// Intel Core i9-12900K: 8 fast cores with adjacent threads, 0 to 15, and 8 small ones, 16 to 23; one cache.
pub(crate) fn core_12900k() -> TestTree {
    let siblings = |id: u32| if id < 16 { vec![id & !1, id | 1] } else { vec![id] };
    let tree = host(24, siblings, |_| (all(0..24), 30720));
    node(&tree, 0, "0-23", "10");
    tree.file("sys/devices/cpu_core/cpus", "0-15\n");
    tree.file("sys/devices/cpu_atom/cpus", "16-23\n");
    tree
}

/// Two Intel Xeon Gold 6248: 20 cores each; CPUs 0 to 19 and 40 to 59 on the first, split threads (0,40).
pub(crate) fn two_xeons() -> TestTree {
    let socket = |id: u32| if id % 40 < 20 { all(0..20).with(&all(40..60)) } else { all(20..40).with(&all(60..80)) };
    let tree = host(80, |id| vec![id % 40, id % 40 + 40], |id| (socket(id), 28160));
    node(&tree, 0, "0-19,40-59", "10 21");
    node(&tree, 1, "20-39,60-79", "21 10");
    tree
}

/// Intel Core i7-9700K: 8 cores without threads.
pub(crate) fn core_9700k() -> TestTree {
    let tree = host(8, |id| vec![id], |_| (all(0..8), 12288));
    node(&tree, 0, "0-7", "10");
    tree
}

/// Intel Core i7-6700K: 4 cores, split threads (0,4).
pub(crate) fn core_6700k() -> TestTree {
    let tree = host(8, |id| vec![id % 4, id % 4 + 4], |_| (all(0..8), 8192));
    node(&tree, 0, "0-7", "10");
    tree
}
