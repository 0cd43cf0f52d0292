//! The planner on the topologies of real processors, and on made-up ones.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::Code;
use crate::host::testtree::{TestTree, cpus};
use crate::host::topology::{CoreKind, Cpu, Node};

type Make = fn() -> TestTree;

fn set(text: &str) -> CpuSet {
    CpuSet::parse(text).unwrap()
}

fn auto(vcpus: u32, threads: u32, near: &[u32]) -> Request {
    Request { choice: Choice::Auto, vcpus, threads, near: near.to_vec(), memory: 4 << 30, page: None }
}

#[test]
fn each_processor() {
    // Virtual CPUs, threads of a guest's core, nodes of the devices; then the CPUs of the virtual ones in their order,
    // the threads that stay idle, and what is beside.
    type Row = (&'static str, Make, u32, u32, &'static [u32], &'static [u32], &'static str, &'static str);
    let table: &[Row] = &[
        ("adjacent threads", cpus::ryzen_5800x, 4, 2, &[], &[2, 3, 4, 5], "", "0-1,6-15"),
        ("an odd number", cpus::ryzen_5800x, 3, 1, &[], &[2, 3, 4], "5", "0-1,6-15"),
        (
            "all but the host's core",
            cpus::ryzen_5800x,
            14,
            2,
            &[],
            &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            "",
            "0-1",
        ),
        ("split threads", cpus::core_6700k, 4, 2, &[], &[1, 5, 2, 6], "", "0,3-4,7"),
        ("no threads", cpus::core_9700k, 4, 1, &[], &[1, 2, 3, 4], "", "0,5-7"),
        ("no choice", cpus::core_9700k, 8, 1, &[], &[1, 2, 3, 4, 5, 6, 7, 0], "", "0-7"),
        ("the larger cache", cpus::ryzen_7950x3d, 8, 2, &[], &[1, 17, 2, 18, 3, 19, 4, 20], "", "0,5-16,21-31"),
        (
            "a whole die, and not CPU 0",
            cpus::ryzen_7950x3d,
            16,
            2,
            &[],
            &[8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31],
            "",
            "0-7,16-23",
        ),
        ("fast cores", cpus::core_12900k, 6, 2, &[], &[2, 3, 4, 5, 6, 7], "", "0-1,8-23"),
        (
            "all fast cores rather than both kinds",
            cpus::core_12900k,
            16,
            2,
            &[],
            &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1],
            "",
            "16-23",
        ),
        ("the devices' node", cpus::two_xeons, 4, 2, &[1], &[20, 60, 21, 61], "", "22-39,62-79"),
        ("the devices' node, CPU 0's", cpus::two_xeons, 4, 2, &[0, 0, 1], &[1, 41, 2, 42], "", "0,3-19,40,43-59"),
        ("any node but CPU 0's", cpus::two_xeons, 2, 2, &[], &[20, 60], "", "21-39,61-79"),
    ];
    for (name, make, vcpus, threads, near, wanted, idle, beside) in table {
        let plan = plan(&auto(*vcpus, *threads, near), &make().host().topology()).unwrap();
        assert_eq!(&plan.vcpus, wanted, "{name}");
        assert_eq!((plan.idle.to_string().as_str(), plan.emulator.to_string().as_str()), (*idle, *beside), "{name}");
        assert_eq!(plan.interrupts, plan.emulator, "{name}");
    }
}

#[test]
fn what_is_not_for_the_guest_is_not_taken() {
    let topology = cpus::ryzen_5800x().host().topology();
    let vcpus = |change: fn(&mut Topology)| {
        let mut topology = topology.clone();
        change(&mut topology);
        plan(&auto(4, 2, &[]), &topology).unwrap().vcpus
    };
    assert_eq!(vcpus(|it| it.isolated = set("3")), [4, 5, 6, 7], "the other half of an isolated thread");
    assert_eq!(vcpus(|it| it.taken = set("2-5")), [6, 7, 8, 9]);
    assert_eq!(vcpus(|it| it.allowed = set("0-1,8-11")), [8, 9, 10, 11]);
    assert_eq!(vcpus(|it| it.cpus.retain(|cpu| cpu.id != 2)), [4, 5, 6, 7], "cores of one thread do not pair up");
}

