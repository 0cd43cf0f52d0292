//! Settings through `bind`, `release` and `recover` on made-up hosts; they are broken off at every step.

use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::error::{Code, Error};
use crate::host::bind::{BindOptions, bind};
use crate::host::testtree::kernel::resource_line;
use crate::host::testtree::{Fault, Killed, TestTree, bdf};
use crate::host::{recover, release};

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";
const CARD: &str = "0000:02:00.0";
const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 9]);

fn virtual_function() -> TestTree {
    let tree = TestTree::new();
    tree.pci(PF).driver("igb").group(1).add();
    tree.pci(VF).driver("igbvf").group(2).add();
    symlink(tree.pci_path(PF), tree.pci_path(VF).join("physfn")).unwrap();
    symlink(tree.pci_path(VF), tree.pci_path(PF).join("virtfn1")).unwrap();
    tree.net(PF, "eth0");
    tree.kernel().set_vf_state(vec![
        VfAttribute::Mac(Mac([0; 6])),
        VfAttribute::Vlan { id: 0, priority: 0 },
        VfAttribute::SpoofCheck(true),
        VfAttribute::Trust(false),
    ]);
    tree
}

/// A display device whose BAR 0 can be resized and on which the host draws its console.
fn display() -> TestTree {
    let tree = TestTree::new();
    tree.pci(CARD).class(0x030000).driver("bochs-drm").group(3).add();
    tree.attribute(CARD, "resource", &resource_line(16 << 20));
    tree.attribute(CARD, "resource0_resize", "0000000000000ff0\n");
    tree.file("proc/iomem", "80000000-8000ffffff : PCI Bus 0000:02\n  8000000000-80002fffff : BOOTFB\n");
    tree.file("sys/bus/platform/devices/efi-framebuffer.0/graphics/fb0/name", "EFI VGA\n");
    tree.file("sys/bus/platform/drivers/efi-framebuffer/uevent", "");
    tree.link("sys/bus/platform/devices/efi-framebuffer.0/driver", tree.sys("bus/platform/drivers/efi-framebuffer"));
    tree.link("sys/class/graphics/fb0", tree.sys("bus/platform/devices/efi-framebuffer.0/graphics/fb0"));
    for (number, name, bound) in [(0, "(S) dummy device", 0), (1, "(M) frame buffer device", 1)] {
        tree.file(format!("sys/class/vtconsole/vtcon{number}/name"), &format!("{name}\n"));
        tree.file(format!("sys/class/vtconsole/vtcon{number}/bind"), &format!("{bound}\n"));
    }
    tree
}

fn with(requests: &[Request]) -> BindOptions {
    BindOptions { requests: requests.to_vec(), ..BindOptions::default() }
}

fn all_of_the_function() -> BindOptions {
    with(&[
        Request::Vf(VfAttribute::Mac(MAC)),
        Request::Vf(VfAttribute::Vlan { id: 7, priority: 0 }),
        Request::Vf(VfAttribute::SpoofCheck(false)),
        Request::Vf(VfAttribute::Trust(true)),
    ])
}

fn larger() -> BindOptions {
    with(&[Request::BarSize { bar: 0, bytes: 2 << 30 }])
}

#[test]
fn a_virtual_function_is_what_it_is_told_to_be_and_then_again_what_it_was() {
    let tree = virtual_function();
    let (before, was) = (tree.snapshot(), tree.kernel().vf());
    let bound = bind(&tree.host(), bdf(VF), &all_of_the_function()).unwrap();
    assert_eq!(bound.settings[0], "MAC 52:54:00:00:00:09 by 0000:01:00.0");
    assert_eq!(
        tree.kernel().vf(),
        [
            VfAttribute::Mac(MAC),
            VfAttribute::Vlan { id: 7, priority: 0 },
            VfAttribute::SpoofCheck(false),
            VfAttribute::Trust(true)
        ]
    );
    // A second address on top of it: the first state is what counts.
    let other = VfAttribute::Mac(Mac([2, 0, 0, 0, 0, 1]));
    assert!(!bind(&tree.host(), bdf(VF), &with(&[Request::Vf(other)])).unwrap().changed);
    assert_eq!(tree.kernel().vf()[0], other);
    release(&tree.host(), bdf(VF)).unwrap();
    assert_eq!((tree.snapshot(), tree.kernel().vf()), (before, was));
}

