//! VMs on a made-up host: nodes given and taken back, at failures, and at kills.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::*;
use crate::error::Code;
use crate::host::effects::Effects;
use crate::host::recover as recover_all;
use crate::host::testtree::{Fault, Killed, TestTree, bdf};

const USER: u32 = 998;

/// Two NICs in groups of their own, the first with a mate.
fn tree() -> TestTree {
    let tree = TestTree::new();
    for (address, group) in [("0000:01:00.0", 1), ("0000:01:00.1", 1), ("0000:02:00.0", 2)] {
        tree.pci(address).driver("e1000e").group(group).add();
    }
    for node in ["kvm", "vfio/1", "vfio/2", "vfio/3", "iommu", "vfio/devices/vfio0"] {
        tree.file(format!("dev/{node}"), "");
    }
    tree.attribute("0000:01:00.0", "vfio-dev/vfio0/dev", "511:0\n");
    tree
}

fn wish(vm: &str, devices: &[&str]) -> Wish {
    let devices = devices.iter().map(|address| bdf(address)).collect();
    Wish {
        vm: vm.to_owned().try_into().unwrap(),
        devices,
        files: Vec::new(),
        user: Some(USER),
        force: false,
        single_gpu: false,
        pages: Vec::new(),
    }
}

fn granted(tree: &TestTree) -> Vec<String> {
    tree.kernel().granted(USER).into_iter().map(|(node, _): (PathBuf, u16)| node.display().to_string()).collect()
}

#[test]
fn a_user_gets_exactly_the_nodes_of_a_vm_and_loses_them() {
    let tree = tree();
    let before = tree.snapshot();
    let wish = wish("router", &["01:00.0"]);
    let (bound, note) = prepare(&tree.host(), &wish).unwrap();
    assert_eq!(bound[0].held[0].bdf, bdf("01:00.1"));
    assert_eq!(granted(&tree), ["iommu", "kvm", "vfio/1", "vfio/devices/vfio0", "vfio/vfio"]);
    assert_eq!(prepare(&tree.host(), &wish).unwrap().1, note);
    let back = take_back(&tree.host(), &wish.vm, &[]).unwrap();
    assert_eq!((back.released.len(), back.nodes.len()), (1, 5));
    assert_eq!(granted(&tree), [""; 0]);
    assert_eq!(tree.snapshot(), before);
    assert!(tree.host().prepared_vms().is_empty());
    assert!(take_back(&tree.host(), &wish.vm, &wish.devices).unwrap().nodes.is_empty());
}

#[test]
fn nodes_that_the_options_name_are_given_with_no_more_rights_than_they_need() {
    let tree = tree();
    for node in ["sdb", "sdc", "vhost-net"] {
        tree.file(format!("dev/{node}"), "");
    }
    tree.file("srv/a.img", "");
    let host = tree.host();
    std::fs::create_dir(host.dev("disk")).unwrap();
    std::os::unix::fs::symlink(host.dev("sdc"), host.dev("disk/data")).unwrap();
    let used = |path: PathBuf, write| FileUse { path, write, made: false };
    let files = vec![
        used(host.dev("sdb"), false),
        used(host.dev("disk/data"), true),
        used(host.dev("vhost-net"), true),
        used(host.dev("absent"), true),
        used(host.dev("urandom"), false),
        used(host.dev("../srv/a.img"), true),
    ];
    let wish = Wish { files, ..wish("router", &[]) };
    prepare(&host, &wish).unwrap();
    let given = [("kvm", 6), ("sdb", 4), ("sdc", 6), ("vhost-net", 6)];
    assert_eq!(tree.kernel().granted(USER), given.map(|(node, rights)| (PathBuf::from(node), rights)));
    take_back(&host, &wish.vm, &[]).unwrap();
    assert_eq!(granted(&tree), [""; 0]);
}

#[test]
fn nodes_are_given_after_the_rules_that_would_take_them_away() {
    let tree = tree();
    tree.pci("0000:04:00.0").driver("vfio-pci").group(4).add();
    tree.file("dev/vfio/4", "");
    tree.kernel().event_to_come(tree.host().dev("kvm"));
    prepare(&tree.host(), &wish("router", &["04:00.0"])).unwrap();
    tree.kernel().settle(Duration::ZERO);
    assert_eq!(granted(&tree), ["kvm", "vfio/4", "vfio/vfio"]);
}

