//! What is changed for a guest, given back by its end and by `recover`.

use std::fs;

use super::*;
use crate::error::Code;
use crate::host::testtree::{Fault, Killed, TestTree, bdf, cpus};

const NIC: &str = "0000:01:00.0";
const PAGES: &str = "devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";

fn tree() -> TestTree {
    let tree = cpus::two_xeons();
    tree.pci(NIC).driver("vfio-pci").group(2).add();
    tree.file("proc/sys/vm/compact_memory", "");
    tree.file(format!("proc/{}/stat", std::process::id()), &stat(100));
    tree
}

/// A process that started at this time.
fn stat(started: u64) -> String {
    format!("7 (a ) b) S {} {started} 0 0\n", ["0"; 18].join(" "))
}

/// An interrupt of the card with these handlers, which goes to all CPUs.
fn interrupt(tree: &TestTree, number: u32, handlers: &[&str]) {
    tree.attribute(NIC, &format!("msi_irqs/{number}"), "msix\n");
    tree.file(format!("proc/irq/{number}/smp_affinity_list"), "0-79\n");
    for handler in handlers {
        fs::create_dir_all(tree.root().join(format!("proc/irq/{number}/{handler}"))).unwrap();
    }
}

fn goes_to(tree: &TestTree, number: u32) -> String {
    let text = fs::read_to_string(tree.host().proc(format!("irq/{number}/smp_affinity_list"))).unwrap();
    text.trim().to_owned()
}

fn set(text: &str) -> CpuSet {
    CpuSet::parse(text).unwrap()
}

fn wanted(needed: u64) -> [NodePages; 1] {
    [NodePages { node: 1, page: 2 << 20, needed, free: 0 }]
}

fn pages(tree: &TestTree) -> String {
    fs::read_to_string(tree.sys(PAGES)).unwrap().trim().to_owned()
}

fn files(tree: &TestTree) -> usize {
    store::names(&tree.host()).len()
}

#[test]
fn interrupts_go_beside_the_guest_and_back() {
    let tree = tree();
    interrupt(&tree, 40, &["vfio-msix[0](0000:01:00.0)"]);
    interrupt(&tree, 41, &["vfio-msix[1](0000:01:00.0)", "snd"]);
    interrupt(&tree, 42, &["vfio-msix[0](0000:02:00.0)"]);
    interrupt(&tree, 43, &[]);
    let mut lease = Lease::new(&tree.host());
    lease.place_interrupts(bdf(NIC), &set("2-3"));
    let seen = [40, 41, 42, 43].map(|number| goes_to(&tree, number));
    assert_eq!(seen, ["2-3", "0-79", "0-79", "0-79"], "another's handler keeps an interrupt where it is");
    assert_eq!(files(&tree), 1);
    // Somebody else moves one meanwhile: it is not ours any more.
    interrupt(&tree, 44, &["vfio-msix[2](0000:01:00.0)"]);
    lease.place_interrupts(bdf(NIC), &set("2-3"));
    tree.file("proc/irq/44/smp_affinity_list", "5\n");
    drop(lease);
    assert_eq!([goes_to(&tree, 40), goes_to(&tree, 44)], ["0-79", "5"]);
    assert_eq!(files(&tree), 0);
}

#[test]
fn the_pin_is_moved_where_nobody_shares_it() {
    let tree = tree();
    tree.attribute(NIC, "irq", "17\n");
    tree.file("proc/irq/17/smp_affinity_list", "0-79\n");
    fs::create_dir_all(tree.root().join("proc/irq/17/vfio-intx(0000:01:00.0)")).unwrap();
    let mut lease = Lease::new(&tree.host());
    lease.place_interrupts(bdf(NIC), &set("2-3"));
    assert_eq!(goes_to(&tree, 17), "2-3");
    drop(lease);
    assert_eq!(goes_to(&tree, 17), "0-79");
}

#[test]
fn a_refusal_is_told_once_and_the_guest_goes_on() {
    let tree = tree();
    interrupt(&tree, 40, &["vfio-msix[0](0000:01:00.0)"]);
    let mut lease = Lease::new(&tree.host());
    tree.kernel().set_fault(Some(Fault::Refuse(0, libc::EACCES)));
    lease.place_interrupts(bdf(NIC), &set("2-3"));
    lease.place_interrupts(bdf(NIC), &set("2-3"));
    assert_eq!(goes_to(&tree, 40), "0-79");
    drop(lease);
    assert_eq!(files(&tree), 0);
}

