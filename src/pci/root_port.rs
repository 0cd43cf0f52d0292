//! A PCI Express root port: the bridge that a device behind its own bus sits at (PCIe 7.5.1.3 and 7.5.3).
//!
//! It has a slot without hot-plug: nothing is advertised that does not work. Interrupts are by MSI only; the port has
//! no pin, and none of its services signals anything yet.

use std::sync::Arc;

use super::bridge::Windows;
use super::decode::Decode;
use super::regs::{
    BRIDGE_CONTROL, BRIDGE_CONTROL_RESET, CAP_EXPRESS, CAP_POWER, CLASS, COMMAND, COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, COMMAND_PARITY, COMMAND_SERR, DEVICE, HEADER_BRIDGE, HEADER_TYPE,
    IO_BASE, MEMORY_BASE, POWER_NO_SOFT_RESET, POWER_STATE, PREFETCH_BASE, PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER,
    PRIMARY_BUS, SECONDARY_STATUS, STATUS, STATUS_ERRORS, VENDOR,
};
use super::{ConfigSpace, Msi, MsiSpec, PciBus, PciCore, PciFunction};
use crate::device::Device;
use crate::error::Result;
use crate::irq::Router;

/// Red Hat's PCIe root port, which guests know.
const IDS: (u16, u16) = (0x1b36, 0x000c);
/// PCI-to-PCI bridge, class 06 subclass 04 (PCI appendix D).
const CLASS_BRIDGE: [u8; 3] = [0, 4, 6];
/// The low bits of the prefetchable base and limit: 64-bit addresses (bridge 3.2.5.9).
const PREFETCH_64BIT: u32 = 0x0001_0001;

/// Registers of the PCI Express capability from its start (PCIe 7.5.3), those that the port has.
mod express {
    /// PCI Express capabilities: version 2, root port, slot implemented.
    pub const CAPABILITIES: (usize, u16) = (0x02, 2 | 4 << 4 | 1 << 8);
    /// Device capabilities: 128-byte payloads, role-based error reporting.
    pub const DEVICE_CAP: (usize, u32) = (0x04, 1 << 15);
    /// Device control: error reporting, relaxed ordering, payload and request sizes, extended tags, no snoop.
    pub const DEVICE_CONTROL: (u16, u16) = (0x08, 0x79ff);
    /// Device status: the four error bits, cleared by writing ones.
    pub const DEVICE_STATUS: (u16, u16) = (0x0a, 0x000f);
    /// Link capabilities: 16 GT/s, 16 lanes, the link's state is reported.
    pub const LINK_CAP: (usize, u32) = (0x0c, 4 | 16 << 4 | 1 << 20);
    /// Link control: ASPM, common clock, extended sync.
    pub const LINK_CONTROL: (u16, u16) = (0x10, 0x00c3);
    /// Link status: speed in bits 0 to 3, width in bits 4 to 9, bit 13 for an active link.
    pub const LINK_STATUS: u16 = 0x12;
    pub const LINK_UP: u16 = 4 | 16 << 4 | 1 << 13;
    /// Slot capabilities: the slot's number from bit 19 on.
    pub const SLOT_CAP: usize = 0x14;
    pub const SLOT_NUMBER_SHIFT: u32 = 19;
    pub const SLOT_NUMBER_MAX: u16 = 0x1fff;
    /// Slot status: presence.
    pub const SLOT_STATUS: u16 = 0x1a;
    pub const SLOT_PRESENT: u16 = 1 << 6;
    /// Root control: which errors become system errors, PME interrupt enable.
    pub const ROOT_CONTROL: (u16, u16) = (0x1c, 0x000f);
    /// Link capabilities 2: 2.5, 5, 8 and 16 GT/s.
    pub const LINK_CAP2: (usize, u32) = (0x2c, 0x1e);
    /// Link control 2: target speed.
    pub const LINK_CONTROL2: (usize, u16) = (0x30, 4);
    /// Length of the capability.
    pub const LEN: usize = 0x3c;
}

/// A root port and the bus behind it.
pub struct RootPort {
    id: Arc<str>,
    core: Arc<PciCore>,
    bus: Arc<PciBus>,
}

impl RootPort {
    /// A port whose bus is named like itself. `slot` is the number that the guest shows to people, up to 8191, unique in
    /// the machine.
    ///
    /// # Errors
    /// None that a user could cause; the capabilities are made to fit.
    pub fn new(id: &str, slot: u16, decode: &Arc<Decode>, router: &Arc<Router>) -> Result<Arc<RootPort>> {
        let mut config = ConfigSpace::new();
        header(&mut config);
        let power = config.add_capability(CAP_POWER, &[3, 0, POWER_NO_SOFT_RESET as u8, 0, 0, 0])?;
        config.allow(power + super::regs::POWER_CONTROL, &POWER_STATE.to_le_bytes());
        let express = config.add_capability(CAP_EXPRESS, &express_body(slot))?;
        for (off, mask) in [express::DEVICE_CONTROL, express::LINK_CONTROL, express::ROOT_CONTROL] {
            config.allow(express + off, &mask.to_le_bytes());
        }
        config.allow_clear(express + express::DEVICE_STATUS.0, &express::DEVICE_STATUS.1.to_le_bytes());
        let spec = MsiSpec { vectors: 1, address_64bit: true, maskable: false };
        let msi = Msi::add(&mut config, spec, router, id)?;
        let core = Arc::new(PciCore::new(id, config, Some(msi), None));
        let bus = PciBus::secondary(id, decode, core.clone());
        Ok(Arc::new(RootPort { id: id.into(), core, bus }))
    }

