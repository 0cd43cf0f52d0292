//! Of two keyboards one is claimed for guests.

use anyhow::{Result, ensure};

use super::steps;
use crate::l1::L1;

/// The driver of a keyboard's interface, and who may open its node.
fn state(l1: &mut L1, serial: &str) -> Result<String> {
    let text = l1.ok(&format!(
        "d=$(dirname $(grep -l '^{serial}$' /sys/bus/usb/devices/*/serial)); i=$d/$(basename $d):1.0; \
         [ -e $i/driver ] && basename $(readlink $i/driver) || echo none; \
         stat -c '%G %a' $(printf /dev/bus/usb/%03d/%03d $(cat $d/busnum) $(cat $d/devnum))"
    ))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// No driver of the host keeps the one that is claimed, also when it comes later, and the group passthru may open it. The
/// other one is the host's.
pub fn claimed(l1: &mut L1) -> Result<()> {
    let seen = [state(l1, "lab-a")?, state(l1, "lab-b")?];
    ensure!(seen == ["none passthru 660", "usbhid root 664"], "{seen:?}");
    l1.ok("modprobe -r usbhid && modprobe usbhid && udevadm settle")?;
    steps::eventually(l1, "[ -e /sys/bus/usb/drivers/usbhid/[0-9]*:* ]")?;
    let seen = [state(l1, "lab-a")?, state(l1, "lab-b")?];
    ensure!(seen == ["none passthru 660", "usbhid root 664"], "after its driver was loaded anew: {seen:?}");
    let told = l1.ok("passthru devices --usb")?;
    ensure!(told.matches("claimed for guests as keys").count() == 1, "{told}");
    Ok(())
}