#[test]
fn too_few_cpus_are_an_error_that_says_who_has_them() {
    let mut topology = cpus::core_6700k().host().topology();
    topology.taken = set("1,5");
    topology.isolated = set("2,6");
    topology.allowed = set("0-6");
    let error = plan(&auto(4, 1, &[]), &topology).unwrap_err();
    assert_eq!(error.code(), Code::NoPlace);
    let text = error.to_string();
    for words in
        ["4 virtual CPUs", "2 are free in whole cores", "online: 0-7", "isolated: 2,6", "machines: 1,5", "process: 7"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn what_is_worth_knowing_is_said() {
    let notes = |make: Make, request: Request| plan(&request, &make().host().topology()).unwrap().notes.join("\n");
    let said = notes(cpus::ryzen_5800x, auto(4, 1, &[]));
    assert!(said.contains("`--smp 4,threads=2`"), "{said}");
    assert!(notes(cpus::core_9700k, auto(4, 2, &[])).contains("leave `threads=` out"));
    assert!(notes(cpus::ryzen_7950x3d, auto(20, 2, &[])).contains("2 third-level caches"));
    assert!(notes(cpus::two_xeons, auto(60, 2, &[1])).contains("nodes, 1 and 0"));
    assert!(notes(cpus::core_12900k, auto(20, 1, &[])).contains("both kinds"));
    assert!(notes(cpus::core_9700k, auto(8, 1, &[])).contains("no CPU is left to the host"));
    assert!(notes(cpus::two_xeons, auto(2, 2, &[1, 1, 0])).contains("different memory nodes, 1 and 0"));
    let large = Request { memory: 30 << 30, ..auto(2, 2, &[1]) };
    assert!(notes(cpus::two_xeons, large).contains("its memory nodes have 20 GiB free, and it needs 30 GiB"));
    assert_eq!(notes(cpus::ryzen_5800x, auto(4, 2, &[])), "");
}

#[test]
fn a_list_is_what_the_user_wants() {
    let list = |list: &str, vcpus, threads| {
        let request = Request { choice: Choice::List(set(list)), ..auto(vcpus, threads, &[]) };
        plan(&request, &cpus::core_6700k().host().topology())
    };
    let exact = list("1,5,2,6", 4, 2).unwrap();
    assert_eq!((exact.vcpus, exact.emulator), (vec![1, 5, 2, 6], set("0,3-4,7")));
    let more = list("1-3,5-7", 4, 2).unwrap();
    assert_eq!((more.vcpus, more.emulator), (vec![1, 5, 2, 6], set("3,7")), "the rest of the list is beside");
    assert!(list("1-2", 2, 1).unwrap().notes.join("").contains("CPUs 5-6, threads of the same cores"));
    for (text, words) in [("1,9", "no CPU 9"), ("1", "1 CPUs are listed for 2")] {
        let error = list(text, 2, 1).unwrap_err();
        assert_eq!(error.code(), Code::NoPlace);
        assert!(error.cause().contains(words), "{error}");
    }
}

#[test]
fn huge_pages_come_from_the_cpus_node_first() {
    let topology = cpus::two_xeons().host().topology();
    let pages = |request: Request| {
        let plan = plan(&request, &topology).unwrap();
        plan.pages.iter().map(|pages| (pages.node, pages.needed, pages.missing())).collect::<Vec<_>>()
    };
    let request = |memory: u64, page: u64| Request { memory: memory << 30, page: Some(page), ..auto(2, 2, &[1]) };
    assert_eq!(pages(request(4, 2 << 20)), [(1, 2048, 2048)]);
    assert_eq!(pages(request(24, 1 << 30)), [(1, 20, 20), (0, 4, 4)]);
    assert_eq!(pages(request(41, 1 << 30)), [(1, 21, 21), (0, 20, 20)]);
    let off = Request { choice: Choice::Off, ..request(4, 1 << 30) };
    assert_eq!(pages(off), [(1, 4, 4)], "the devices' node");
    let unpinned = plan(&Request { choice: Choice::Off, ..auto(2, 1, &[]) }, &topology).unwrap();
    assert_eq!(unpinned, Plan::default());
}

/// Any arrangement: cores of one to four threads, below caches, on nodes, of two kinds, some threads offline.
fn topologies() -> impl Strategy<Value = Topology> {
    let core = (1..=4usize, 0..3u32, any::<bool>());
    let sets = prop::collection::btree_set(0..48u32, 0..12);
    (prop::collection::vec(core, 1..12), sets.clone(), sets.clone(), sets.clone(), sets, any::<bool>()).prop_map(
        |(cores, offline, isolated, taken, forbidden, hybrid)| {
            let mut cpus = Vec::new();
            for (threads, l3, small) in cores {
                let first = cpus.len() as u32;
                for id in first..first + threads as u32 {
                    let kind = if small && hybrid { CoreKind::Efficiency } else { CoreKind::Performance };
                    cpus.push(Cpu { id, core: first, l3: 1000 + l3, node: l3 / 2, kind });
                }
            }
            let allowed: CpuSet = cpus.iter().map(|cpu| cpu.id).filter(|cpu| !forbidden.contains(cpu)).collect();
            cpus.retain(|cpu| !offline.contains(&cpu.id));
            let nodes = (0..2).map(|id| Node { id, free: 1 << 30, ..Node::default() }).collect();
            let (isolated, taken) = (isolated.into_iter().collect(), taken.into_iter().collect());
            Topology { cpus, l3_sizes: BTreeMap::new(), nodes, isolated, allowed, taken }
        },
    )
}

proptest! {
    #[test]
    fn every_plan_keeps_the_rules(topology in topologies(), vcpus in 1..20u32, near in prop::option::of(0..3u32)) {
        let request = auto(vcpus, 1, &near.into_iter().collect::<Vec<_>>());
        match plan(&request, &topology) {
            Ok(plan) => {
                let guest: CpuSet = plan.vcpus.iter().copied().collect();
                prop_assert_eq!(plan.vcpus.len(), vcpus as usize);
                prop_assert_eq!(guest.len(), vcpus as usize, "never a CPU twice");
                let whole = guest.with(&plan.idle);
                for cpu in whole.iter() {
                    let core = topology.cpu(cpu).expect("never a CPU that is offline").core;
                    prop_assert!(topology.core(core).is_subset(&whole), "never half a core");
                }
                for (name, not) in [("isolated", &topology.isolated), ("taken", &topology.taken)] {
                    prop_assert_eq!(whole.without(not).len(), whole.len(), "never {}", name);
                    prop_assert_eq!(plan.emulator.without(not).len(), plan.emulator.len(), "never {}", name);
                }
                prop_assert!(plan.all().is_subset(&topology.allowed));
                prop_assert!(!plan.emulator.is_empty());
                let threads = topology.cpus.iter().map(|cpu| topology.core(cpu.core).len()).max().unwrap_or(1);
                prop_assert!(plan.idle.len() < threads, "no core for nothing");
            }
            Err(error) => prop_assert_eq!(error.code(), Code::NoPlace),
        }
    }

    #[test]
    fn what_fits_is_placed(topology in topologies(), vcpus in 1..20u32) {
        let free = usable(&topology).without(&topology.taken);
        let whole = free.iter().filter(|cpu| {
            topology.core(topology.cpu(*cpu).unwrap().core).is_subset(&free)
        });
        prop_assert_eq!(plan(&auto(vcpus, 1, &[]), &topology).is_ok(), whole.count() >= vcpus as usize);
    }

    #[test]
    fn no_list_panics(topology in topologies(), list in prop::collection::btree_set(0..60u32, 0..10), vcpus in 1..10u32) {
        let choice = Choice::List(list.into_iter().collect());
        if let Ok(plan) = plan(&Request { choice, ..auto(vcpus, 2, &[]) }, &topology) {
            prop_assert_eq!(plan.vcpus.iter().copied().collect::<CpuSet>().len(), vcpus as usize);
        }
    }
}
