//! The registers against the specifications, and what is behind the port.

use super::super::regs::{CAP_MSI, SECONDARY_BUS};
use super::super::testing::{Bench, Fake, one_bar};
use super::super::{Changes, Devfn, Slot};
use super::*;
use crate::error::Code;
use crate::memory::Space;

/// A port at 00:02.0 that forwards c0000000 to c00fffff to bus 1, and a function at 01:00.0.
fn setup() -> (Bench, Arc<RootPort>, Arc<Fake>, Slot) {
    let bench = Bench::new();
    let port = RootPort::new("rp1", 5, &bench.decode, &bench.router).unwrap();
    bench.plug(port.clone(), "2");
    let function = Fake::new("nic0", one_bar(0, 0x1000), &bench.memory);
    let slot = port.bus().attach(function.clone(), None).unwrap();
    bench.write(0, "2", PRIMARY_BUS, 0x01_01_00, 4);
    bench.write(0, "2", MEMORY_BASE, 0xc000_c000, 4);
    bench.write(0, "2", COMMAND, u32::from(COMMAND_MEMORY), 2);
    bench.enable(1, "0", 0, 0xc000_0000, COMMAND_MEMORY);
    (bench, port, function, slot)
}

#[test]
fn legacy_vga_is_forwarded_by_the_control_register() {
    let (bench, port, _function, _slot) = setup();
    let forwards = || [Space::Mmio, Space::Pio].map(|space| port.core().bridge().unwrap().forwards_vga(space));
    assert_eq!(forwards(), [false, false]);
    bench.write(0, "2", BRIDGE_CONTROL, u32::from(BRIDGE_CONTROL_VGA | BRIDGE_CONTROL_VGA_16BIT), 2);
    assert_eq!(forwards(), [true, false], "ports are not enabled");
    bench.write(0, "2", COMMAND, u32::from(COMMAND_MEMORY | COMMAND_IO), 2);
    assert_eq!(forwards(), [true, true]);
    bench.root.route_legacy_vga();
    assert_eq!(forwards(), [true, true], "nobody asks for it");
}

#[test]
fn the_header_is_a_bridge_s_with_closed_windows() {
    let bench = Bench::new();
    bench.plug(RootPort::new("rp1", 5, &bench.decode, &bench.router).unwrap(), "2");
    assert_eq!(bench.read32(0, "2", 0), 0x000c_1b36);
    assert_eq!(bench.read32(0, "2", 0x08), 0x0604_0000);
    assert_eq!(bench.read32(0, "2", 0x0c) >> 16, 1);
    assert_eq!(bench.read32(0, "2", 0x10), 0);
    assert_eq!(bench.read32(0, "2", 0x1c), 0x0000_00f0);
    assert_eq!(bench.read32(0, "2", 0x20), 0x0000_fff0);
    assert_eq!(bench.read32(0, "2", 0x24), 0x0001_fff1);
    assert_eq!(bench.read32(0, "2", 0x3c), 0x400, "INTD");
    bench.write(0, "2", 0x1c, 0xffff, 2);
    assert_eq!(bench.read32(0, "2", 0x1c), 0xf0f0, "16-bit ports");
    bench.write(0, "2", 0x24, 0xffff_ffff, 4);
    assert_eq!(bench.read32(0, "2", 0x24), 0xfff1_fff1, "64-bit prefetchable memory");
    bench.write(0, "2", 0x3c, 0xffff_ffff, 4);
    assert_eq!(bench.read32(0, "2", 0x3c), 0x005b_04ff);
}

#[test]
fn the_express_capability_is_a_root_port_s_with_a_slot() {
    let (bench, port, _, slot) = setup();
    let at = port.core().express().unwrap();
    let caps = port.core().with(|config| config.capabilities());
    assert_eq!(caps.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [CAP_POWER, CAP_EXPRESS, CAP_MSI]);
    assert_eq!(bench.read32(0, "2", at) >> 16, 0x0142);
    assert_eq!(bench.read32(0, "2", at + 0x0c), 0x0510_0104, "link capabilities with port number 5");
    assert_eq!(bench.read32(0, "2", at + 0x10) >> 16, 0x2104, "link up at 16 GT/s, x16");
    assert_eq!(bench.read32(0, "2", at + 0x14), 5 << 19 | 0x7b, "slot 5 with hot-plug");
    assert_eq!(bench.read32(0, "2", at + 0x18) >> 16, 0x40, "present");
    drop(slot);
    assert_eq!(bench.read32(0, "2", at + 0x10) >> 16, 0);
    assert_eq!(bench.read32(0, "2", at + 0x18) >> 16, 0);
    bench.write(0, "2", at + 0x08, 0x000f_ffff, 4);
    assert_eq!(bench.read32(0, "2", at + 0x08), 0x79ff, "no function-level reset, errors cleared");
}