    /// The bus behind the port.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }
}

/// The type 1 header (bridge 3.2).
fn header(config: &mut ConfigSpace) {
    config.set_u16(VENDOR, IDS.0);
    config.set_u16(DEVICE, IDS.1);
    config.set(CLASS, &CLASS_BRIDGE);
    config.set_u8(HEADER_TYPE, HEADER_BRIDGE);
    let command =
        COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
    config.allow(COMMAND, &command.to_le_bytes());
    config.allow_clear(STATUS, &STATUS_ERRORS.to_le_bytes());
    config.allow(PRIMARY_BUS, &[0xff; 3]);
    config.allow_clear(SECONDARY_STATUS, &STATUS_ERRORS.to_le_bytes());
    // Parity response, SERR# and the reset of the bus behind; no VGA or ISA filters.
    config.allow(BRIDGE_CONTROL, &(BRIDGE_CONTROL_RESET | 0b11).to_le_bytes());
    // All windows are closed after power-on.
    for (at, value) in Windows::default().registers() {
        let value = if at == PREFETCH_BASE { value | PREFETCH_64BIT } else { value };
        // The dword of the I/O window has the secondary status in its upper half, which is zero here.
        config.set_u32(at, value);
    }
    config.allow(IO_BASE, &[0xf0; 2]);
    for at in [MEMORY_BASE, PREFETCH_BASE] {
        config.allow(at, &0xfff0_fff0u32.to_le_bytes());
    }
    for at in [PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER] {
        config.allow(at, &[0xff; 4]);
    }
}

/// The PCI Express capability after id and link.
fn express_body(slot: u16) -> Vec<u8> {
    let mut cap = [0; express::LEN];
    let number = u32::from(slot.min(express::SLOT_NUMBER_MAX)) << express::SLOT_NUMBER_SHIFT;
    // The port's number is the slot's: both only tell ports apart.
    let link = (express::LINK_CAP.0, express::LINK_CAP.1 | u32::from(slot as u8) << 24);
    for (at, value) in [express::DEVICE_CAP, link, (express::SLOT_CAP, number), express::LINK_CAP2] {
        cap[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [express::CAPABILITIES, express::LINK_CONTROL2] {
        cap[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    cap[2..].to_vec()
}

/// Shows in a port's registers whether there is something behind it.
pub(super) fn set_link(port: &PciCore, up: bool) {
    let Some(at) = port.express() else { return };
    port.with(|config| {
        config.set_u16(at + express::LINK_STATUS, if up { express::LINK_UP } else { 0 });
        config.set_u16(at + express::SLOT_STATUS, if up { express::SLOT_PRESENT } else { 0 });
    });
}

impl Device for RootPort {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
    }
}

impl PciFunction for RootPort {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn secondary(&self) -> Option<&Arc<PciBus>> {
        Some(&self.bus)
    }

    fn reads_are_emulated(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(bench.read32(0, "2", 0x3c), 0, "no pin");
        bench.write(0, "2", 0x1c, 0xffff, 2);
        assert_eq!(bench.read32(0, "2", 0x1c), 0xf0f0, "16-bit ports");
        bench.write(0, "2", 0x24, 0xffff_ffff, 4);
        assert_eq!(bench.read32(0, "2", 0x24), 0xfff1_fff1, "64-bit prefetchable memory");
        bench.write(0, "2", 0x3c, 0xffff_ffff, 4);
        assert_eq!(bench.read32(0, "2", 0x3c), 0x0043_00ff);
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
        assert_eq!(bench.read32(0, "2", at + 0x14), 5 << 19, "slot 5 without hot-plug");
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
        assert!(
            port.bus().attach(Fake::new("y", one_bar(0, 8), &bench.memory), Some("0.2")).is_err(),
            "BAR of 8 bytes"
        );
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
        assert_eq!(port.core().gsi(), None);
        assert_eq!(port.bus().gsi(Devfn::parse("0.0").unwrap(), 3), 16 + 2 + 3);
        let direct = Fake::new("d", one_bar(0, 16), &bench.memory);
        bench.plug(direct.clone(), "1f.2");
        assert_eq!(direct.core().gsi(), Some(16 + 7));
    }
}
