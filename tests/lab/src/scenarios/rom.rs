//! Expansion ROMs: the card's own, a file's, none.

use anyhow::{Result, ensure};

use super::steps::{self, NIC};
use crate::l1::Guest;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("expansion-rom", expansion_rom)];

/// Reads the ROM of the guest's only passed device twice, and reports its size and sums.
const READ: &str = "echo 1 > /sys/bus/pci/devices/0000:01:00.0/enable\n\
    r=$(ls /sys/bus/pci/devices/0000:01:00.0/rom 2>/dev/null)\n\
    [ -n \"$r\" ] && echo 1 > $r && cat $r > /tmp/a && cat $r > /tmp/b && echo 0 > $r\n\
    echo LAB rom=$(sha256sum < /tmp/a | cut -d ' ' -f 1)\n\
    echo LAB again=$(sha256sum < /tmp/b | cut -d ' ' -f 1)\n\
    echo LAB there=$([ -n \"$r\" ] && echo yes || echo no)";

fn expansion_rom(lab: &mut Lab) -> Result<()> {
    let of_host = "r=/sys/bus/pci/devices/0000:01:00.0/rom; echo 1 > $r; cat $r > /tmp/card.rom; echo 0 > $r; \
         sha256sum < /tmp/card.rom | cut -d ' ' -f 1";
    let sum = lab.l1.ok(of_host)?;
    let sum = sum.trim();
    for what in ["/tmp/card.rom", NIC] {
        let page = lab.l1.ok(&format!("passthru rom inspect {what}"))?;
        ensure!(page.contains("last image") && !page.contains("defect"), "inspect of {what} says:\n{page}");
    }
    lab.l1.ok("(printf NVGI; head -c 508 /dev/zero; cat /tmp/card.rom) > /tmp/dump.rom")?;
    lab.l1.fails("passthru rom inspect /etc/passwd", 2)?;
    let guest = |rom: &str| {
        Guest::new()
            .device("pcie-root-port,id=port1")
            .device(&format!("vfio-pci,host={NIC},bus=port1{rom}"))
            .script(READ)
    };
    steps::with_bound(lab, &[NIC], |lab| {
        for rom in ["", ",rom=file:/tmp/dump.rom"] {
            let ended = lab.l1.guest(&guest(rom))?.success()?;
            ensure!(ended.value("rom")? == sum, "`{rom}`: the guest reads another ROM than the host");
            ensure!(ended.value("again")? == sum, "`{rom}`: the second time the guest reads something else");
        }
        let ended = lab.l1.guest(&guest(",rom=off"))?.success()?;
        ensure!(ended.value("there")? == "no", "the guest sees a ROM that is off");
        Ok(())
    })
}
