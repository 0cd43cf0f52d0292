//! What root does for a guest that has a place on the host and no right to make it: huge pages, and the CPUs of interrupts. And
//! a tap, which the service lets it reach by a drop-in.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::texts::{MORE, NO_MORE};
use super::{UNIT, systemctl, taken_back};
use crate::l1::L1;

/// Huge pages of the guest's memory.
const PAGES: u32 = 128;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// How long interrupts and the guest's network may take to be where they belong.
const LIMIT: Duration = Duration::from_secs(100);

/// What `check` says to the VM as the service that it will be, without what is well.
fn findings(l1: &mut L1) -> Result<Vec<serde_json::Value>> {
    let answer = l1.sh("passthru check --json router --user passthru")?;
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).context(answer.stderr)?;
    let all = report["findings"].as_array().context("there are no findings")?;
    Ok(all.iter().filter(|finding| finding["level"] != "pass").cloned().collect())
}

/// `check` says what the service is short of, and nothing else is in the way; the commands that it gives mend that.
fn opened(l1: &mut L1) -> Result<()> {
    l1.ok(MORE)?;
    let before = findings(l1)?;
    for finding in before.iter().filter(|finding| finding["code"] == "PT073") {
        l1.ok(finding["fix"].as_str().context("no fix")?)?;
    }
    let failed: Vec<_> = before.iter().filter(|finding| finding["level"] == "fail").collect();
    ensure!(failed.is_empty(), "the service could not run: {failed:?}");
    let drop_ins = l1.ok("cat /etc/systemd/system/passthru@router.service.d/*.conf")?;
    for line in
        ["PrivateNetwork=no", "DeviceAllow=/dev/vhost-net rw", "DeviceAllow=/dev/loop0 r", "ReadWritePaths=/srv/log"]
    {
        ensure!(drop_ins.lines().any(|it| it == line), "{line} is not in:\n{drop_ins}");
    }
    let after = findings(l1)?;
    ensure!(after.iter().all(|finding| finding["code"] != "PT073"), "{after:?}");
    Ok(())
}

/// Huge pages are added before the start and go with the guest; the interrupts of its devices go where its main thread is.
pub fn placed(l1: &mut L1) -> Result<()> {
    l1.ok("sed -i.orig 's/^memory = .*/memory = \"256M,hugepages=2M,grow-pool=on\"\\ncpu-placement = \"auto\"/' \
         /etc/passthru/router.toml; systemctl reset-failed 'passthru@*'")?;
    opened(l1).context("what the unit does not let it reach")?;
    systemctl(l1, &format!("start {UNIT}"))?;
    let pool = |l1: &mut L1| l1.ok(&format!("cat {POOL}/nr_hugepages {POOL}/free_hugepages"));
    let seen = pool(l1)?;
    ensure!(seen.starts_with(&format!("{PAGES}\n")), "huge pages, all and free: {seen}");
    // One list of CPUs, that of the main thread, for all interrupts that VFIO handles; three vectors of each card.
    let script = format!(
        "pid=$(systemctl show -P MainPID {UNIT}); cpus=$(sed -n 's/^Cpus_allowed_list:\\t//p' /proc/$pid/status); \
         for i in $(seq 120); do all=$(for d in /proc/irq/*/vfio-msi*; do cat $(dirname $d)/smp_affinity_list; done 2> /dev/null); \
         [ $(echo $all | wc -w) -ge 2 ] && [ \"$(echo $all | tr ' ' '\\n' | sort -u)\" = \"$cpus\" ] && exit; sleep 0.5; done; \
         echo main thread: $cpus, interrupts: $all; exit 1"
    );
    let ended = l1.sh_within(&script, LIMIT)?;
    let journal = l1.ok("journalctl -b -u 'passthru*@router' -o cat --no-pager | tail -20")?;
    ensure!(ended.code == 0 && !journal.contains("PT082"), "{}{}\n{journal}", ended.stdout, ended.stderr);
    let cpus = l1.ok(&format!("taskset -cp $(systemctl show -P MainPID {UNIT})"))?;
    ensure!(!cpus.trim().ends_with("0,1") && !cpus.trim().ends_with("0-1"), "the guest has no place: {cpus}");
    let answers = "ping -c 1 -W 2 10.9.0.2 > /dev/null";
    let ended = l1.sh_within(&format!("for i in $(seq 30); do {answers} && exit; sleep 1; done; exit 1"), LIMIT)?;
    ensure!(ended.code == 0, "the guest does not answer on its tap");
    // Of the disk it may do no more than it was given.
    let lists = l1.ok("getfacl -cp /dev/loop0 /dev/vhost-net | grep user:passthru")?;
    ensure!(lists == "user:passthru:r--\nuser:passthru:rw-\n", "lists: {lists}");
    let said = l1.ok("cat /srv/log/router")?;
    ensure!(said.contains("LAB disk=of-the-host"), "the guest does not read the disk:\n{said}");
    systemctl(l1, &format!("stop {UNIT}"))?;
    l1.ok("! getfacl -cp /dev/loop0 /dev/vhost-net | grep user:passthru")?;
    ensure!(pool(l1)? == "0\n0\n", "huge pages stay behind");
    l1.ok(NO_MORE)?;
    l1.ok("! systemctl is-failed -q passthru-interrupts@router")?;
    taken_back(l1, "e1000e")
}