#[test]
fn behind_a_port_there_is_one_slot() {
    let (bench, port, _, _slot) = setup();
    let again = port.bus().attach(Fake::new("x", one_bar(0, 16), &bench.memory), None).err().unwrap();
    assert_eq!(again.evidence_lines(), ["00.0 is nic0"]);
    let other = port.bus().attach(Fake::new("x", one_bar(0, 16), &bench.memory), Some("1")).err().unwrap();
    assert_eq!((other.code(), other.cause()), (Code::BadBus, "bus rp1 has slot 0 only, not 01.0"));
    let function = port.bus().attach(Fake::new("x", one_bar(0, 16), &bench.memory), Some("0.1")).unwrap();
    assert_eq!(function.devfn(), Devfn::parse("0.1").unwrap());
    assert!(port.bus().attach(Fake::new("y", one_bar(0, 8), &bench.memory), Some("0.2")).is_err(), "BAR of 8 bytes");
}

#[test]
fn configuration_follows_the_bus_numbers() {
    let (bench, _, _, _slot) = setup();
    assert_eq!(bench.read32(1, "0", 0), 0x5678_1234);
    assert_eq!(bench.read32(1, "1", 0), u32::MAX);
    assert_eq!(bench.read32(2, "0", 0), u32::MAX);
    bench.write(0, "2", SECONDARY_BUS, 0x0909, 2);
    assert_eq!((bench.read32(1, "0", 0), bench.read32(9, "0", 0)), (u32::MAX, 0x5678_1234));
    bench.write(0, "2", SECONDARY_BUS, 0, 2);
    assert_eq!(bench.read32(9, "0", 0), u32::MAX);
}

#[test]
fn a_bar_is_mapped_while_every_bridge_above_forwards_it() {
    let (bench, _, function, _slot) = setup();
    let there = [("nic0 BAR0".to_string(), 0xc000_0000)];
    assert_eq!(bench.mapped(Space::Mmio), there);
    function.told.lock().clear();
    bench.write(0, "2", COMMAND, 0, 2);
    assert!(bench.mapped(Space::Mmio).is_empty());
    bench.write(0, "2", COMMAND, u32::from(COMMAND_MEMORY), 2);
    assert_eq!(bench.mapped(Space::Mmio), there);
    bench.write(0, "2", MEMORY_BASE, 0xc010_c010, 4);
    assert!(bench.mapped(Space::Mmio).is_empty());
    bench.write(0, "2", PREFETCH_BASE, 0xc000_c000, 4);
    assert_eq!(bench.mapped(Space::Mmio), there, "the prefetchable window forwards any BAR");
    assert!(function.told.lock().is_empty(), "a bridge's windows are no business of what is behind it");
    bench.write(1, "0", 0x10, 0xd000_0000, 4);
    assert!(bench.mapped(Space::Mmio).is_empty());
}

#[test]
fn a_port_without_power_forwards_nothing() {
    let (bench, port, _, _slot) = setup();
    let power = port.core().with(|config| config.find(CAP_POWER)).unwrap();
    bench.write(0, "2", power + 4, 3, 2);
    assert_eq!(port.core().power_state(), 3);
    assert!(bench.mapped(Space::Mmio).is_empty());
    bench.write(0, "2", power + 4, 0, 2);
    assert_eq!(bench.mapped(Space::Mmio).len(), 1);
}

#[test]
fn a_secondary_bus_reset_resets_what_is_behind() {
    let (bench, _, function, _slot) = setup();
    function.told.lock().clear();
    bench.write(0, "2", BRIDGE_CONTROL, u32::from(BRIDGE_CONTROL_RESET), 2);
    assert_eq!((bench.read32(1, "0", 0x04), bench.read32(1, "0", 0x10)), (0, 0));
    assert_eq!(*function.told.lock(), [(Changes::RESET, vec![])], "told when it is unmapped");
    bench.write(0, "2", BRIDGE_CONTROL, u32::from(BRIDGE_CONTROL_RESET), 2);
    bench.write(0, "2", BRIDGE_CONTROL, 0, 2);
    assert_eq!(function.told.lock().len(), 1, "once for each assertion");
    assert_eq!(bench.read32(0, "2", 0x18), 0x01_01_00, "the port itself keeps its registers");
}

#[test]
fn pins_behind_a_port_are_swizzled() {
    let (bench, port, function, _slot) = setup();
    assert_eq!(function.core().gsi(), Some(16 + 2));
    assert_eq!(port.core().gsi(), Some(16 + 2 + 3));
    assert_eq!(port.bus().gsi(Devfn::parse("0.0").unwrap(), 3), 16 + 2 + 3);
    let direct = Fake::new("d", one_bar(0, 16), &bench.memory);
    bench.plug(direct.clone(), "1f.2");
    assert_eq!(direct.core().gsi(), Some(16 + 7));
}

#[test]
fn without_its_port_a_function_is_not_mapped() {
    let (bench, _, _, slot) = setup();
    assert_eq!(bench.mapped(Space::Mmio).len(), 1);
    bench.slots.lock().clear();
    assert!(bench.mapped(Space::Mmio).is_empty());
    assert_eq!(bench.read32(1, "0", 0), u32::MAX);
    drop(slot);
}
