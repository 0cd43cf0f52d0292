//! A VM by its file and by a user without rights: names of devices, `bind --vm --grant`, `release --vm`; kills in between.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::steps::{DRIVE, NIC};
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("vm-without-rights", without_rights),
    Scenario::new("vm-bind-killed-anywhere", killed_anywhere).limit(600),
];

const AS_NOBODY: &str =
    "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs";
const NAMES: &str = "/etc/passthru/devices.d/lab.toml";

/// Declares the NIC as `lan`, by what `inspect` says it is known by, and a VM that has it.
fn declare(l1: &mut L1) -> Result<()> {
    let seen: serde_json::Value = serde_json::from_str(&l1.ok(&format!("passthru inspect --json {NIC}"))?)?;
    let known_by = &seen[0]["identity"];
    let mut names = "[[device]]\nname = \"lan\"\n".to_owned();
    for key in ["path", "serial"] {
        ensure!(known_by[key].is_string(), "{key}: {known_by}");
        names += &format!("{key} = {}\n", known_by[key]);
    }
    names += &format!("mac = {}\n", known_by["macs"][0]);
    let vm = "device = [\"pcie-root-port,id=rp1\", \"vfio-pci,host=lan,bus=rp1\"]\n";
    l1.ok(&format!(
        "mkdir -p /etc/passthru/devices.d; echo '{names}' > {NAMES}; echo '{vm}' > /etc/passthru/lab.toml"
    ))?;
    Ok(())
}

/// The access control lists of the nodes that a VM could have, and who has the devices.
fn state(l1: &mut L1) -> Result<String> {
    l1.ok(&format!(
        "ls -lR /dev/kvm /dev/vfio /dev/iommu 2>/dev/null | grep ^c | awk '{{print $1, $3, $4, $NF}}'; \
         for d in {NIC} {DRIVE}; do readlink /sys/bus/pci/devices/0000:$d/driver; \
         cat /sys/bus/pci/devices/0000:$d/driver_override; done; ls /run/passthru/prepared /run/passthru/devices 2>/dev/null"
    ))
}

/// A user without any capability runs a guest with a NIC, by the file and the name alone; before and after, that user may
/// open nothing.
fn without_rights(lab: &mut Lab) -> Result<()> {
    declare(lab.l1)?;
    let guest = Guest::new().script(&l2::nic_up("e1000e")).script(&l2::ping(4)).script("read wait_for_the_end");
    let command = lab.l1.prepare(&guest)?;
    let run = format!("{AS_NOBODY} passthru run lab");
    let command = format!("ulimit -l unlimited; {}", command.replacen("passthru run", &run, 1));
    // Neither serial number nor mac can be asked for by others than root, until `bind` has noted them.
    let refused = lab.l1.fails(&command, 4)?;
    ensure!(refused.contains("PT039") && refused.contains("only root can read"), "{refused}");
    // Once before: the lists of files that exist from then on (/dev/vfio, the journal's folders) are the same after.
    lab.l1.ok("passthru bind --vm lab && passthru release --vm lab")?;
    let before = state(lab.l1)?;
    let told = lab.l1.ok("passthru bind --vm lab --grant nobody")?;
    ensure!(told.contains("-> vfio-pci") && told.contains("/dev/kvm: nobody may open it"), "{told}");
    let result = run_without_rights(lab, &command);
    lab.l1.kill_all()?;
    let released = lab.l1.ok("passthru release --vm lab")?;
    ensure!(released.contains("/dev/kvm: taken back") && released.contains("given back to e1000e"), "{released}");
    let after = state(lab.l1)?;
    ensure!(after == before, "before:\n{before}after:\n{after}");
    lab.l1.fails(&command, 4)?;
    lab.l1.ok(&format!("rm -r {NAMES} /etc/passthru/lab.toml"))?;
    result
}

fn run_without_rights(lab: &mut Lab, command: &str) -> Result<()> {
    let job = lab.l1.start(command)?;
    lab.l1.expect(&job, "LAB ping=4", Duration::from_secs(240))?;
    let status = lab.l1.ok("grep -e ^Cap -e ^Uid /proc/$(pidof passthru | cut -d ' ' -f 1)/status")?;
    ensure!(status.contains("65534\t65534") && status.matches("0000000000000000").count() >= 4, "{status}");
    let busy = lab.l1.fails("passthru release --vm lab", 4)?;
    ensure!(busy.contains("PT008"), "{busy}");
    // As a crash: what it had is taken back by `release --vm` all the same.
    lab.l1.kill(&job, Signal::SIGKILL)
}

/// Killed at many moments of its way, `bind --vm` leaves what `recover` undoes: drivers, overrides and nodes are as before.
fn killed_anywhere(lab: &mut Lab) -> Result<()> {
    declare(lab.l1)?;
    lab.l1.ok("passthru bind --vm lab && passthru release --vm lab")?;
    let before = state(lab.l1)?;
    let script = "n=0; for ms in $(seq 0 16 400); do \
           passthru bind --vm lab --grant nobody >/dev/null 2>&1 & p=$!; sleep $(printf 0.%03d $ms); \
           kill -9 $p 2>/dev/null && n=$((n + 1)); wait $p 2>/dev/null; \
           passthru recover >/dev/null || exit 1; \
           [ \"$(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/driver))\" = e1000e ] || { echo after $ms ms; exit 1; }; \
         done; echo $n";
    let ended = lab.l1.sh_within(script, Duration::from_secs(400))?;
    ensure!(ended.code == 0, "{}{}", ended.stdout, ended.stderr);
    let kills = ended.stdout;
    let kills: u32 = kills.trim().parse()?;
    ensure!(kills >= 5, "only {kills} were killed on their way");
    let after = state(lab.l1)?;
    ensure!(after == before, "before:\n{before}after:\n{after}");
    lab.l1.ok(&format!("rm -r {NAMES} /etc/passthru/lab.toml")).map(drop)
}
