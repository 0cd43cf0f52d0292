//! The Debian package on a machine with systemd: what installing it does, and that purging it leaves no trace.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::steps::{self, NIC};
use crate::l0::machines;
use crate::l1::L1;
use crate::scenario::{Lab, Scenario};

/// The time is for the first run, which builds the tools that make packages.
pub static SCENARIOS: &[Scenario] = &[Scenario::new("package-installs-and-leaves-no-trace", install_and_purge)
    .on(&machines::SERVICE)
    .exclusive()
    .limit(1800)];

/// Where packages put things: all of /etc and of /var/lib but the package manager's and systemd's own records, and whatever is
/// called after passthru elsewhere; each user and group; the enabled units. (All of /usr would take minutes.)
const TRACES: &str = "find /etc /var/lib \\( -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /var/lib/apt \\) -prune -o -print \
    | sort; ls -d /usr/bin/passthru* /usr/lib/*/*passthru* /usr/lib/*/*/*passthru* /usr/share/*/*passthru* \
    /usr/share/*/*/*passthru* /run/passthru 2> /dev/null; getent passwd; getent group; \
    systemctl list-unit-files --state=enabled --no-legend; true";

/// What there is of the system that a package could have left.
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Before the package is there.
    pub fn before(l1: &mut L1) -> Result<Self> {
        // Written by the first call of either: no trace of the package.
        l1.ok("systemd-sysusers; systemctl daemon-reload")?;
        Self::now(l1)
    }

    fn now(l1: &mut L1) -> Result<Self> {
        Ok(Self(l1.ok(TRACES)?.lines().map(str::to_owned).collect()))
    }

    /// Nothing was left behind, and nothing is lost.
    pub fn are_all(&self, l1: &mut L1) -> Result<()> {
        let after = Self::now(l1)?;
        let left: Vec<&String> = after.0.difference(&self.0).collect();
        let lost: Vec<&String> = self.0.difference(&after.0).collect();
        ensure!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nlost: {lost:#?}");
        Ok(())
    }
}

fn install_and_purge(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    steps::provide_package(l1)?;
    steps::settled(l1)?;
    let before = Traces::before(l1)?;
    steps::dpkg(l1, "--install /share/passthru.deb")?;

    let which = l1.ok("command -v passthru && passthru --version")?;
    ensure!(which.contains("/usr/bin/passthru"), "{which}");
    let about = l1.ok(
        "id passthru; stat -c '%a %U %n' /run/passthru /etc/passthru; systemctl is-enabled passthru-recover.service; \
         systemctl cat passthru@router | grep -c ^ExecStart; dpkg --verify passthru && echo verified",
    )?;
    for part in ["passthru-vm", "755 root /run/passthru", "755 root /etc/passthru", "enabled", "verified"] {
        ensure!(about.contains(part), "`{part}` is not in:\n{about}");
    }
    // Twice: an upgrade takes nothing away.
    let former = steps::driver(l1, NIC)?;
    l1.ok(&format!("passthru bind {NIC}"))?;
    steps::dpkg(l1, "--install /share/passthru.deb")?;
    ensure!(steps::driver(l1, NIC)? == "vfio-pci", "an upgrade has given a device back");

    // Removal gives it back first.
    steps::dpkg(l1, "--remove passthru")?;
    ensure!(steps::driver(l1, NIC)? == former, "removal has not given the device back");
    l1.fails("command -v passthru", 1)?;
    steps::dpkg(l1, "--purge passthru")?;
    before.are_all(l1)
}
