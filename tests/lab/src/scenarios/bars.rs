//! A guest that moves BARs as it likes, and lets devices sleep.

use anyhow::{Context, Result, ensure};

use super::steps::{self, DRIVE, NIC};
use crate::l1::live::Live;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("guest-moves-bars", moves), Scenario::new("d3hot-takes-bars-away", sleeps)];

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
        .script(&l2::nvme_read(l2::READ_MIB));
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success())?;
    let version = ended.value("version")?;
    ensure!(version.starts_with("0x00010") && version != "0x00000000", "NVMe's version register reads {version}");
    ensure!(ended.value("wrong")? == "0", "{} accesses went to the wrong place", ended.value("wrong")?);
    ensure!(ended.value("pings")? == "40", "the NIC lost packets meanwhile");
    ensure!(ended.value("nvme_read")? == sum, "the drive reads differently after its BAR was moved");
    Ok(())
}

/// Finds the power management capability (id 1), and gives its control register to `power`. `status` is the NIC's.
const POWER: &str = r#"
d=/sys/bus/pci/devices/0000:01:00.0
byte() { dd if=$d/config bs=1 skip=$1 count=1 2>/dev/null | hexdump -v -e '1/1 "%u"'; }
at=$(byte 52)
while [ $(byte $at) != 1 ]; do at=$(byte $((at + 1))); done
power() { printf "$1" | dd of=$d/config bs=1 seek=$((at + 4)) conv=notrunc 2>/dev/null; usleep 20000; }
status() { devmem $(($(head -n 1 $d/resource | cut -d ' ' -f 1) + 8)) 32; }
"#;

/// In D3hot a device decodes nothing (PCI PM 1.2, 5.4.1): its BARs are neither mapped nor answered, and come back with D0.
fn sleeps(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new().passes(NIC).script(&l2::nic_up("e1000e")).script(&l2::ping(2));
    steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        let slots = |guest: &Live, l1: &mut L1| {
            guest.resources(l1)?["memory-slots"].as_u64().context("no count of memory slots")
        };
        let run = |guest: &mut Live, l1: &mut L1, what: &str| guest.sh(l1, &format!("{POWER}\n{what}"));
        run(&mut guest, lab.l1, "echo 0000:01:00.0 > /sys/bus/pci/drivers/e1000e/unbind; echo LAB awake=$(status)")?;
        let awake = slots(&guest, lab.l1)?;
        run(
            &mut guest,
            lab.l1,
            "power '\\x03'; echo LAB state=$(($(byte $((at + 4))) & 3)); echo LAB asleep=$(status)",
        )?;
        let asleep = slots(&guest, lab.l1)?;
        ensure!(guest.value("state")? == "3", "the device is in D{}", guest.value("state")?);
        ensure!(guest.value("asleep")? == "0xFFFFFFFF", "in D3hot a register reads {}", guest.value("asleep")?);
        ensure!(asleep < awake, "{asleep} memory slots in D3hot, {awake} before");
        run(&mut guest, lab.l1, "power '\\x00'; echo LAB again=$(status)")?;
        ensure!(slots(&guest, lab.l1)? == awake, "the BARs are not mapped again");
        ensure!(guest.value("awake")? != "0xFFFFFFFF" && guest.value("again")? != "0xFFFFFFFF", "no register is read");
        let works =
            format!("echo 0000:01:00.0 > /sys/bus/pci/drivers/e1000e/bind\n{}\n{}", l2::nic_up("e1000e"), l2::ping(3));
        guest.sh(lab.l1, &works)?;
        ensure!(guest.value("ping")? == "3", "the NIC does not work after D3hot");
        guest.power_off(lab.l1)?.success()?;
        Ok(())
    })
}
