//! Guests that reset their devices by themselves (Function Level Reset), and go on with them.

use anyhow::{Result, ensure};

use super::steps::{self, DRIVE};
use crate::l0::machines;
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("reset-by-the-guest", by_the_guest).on(&machines::SRIOV).limit(600)];

const CARD: &str = "01:00.0";

/// Takes the interface's driver away, resets the function, and gives it back to the driver.
const RESET_NIC: &str = "dev=$(readlink -f /sys/class/net/eth0/device); drv=$(readlink -f $dev/driver)\n\
    ip link set eth0 down; echo ${dev##*/} > $drv/unbind\n\
    echo flr > $dev/reset_method; echo LAB method=$(cat $dev/reset_method)\n\
    echo 1 > $dev/reset && echo LAB reset=done\n\
    echo ${dev##*/} > $drv/bind";

/// The same, with a register of the card that a reset clears: the address of a receive ring (82576: RDBAL 0).
const RESET_CARD: &str = "dev=$(readlink -f /sys/class/net/eth0/device); drv=$(readlink -f $dev/driver)\n\
    ip link set eth0 down; echo ${dev##*/} > $drv/unbind\n\
    echo 1 > $dev/enable; bar=$(sed -n '1s/ .*//p' $dev/resource); ring=$((bar + 0xc000))\n\
    devmem $ring 32 0xdead0000; echo LAB before=$(devmem $ring 32)\n\
    echo flr > $dev/reset_method; echo LAB method=$(cat $dev/reset_method)\n\
    echo 1 > $dev/reset && echo LAB reset=done\n\
    echo LAB after=$(devmem $ring 32)\n\
    echo 0 > $dev/enable; echo ${dev##*/} > $drv/bind";

/// The drive's driver stays, is told of the reset, and starts the controller again.
const RESET_DRIVE: &str = "dev=$(readlink -f /sys/class/nvme/nvme0/device)\n\
    echo flr > $dev/reset_method; echo LAB drive_method=$(cat $dev/reset_method)\n\
    echo 1 > $dev/reset && echo LAB drive_reset=done\n\
    i=0; until [ \"$(cat /sys/class/nvme/nvme0/state)\" = live ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done";

fn by_the_guest(lab: &mut Lab) -> Result<()> {
    let read = l2::nvme_read(8);
    let guest = Guest::new().fat().passes(CARD).passes(DRIVE);
    let guest = guest.script(&l2::nic_up("igb")).script(&l2::ping(4)).script(&l2::nvme_up()).script(&read);
    let guest = guest.script(RESET_CARD).script(&l2::nic_up("igb")).script(&l2::ping(4));
    let guest = guest.script(RESET_DRIVE).script(&read).script(&l2::nvme_write());
    let ended = steps::with_bound(lab, &[CARD, DRIVE], |lab| lab.l1.guest(&guest)?.success())?;
    let text = &ended.text;
    ensure!(ended.value("method")? == "flr" && ended.value("reset")? == "done", "the card was not reset:\n{text}");
    ensure!(ended.value("before")? == "0xDEAD0000" && ended.value("after")? == "0x00000000", "not reset:\n{text}");
    ensure!(text.matches("LAB ping=4").count() == 2, "pings were lost:\n{text}");
    ensure!(ended.value("drive_method")? == "flr" && ended.value("drive_reset")? == "done", "not reset:\n{text}");
    let sum = format!("LAB nvme_read={}", ended.value("nvme_read")?);
    ensure!(text.matches(&sum).count() == 2, "the drive reads differently after the reset:\n{text}");
    ensure!(ended.value("nvme_wrote")? == ended.value("nvme_reread")?, "the drive loses what is written");
    virtual_function(lab)
}

fn virtual_function(lab: &mut Lab) -> Result<()> {
    let numvfs = format!("/sys/bus/pci/devices/0000:{CARD}/sriov_numvfs");
    lab.l1.ok(&format!("modprobe igbvf; ip link set eth0 up; echo 1 > {numvfs}"))?;
    let vf = lab.l1.ok(&format!("basename $(readlink /sys/bus/pci/devices/0000:{CARD}/virtfn0)"))?;
    let vf = vf.trim().trim_start_matches("0000:").to_owned();
    let guest = Guest::new().fat().passes(&vf).script(&l2::nic_up("igbvf")).script(&l2::ping(4));
    let guest = guest.script(RESET_NIC).script(&l2::nic_up("igbvf")).script(&l2::ping(4));
    let result = steps::with_bound(lab, &[&vf], |lab| lab.l1.guest(&guest)?.success());
    lab.l1.ok(&format!("echo 0 > {numvfs}; ip link set eth0 down; modprobe -r igbvf"))?;
    let ended = result?;
    ensure!(ended.value("method")? == "flr" && ended.value("reset")? == "done", "not reset:\n{}", ended.text);
    ensure!(ended.text.matches("LAB ping=4").count() == 2, "pings were lost:\n{}", ended.text);
    Ok(())
}
