//! What `bind` and `release` change on the host besides drivers; whole devices; reset plans.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("host-reset-plans", reset_plans),
    Scenario::new("host-reset-method", reset_method),
    Scenario::new("host-quarantine", quarantine),
    Scenario::new("host-vf-settings", vf_settings).on(&machines::SRIOV),
    Scenario::new("host-whole-device", whole_device).on(&machines::MULTI_FUNCTION),
    Scenario::new("host-hot-reset", hot_reset).on(&machines::MULTI_FUNCTION),
    Scenario::new("host-group-auto", group_auto).on(&machines::MULTI_FUNCTION),
    Scenario::new("host-boot-console", boot_console).on(&machines::DISPLAY),
    Scenario::new("host-single-gpu", single_gpu).on(&machines::DISPLAY),
];

/// The display device of the machine with one.
const DISPLAY: &str = "00:05.0";

/// What `passthru inspect --json` says of a device.
fn inspect(l1: &mut L1, bdf: &str) -> Result<Value> {
    let text = l1.ok(&format!("passthru inspect --json {bdf}"))?;
    let mut all: Vec<Value> = serde_json::from_str(&text)?;
    ensure!(all.len() == 1, "{bdf} is not one function: {text}");
    Ok(all.remove(0))
}

/// The kernel resets the drive by the method that was chosen, the last that it has, and afterwards by all again.
fn reset_method(lab: &mut Lab) -> Result<()> {
    let read = format!("cat /sys/bus/pci/devices/0000:{DRIVE}/reset_method");
    let before = lab.l1.ok(&read)?;
    let sum = steps::host_sum(lab.l1)?;
    let chosen = before.split_whitespace().last().unwrap_or_default();
    ensure!(before.trim() != chosen, "the drive has one method only: {before}");
    let refused = lab.l1.fails(&format!("passthru bind {DRIVE} --reset-method=acpi"), 4)?;
    ensure!(refused.contains("PT046") && refused.contains("the kernel offers"), "{refused}");
    let driver = steps::driver(lab.l1, DRIVE)?;
    ensure!(driver == "nvme", "after the refusal it is on {driver}");
    let told = lab.l1.ok(&format!("passthru bind {DRIVE} --reset-method={chosen}"))?;
    ensure!(told.contains(&format!("reset by {chosen}")), "{told}");
    let result = with_chosen_method(lab, &read, chosen, &sum);
    lab.l1.kill_all()?;
    lab.l1.ok(&format!("passthru release {DRIVE}"))?;
    let after = lab.l1.ok(&read)?;
    ensure!(after == before, "before: {before}, after: {after}");
    result
}

fn with_chosen_method(lab: &mut Lab, read: &str, chosen: &str, sum: &str) -> Result<()> {
    let now = lab.l1.ok(read)?;
    ensure!(now.trim() == chosen, "the kernel has {now}");
    let plan = inspect(lab.l1, DRIVE)?["reset"]["verdict"].clone();
    ensure!(plan["reset"] == "function" && plan["method"] == chosen, "{plan}");
    let guest = Guest::new().passes(DRIVE).script(&l2::nvme_up()).script(&l2::nvme_read(l2::READ_MIB));
    let ended = lab.l1.guest(&guest)?.success()?;
    ensure!(ended.value("nvme_read")? == sum, "the guest reads other data from the drive than the host");
    Ok(())
}

/// The plan names the method that the kernel lists first, and the link and the interrupts are there.
fn reset_plans(lab: &mut Lab) -> Result<()> {
    for bdf in [NIC, DRIVE] {
        let seen = inspect(lab.l1, bdf)?;
        let methods = lab.l1.ok(&format!("cat /sys/bus/pci/devices/0000:{bdf}/reset_method"))?;
        let first = methods.split_whitespace().next().unwrap_or_default();
        let verdict = &seen["reset"]["verdict"];
        // Alone in its slot, a function that would be reset by its power state is reset with it.
        let planned = match first {
            "pm" => verdict["reset"] == "hot" && verdict["scope"] == "slot" && verdict["with"] == serde_json::json!([]),
            _ => verdict["reset"] == "function" && verdict["method"] == first,
        };
        ensure!(planned, "{bdf}: {methods} {verdict}");
        ensure!(seen["interrupts"]["msix"].as_u64().is_some_and(|count| count > 0), "{bdf}: {}", seen["interrupts"]);
        ensure!(seen["power_state"] == "D0", "{bdf}: {}", seen["power_state"]);
        let text = lab.l1.ok(&format!("passthru inspect {bdf}"))?;
        ensure!(text.contains("  reset       ") && text.contains("  BAR 0 "), "{text}");
    }
    Ok(())
}

