//! Starts, stops, reboots and violent ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::matrix;
use super::steps::{self, DRIVE, NIC};
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("reboot-10-times-1-vcpu", |lab| reboots(lab, 10, 1)).limit(1500),
    Scenario::new("reboot-10-times-4-vcpus", |lab| reboots(lab, 10, 4)).limit(1800),
    Scenario::new("start-and-stop-20-times", |lab| starts_and_stops(lab, 20)).limit(900),
    Scenario::new("next-guest-after-a-kill", next_guest_after_a_kill),
    Scenario::new("kill-9-during-dma-then-recover", kill_then_recover),
    Scenario::new("reboot-with-no-reboot-ends", no_reboot_ends),
    Scenario::new("panic-reboots-or-ends", panic_ends),
    Scenario::new("serial-and-stdin-variants", serial_variants),
    Scenario::new("sigterm-ends-cleanly", sigterm),
];

/// The guest counts its boots in a block of the drive, uses both devices at each, and
/// switches itself off after the last.
fn reboots(lab: &mut Lab, count: u32, cpus: u32) -> Result<()> {
    const BLOCK: &str = "bs=4096 seek=51200 count=1 conv=notrunc oflag=direct";
    let guest = Guest::new()
        .cpus(cpus)
        .reboots()
        .passes(NIC)
        .passes(DRIVE)
        .script(&l2::nvme_up())
        .script("n=$(dd if=/dev/nvme0n1 bs=4096 skip=51200 count=1 iflag=direct 2>/dev/null | tr -d '\\0')")
        .script("n=$((${n:-0} + 1)); echo LAB boot=$n")
        .script(&format!(
            "printf '%s' $n | dd of=/tmp/n bs=4096 conv=sync 2>/dev/null; dd if=/tmp/n of=/dev/nvme0n1 {BLOCK} 2>/dev/null; sync"
        ))
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(2))
        .script(&l2::nvme_read(8))
        .script("echo LAB done$n=1")
        .script(&format!("[ $n -gt {count} ] || {{ {}; }}", l2::REBOOT));
    lab.l1.ok("dd if=/dev/zero of=/dev/nvme0n1 bs=4096 seek=51200 count=1 conv=notrunc 2>/dev/null; sync")?;
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let job = lab.l1.start_guest(&guest)?;
        for boot in 1..=count + 1 {
            lab.l1.expect(&job, &format!("LAB done{boot}=1"), Duration::from_secs(240))?;
        }
        lab.l1.ended(&job)?.success()
    })?;
    let lines = |text: &str| ended.text.lines().filter(|l| l.contains(text)).count();
    let boots = usize::try_from(count + 1)?;
    ensure!(lines("L2 UP") == boots, "the guest came up {} times", lines("L2 UP"));
    ensure!(lines("LAB ping=2") == boots, "the NIC did not work after each boot");
    let first = ended.text.lines().find(|l| l.contains("LAB nvme_read="));
    let sum = first.map_or("", str::trim);
    ensure!(!sum.is_empty() && lines(sum) == boots, "the drive read differently after a boot");
    Ok(())
}

fn starts_and_stops(lab: &mut Lab, count: u32) -> Result<()> {
    const LEFT: &str = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c -e /dev/vfio -e kvm-v -e /dev/kvm; \
        grep -l -e vfio -e kvm-v /proc/[0-9]*/maps 2>/dev/null | wc -l; \
        grep -e ^Unevictable -e ^Mlocked /proc/meminfo; ls -A /run/passthru 2>/dev/null | wc -l";
    let guest = Guest::new().verbose().passes(NIC).passes(DRIVE);
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let before = lab.l1.sh(LEFT)?.stdout;
        for round in 0..count {
            let job = lab.l1.start_guest(&guest)?;
            lab.l1.expect(&job, "Linux version", Duration::from_secs(90))?;
            let signal = if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
            lab.l1.kill(&job, signal)?;
            let code = lab.l1.wait(&job, Duration::from_secs(60))?;
            ensure!(code.is_some(), "round {round}: {signal} does not end passthru");
        }
        let after = lab.l1.sh(LEFT)?.stdout;
        ensure!(before == after, "something stayed behind after {count} rounds; before:\n{before}after:\n{after}");
        Ok(())
    })
}

