//! `passthru inspect`: what is known about devices of the host before anything is opened.

use std::fmt::Write;

use clap::Args;

use super::output;
use super::sysroot::Sysroot;
use crate::error::Result;
use crate::host::Host;
use crate::host::inspect::Inspection;
use crate::host::names::DeviceRef;
use crate::host::pci::{Resource, ResourceKind};

/// Show what a device is, what its IOMMU group holds, and how it would be reset
///
/// The last lines say what is to be done before a guest can have it. Nothing is opened and nothing is changed. Without
/// root the interrupts and capabilities are not shown.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Addresses of the devices, as `passthru devices` prints them: 01:00.0 or 0000:01:00.0; 01:00 means all functions of a
    /// device; or names of /etc/passthru/devices.d
    #[arg(value_name = "DEVICE", required = true)]
    devices: Vec<DeviceRef>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sysroot: Sysroot,
}

pub(super) fn execute(args: &InspectArgs, host: &Host) -> Result<()> {
    let host = args.sysroot.host(host);
    let devices = output::functions(&args.devices, &host, |addr| host.functions(addr))?;
    output::each(&devices, args.json, |&device| host.inspect(device), text)
}

/// One line for each fact, its name first.
fn text(seen: &Inspection) -> String {
    let device = &seen.device;
    let mut text = format!("{} {}\n", device.bdf, device.name());
    let mut line = |name: &str, what: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:11} {what}");
    };
    line("class", &format!("{:06x} {}", device.class, device.class_name.unwrap_or("unknown class")));
    line(
        "driver",
        &match &device.driver_override {
            Some(only) => format!("{}, and only {only} may bind", device.driver_text()),
            None => device.driver_text().to_owned(),
        },
    );
    for name in &seen.names {
        line("name", &name.to_string());
    }
    line("path", &seen.identity.path);
    if let Some(slot) = &seen.identity.slot {
        line("slot", slot);
    }
    if let Some(serial) = &seen.identity.serial {
        line("serial", &serial.to_string());
    }
    for mac in &seen.identity.macs {
        line("mac", &mac.to_string());
    }
    if let Some(physfn) = device.physfn {
        line("function of", &format!("{physfn}, whose virtual function it is"));
    }
    if device.virtual_functions > 0 {
        line("VFs", &format!("{} are on", device.virtual_functions));
    }
    for bridge in &seen.bridges {
        line("behind", &bridge.to_string());
    }
    match device.iommu_group {
        Some(id) => line("IOMMU group", &format!("{id}, {} members", seen.group.len())),
        None => line("IOMMU group", "none: no IOMMU confines it"),
    }
    for member in &seen.group {
        line("  member", &member.to_string());
    }
    for used in &seen.uses {
        line("in use", &used.to_string());
    }
    for (resource, access) in device.resources.iter().zip(&seen.access) {
        line(&resource_name(resource), &format!("{}; {access}", resource_text(resource)));
    }
    if let Some(interrupts) = &seen.interrupts {
        let pin = interrupts.pin.map(|pin| format!("INT{pin}"));
        let msi = interrupts.msi.map(|count| format!("MSI ({count})"));
        let msix = interrupts.msix.map(|count| format!("MSI-X ({count})"));
        let all: Vec<String> = [pin, msi, msix].into_iter().flatten().collect();
        line("interrupts", &if all.is_empty() { "none".to_owned() } else { all.join(", ") });
    }
    for capability in &seen.capabilities {
        let name = capability.name.map_or_else(|| format!("number {:#x}", capability.id), str::to_owned);
        line("capability", &format!("{:03x} {name}", capability.at));
    }
    if let Some(state) = &seen.power_state {
        line("power", state);
    }
    if let Some(link) = &seen.link {
        let best = format!("{} x{}", link.max_speed, link.max_width);
        line("link", &format!("{} x{}, at best {best}", link.speed, link.width));
    }
    for quirk in &seen.quirks {
        line("quirk", &format!("{} ({}; {})", quirk.kind, quirk.reason, quirk.source));
    }
    let methods = match &seen.reset.facts.methods {
        None => "unknown: the kernel is older than 5.15".to_owned(),
        Some(methods) if methods.is_empty() => "none".to_owned(),
        Some(methods) => methods.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    line("reset", &seen.reset.verdict.to_string());
    line("  methods", &methods);
    if let Some(scope) = seen.reset.facts.scope {
        let hit = seen
            .reset
            .facts
            .affected
            .iter()
            .map(|other| format!("{}{}", other.bdf, if other.owned { "" } else { " (not ours)" }));
        line(&format!("  {scope}"), &format!("a hot reset hits {}", hit.collect::<Vec<_>>().join(", ")));
    }
    if let Some(reason) = &seen.quarantine {
        line("quarantined", reason);
    }
    match (seen.ready, seen.steps.is_empty()) {
        (true, _) => line("ready", "a guest can have it now"),
        (false, true) => line("to do", "nothing would do: `passthru check` says why"),
        (false, false) => seen.steps.iter().for_each(|step| line("to do", step)),
    }
    text
}