/// A quarantined device is refused by name at `bind` and at the start, until it is cleared.
fn quarantine(lab: &mut Lab) -> Result<()> {
    let ids = lab.l1.ok(&format!("cd /sys/bus/pci/devices/0000:{NIC}; echo $(($(cat vendor))),$(($(cat device)))"))?;
    let note = format!(
        r#"{{"version":1,"device":"0000:{NIC}","ids":[{}],"reason":"after a reset: its class code reads as ones"}}"#,
        ids.trim()
    );
    let file = format!("/run/passthru/quarantine/0000:{NIC}.json");
    let write = format!("mkdir -p /run/passthru/quarantine; umask 022; echo '{note}' > {file}");
    let command = lab.l1.prepare(&Guest::new().device(&format!("vfio-pci,host={NIC}")))?;
    steps::with_bound(lab, &[NIC], |lab| {
        lab.l1.ok(&write)?;
        let refused = lab.l1.fails(&command, 4)?;
        ensure!(refused.contains("PT055") && refused.contains("reads as ones"), "{refused}");
        lab.l1.ok(&format!("passthru recover --clear {NIC}")).map(drop)
    })?;
    lab.l1.ok(&write)?;
    let refused = lab.l1.fails(&format!("passthru bind {NIC}"), 4)?;
    ensure!(refused.contains("PT055"), "{refused}");
    lab.l1.ok(&format!("passthru recover --clear {NIC}; [ ! -e {file} ]")).map(drop)
}

/// The address that `bind` gives to a virtual function is the guest's, also after its reboot; `release` and `recover` put
/// everything back.
fn vf_settings(lab: &mut Lab) -> Result<()> {
    const NUMVFS: &str = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";
    const MAC: &str = "52:54:00:aa:bb:01";
    lab.l1.ok(&format!("modprobe igbvf; ip link set eth0 up; echo 1 > {NUMVFS}"))?;
    let vf = lab.l1.ok("basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn0)")?;
    let vf = vf.trim().trim_start_matches("0000:").to_owned();
    let result = vf_is_as_set(lab, &vf, MAC);
    lab.l1.kill_all()?;
    lab.l1.ok(&format!("passthru recover; echo 0 > {NUMVFS}; ip link set eth0 down; modprobe -r igbvf"))?;
    result
}

fn vf_is_as_set(lab: &mut Lab, vf: &str, mac: &str) -> Result<()> {
    let state = |l1: &mut L1| l1.ok("ip link show eth0 | grep 'vf 0'");
    steps::eventually(lab.l1, &format!("[ -e /sys/bus/pci/devices/0000:{vf}/net ]"))?;
    let before = state(lab.l1)?;
    let told = lab.l1.ok(&format!("passthru bind {vf} --vf-mac={mac} --spoofchk=off --trust=on"))?;
    ensure!(told.contains(&format!("MAC {mac} by 0000:01:00.0")), "{told}");
    let set = state(lab.l1)?;
    ensure!(set.contains(mac) && set.contains("spoof checking off") && set.contains("trust on"), "{set}");
    let guest = Guest::new().fat().reboots().passes(vf).script(&l2::nic_up("igbvf")).script(&l2::ping(4));
    let guest = guest.script(l2::REBOOT);
    let job = lab.l1.start_guest(&guest)?;
    expect_times(lab.l1, &job, "LAB ping=4", 2)?;
    ensure!(job.text().matches(&format!("LAB mac={mac}")).count() >= 2, "the guest has another address");
    lab.l1.kill(&job, Signal::SIGKILL)?;
    lab.l1.wait(&job, Duration::from_secs(30))?;
    lab.l1.ok(&format!("passthru release {vf}"))?;
    let after = state(lab.l1)?;
    ensure!(after == before, "before `bind`:\n{before}after `release`:\n{after}");
    // A VLAN, and `recover` instead of `release`.
    lab.l1.ok(&format!("passthru bind {vf} --vlan=7"))?;
    let set = state(lab.l1)?;
    ensure!(set.contains("vlan 7"), "{set}");
    lab.l1.ok("passthru recover")?;
    let after = state(lab.l1)?;
    ensure!(after == before, "before `bind`:\n{before}after `recover`:\n{after}");
    let refused = lab.l1.fails("passthru bind 02:00.0 --trust=on", 2)?;
    ensure!(refused.contains("PT058"), "{refused}");
    Ok(())
}

