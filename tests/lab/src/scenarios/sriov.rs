//! Virtual functions whose physical function is on vfio-pci, too: both are opened with the same token.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::steps::{self, DRIVE};
use crate::l0::machines;
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("sriov-token", token).on(&machines::SRIOV).limit(700)];

const CARD: &str = "01:00.0";
const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";
const OTHER: &str = "2ab74924-c335-45f4-9b16-8569e5b08259";
/// Lets vfio-pci make virtual functions.
const ENABLE: &str = "/sys/module/vfio_pci/parameters/enable_sriov";
const GUEST: Duration = Duration::from_secs(200);

fn token(lab: &mut Lab) -> Result<()> {
    let numvfs = format!("/sys/bus/pci/devices/0000:{CARD}/sriov_numvfs");
    lab.l1.ok(&format!("echo 1 > {ENABLE}"))?;
    let result = steps::with_bound(lab, &[CARD, DRIVE], |lab| {
        let result = both_have_the_token(lab, &numvfs);
        // No guest has the functions any more when they go.
        lab.l1.kill_all()?;
        lab.l1.ok(&format!("echo 0 > {numvfs}"))?;
        result
    });
    lab.l1.ok(&format!("echo 0 > {ENABLE}"))?;
    result
}

/// The folders whose links have a token in their names.
fn aliases(lab: &mut Lab) -> Result<String> {
    let left = lab.l1.ok("ls -d /run/passthru/tokens/* /tmp/passthru-* 2> /dev/null; true")?;
    Ok(left.trim().to_owned())
}

fn both_have_the_token(lab: &mut Lab, numvfs: &str) -> Result<()> {
    let with = |token: &str| format!(",vf-token={token}");
    let card = Guest::new().fat().passes_with(CARD, &with(TOKEN)).script(&l2::nic_up("igb")).script(&l2::ping(4));
    let card = lab.l1.start_guest(&card.script("sleep 1000"))?;
    lab.l1.expect(&card, "LAB ping=4", GUEST)?;
    ensure!(aliases(lab)?.is_empty(), "the token is to be seen while the guest runs: {}", aliases(lab)?);
    lab.l1.ok(&format!("echo 1 > {numvfs}"))?;
    let function = lab.l1.ok(&format!("basename $(readlink /sys/bus/pci/devices/0000:{CARD}/virtfn0)"))?;
    let function = function.trim().trim_start_matches("0000:").to_owned();
    steps::eventually(
        lab.l1,
        &format!("[ $(basename $(readlink /sys/bus/pci/devices/0000:{function}/driver)) = vfio-pci ]"),
    )?;
    // Without the token, with another one, and where there is none.
    for (bdf, more, code, words) in [
        (&*function, String::new(), 4, ["PT060", "needs a token"]),
        (&*function, with(OTHER), 4, ["PT060", "has another token"]),
        (DRIVE, with(TOKEN), 2, ["PT063", "has no token"]),
    ] {
        let command = lab.l1.prepare(&Guest::new().passes_with(bdf, &more))?;
        let refused = lab.l1.fails(&command, code)?;
        ensure!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
    // Another process has the card meanwhile. Neither of the two can count on traffic: the guest's igb knows of no virtual
    // functions, and uses the queues that the first of them has (82576: 0 and 8).
    let seen = "modprobe igbvf; for i in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done\n\
        echo LAB driver=$(basename $(readlink /sys/class/net/eth0/device/driver))";
    let guest = Guest::new().fat().passes_with(&function, &with(TOKEN)).script(seen);
    let ended = lab.l1.guest(&guest)?.success()?;
    ensure!(ended.value("driver")? == "igbvf", "the guest's driver does not take the function");
    let early = lab.l1.wait(&card, Duration::ZERO)?;
    ensure!(early.is_none(), "the card's guest ended with {early:?}:\n{}", card.text());
    lab.l1.kill(&card, Signal::SIGTERM)?;
    lab.l1.wait(&card, Duration::from_secs(60))?;
    // Nobody has the function now: who opens the card gives both another token.
    let guest = Guest::new().fat().passes_with(CARD, &with(OTHER)).passes_with(&function, &with(OTHER));
    let guest = guest.script("echo LAB functions=$(lspci -n | grep -c -e 8086:10c9 -e 8086:10ca)");
    let ended = lab.l1.guest(&guest)?.success()?;
    ensure!(ended.value("functions")? == "2", "the guest does not see both");
    ensure!(aliases(lab)?.is_empty(), "aliases are left: {}", aliases(lab)?);
    // What a process left that was killed at the wrong moment.
    lab.l1.ok("mkdir /run/passthru/tokens/passthru-999999-0; passthru recover")?;
    ensure!(aliases(lab)?.is_empty(), "`recover` left {}", aliases(lab)?);
    Ok(())
}
