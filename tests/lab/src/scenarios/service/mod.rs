//! A machine as its user has it: passthru installed from its package, devices reserved for guests, a router that systemd
//! starts, and what becomes of all that when something goes wrong.

mod early;
mod faults;
mod package;
mod placed;
mod texts;
mod usb;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::steps;
use crate::l0::machines;
use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};
use crate::scenarios::package::Traces;
use crate::setup::progress;
use texts::{ENDS, MODULES, NAMES, ROUTER, VM_FILE};

pub static SCENARIOS: &[Scenario] = &[
    on_its_pc("service", service),
    on_its_pc("service-faults", service_faults),
    on_its_pc("service-placed", service_placed),
];

/// Parts of one subject that need not wait for each other: each has a PC of its own, which it breaks at will.
const fn on_its_pc(name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Scenario {
    Scenario::new(name, run).on(&machines::SERVICE).exclusive().limit(1800).without_passthru()
}

/// The twins that the guest gets.
const WAN: &str = "01:00.0";
const LAN: &str = "02:00.0";
/// How long L1 may take to go down in order.
const REBOOT: Duration = Duration::from_secs(180);
/// What systemctl and dpkg wait for: the start or the end of a guest.
const SYSTEMCTL: Duration = Duration::from_secs(200);
/// Times that the service is restarted, and how long all of them may take.
const RESTARTS: u32 = 20;
const ALL_RESTARTS: Duration = Duration::from_secs(400);
const UNIT: &str = "passthru@router";

/// Does a part of a scenario, and says how long it took.
fn part(l1: &mut L1, what: &'static str, act: impl FnOnce(&mut L1) -> Result<()>) -> Result<()> {
    let started = Instant::now();
    act(l1).context(what)?;
    progress(&format!("  {what}: {} s", started.elapsed().as_secs()));
    Ok(())
}

/// From the package to its purge: what a user does, and nothing goes wrong.
fn service(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    steps::settled(l1)?;
    let traces = Traces::before(l1)?;
    part(l1, "install", install)?;
    part(l1, "package", package::installed)?;
    part(l1, "devices.d", reserve)?;
    part(l1, "prepare", prepare)?;
    part(l1, "start", start)?;
    part(l1, "while it runs", unprivileged)?;
    part(l1, "upgrade", package::upgraded)?;
    part(l1, "stop", stop)?;
    part(l1, "plugged in", early::plugged)?;
    part(l1, "removal", package::removed)?;
    part(l1, "purge", |l1| package::purged(l1, &traces))
}

/// What goes wrong with a guest that runs as a service.
fn service_faults(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    ready(l1)?;
    part(l1, "restart", restarts)?;
    part(l1, "kill -9", faults::killed)?;
    part(l1, "watchdog", faults::hung)?;
    part(l1, "power cut", faults::power_cut)
}

/// A place on the host, and starts that are killed. The cards are the host's whenever the guest does not have them.
fn service_placed(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    part(l1, "install", install)?;
    l1.ok(NAMES)?;
    l1.ok("sed -i /reserve/d /etc/passthru/devices.d/cards.toml")?;
    part(l1, "prepare", prepare)?;
    part(l1, "placed", placed::placed)?;
    part(l1, "start killed", faults::start_killed)
}

/// Installed, with both cards kept for guests, as after a boot.
fn ready(l1: &mut L1) -> Result<()> {
    part(l1, "install", install)?;
    l1.ok(NAMES)?;
    plugged_anew(l1, &[WAN, LAN])?;
    kept(l1)?;
    part(l1, "prepare", prepare)
}

/// Cards leave the machine and come again. Their driver goes meanwhile: one that is loaded is faster than the rules.
fn plugged_anew(l1: &mut L1, cards: &[&str]) -> Result<()> {
    for bdf in cards {
        l1.ok(&format!("echo 1 > /sys/bus/pci/devices/0000:{bdf}/remove"))?;
    }
    l1.ok("modprobe -r e1000e && echo 1 > /sys/bus/pci/rescan && udevadm settle").map(drop)
}

/// Runs systemctl; the unit's journal is the evidence when it fails.
fn systemctl(l1: &mut L1, words: &str) -> Result<()> {
    let output = l1.sh_within(&format!("systemctl {words}"), SYSTEMCTL)?;
    if output.code != 0 {
        let journal = l1.sh("journalctl -b -u 'passthru*' -o cat --no-pager | tail -40")?;
        anyhow::bail!("systemctl {words}: {}{}", output.stderr, journal.stdout);
    }
    Ok(())
}

/// Both cards are kept for guests, and nobody but root may open their nodes.
fn kept(l1: &mut L1) -> Result<()> {
    taken_back(l1, "vfio-pci")
}

/// This driver has both cards, and the service's user may open no node.
fn taken_back(l1: &mut L1, expected: &str) -> Result<()> {
    for bdf in [WAN, LAN] {
        let driver = steps::driver(l1, bdf)?;
        ensure!(driver == expected, "{bdf} is on {driver}");
    }
    l1.ok("! getfacl -cp /dev/kvm /dev/vfio/* | grep -q user:passthru")?;
    let left = l1.ok("ls /run/passthru/vm 2>/dev/null || true")?;
    ensure!(left.trim().is_empty(), "left under /run/passthru/vm: {left}");
    Ok(())
}

/// What comes in on one wire leaves on the other, one hop later, or not at all.
fn forwards(l1: &mut L1, expected: bool) -> Result<()> {
    let tries = if expected { 60 } else { 1 };
    let text = format!(
        "for i in $(seq {tries}); do ip netns exec a ping -c 1 -W 1 10.2.0.2 && exit; done | grep -c ttl=63 || true"
    );
    let seen = l1.sh_within(&text, SYSTEMCTL)?.stdout.trim() == "1";
    ensure!(seen == expected, "packets between the wires: {seen}, expected: {expected}");
    Ok(())
}

fn install(l1: &mut L1) -> Result<()> {
    steps::settled(l1)?;
    steps::provide_package(l1)?;
    steps::dpkg(l1, "--install /share/passthru.deb")
}

/// After the next boot the cards are on vfio-pci, and their driver has never seen them.
fn reserve(l1: &mut L1) -> Result<()> {
    for bdf in [WAN, LAN] {
        ensure!(steps::driver(l1, bdf)? == "e1000e", "{bdf} is not on e1000e before it is reserved");
    }
    l1.ok(NAMES)?;
    early::initramfs(l1).context("initramfs")?;
    l1.ok("sync")?;
    l1.reboot(REBOOT)?;
    steps::settled(l1)?;
    kept(l1)?;
    let seen = l1.sh("journalctl -b -k -o cat --no-pager | grep 'e1000e 0000:'")?;
    ensure!(seen.stdout.is_empty(), "the host's driver had a card first:\n{}", seen.stdout);
    // `udevadm test` comes to the rule and runs nobody's program; what the event itself made is in udev's database.
    let card = format!("/sys/bus/pci/devices/0000:{WAN}");
    let told =
        l1.ok(&format!("udevadm test --action=add {card} 2>&1 | grep passthru; udevadm info -q property {card}"))?;
    for part in ["/usr/bin/passthru udev-reserve 0000:01:00.0", "PASSTHRU_NAME=wan"] {
        ensure!(told.contains(part), "udev does not say {part}:\n{told}");
    }
    usb::claimed(l1).context("USB")
}

/// All that the guest needs, and the host's ends of its wires.
fn prepare(l1: &mut L1) -> Result<()> {
    let initrd = l1.initrd(&Guest::new().script(ROUTER))?;
    l1.ok(MODULES)?;
    l1.ok(&format!(
        "mkdir -p /srv/router && cp /images/bzImage /srv/router/vmlinuz && \
         cat {initrd} /tmp/modules.cpio > /srv/router/initrd.img && sync"
    ))?;
    l1.ok(VM_FILE)?;
    l1.ok(ENDS)?;
    Ok(())
}

fn start(l1: &mut L1) -> Result<()> {
    l1.ok("passthru check router")?;
    forwards(l1, false)?;
    systemctl(l1, &format!("start {UNIT}"))?;
    forwards(l1, true)
}

/// The VMM is the user passthru, without a capability, and has this VM's nodes and no other's.
fn unprivileged(l1: &mut L1) -> Result<()> {
    let status = l1.ok(&format!("cat /proc/$(systemctl show -P MainPID {UNIT})/status"))?;
    for name in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let none = format!("{name}:\t0000000000000000");
        ensure!(status.contains(&none), "it has capabilities:\n{status}");
    }
    let user = l1.ok("id -u passthru")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap_or_default();
    ensure!(uid.split('\t').all(|id| id == user.trim()), "it runs as {uid}");
    l1.ok("getfacl -cp /dev/vfio/[0-9]* | grep -c user:passthru:rw | grep -qx 2")?;
    let list = l1.ok("passthru list && passthru ctl router status && passthru ctl router metrics")?;
    ensure!(list.contains("router") && list.contains(WAN), "{list}");
    let exposure = l1.ok(&format!("systemd-analyze security --no-pager --threshold=30 {UNIT}"))?;
    ensure!(exposure.contains("exposure level"), "{exposure}");
    Ok(())
}

