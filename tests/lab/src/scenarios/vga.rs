//! Legacy VGA: a display controller's memory and ports at their old addresses.

use anyhow::{Result, ensure};

use super::steps::{self, NIC};
use crate::l0::machines::{self, VGA_AT};
use crate::l1::Guest;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("x-vga", legacy_ranges).on(&machines::VGA)];

/// Colour 5 of the palette is written and read by ports; then the sequencer is set to linear memory, and a byte is written
/// and read through the window at a0000h.
const USE: &str = r#"
put() { printf "\\x$2" | dd of=/dev/port bs=1 seek=$((0x$1)) count=1 conv=notrunc 2>/dev/null; }
get() { dd if=/dev/port bs=1 skip=$((0x$1)) count=1 2>/dev/null | hexdump -e '1/1 "%02x"'; }
put 3c8 05; put 3c9 11; put 3c9 22; put 3c9 33
put 3c7 05
echo LAB colour=$(get 3c9)$(get 3c9)$(get 3c9)
put 3ce 06; put 3cf 05; put 3c4 04; put 3c5 0e; put 3c4 02; put 3c5 0f
devmem 0xa0000 8 0x5a; devmem 0xa1234 8 0xa5
echo LAB memory=$(devmem 0xa0000 8)$(devmem 0xa1234 8)
echo LAB window=$(grep -c '^ *000a0000-000bffff : PCI Bus' /proc/iomem)
"#;

fn legacy_ranges(lab: &mut Lab) -> Result<()> {
    for (on_port, bus) in [(false, ""), (true, ",bus=port1")] {
        let mut guest = Guest::new().script(USE);
        if on_port {
            guest = guest.device("pcie-root-port,id=port1");
        }
        let guest = guest.device(&format!("vfio-pci,host={VGA_AT},x-vga=on{bus}"));
        let ended = steps::with_bound(lab, &[VGA_AT], |lab| lab.l1.guest(&guest)?.success())?;
        ensure!(ended.value("colour")? == "112233", "the palette reads {}", ended.value("colour")?);
        ensure!(ended.value("memory")? == "0x5A0xA5", "VGA's memory reads {}", ended.value("memory")?);
        ensure!(ended.value("window")? == "1", "the root has no window for VGA's memory");
    }
    steps::with_bound(lab, &[NIC], |lab| {
        let command = lab.l1.prepare(&Guest::new().device(&format!("vfio-pci,host={NIC},x-vga=on")))?;
        let text = lab.l1.fails(&command, 4)?;
        ensure!(text.contains("PT051") && text.contains("x-vga"), "a NIC's x-vga=on says:\n{text}");
        Ok(())
    })
}