/// Killed in the middle of DMA: `recover` alone gives the devices back, and both work on the host.
fn kill_then_recover(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    let guest = Guest::new().passes(NIC).passes(DRIVE).script(&l2::nvme_up()).script(
        "echo LAB busy=1; while :; do dd if=/dev/nvme0n1 of=/dev/null bs=1M count=64 iflag=direct 2>/dev/null; done",
    );
    lab.l1.ok(&format!("passthru bind {NIC} {DRIVE}"))?;
    let job = lab.l1.start_guest(&guest)?;
    lab.l1.expect(&job, "LAB busy=1", Duration::from_secs(180))?;
    lab.l1.kill(&job, Signal::SIGKILL)?;
    let code = lab.l1.wait(&job, Duration::from_secs(60))?;
    ensure!(code == Some(128 + 9), "it ended with {code:?}");
    lab.l1.ok("passthru recover")?;
    for (bdf, former) in [(NIC, "e1000e"), (DRIVE, "nvme")] {
        let now = steps::driver(lab.l1, bdf)?;
        ensure!(now == former, "{bdf} is on {now} after passthru recover");
    }
    ensure!(steps::host_sum(lab.l1)? == read, "the drive has changed");
    matrix::nic_works_on_host(lab, NIC)
}

/// A guest that was killed in the midst of its network traffic leaves the card as after a reset: the next guest's kernel lets
/// it master the bus before its driver has set anything up, and it must not go on with the first one's rings.
fn next_guest_after_a_kill(lab: &mut Lab) -> Result<()> {
    let port = lab.server.port;
    let busy = Guest::new()
        .passes(NIC)
        .script(&l2::nic_up("e1000e"))
        .script(&format!("echo LAB busy=1; while :; do nc 10.0.2.2 {port} < /dev/null > /dev/null; done"));
    let next = Guest::new().passes(NIC).script(&l2::nic_up("e1000e")).script(&l2::ping(3));
    lab.l1.ok(&format!("passthru bind {NIC}"))?;
    let faults = "dmesg | grep -c 'DMAR: .DMA' || true";
    let before = lab.l1.ok(faults)?;
    for round in 0..3 {
        let job = lab.l1.start_guest(&busy)?;
        lab.l1.expect(&job, "LAB busy=1", Duration::from_secs(180))?;
        lab.l1.ok("sleep 2")?;
        lab.l1.kill(&job, Signal::SIGKILL)?;
        lab.l1.wait(&job, Duration::from_secs(60))?;
        let ended = lab.l1.guest(&next)?.success()?;
        ensure!(ended.value("ping")? == "3", "round {round}: pings were lost");
        let after = lab.l1.ok(faults)?;
        ensure!(after == before, "round {round}: {} faults of the IOMMU, {} before", after.trim(), before.trim());
    }
    lab.l1.ok(&format!("cat /sys/bus/pci/devices/0000:{NIC}/reset_method; passthru release {NIC}"))?;
    Ok(())
}

fn no_reboot_ends(lab: &mut Lab) -> Result<()> {
    let ended = lab.l1.guest(&Guest::new().script(l2::REBOOT))?.success()?;
    ensure!(ended.text.matches("L2 UP").count() == 1);
    Ok(())
}

/// `panic=-1` is a reboot at once; with `--no-reboot` that ends the guest.
fn panic_ends(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new().script("echo c > /proc/sysrq-trigger");
    lab.l1.guest(&guest)?.success()?;
    Ok(())
}

/// A guest's console may go anywhere, and the end of the input is not the end of the guest.
fn serial_variants(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new().script("echo LAB end=1"))?;
    let command = command.trim_start_matches("exec ");
    let limit = Duration::from_secs(120);
    for (redirection, serial) in [
        ("< /dev/null", ""),
        ("< /etc/passwd", ""),
        ("<&-", ""),
        ("< /dev/null", "--serial file:/tmp/serial"),
        ("< /dev/null", "--serial none"),
        ("< /dev/null", "--serial null"),
    ] {
        let text = format!("rm -f /tmp/serial; {command} {serial} {redirection}");
        let output = lab.l1.sh_within(&text, limit)?;
        ensure!(output.code == 0, "`{serial} {redirection}`: {}", crate::l1::describe(&output));
        let console = if serial.contains("file") { lab.l1.ok("cat /tmp/serial")? } else { output.stdout };
        let silent = serial.ends_with("none") || serial.ends_with("null");
        ensure!(console.contains("LAB end=1") != silent, "`{serial} {redirection}`: the console says {console:?}");
    }
    Ok(())
}

fn sigterm(lab: &mut Lab) -> Result<()> {
    let job = lab.l1.start_guest(&Guest::new().script("sleep 1000"))?;
    lab.l1.expect(&job, "L2 UP", Duration::from_secs(120))?;
    lab.l1.kill(&job, Signal::SIGTERM)?;
    let code = lab.l1.wait(&job, Duration::from_secs(30))?;
    ensure!(code.is_some(), "SIGTERM does not end passthru");
    Ok(())
}
