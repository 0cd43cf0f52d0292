//! The Debian package: what installing, upgrading, removing and purging it do.

use anyhow::{Result, ensure};

use super::{LAN, UNIT, WAN, forwards, steps};
use crate::l1::L1;
use crate::scenarios::package::Traces;

/// Users, folders and units are there, and systemd and udev have nothing to say against the files.
pub fn installed(l1: &mut L1) -> Result<()> {
    let about = l1.ok(
        "command -v passthru && passthru --version; id passthru; stat -c '%a %U %n' /run/passthru /etc/passthru; \
         systemctl is-enabled passthru-recover.service; dpkg --verify passthru && echo verified",
    )?;
    let parts =
        ["/usr/bin/passthru", "passthru-vm", "755 root /run/passthru", "755 root /etc/passthru", "enabled", "verified"];
    for part in parts {
        ensure!(about.contains(part), "`{part}` is not in:\n{about}");
    }
    l1.ok("cd /usr/lib/systemd/system && systemd-analyze verify --man=no ./passthru@.service ./passthru-interrupts@.service \
           ./passthru-recover.service && udevadm verify /usr/lib/udev/rules.d/70-passthru.rules")
        .map(drop)
}

/// A guest that runs goes on, with its devices, while the package is installed anew.
pub fn upgraded(l1: &mut L1) -> Result<()> {
    let process = |l1: &mut L1| l1.ok(&format!("systemctl show -P MainPID,ActiveState {UNIT}"));
    let before = process(l1)?;
    steps::dpkg(l1, "--install /share/passthru.deb")?;
    ensure!(process(l1)? == before, "an upgrade has ended the guest, or started it anew");
    forwards(l1, true)
}

/// The package goes, and with it the guest that runs; the cards are on the host's driver, as if there had never been a guest.
pub fn removed(l1: &mut L1) -> Result<()> {
    steps::dpkg(l1, "--remove passthru")?;
    for bdf in [WAN, LAN] {
        let folder = format!("/sys/bus/pci/devices/0000:{bdf}");
        steps::eventually(l1, &format!("[ \"$(basename $(readlink {folder}/driver))\" = e1000e ]"))?;
        let left = l1.ok(&format!("cat {folder}/driver_override"))?;
        ensure!(left.trim() == "(null)", "{bdf} still has driver_override {left}");
    }
    l1.fails("command -v passthru", 1).map(drop)
}

/// And nothing of it stays.
pub fn purged(l1: &mut L1, before: &Traces) -> Result<()> {
    steps::dpkg(l1, "--purge passthru")?;
    before.are_all(l1)?;
    steps::settled(l1)
}
