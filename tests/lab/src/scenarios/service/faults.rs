//! What becomes of a service when its guest's process is killed or hangs, when its start is killed, and when the power fails.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::texts::ENDS;
use super::{UNIT, forwards, kept, steps, systemctl};
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

/// The process that prepares the guest is killed at several moments, or the guest's own if it is there already. (Not all
/// processes of the unit: systemd then kills what would undo it as well, and the next start or `recover` does.)
pub fn start_killed(l1: &mut L1) -> Result<()> {
    let script = format!(
        "for ms in 200 600 1200 2000 3500; do systemctl reset-failed 'passthru@*'; systemctl start --no-block {UNIT}; \
         sleep $(printf %d.%03d $((ms / 1000)) $((ms % 1000))); systemctl kill --kill-whom=control --signal=KILL {UNIT} \
         || systemctl kill --kill-whom=main --signal=KILL {UNIT}; systemctl stop {UNIT}; \
         left=$(ls /run/passthru/vm /run/passthru/prepared 2> /dev/null | grep router); \
         ! systemctl is-active -q {UNIT} && [ -z \"$left\" ] || {{ echo after $ms ms: $left; \
         journalctl -b -u {UNIT} -o cat --no-pager | tail -40; exit 1; }}; done"
    );
    let ended = l1.sh_within(&script, Duration::from_secs(200))?;
    ensure!(ended.code == 0, "{}{}", ended.stdout, ended.stderr);
    l1.ok("systemctl reset-failed 'passthru@*'")?;
    kept(l1)
}