#[test]
fn a_guest_that_runs_is_not_given_another_address() {
    let tree = virtual_function();
    bind(&tree.host(), bdf(VF), &BindOptions::default()).unwrap();
    tree.process(42, "passthru", &[&tree.host().group_node(2)]);
    let error = bind(&tree.host(), bdf(VF), &all_of_the_function()).unwrap_err();
    assert_eq!(error.code(), Code::Busy);
    assert_eq!(tree.kernel().vf()[0], VfAttribute::Mac(Mac([0; 6])));
}

#[test]
fn somebody_elses_device_gets_its_settings_back_and_keeps_its_driver() {
    let tree = virtual_function();
    std::fs::remove_file(tree.pci_path(VF).join("driver")).unwrap();
    tree.kernel().attach(VF, "vfio-pci");
    let (before, was) = (tree.snapshot(), tree.kernel().vf());
    assert!(!bind(&tree.host(), bdf(VF), &all_of_the_function()).unwrap().ours);
    assert_ne!(tree.kernel().vf(), was);
    let more = with(&[Request::Vf(VfAttribute::Mac(Mac([2; 6]))), Request::Vf(VfAttribute::Trust(false))]);
    tree.kernel().set_fault(Some(Fault::Refuse(1, libc::EOPNOTSUPP)));
    assert_eq!(refusal(&tree, VF, &more).code(), Code::VfRefused);
    let released = release(&tree.host(), bdf(VF)).unwrap();
    assert_eq!(released.driver.as_deref(), Some("vfio-pci"));
    assert_eq!((tree.snapshot(), tree.kernel().vf()), (before, was));
}

fn refusal(tree: &TestTree, address: &str, options: &BindOptions) -> Error {
    let (before, was) = (tree.snapshot(), tree.kernel().vf());
    let error = bind(&tree.host(), bdf(address), options).unwrap_err();
    assert_eq!((tree.snapshot(), tree.kernel().vf()), (before, was), "a refusal leaves everything as it was");
    error
}

#[test]
fn refusals_have_codes() {
    let tree = virtual_function();
    assert_eq!(refusal(&tree, PF, &all_of_the_function()).code(), Code::NotVirtual);
    tree.kernel().set_vf_state(vec![VfAttribute::Mac(Mac([0; 6]))]);
    std::fs::write(tree.pci_path(PF).join("net/eth0/flags"), "0x1002\n").unwrap();
    let error = refusal(&tree, VF, &all_of_the_function());
    assert_eq!(error.code(), Code::VfRefused);
    assert!(error.to_string().contains("eth0, the interface of 0000:01:00.0, is down"), "{error}");
    assert_eq!(error.fix_text(), Some("`ip link set eth0 up`, then try again"));
    let warned = bind(&tree.host(), bdf(VF), &BindOptions::default()).unwrap();
    assert!(warned.warnings[0].contains("is down"), "{:?}", warned.warnings);
    let tree = virtual_function();
    std::fs::remove_dir_all(tree.pci_path(PF).join("net")).unwrap();
    assert_eq!(refusal(&tree, VF, &all_of_the_function()).code(), Code::NoPhysicalInterface);
    let tree = display();
    let size = |bar, bytes| with(&[Request::BarSize { bar, bytes }]);
    let error = refusal(&tree, CARD, &size(0, 4 << 30));
    assert_eq!(error.code(), Code::BarSize);
    assert!(error.evidence_lines()[0].starts_with("it can have 16 MiB, 32 MiB"), "{error}");
    assert_eq!(refusal(&tree, CARD, &size(1, 1 << 30)).code(), Code::BarSize);
    tree.file("keeps-memory", "");
    let error = refusal(&tree, CARD, &larger());
    assert_eq!(error.code(), Code::BootConsole);
    assert!(error.to_string().contains("efi-framebuffer.0"), "{error}");
}

#[test]
fn memory_that_stays_held_is_named_and_everything_undone() {
    let tree = display();
    // The driver has gone already, and the range stays with the platform device.
    std::fs::remove_file(tree.sys("bus/platform/devices/efi-framebuffer.0/driver")).unwrap();
    let error = refusal(&tree, CARD, &BindOptions::default());
    assert_eq!(error.code(), Code::BootConsole);
    assert_eq!(error.evidence_lines()[0], "0x8000000000 to 0x80002fffff: BOOTFB");
}