#[test]
fn what_two_vms_share_stays_until_both_are_done() {
    let tree = tree();
    let (one, two) = (wish("one", &["01:00.0"]), wish("two", &["02:00.0"]));
    prepare(&tree.host(), &one).unwrap();
    prepare(&tree.host(), &two).unwrap();
    take_back(&tree.host(), &one.vm, &[]).unwrap();
    assert_eq!(granted(&tree), ["kvm", "vfio/2", "vfio/vfio"]);
    take_back(&tree.host(), &two.vm, &[]).unwrap();
    assert_eq!(granted(&tree), [""; 0]);
}

#[test]
fn rights_that_a_user_had_before_stay() {
    let tree = tree();
    let kvm = tree.host().dev("kvm");
    let mut acl = super::super::acl::Acl::of_mode(0o100_644);
    acl.set(USER, Some(4));
    tree.host().effects().set_acl(&kvm, &acl.bytes()).unwrap();
    let wish = wish("router", &["02:00.0"]);
    prepare(&tree.host(), &wish).unwrap();
    take_back(&tree.host(), &wish.vm, &[]).unwrap();
    assert_eq!(tree.kernel().granted(USER), [(PathBuf::from("kvm"), 4)]);
}

#[test]
fn a_vm_that_runs_keeps_everything() {
    let tree = tree();
    let wish = wish("router", &["02:00.0"]);
    prepare(&tree.host(), &wish).unwrap();
    tree.process(42, "passthru", &[&tree.host().group_node(2)]);
    let all = granted(&tree);
    assert_eq!(take_back(&tree.host(), &wish.vm, &[]).unwrap_err().code(), Code::Busy);
    assert!(recover_all(&tree.host()).unwrap().taken_back.is_empty());
    assert_eq!(granted(&tree), all);
    tree.end(42);
    assert_eq!(recover_all(&tree.host()).unwrap().taken_back, std::slice::from_ref(&wish.vm));
    assert_eq!(granted(&tree), [""; 0]);
}

#[test]
fn a_device_that_is_refused_leaves_the_others_as_they_were() {
    let tree = tree();
    let before = tree.snapshot();
    tree.pci("0000:03:00.0").driver("nvme").group(3).add();
    tree.disk("0000:03:00.0", "nvme/nvme0/nvme0n1", 1, 0);
    tree.mount(1, "/srv", "ext4", "/dev/nvme0n1p1");
    let with_disk = tree.snapshot();
    let error = prepare(&tree.host(), &wish("router", &["01:00.0", "03:00.0"])).unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    assert_eq!(tree.snapshot(), with_disk);
    assert!(tree.host().prepared_vms().is_empty() && before.len() < with_disk.len());
}