/// Waits until a line has come so many times.
fn expect_times(l1: &mut L1, job: &crate::l1::Job, line: &str, times: usize) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(240);
    while job.text().matches(line).count() < times {
        let code = l1.wait(job, Duration::from_millis(300))?;
        ensure!(code.is_none(), "it ended with {code:?} before `{line}` came {times} times:\n{}", job.text());
        ensure!(Instant::now() < end, "`{line}` did not come {times} times:\n{}", job.text());
    }
    Ok(())
}

/// Both functions of a card in one slot of the guest; each works.
fn whole_device(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .fat()
        .passes("01:00")
        .script("echo LAB functions=$(lspci -n | grep -c -e 8086:10d3 -e 10ec:8139)")
        .script("echo LAB slots=$(lspci -n | grep -e 8086:10d3 -e 10ec:8139 | cut -d . -f 1 | sort -u | wc -l)")
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(4))
        .script("modprobe 8139cp; sleep 2; echo LAB second=$(cat /sys/class/net/eth1/address)");
    let ended = steps::with_bound(lab, &["01:00.0", "01:00.1"], |lab| lab.l1.guest(&guest)?.success())?;
    ensure!(ended.value("functions")? == "2" && ended.value("slots")? == "1", "not one slot with two functions");
    ensure!(ended.value("ping")? == "4", "pings were lost");
    ensure!(ended.value("second")? == "52:54:00:00:00:02", "the second function's registers read wrong");
    let told = lab.l1.ok("passthru bind 01:00 && passthru release 01:00")?;
    ensure!(told.matches("-> vfio-pci").count() == 2 && told.matches("given back").count() == 2, "{told}");
    Ok(())
}

/// A function that can only be reset with its bus is, when the guest reboots: the guest finds the address in its
/// registers that the card has after power-on, and not what it wrote there.
fn hot_reset(lab: &mut Lab) -> Result<()> {
    let plan = inspect(lab.l1, "01:00.1")?["reset"]["verdict"].clone();
    ensure!(plan["reset"] == "none" && plan["blockers"][0]["bdf"] == "0000:01:00.0", "on host drivers: {plan}");
    let device = "/sys/bus/pci/devices/0000:01:00.1";
    let guest = Guest::new()
        .fat()
        .reboots()
        .passes("01:00")
        .script(&format!("echo 1 > {device}/enable; bar=$(sed -n '2s/ .*//p' {device}/resource)"))
        .script("echo LAB address=$(devmem $bar 32)")
        .script("devmem $bar 32 0xdeadbeef; echo LAB written=$(devmem $bar 32); sleep 1")
        .script(l2::REBOOT);
    let job = steps::with_bound(lab, &["01:00.0", "01:00.1"], |lab| {
        let plan = inspect(lab.l1, "01:00.1")?["reset"]["verdict"].clone();
        ensure!(plan["reset"] == "hot" && plan["with"][0] == "0000:01:00.0", "on vfio-pci: {plan}");
        let job = lab.l1.start_guest(&guest)?;
        expect_times(lab.l1, &job, "LAB written=", 3)?;
        lab.l1.kill(&job, Signal::SIGTERM)?;
        lab.l1.wait(&job, Duration::from_secs(60))?;
        Ok(job)
    })?;
    let text = job.text();
    ensure!(text.matches("LAB written=0xDEADBEEF").count() >= 3, "the register cannot be written:\n{text}");
    ensure!(text.matches("LAB address=0x00005452").count() >= 3, "the function is not reset:\n{text}");
    ensure!(!text.contains("is not reset"), "{text}");
    Ok(())
}

