//! `pcie-pci-bridge`: a bridge from PCI Express to a conventional bus with 32 slots (PCIe 7.5.1.3, PCI Express to
//! PCI/PCI-X Bridge Specification 1.0).
//!
//! Devices behind it are conventional ones: a virtio device is transitional there, as in QEMU. Nothing is plugged there
//! while the guest runs: that would need a standard hot-plug controller (SHPC), which the bridge does not have.

use std::sync::Arc;

use super::decode::Decode;
use super::regs::{
    CAP_EXPRESS, CAP_POWER, DEVICE, INTERRUPT_PIN, POWER_CONTROL, POWER_NO_SOFT_RESET, POWER_STATE, VENDOR,
};
use super::root_port::bridge_header;
use super::{ConfigSpace, PciBus, PciCore, PciFunction};
use crate::device::{Adds, AnyDevice, Cx, Device, PCI, Plug};
use crate::error::Result;
use crate::memory::HostSlice;
use crate::object::{Create, TypeInfo, props};

/// Red Hat's PCIe-to-PCI bridge, which guests know by its class.
const IDS: (u16, u16) = (0x1b36, 0x000e);
/// PCI Express capabilities: version 2, bridge from PCI Express to PCI.
const EXPRESS_BRIDGE: u16 = 2 | 7 << 4;
/// Device capabilities: role-based error reporting.
const EXPRESS_DEVICE_CAP: u32 = 1 << 15;
/// Device control: error reporting, relaxed ordering, payload and request sizes, no snoop.
const EXPRESS_CONTROL: (u16, u16) = (0x08, 0x78ff);
/// Link capabilities and status: 2.5 GT/s, one lane.
const EXPRESS_LINK: [(usize, u32); 2] = [(0x0c, 0x11), (0x10, 0x11 << 16)];
/// Length of the capability.
const EXPRESS_LEN: usize = 0x3c;

/// The name of the type.
pub const NAME: &str = "pcie-pci-bridge";

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<BridgeType>();

props! {
    /// PCI bus with 32 slots for conventional devices.
    struct BridgeProps {}
}

struct BridgeType;

impl Create<Plug, Cx> for BridgeType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Bridges";
    const BUS: Option<&'static str> = Some(PCI);
    const ADDS_BUS: Option<&'static str> = Some(PCI);
    type Props = BridgeProps;

    fn create(BridgeProps {}: BridgeProps, cx: &Cx) -> Result<Plug> {
        let bridge = PciePciBridge::new(&cx.id, &cx.decode)?;
        let bus = bridge.bus.clone();
        Ok(Plug { device: AnyDevice::Function(bridge), adds: Some(Adds::Pci(bus)) })
    }
}

/// The bridge and the bus behind it.
struct PciePciBridge {
    id: Arc<str>,
    core: Arc<PciCore>,
    bus: Arc<PciBus>,
}

impl PciePciBridge {
    /// A bridge whose bus is named like itself.
    fn new(id: &str, decode: &Arc<Decode>) -> Result<Arc<PciePciBridge>> {
        let mut config = ConfigSpace::new();
        bridge_header(&mut config);
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        // It has nothing to interrupt for: the pins of what is behind it go through.
        config.set_u8(INTERRUPT_PIN, 0);
        let power = config.add_capability(CAP_POWER, &[3, 0, POWER_NO_SOFT_RESET as u8, 0, 0, 0])?;
        config.allow(power + POWER_CONTROL, &POWER_STATE.to_le_bytes());
        let express = config.add_capability(CAP_EXPRESS, &express_body())?;
        config.allow(express + EXPRESS_CONTROL.0, &EXPRESS_CONTROL.1.to_le_bytes());
        let core = Arc::new(PciCore::new(id, config, None, None));
        let bus = PciBus::conventional(id, decode, core.clone());
        Ok(Arc::new(PciePciBridge { id: id.into(), core, bus }))
    }
}

/// The PCI Express capability after id and link.
fn express_body() -> Vec<u8> {
    let mut cap = [0; EXPRESS_LEN];
    cap[2..4].copy_from_slice(&EXPRESS_BRIDGE.to_le_bytes());
    cap[4..8].copy_from_slice(&EXPRESS_DEVICE_CAP.to_le_bytes());
    for (at, value) in EXPRESS_LINK {
        cap[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    cap[2..].to_vec()
}

impl Device for PciePciBridge {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
    }
}

impl PciFunction for PciePciBridge {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn secondary(&self) -> Option<&Arc<PciBus>> {
        Some(&self.bus)
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core.with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::regs::{CLASS, HEADER_BRIDGE, HEADER_TYPE};
    use crate::pci::testing::Bench;

    #[test]
    fn it_is_a_bridge_to_a_bus_with_many_slots() {
        let bench = Bench::new();
        let bridge = PciePciBridge::new("b0", &bench.decode).unwrap();
        assert!(!bridge.bus.is_root() && !bridge.bus.is_express_port());
        bench.plug(bridge.clone(), "4");
        bridge.core.with(|config| {
            assert_eq!((config.u8(HEADER_TYPE), config.u16(CLASS + 1)), (HEADER_BRIDGE, 0x0604));
            assert_eq!(config.u16(config.find(CAP_EXPRESS).unwrap() + 2), EXPRESS_BRIDGE);
        });
        // A second bridge behind it, where every slot has its own wires: slot 7 INTA is the bridge's INTD.
        let behind = PciePciBridge::new("b1", &bench.decode).unwrap();
        behind.core.with(|config| config.set_u8(INTERRUPT_PIN, 1));
        let slot = bridge.bus.attach(behind.clone(), Some("7")).unwrap();
        assert_eq!(slot.devfn().slot(), 7);
        assert_eq!(behind.core.gsi(), Some(crate::pci::intx::intx_gsi(4, 3)));
        let first = bridge.bus.attach(PciePciBridge::new("b2", &bench.decode).unwrap(), None).unwrap();
        assert_eq!(first.devfn().slot(), 1);
        // It answers by its bus number when that is set, and not before.
        assert_eq!(bench.read32(2, "7", 0), u32::MAX);
        bench.write(0, "4", 0x18, 0x0002_0200, 4);
        assert_eq!(bench.read32(2, "7", 0), u32::from(IDS.1) << 16 | u32::from(IDS.0));
    }
}
