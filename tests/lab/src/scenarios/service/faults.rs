//! What becomes of a service when its guest's process is killed or hangs, when its start is killed, and when the power fails.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::texts::ENDS;
use super::{UNIT, forwards, kept, steps, systemctl, taken_back};
use crate::l1::L1;

/// `WatchdogSec=` of the unit, and time for the start that follows.
const WATCHDOG: Duration = Duration::from_secs(90);

/// The process of the guest.
fn main_pid(l1: &mut L1) -> Result<String> {
    l1.ok(&format!("systemctl show -P MainPID {UNIT}"))
}

/// Waits until the manager has started the guest anew, for the `times`th time, and it runs.
fn started_anew(l1: &mut L1, times: u32, former: &str, limit: Duration) -> Result<()> {
    let condition = format!("[ $(systemctl show -P NRestarts {UNIT}) = {times} ] && systemctl is-active -q {UNIT}");
    let text = format!("until {condition}; do sleep 0.5; done");
    let ended = l1.sh_within(&text, limit)?;
    ensure!(ended.code == 0, "it was not started anew within {} s", limit.as_secs());
    ensure!(main_pid(l1)? != former, "it is the same process as before");
    Ok(())
}

/// The manager starts it anew, and it works.
pub fn killed(l1: &mut L1) -> Result<()> {
    l1.ok("systemctl reset-failed 'passthru@*'")?;
    let former = main_pid(l1)?;
    systemctl(l1, &format!("kill --signal=KILL {UNIT}"))?;
    started_anew(l1, 1, &former, Duration::from_secs(60))?;
    forwards(l1, true)
}

/// A process that does not say any more that it is alive is ended, and started anew.
pub fn hung(l1: &mut L1) -> Result<()> {
    let former = main_pid(l1)?;
    systemctl(l1, &format!("kill --kill-whom=main --signal=STOP {UNIT}"))?;
    started_anew(l1, 2, &former, WATCHDOG)?;
    let journal = l1.ok(&format!("journalctl -b -u {UNIT} -o cat --no-pager"))?;
    ensure!(journal.contains("Watchdog timeout"), "it was not the watchdog:\n{journal}");
    systemctl(l1, &format!("stop {UNIT}"))?;
    kept(l1)
}

/// The power goes while the guest works; the next boot starts the guest, as its user wished.
pub fn power_cut(l1: &mut L1) -> Result<()> {
    l1.ok("systemctl reset-failed 'passthru@*'")?;
    systemctl(l1, &format!("enable --now {UNIT}"))?;
    forwards(l1, true)?;
    l1.ok("sync")?;
    l1.power_cut()?;
    steps::settled(l1)?;
    l1.ok(ENDS)?;
    forwards(l1, true)?;
    systemctl(l1, &format!("disable --now {UNIT}"))?;
    kept(l1)
}

/// The process that prepares the guest is killed at each step that it notes, and at the one after all of them. What undoes it
/// leaves drivers, overrides, lists and notes as they were.
pub fn start_killed(l1: &mut L1) -> Result<()> {
    let ended = l1.sh_within(KILLED_AT_STEPS, Duration::from_secs(300))?;
    ensure!(ended.code == 0, "{}{}", ended.stdout, ended.stderr);
    // A step may be over before it is seen; not all of them.
    let hits = ended.stdout.lines().filter(|line| line.ends_with(" hit")).count();
    ensure!(hits >= 4, "too few were killed at the step:\n{}", ended.stdout);
    l1.ok("systemctl reset-failed 'passthru@*'")?;
    taken_back(l1, "e1000e")
}

/// Reads and kills by what the shell has built in: a step takes some milliseconds.
const KILLED_AT_STEPS: &str = r#"
run=/run/passthru
state() {
    for card in 01:00.0 02:00.0; do
        dev=/sys/bus/pci/devices/0000:$card; echo $card $(basename $(readlink $dev/driver)) $(cat $dev/driver_override)
    done
    getfacl -cp /dev/kvm /dev/vfio/vfio; ls -A $run/devices $run/prepared $run/leases; ls $run/vm 2> /dev/null
}
procs=/sys/fs/cgroup/system.slice/system-passthru.slice/passthru@router.service/cgroup.procs
before=$(state)
for at in devices/0000:01:00.0.json=set_override devices/0000:01:00.0.json=unbind devices/0000:01:00.0.json=probe \
          devices/0000:01:00.0.json=bound devices/0000:02:00.0.json=set_override devices/0000:02:00.0.json=unbind \
          devices/0000:02:00.0.json=probe devices/0000:02:00.0.json=bound prepared/router.json=path; do
    file=$run/${at%=*} step=${at#*=} text=
    systemctl reset-failed 'passthru@*'; systemctl start --no-block passthru@router
    SECONDS=0
    until [[ $text == *"\"$step\""* ]]; do
        [ $SECONDS -lt 60 ] || { echo $at was not reached; exit 1; }
        text=; [ ! -e $file ] || read -r -d '' text < $file
    done 2> /dev/null
    while read -r pid; do kill -9 $pid; done < $procs
    text=; read -r -d '' text < $file
    [[ $text == *"\"$step\""* ]] && echo $at hit || echo $at passed
    systemctl stop passthru@router
    after=$(state)
    [ "$after" = "$before" ] || { echo "$at: before: $before"; echo "after: $after"; \
        journalctl -b -u passthru@router -o cat --no-pager | tail -40; exit 1; }
done"#;