#[test]
fn missing_pages_are_added_with_compaction_and_taken_away() {
    let tree = tree();
    tree.file(format!("sys/{PAGES}"), "5\n");
    tree.kernel().set_pool(60, 30);
    let mut lease = Lease::new(&tree.host());
    lease.reserve(&wanted(100), None).unwrap();
    assert_eq!(pages(&tree), "105");
    let compacted = tree.kernel().writes().iter().filter(|(name, _)| name.ends_with("compact_memory")).count();
    assert_eq!(compacted, 2, "60, 90, then 105 of 120");
    // Someone else takes one away, and leaves nothing of ours to be taken twice.
    tree.file(format!("sys/{PAGES}"), "104\n");
    drop(lease);
    assert_eq!((pages(&tree), files(&tree)), ("4".to_owned(), 0));
}

#[test]
fn what_was_added_in_vain_is_taken_away() {
    let tree = tree();
    tree.kernel().set_pool(50, 1);
    let mut lease = Lease::new(&tree.host());
    let error = lease.reserve(&wanted(100), None).unwrap_err();
    assert_eq!(error.code(), Code::HugePages);
    assert!(error.to_string().contains("53 of them, after 4 tries"), "{error}");
    drop(lease);
    assert_eq!((pages(&tree), files(&tree)), ("0".to_owned(), 0));
    let mut lease = Lease::new(&tree.host());
    let none = [NodePages { node: 1, page: 4 << 20, needed: 1, free: 0 }];
    assert_eq!(lease.reserve(&none, None).unwrap_err().code(), Code::HugePages);
}

#[test]
fn what_a_killed_process_left_is_given_back() {
    // Every change in turn is the last: huge pages, compaction, pages again, two interrupts.
    for step in 0..5 {
        for fault in [Fault::KillBefore(step), Fault::KillAfter(step)] {
            let tree = tree();
            tree.file(format!("sys/{PAGES}"), "5\n");
            tree.kernel().set_pool(60, 50);
            interrupt(&tree, 40, &["vfio-msix[0](0000:01:00.0)"]);
            interrupt(&tree, 41, &["vfio-msix[1](0000:01:00.0)"]);
            tree.kernel().set_fault(Some(fault));
            let host = tree.host();
            let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut lease = std::mem::ManuallyDrop::new(Lease::new(&host));
                lease.reserve(&wanted(100), None).unwrap();
                lease.place_interrupts(bdf(NIC), &set("2-3"));
            }));
            assert!(killed.unwrap_err().is::<Killed>(), "{fault:?}");
            tree.kernel().set_fault(None);

            let (returned, failed) = recover(&host);
            assert!(returned.is_empty() && failed.is_empty(), "the process lives: {returned:?} {failed:?}");
            // Another process has the number now.
            tree.file(format!("proc/{}/stat", std::process::id()), &stat(200));
            let (_, failed) = recover(&host);
            assert!(failed.is_empty(), "{fault:?}: {failed:?}");
            let seen = (pages(&tree), goes_to(&tree, 40), goes_to(&tree, 41), files(&tree));
            assert_eq!(seen, ("5".into(), "0-79".into(), "0-79".into(), 0), "{fault:?}");
        }
    }
}

#[test]
fn a_file_that_anyone_may_have_written_changes_nothing() {
    let tree = tree();
    interrupt(&tree, 40, &["vfio-msix[0](0000:01:00.0)"]);
    let good =
        r#"{"version":1,"pid":7,"started":1,"interrupts":[{"number":40,"former":"0","given":"0-79"}],"pages":[]}"#;
    for (name, text, words) in [
        ("7.json", "", "damaged"),
        ("7.json", &good.replace("\"version\":1", "\"version\":9"), "version 9"),
        ("7.json", &good.replace("\"0\"", "\"../0\""), "cannot go where"),
        ("7.json", &good.replace("\"0\"", "\"\""), "cannot go where"),
        ("7.json", &good.replace("40", "99999999"), "cannot go where"),
        ("7.json", &good.replace("[]", r#"[{"node":0,"page":4096,"count":1}]"#), "no huge pages of 4096"),
        ("8.json", good, "not named after"),
    ] {
        tree.file(format!("run/passthru/leases/{name}"), text);
        let (returned, failed) = recover(&tree.host());
        assert!(returned.is_empty() && goes_to(&tree, 40) == "0-79", "{text}");
        let [(_, error)] = &failed[..] else { panic!("{text}: {failed:?}") };
        assert!(error.to_string().contains(words), "{words}: {error}");
        fs::remove_file(tree.root().join("run/passthru/leases").join(name)).unwrap();
    }
    tree.file("run/passthru/leases/7.json", good);
    let (returned, _) = recover(&tree.host());
    assert_eq!(returned, [Returned::Interrupt { number: 40, cpus: set("0") }]);
}