fn resource_name(resource: &Resource) -> String {
    if resource.index == crate::host::pci::ROM_INDEX { "ROM".to_owned() } else { format!("BAR {}", resource.index) }
}

fn resource_text(resource: &Resource) -> String {
    let kind = match resource.kind {
        ResourceKind::Io => "I/O ports",
        ResourceKind::Mem32 => "32-bit memory",
        ResourceKind::Mem64 => "64-bit memory",
    };
    let prefetchable = if resource.prefetchable { ", prefetchable" } else { "" };
    format!("{} at {:#x}, {kind}{prefetchable}", size(resource.size), resource.start)
}

/// Bytes in the largest unit that divides them.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    fn card() -> TestTree {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").ids(0x8086, 0x1901).bridge().driver("pcieport").group(1).add();
        let card = "0000:01:00.0";
        tree.pci(card).below("0000:00:01.0").ids(0x10de, 0x2206).class(0x030000).driver("vfio-pci").group(1).add();
        tree.pci("0000:01:00.1")
            .below("0000:00:01.0")
            .ids(0x10de, 0x1aef)
            .class(0x040300)
            .driver("snd_hda_intel")
            .group(1)
            .add();
        for (name, text) in [
            ("reset_method", "bus\n"),
            ("power_state", "D3hot\n"),
            ("current_link_speed", "2.5 GT/s PCIe\n"),
            ("current_link_width", "16\n"),
            ("max_link_speed", "16.0 GT/s PCIe\n"),
            ("max_link_width", "16\n"),
            (
                "resource",
                "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n\
                 0x00000000e0000000 0x00000000efffffff 0x000000000014220c\n",
            ),
        ] {
            tree.attribute(card, name, text);
        }
        tree
    }

    #[test]
    fn a_graphics_card_on_paper() {
        let tree = card();
        tree.host().quarantine(bdf("01:00.0"), "it did not answer after its reset").unwrap();
        let seen = text(&tree.host().inspect(bdf("01:00.0")).unwrap());
        let wanted = "\
0000:01:00.0 NVIDIA Corporation GA102 [GeForce RTX 3080] [10de:2206]
  class       030000 VGA compatible controller
  driver      vfio-pci
  path        0000:00:01.0/00.0
  behind      0000:00:01.0
  IOMMU group 1, 3 members
    member    0000:00:01.0 Intel Corporation 6th-10th Gen Core Processor PCIe Controller (x16) [8086:1901]: driver pcieport, fine
    member    0000:01:00.0 NVIDIA Corporation GA102 [GeForce RTX 3080] [10de:2206]: driver vfio-pci, fine
    member    0000:01:00.1 NVIDIA Corporation GA102 High Definition Audio Controller [10de:1aef]: driver snd_hda_intel, blocks
  BAR 0       16 MiB at 0xf6000000, 32-bit memory; mapped
  BAR 1       256 MiB at 0xe0000000, 64-bit memory, prefetchable; mapped
  power       D3hot
  link        2.5 GT/s PCIe x16, at best 16.0 GT/s PCIe x16
  reset       none: a hot reset would also hit 0000:01:00.1 (driver snd_hda_intel)
    methods   bus
    bus       a hot reset hits 0000:01:00.0, 0000:01:00.1 (not ours)
  quarantined it did not answer after its reset
  to do       power the host off and on; if you know that the device works again: `passthru recover --clear 0000:01:00.0`
";
        assert_eq!(seen, wanted);
    }

    #[test]
    fn json_has_the_plan() {
        let seen = serde_json::to_value(card().host().inspect(bdf("01:00.0")).unwrap()).unwrap();
        assert_eq!(seen["bdf"], "0000:01:00.0");
        assert_eq!(seen["reset"]["methods"], serde_json::json!(["bus"]));
        assert_eq!(seen["reset"]["verdict"]["reset"], "none");
        assert_eq!(seen["reset"]["verdict"]["blockers"][0]["bdf"], "0000:01:00.1");
        assert_eq!(seen["reset"]["affected"][1]["owned"], false);
    }

    #[test]
    fn sizes_are_in_the_largest_unit() {
        let table = [(32, "32 bytes"), (4096, "4 KiB"), (3 << 20, "3 MiB"), (16 << 30, "16 GiB"), (1 << 40, "1 TiB")];
        for (bytes, wanted) in table {
            assert_eq!(size(bytes), wanted);
        }
    }
}