fn stop(l1: &mut L1) -> Result<()> {
    systemctl(l1, &format!("stop {UNIT}"))?;
    let journal = l1.ok(&format!("journalctl -b -u {UNIT} -o cat --no-pager"))?;
    ensure!(journal.contains("LAB button=1"), "the guest has not shut down by itself:\n{journal}");
    let result = l1.ok(&format!("systemctl show -P Result {UNIT}"))?;
    ensure!(result.trim() == "success", "it ended with {result}");
    kept(l1)?;
    forwards(l1, false)
}

/// The guest is ended at once here: its shutting down was seen before. It stays as it is after the last one.
fn restarts(l1: &mut L1) -> Result<()> {
    l1.ok("sed -i.orig '1i shutdown-timeout = 0' /etc/passthru/router.toml")?;
    systemctl(l1, &format!("start {UNIT}"))?;
    let counts =
        |l1: &mut L1| l1.ok("ls /dev/vfio | wc -l; mount | wc -l; ls -R /run/passthru | wc -l; systemctl --failed -q");
    let before = counts(l1)?;
    let script = format!(
        "for turn in $(seq {RESTARTS}); do systemctl reset-failed 'passthru@*'; \
         systemctl restart {UNIT} || {{ echo turn $turn; journalctl -b -u 'passthru*' -o cat --no-pager | tail -40; exit 1; }}; done"
    );
    let ended = l1.sh_within(&script, ALL_RESTARTS)?;
    ensure!(ended.code == 0, "{}{}", ended.stdout, ended.stderr);
    forwards(l1, true)?;
    ensure!(counts(l1)? == before, "something stays behind at each restart");
    l1.ok("mv /etc/passthru/router.toml.orig /etc/passthru/router.toml")?;
    Ok(())
}
