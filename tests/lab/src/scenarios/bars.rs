//! A guest that moves BARs as it likes.

use anyhow::{Result, ensure};

use super::steps::{self, DRIVE, NIC};
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("guest-moves-bars", moves)];

/// The drive's BAR 0 is moved 20 times with memory decoding on, then with decoding off; each time its version register
/// must be at the new address and nothing at the old one. Meanwhile the NIC pings, and afterwards the drive reads as
/// before: DMA of both has survived it all.
const MOVE: &str = r#"
d=/sys/bus/pci/devices/0000:02:00.0
echo 0000:02:00.0 > /sys/bus/pci/drivers/nvme/unbind
write() { printf "$2" | dd of=$d/config bs=1 seek=$1 conv=notrunc 2>/dev/null; }
bar() { write 16 "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }
version() { devmem $(($1 + 8)) 32; }
old=$(($(head -n 1 $d/resource | cut -d ' ' -f 1)))
new=$((old + 0x40000))
write 4 '\x06\x00'
known=$(version $old)
echo LAB version=$known
ping -c 40 -i 0.1 -W 5 10.0.2.2 > /tmp/ping &
wrong=0
check() { [ "$(version $1)" = $known ] || wrong=$((wrong + 1)); [ "$(version $2)" = 0xFFFFFFFF ] || wrong=$((wrong + 1)); }
for i in 1 2 3 4 5 6 7 8 9 10; do
    bar $new; check $new $old
    bar $old; check $old $new
done
write 4 '\x00\x00'
[ "$(version $old)" = 0xFFFFFFFF ] || wrong=$((wrong + 1))
bar $new
write 4 '\x06\x00'; check $new $old
write 4 '\x00\x00'
bar $old
write 4 '\x06\x00'; check $old $new
wait
echo LAB wrong=$wrong
echo LAB pings=$(sed -n 's/.* \([0-9]*\) packets received.*/\1/p' /tmp/ping)
echo 0000:02:00.0 > /sys/bus/pci/drivers/nvme/bind
"#;

fn moves(lab: &mut Lab) -> Result<()> {
    let sum = steps::host_sum(lab.l1)?;
    let guest = Guest::new()
        .passes(NIC)
        .passes(DRIVE)
        .script(&l2::nic_up("e1000e"))
        .script(&l2::nvme_up())
        .script(MOVE)
        .script(&l2::nvme_up())
        .script(&l2::nvme_read(64));
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success())?;
    let version = ended.value("version")?;
    ensure!(version.starts_with("0x00010") && version != "0x00000000", "NVMe's version register reads {version}");
    ensure!(ended.value("wrong")? == "0", "{} accesses went to the wrong place", ended.value("wrong")?);
    ensure!(ended.value("pings")? == "40", "the NIC lost packets meanwhile");
    ensure!(ended.value("nvme_read")? == sum, "the drive reads differently after its BAR was moved");
    Ok(())
}