#[test]
fn the_console_and_the_size_of_a_bar_come_back() {
    let tree = display();
    let before = tree.snapshot();
    let bound = bind(&tree.host(), bdf(CARD), &larger()).unwrap();
    assert_eq!(
        bound.settings,
        ["vtcon1 lets go of the consoles", "efi-framebuffer.0 is drawn on no longer", "BAR 0 of 2 GiB"]
    );
    assert_eq!(bound.device.resources[0].size, 2 << 30);
    let order: Vec<String> = tree.kernel().writes().into_iter().map(|(file, _)| file).collect();
    let place = |part: &str| order.iter().position(|file| file.contains(part)).unwrap();
    assert!(place("vtcon1") < place("platform") && place("platform") < place("driver_override"));
    assert!(place("driver/unbind") < place("resize") && place("resize") < place("drivers_probe"));
    // On vfio-pci it can be resized as well: it leaves it for a moment.
    let again = bind(&tree.host(), bdf(CARD), &with(&[Request::BarSize { bar: 0, bytes: 1 << 30 }])).unwrap();
    assert_eq!((again.device.resources[0].size, again.former_driver.as_deref()), (1 << 30, Some("bochs-drm")));
    release(&tree.host(), bdf(CARD)).unwrap();
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_reset_method_is_chosen_and_the_others_come_back() {
    let tree = display();
    tree.attribute(CARD, "reset_method", "flr bus\n");
    let before = tree.snapshot();
    let bound = bind(&tree.host(), bdf(CARD), &with(&[Request::ResetMethod(Method::Bus)])).unwrap();
    assert_eq!(bound.settings.last().unwrap(), "reset by bus");
    assert_eq!(tree.host().device(bdf(CARD)).unwrap().reset_methods, ["bus"]);
    let order: Vec<String> = tree.kernel().writes().into_iter().map(|(file, _)| file).collect();
    let place = |part: &str| order.iter().position(|file| file.contains(part)).unwrap();
    assert!(place("reset_method") < place("drivers_probe"), "before vfio-pci has it");
    // Another one later: the first state is what counts.
    bind(&tree.host(), bdf(CARD), &with(&[Request::ResetMethod(Method::Flr)])).unwrap();
    assert_eq!(tree.host().device(bdf(CARD)).unwrap().reset_methods, ["flr"]);
    release(&tree.host(), bdf(CARD)).unwrap();
    assert_eq!(tree.snapshot(), before);

    let error = refusal(&tree, CARD, &with(&[Request::ResetMethod(Method::Pm)]));
    assert_eq!((error.code(), error.cause()), (Code::ResetMethod, "0000:02:00.0 cannot be reset by pm"));
    assert_eq!(error.evidence_lines()[1], "the kernel offers flr, bus");
    let without = display();
    assert_eq!(refusal(&without, CARD, &with(&[Request::ResetMethod(Method::Flr)])).code(), Code::ResetMethod);
}

#[test]
fn the_console_comes_back_even_if_the_card_does_not() {
    let tree = display();
    bind(&tree.host(), bdf(CARD), &BindOptions::default()).unwrap();
    tree.attribute(CARD, "device", "0x9999\n");
    recover(&tree.host()).unwrap();
    assert_eq!(std::fs::read_to_string(tree.sys("class/vtconsole/vtcon1/bind")).unwrap(), "1\n");
    assert!(tree.sys("bus/platform/devices/efi-framebuffer.0/driver").exists());
}

/// Kills `action` before and after each of its changes; `recover` brings back what was before `bind`.
fn killed_anywhere(make: fn() -> TestTree, address: &str, options: &BindOptions, action: impl Fn(&TestTree)) -> usize {
    let mut kills = 0;
    for number in 0.. {
        let mut reached = false;
        for fault in [Fault::KillBefore(number), Fault::KillAfter(number)] {
            let tree = make();
            let (before, was) = (tree.snapshot(), tree.kernel().vf());
            if options.requests.is_empty() {
                bind(&tree.host(), bdf(address), &if address == VF { all_of_the_function() } else { larger() })
                    .unwrap();
            }
            tree.kernel().set_fault(Some(fault));
            let killed = match catch_unwind(AssertUnwindSafe(|| action(&tree))) {
                Ok(()) => false,
                Err(panic) if panic.is::<Killed>() => true,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            tree.kernel().set_fault(None);
            reached |= killed;
            kills += usize::from(killed);
            let recovered = recover(&tree.host()).unwrap();
            assert!(recovered.failed.is_empty(), "{fault:?} {recovered:?}");
            assert_eq!((tree.snapshot(), tree.kernel().vf()), (before, was), "{fault:?}");
        }
        if !reached {
            return kills;
        }
    }
    kills
}

#[test]
fn broken_off_at_any_step_everything_comes_back() {
    for (make, address, options) in
        [(virtual_function as fn() -> TestTree, VF, all_of_the_function()), (display, CARD, larger())]
    {
        let host = |tree: &TestTree| tree.host();
        let kills = killed_anywhere(make, address, &options, |tree| {
            bind(&host(tree), bdf(address), &options).unwrap();
        });
        assert!(kills >= 12, "only {kills} places to be killed at");
        let kills = killed_anywhere(make, address, &BindOptions::default(), |tree| {
            release(&host(tree), bdf(address)).unwrap();
        });
        assert!(kills >= 12, "only {kills} places to be killed at");
    }
}

#[test]
fn a_refused_step_is_undone() {
    for (make, address, options) in
        [(virtual_function as fn() -> TestTree, VF, all_of_the_function()), (display, CARD, larger())]
    {
        for number in 0..6 {
            let tree = make();
            tree.kernel().set_fault(Some(Fault::Refuse(number, libc::EIO)));
            let error = refusal(&tree, address, &options);
            assert!(error.to_string().contains("(EIO)"), "{error}");
        }
    }
}

#[test]
fn held_members_come_and_go_with_the_device_that_is_named() {
    let tree = TestTree::new();
    tree.pci("0000:00:01.0").bridge().driver("pcieport").group(1).add();
    for (address, driver) in [(PF, "nvidia"), ("0000:01:00.1", "snd_hda_intel"), ("0000:01:00.2", "xhci_hcd")] {
        tree.pci(address).below("0000:00:01.0").driver(driver).group(1).add();
    }
    let before = tree.snapshot();
    let auto = BindOptions { group: true, ..BindOptions::default() };
    let bound = bind(&tree.host(), bdf(PF), &auto).unwrap();
    let held: Vec<_> = bound.held.iter().map(|held| (held.bdf, held.former_driver.as_deref().unwrap())).collect();
    assert_eq!(held, [(bdf("01:00.1"), "snd_hda_intel"), (bdf("01:00.2"), "xhci_hcd")]);
    assert!(bound.companions.iter().all(|companion| !companion.blocks));
    assert_eq!(tree.host().driver(bdf("00:01.0")).as_deref(), Some("pcieport"), "a bridge is never bound");
    // The sound is passed as well now; what was held for the card is held for the sound from then on.
    bind(&tree.host(), bdf("01:00.1"), &BindOptions::default()).unwrap();
    let released = release(&tree.host(), bdf(PF)).unwrap();
    assert!(released.held.is_empty());
    assert_eq!(tree.host().driver(bdf("01:00.2")).as_deref(), Some("vfio-pci"));
    let released = release(&tree.host(), bdf("01:00.1")).unwrap();
    assert_eq!(released.held.iter().map(|held| held.bdf).collect::<Vec<_>>(), [bdf("01:00.2")]);
    assert_eq!(tree.snapshot(), before);
    // One that the host needs keeps all of them.
    tree.net("0000:01:00.2", "eth0");
    tree.route("eth0", "00000000", "00000000");
    assert_eq!(refusal(&tree, PF, &auto).code(), Code::InUse);
}

#[test]
fn a_member_that_cannot_be_held_gives_all_back() {
    for number in 0..6 {
        let tree = TestTree::new();
        tree.pci(PF).driver("nvidia").group(1).add();
        tree.pci("0000:01:00.1").driver("snd_hda_intel").group(1).add();
        tree.kernel().set_fault(Some(Fault::Refuse(number, libc::EBUSY)));
        refusal(&tree, PF, &BindOptions { group: true, ..BindOptions::default() });
    }
}

/// The display with a desktop on it: a display manager, a session, and a service of the driver's.
fn desktop() -> TestTree {
    let tree = display();
    tree.pci("0000:02:00.1").class(0x040300).driver("snd_hda_intel").group(3).add();
    tree.node(CARD, "drm/card0", "dri/card0");
    tree.link("etc/systemd/system/display-manager.service", "/lib/systemd/system/gdm.service");
    for (pid, name, group, unit) in [
        (800, "gnome-shell", "0::/user.slice/user-1000.slice/session-2.scope", "gdm.service"),
        (801, "persistenced", "0::/system.slice/persistenced.service", "persistenced.service"),
    ] {
        tree.process(pid, name, &[&tree.host().dev("dri/card0")]);
        tree.file(format!("proc/{pid}/cgroup"), &format!("{group}\n"));
        tree.file(format!("sys/fs/cgroup/system.slice/{unit}/cgroup.events"), "populated 1\n");
        tree.kernel().ends_with(unit, pid);
    }
    tree
}

fn single_gpu() -> BindOptions {
    BindOptions { group: true, ..with(&[Request::StopDisplay]) }
}

#[test]
fn the_only_card_is_taken_from_the_desktop_and_given_back() {
    let tree = desktop();
    let before = tree.snapshot();
    let refused = bind(&tree.host(), bdf(CARD), &BindOptions::default()).unwrap_err();
    assert_eq!((refused.code(), tree.snapshot()), (Code::InUse, before.clone()));
    let bound = bind(&tree.host(), bdf(CARD), &single_gpu()).unwrap();
    assert_eq!(
        bound.settings[..3],
        ["gdm.service is stopped", "persistenced.service is stopped", "vtcon1 lets go of the consoles"]
    );
    assert_eq!(bound.held[0].bdf, bdf("0000:02:00.1"));
    assert!(!bind(&tree.host(), bdf(CARD), &single_gpu()).unwrap().changed, "twice changes nothing");
    release(&tree.host(), bdf(CARD)).unwrap();
    let services = tree.kernel().writes().into_iter().filter(|(file, _)| file == "systemctl").map(|(_, what)| what);
    let wanted = ["stop gdm.service", "stop persistenced.service", "start persistenced.service", "start gdm.service"];
    assert!(services.eq(wanted), "{:?}", tree.kernel().writes());
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_desktop_that_does_not_end_keeps_its_card() {
    let tree = desktop();
    tree.process(900, "startx", &[&tree.host().dev("dri/card0")]);
    let before = tree.snapshot();
    let error = bind(&tree.host(), bdf(CARD), &single_gpu()).unwrap_err();
    assert_eq!(error.code(), Code::InUse);
    assert!(error.to_string().contains("startx (process 900)"), "{error}");
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn the_profile_is_for_displays_and_takes_no_other_use_for_one() {
    let tree = desktop();
    tree.net(CARD, "eth0");
    tree.route("eth0", "00000000", "00000000");
    assert_eq!(bind(&tree.host(), bdf(CARD), &single_gpu()).unwrap_err().code(), Code::InUse);
    tree.pci(PF).driver("igb").group(1).add();
    assert_eq!(bind(&tree.host(), bdf(PF), &single_gpu()).unwrap_err().code(), Code::NotADisplay);
    assert!(tree.kernel().writes().is_empty());
}

#[test]
fn the_desktop_comes_back_wherever_its_end_or_its_return_is_broken_off() {
    let there_and_back = |tree: &TestTree| {
        bind(&tree.host(), bdf(CARD), &single_gpu()).unwrap();
        release(&tree.host(), bdf(CARD)).unwrap();
    };
    let kills = killed_anywhere(desktop, CARD, &single_gpu(), there_and_back);
    assert!(kills >= 40, "only {kills} places to be killed at");
    for number in 0..10 {
        let tree = desktop();
        tree.kernel().set_fault(Some(Fault::Refuse(number, libc::EIO)));
        refusal(&tree, CARD, &single_gpu());
    }
}

#[test]
fn a_plan_tells_every_step_and_does_none() {
    let tree = desktop();
    let before = tree.snapshot();
    let planned = crate::host::bind::steps(&tree.host(), bdf(CARD), &single_gpu()).unwrap();
    assert_eq!(
        planned.steps,
        [
            "gdm.service is stopped",
            "persistenced.service is stopped",
            "vtcon1 lets go of the consoles",
            "efi-framebuffer.0 is drawn on no longer",
            "0000:02:00.0: bochs-drm -> vfio-pci",
            "0000:02:00.1: snd_hda_intel -> vfio-pci, held for it",
        ]
    );
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_vm_can_have_the_only_card() {
    let tree = desktop();
    let before = tree.snapshot();
    let wish = |single_gpu| crate::host::vm::Wish {
        files: Vec::new(),
        vm: "game".to_owned().try_into().unwrap(),
        devices: vec![bdf(CARD), bdf("0000:02:00.1")],
        user: None,
        force: false,
        single_gpu,
        pages: Vec::new(),
    };
    assert_eq!(crate::host::vm::prepare(&tree.host(), &wish(false)).unwrap_err().code(), Code::InUse);
    let (bound, _) = crate::host::vm::prepare(&tree.host(), &wish(true)).unwrap();
    assert_eq!(bound[0].settings[0], "gdm.service is stopped");
    for address in [CARD, "0000:02:00.1"] {
        release(&tree.host(), bdf(address)).unwrap();
    }
    assert_eq!(tree.snapshot(), before);
}