/// What is not named is held, and given back with the device that it was held for.
fn group_auto(lab: &mut Lab) -> Result<()> {
    let told = lab.l1.ok("passthru bind --group auto 01:00.0")?;
    ensure!(told.contains("0000:01:00.1 is in the same IOMMU group and is held"), "{told}");
    let guest = Guest::new().fat().passes("01:00.0").script(&l2::nic_up("e1000e")).script(&l2::ping(4));
    let ended = lab.l1.guest(&guest)?.success();
    let told = lab.l1.ok("passthru release 01:00.0")?;
    ensure!(told.matches("given back").count() == 2, "{told}");
    ensure!(ended?.value("ping")? == "4", "pings were lost");
    ensure!(steps::driver(lab.l1, "01:00.1")? == "8139cp", "the held function is not back");
    Ok(())
}

/// How many consoles are drawn on a framebuffer.
const DRAWN: &str = "grep -l 'frame buffer' /sys/class/vtconsole/*/name | xargs -r dirname \
    | while read at; do cat $at/bind; done | grep -c 1";

/// The profile for the only card, on a PC without a display manager: a program that has the card open keeps it, the
/// consoles are taken off it and come back.
fn single_gpu(lab: &mut Lab) -> Result<()> {
    let bind = format!("passthru bind --profile single-gpu {DISPLAY}");
    lab.l1.ok("echo here > /dev/tty1")?;
    steps::eventually(lab.l1, &format!("[ \"$({DRAWN})\" = 1 ]"))?;
    let plan = lab.l1.ok(&format!("{bind} --dry-run"))?;
    ensure!(plan.contains("lets go of the consoles") && plan.contains("bochs-drm -> vfio-pci"), "{plan}");
    ensure!(steps::driver(lab.l1, DISPLAY)? == "bochs-drm", "a dry run has changed the driver");
    let job = lab.l1.start("exec sleep 600 < /dev/dri/card0")?;
    steps::eventually(lab.l1, "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q dri/card0")?;
    let told = lab.l1.fails(&bind, 4)?;
    ensure!(told.contains("PT013") && told.contains("sleep"), "{told}");
    lab.l1.kill(&job, Signal::SIGKILL)?;
    lab.l1.wait(&job, Duration::from_secs(10))?;
    for end in ["release", "recover"] {
        lab.l1.ok(&bind)?;
        ensure!(lab.l1.sh(DRAWN)?.stdout.trim() == "0", "the console is still drawn on a framebuffer");
        ensure!(steps::driver(lab.l1, DISPLAY)? == "vfio-pci");
        let words = if end == "release" { format!("release {DISPLAY}") } else { end.to_owned() };
        lab.l1.ok(&format!("passthru {words}"))?;
        ensure!(steps::driver(lab.l1, DISPLAY)? == "bochs-drm");
        steps::eventually(lab.l1, &format!("[ \"$({DRAWN})\" = 1 ]"))?;
    }
    Ok(())
}

/// The console that the host draws on a card is taken off it, and drawn there again afterwards.
fn boot_console(lab: &mut Lab) -> Result<()> {
    // The console is drawn from its first output on.
    lab.l1.ok("echo here > /dev/tty1")?;
    steps::eventually(lab.l1, &format!("[ \"$({DRAWN})\" = 1 ]"))?;
    ensure!(steps::driver(lab.l1, DISPLAY)? == "bochs-drm");
    let told = lab.l1.ok(&format!("passthru bind {DISPLAY}"))?;
    ensure!(told.contains("lets go of the consoles"), "{told}");
    let drawn = lab.l1.sh(DRAWN)?.stdout;
    ensure!(drawn.trim() == "0", "the console is still drawn on a framebuffer");
    ensure!(steps::driver(lab.l1, DISPLAY)? == "vfio-pci");
    let guest = Guest::new().fat().device(&format!("vfio-pci,host={DISPLAY}"));
    lab.l1.guest(&guest.script("echo LAB seen=$(lspci -n | grep -c 1234:1111)"))?.success()?.expect("LAB seen=1")?;
    lab.l1.ok(&format!("passthru release {DISPLAY}"))?;
    ensure!(steps::driver(lab.l1, DISPLAY)? == "bochs-drm");
    steps::eventually(lab.l1, &format!("[ \"$({DRAWN})\" = 1 ]"))
}
