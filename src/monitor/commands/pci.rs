//! The PCI tree, in the form of QEMU's `query-pci`.

use std::ops::Range;

use serde_json::{Value, json};

use super::Command;
use crate::pci::BarKind;
use crate::pci::bar::ROM_INDEX;
use crate::pci::view::{BarView, BusView, FunctionView};
use crate::pci_names;

/// The commands of this file.
pub static COMMANDS: &[Command] = &[Command {
    name: "query-pci",
    doc: "Every PCI function with its ids, BARs and, behind bridges, further functions, by their registers",
    params: &[],
    open: false,
    run: |control, _| {
        let root = control.pci();
        Ok(json!([{ "bus": root.number, "devices": functions(&root) }]).into())
    },
}];

fn functions(bus: &BusView) -> Vec<Value> {
    bus.functions.iter().map(|function| describe(bus.number, function)).collect()
}

fn describe(bus: u8, function: &FunctionView) -> Value {
    let [sub, base] = function.class.to_le_bytes();
    let mut id = json!({ "vendor": function.ids.0, "device": function.ids.1 });
    if let (Some((vendor, device)), Some(members)) = (function.subsystem, id.as_object_mut()) {
        members.insert("subsystem-vendor".into(), vendor.into());
        members.insert("subsystem".into(), device.into());
    }
    let mut class = json!({ "class": function.class });
    if let (Some(name), Some(members)) = (pci_names::class(base, sub), class.as_object_mut()) {
        members.insert("desc".into(), name.into());
    }
    let mut described = json!({
        "bus": bus,
        "slot": function.devfn.slot(),
        "function": function.devfn.function(),
        "class_info": class,
        "id": id,
        "irq_pin": function.interrupt.map_or(0, |(pin, _)| pin + 1),
        "qdev_id": function.id,
        "regions": function.bars.iter().map(region).collect::<Vec<_>>(),
    });
    let Some(members) = described.as_object_mut() else { return described };
    if let Some((_, line)) = function.interrupt {
        members.insert("irq".into(), line.into());
    }
    if let Some(bridge) = &function.bridge {
        let numbers = json!({
            "number": bus,
            "secondary": bridge.bus.number,
            "subordinate": bridge.subordinate,
            "io_range": range(&bridge.io),
            "memory_range": range(&bridge.memory),
            "prefetchable_range": range(&bridge.prefetchable),
        });
        members.insert("pci_bridge".into(), json!({ "bus": numbers, "devices": functions(&bridge.bus) }));
    }
    described
}

fn region(bar: &BarView) -> Value {
    if bar.kind == BarKind::Io {
        return json!({ "bar": bar.index, "type": "io", "address": bar.address, "size": bar.size });
    }
    json!({
        "bar": bar.index,
        "type": "memory",
        "address": bar.address,
        "size": bar.size,
        "prefetch": bar.prefetchable,
        "mem_type_64": bar.kind == BarKind::Mem64 && bar.index != ROM_INDEX,
    })
}

/// A window; one that is closed has its base above its limit, as in the registers.
fn range(window: &Range<u64>) -> Value {
    match window.is_empty() {
        true => json!({ "base": u64::from(u32::MAX), "limit": 0 }),
        false => json!({ "base": window.start, "limit": window.end - 1 }),
    }
}