#[test]
fn a_failure_or_a_kill_at_any_step_can_be_undone() {
    for number in 0.. {
        let mut reached = false;
        let faults = [Fault::Refuse(number, libc::EPERM), Fault::KillBefore(number), Fault::KillAfter(number)];
        for fault in faults {
            let tree = tree();
            let before = tree.snapshot();
            let wish = wish("router", &["01:00.0", "02:00.0"]);
            tree.kernel().set_fault(Some(fault));
            let result = catch_unwind(AssertUnwindSafe(|| prepare(&tree.host(), &wish)));
            tree.kernel().set_fault(None);
            match result {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => {
                    reached = true;
                    assert_eq!(tree.snapshot(), before, "{fault:?}");
                    assert!(granted(&tree).is_empty() && tree.host().prepared_vms().is_empty(), "{fault:?}");
                }
                Err(panic) if panic.is::<Killed>() => reached = true,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            let recovered = recover_all(&tree.host()).unwrap();
            assert!(recovered.failed.is_empty(), "{fault:?} {recovered:?}");
            assert_eq!(tree.snapshot(), before, "{fault:?}");
            assert!(granted(&tree).is_empty() && tree.host().prepared_vms().is_empty(), "{fault:?}");
        }
        if !reached {
            assert!(number > 10, "only {number} steps");
            break;
        }
    }
}

#[test]
fn a_note_that_names_other_files_is_not_believed() {
    let tree = tree();
    for path in ["/etc/shadow", "DEV/../etc/shadow", "DEV"] {
        let path = path.replace("DEV", &tree.host().dev("").display().to_string());
        let note =
            format!(r#"{{"version":1,"vm":"a","devices":[],"user":1,"nodes":[{{"path":{path:?},"former":null}}]}}"#);
        tree.file("run/passthru/prepared/a.json", &note);
        assert_eq!(recover_all(&tree.host()).unwrap().failed[0].error.code(), Code::JournalUnusable, "{path}");
    }
}

/// As a guest that has none: its node is short of some pages.
fn short_of(pages: u64) -> Vec<NodePages> {
    vec![NodePages { node: 1, page: 2 << 20, needed: pages, free: 0 }]
}

#[test]
fn two_vms_do_not_count_the_same_huge_pages() {
    let tree = crate::host::testtree::cpus::two_xeons();
    tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
    tree.pci("0000:02:00.0").driver("e1000e").group(2).add();
    let pool = "sys/devices/system/node/node1/hugepages/hugepages-2048kB";
    let set = |file: &str, count: u64| tree.file(format!("{pool}/{file}"), &format!("{count}\n"));
    let count = |file: &str| std::fs::read_to_string(tree.root().join(pool).join(file)).unwrap();
    let all = || count("nr_hugepages").trim().parse::<u64>().unwrap();
    let make = |name, device| Wish { pages: short_of(3), user: None, ..wish(name, &[device]) };
    let (router, games) = (make("router", "01:00.0"), make("games", "02:00.0"));
    // One of the three is there already, and free.
    set("nr_hugepages", 1);
    set("free_hugepages", 1);
    prepare(&tree.host(), &router).unwrap();
    assert_eq!(all(), 3);
    // The router has not taken them: all three look free.
    let mut seen = tree.host().topology();
    seen.leave_claimed(&tree.host(), Some("games"));
    assert_eq!(seen.node(1).unwrap().pools[0].free, 0);
    prepare(&tree.host(), &games).unwrap();
    assert_eq!(all(), 6);
    take_back(&tree.host(), &games.vm, &[]).unwrap();
    assert_eq!(all(), 3);
    // It runs and has taken two.
    tree.file("proc/77/comm", "passthru\n");
    tree.file("proc/77/numa_maps", "7f00 default file=/memfd:ram huge dirty=2 N1=2 kernelpagesize_kB=2048\n");
    std::fs::create_dir_all(tree.root().join("proc/77/fd")).unwrap();
    std::os::unix::fs::symlink(tree.host().dev("vfio/1"), tree.root().join("proc/77/fd/9")).unwrap();
    set("free_hugepages", 1);
    prepare(&tree.host(), &games).unwrap();
    assert_eq!(all(), 6, "the one that is free is the router's");
    // Its own are no reason to add more for it.
    let mut seen = tree.host().topology();
    seen.leave_claimed(&tree.host(), Some("games"));
    assert_eq!(seen.node(1).unwrap().pools[0].free, 3);
}

#[test]
fn huge_pages_are_added_once_and_go_with_the_vm() {
    let tree = crate::host::testtree::cpus::two_xeons();
    tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
    let pool = "devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    let pages = || std::fs::read_to_string(tree.sys(pool)).unwrap().trim().parse::<u64>().unwrap();
    let before = pages();
    let wish = Wish { pages: short_of(3), user: None, ..wish("router", &["01:00.0"]) };
    for _ in 0..2 {
        prepare(&tree.host(), &wish).unwrap();
        assert_eq!(pages(), before + 3);
        assert!(recover_all(&tree.host()).is_ok());
        prepare(&tree.host(), &wish).unwrap();
    }
    // The VM is prepared: they are not left behind by anybody.
    assert!(lease::recover(&tree.host()).0.is_empty());
    assert_eq!(take_back(&tree.host(), &wish.vm, &[]).unwrap().pages.len(), 1);
    assert_eq!(pages(), before);
    // What fails after them gives them back.
    let gone = Wish { devices: vec![bdf("09:00.0")], ..wish.clone() };
    assert_eq!(prepare(&tree.host(), &gone).unwrap_err().code(), Code::DeviceAbsent);
    assert_eq!(pages(), before);
    // And so does `recover` after a crash.
    prepare(&tree.host(), &wish).unwrap();
    assert_eq!(recover_all(&tree.host()).unwrap().returned.len(), 1);
    assert_eq!(pages(), before);
}
