//! Before and without systemd's help: the initramfs that keeps devices, and a guest that starts when its device appears.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{LAN, UNIT, WAN, plugged_anew, steps};
use crate::l1::L1;

/// The package's hook with the functions of initramfs-tools, into a tree of its own; then its script in that tree, on this
/// PC's sysfs. A whole image would take minutes here.
const IMAGE: &str = r"
set -e
export DESTDIR=/tmp/initramfs version=$(uname -r) MODULESDIR=/lib/modules/$(uname -r) __MODULES_TO_ADD=/tmp/modules verbose=n
mkdir -p $DESTDIR/usr/bin $DESTDIR/sys $DESTDIR/proc $DESTDIR/dev; ln -s usr/bin usr/lib usr/lib64 $DESTDIR/; ln -s usr/sbin $DESTDIR/
cp /usr/bin/busybox $DESTDIR/usr/bin/; ln -s busybox $DESTDIR/usr/bin/sh
sh /usr/share/initramfs-tools/hooks/passthru
cat $__MODULES_TO_ADD
cp /usr/share/initramfs-tools/scripts/init-top/passthru $DESTDIR/
for tree in sys proc dev; do mount --bind /$tree $DESTDIR/$tree; done
chroot $DESTDIR /passthru
umount $DESTDIR/sys $DESTDIR/proc $DESTDIR/dev; rm -r $DESTDIR $__MODULES_TO_ADD";

/// A card without a driver is reserved by the initramfs's own means; one that has a driver is left alone.
pub fn initramfs(l1: &mut L1) -> Result<()> {
    l1.ok(&format!("echo 0000:{WAN} > /sys/bus/pci/drivers/e1000e/unbind"))?;
    let modules = l1.ok(IMAGE)?;
    ensure!(modules.contains("vfio-pci") && modules.contains("vfio_iommu_type1"), "its modules: {modules}");
    for (bdf, expected) in [(WAN, "vfio-pci"), (LAN, "(null)")] {
        let set = l1.ok(&format!("cat /sys/bus/pci/devices/0000:{bdf}/driver_override"))?;
        ensure!(set.trim() == expected, "driver_override of {bdf} is {set}");
    }
    // Without a reservation there is nothing to do for it.
    let none =
        l1.ok("export DESTDIR=/tmp/none __MODULES_TO_ADD=/tmp/none.modules verbose=n; mkdir $DESTDIR /tmp/kept; \
         mv /etc/passthru/devices.d/* /tmp/kept; sh /usr/share/initramfs-tools/hooks/passthru; \
         mv /tmp/kept/* /etc/passthru/devices.d; find $DESTDIR -type f; rm -r $DESTDIR /tmp/kept")?;
    ensure!(none.is_empty(), "{none}");
    Ok(())
}

/// `start =`: the guest is started when its device is plugged in. It runs afterwards.
pub fn plugged(l1: &mut L1) -> Result<()> {
    l1.ok("sed -i 's/^address = .*/&\\nstart = \"router\"/' /etc/passthru/devices.d/cards.toml")?;
    l1.fails(&format!("systemctl is-active -q {UNIT}"), 3)?;
    plugged_anew(l1, &[WAN])?;
    let ended =
        l1.sh_within(&format!("until systemctl is-active -q {UNIT}; do sleep 0.5; done"), Duration::from_secs(60))?;
    ensure!(ended.code == 0, "it has not started");
    ensure!(steps::driver(l1, WAN)? == "vfio-pci", "another driver has the card");
    Ok(())
}
