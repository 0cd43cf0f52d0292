//! A PCI Express root port: the bridge that a device behind its own bus sits at (PCIe 7.5.1.3 and 7.5.3).
//!
//! Its slot is in [`super::slot`], which interrupts by the port's MSI or its pin.

use std::sync::Arc;

use super::assign::{Reserve, Room};
use super::bridge::Windows;
use super::decode::Decode;
use super::regs::{
    BRIDGE_CONTROL, BRIDGE_CONTROL_RESET, BRIDGE_CONTROL_VGA, BRIDGE_CONTROL_VGA_16BIT, CAP_EXPRESS, CAP_POWER, CLASS,
    COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, COMMAND_PARITY, COMMAND_SERR,
    DEVICE, HEADER_BRIDGE, HEADER_TYPE, INTERRUPT_PIN, IO_BASE, MEMORY_BASE, POWER_NO_SOFT_RESET, POWER_STATE,
    PREFETCH_BASE, PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER, PRIMARY_BUS, SECONDARY_STATUS, STATUS, STATUS_ERRORS,
    VENDOR,
};
use super::slot::{self, ExpressSlot};
use super::{Changes, ConfigSpace, Msi, MsiSpec, PciBus, PciCore, PciFunction};
use crate::device::{Adds, AnyDevice, Cx, Device, PCI, Plug};
use crate::error::Result;
use crate::irq::Router;
use crate::memory::HostSlice;
use crate::object::{Create, Int, Size, TypeInfo, props};

/// Red Hat's PCIe root port, which guests know.
const IDS: (u16, u16) = (0x1b36, 0x000c);
/// PCI-to-PCI bridge, class 06 subclass 04 (PCI appendix D).
const CLASS_BRIDGE: [u8; 3] = [0, 4, 6];
/// The pin, as the register numbers them. Devices use INTA, which has another line here: Linux removes a device in the
/// interrupt thread of the port's line, and letting go of the device's own line waits for the threads of that.
const INTD: u8 = 4;
/// The low bits of the prefetchable base and limit: 64-bit addresses (bridge 3.2.5.9).
const PREFETCH_64BIT: u32 = 0x0001_0001;

/// Link status of a link that is up: 16 GT/s, 16 lanes, active.
pub(super) const LINK_UP: u16 = 4 | 16 << 4 | 1 << 13;
/// Room that a slot with hot-plug has where the user does not say: ports, memory below 4 GiB, prefetchable memory.
const ROOM: (u64, u64, u64) = (4 << 10, 2 << 20, 1 << 30);

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
    /// Slot capabilities: the slot's number from bit 19 on.
    pub const SLOT_CAP: usize = super::slot::CAPABILITIES as usize;
    pub const SLOT_NUMBER_SHIFT: u32 = 19;
    pub const SLOT_NUMBER_MAX: u16 = 0x1fff;
    /// Root control: which errors become system errors, PME interrupt enable.
    pub const ROOT_CONTROL: (u16, u16) = (0x1c, 0x000f);
    /// Link capabilities 2: 2.5, 5, 8 and 16 GT/s.
    pub const LINK_CAP2: (usize, u32) = (0x2c, 0x1e);
    /// Link control 2: target speed.
    pub const LINK_CONTROL2: (usize, u16) = (0x30, 4);
    /// Length of the capability.
    pub const LEN: usize = 0x3c;
}

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<RootPortType>();

props! {
    /// PCI Express root port: a slot of its own for one device.
    struct RootPortProps {
        /// Number of the slot that the guest shows to people; 0: the next one that is free
        slot: u16 = "0",
        /// Number of the enclosure that the slot is in, as QEMU command lines have it: no register shows it to the guest
        chassis: Int<0, 255> = "0",
        /// Whether a device can be plugged and unplugged while the guest runs
        hotplug: bool = "on",
        /// Ports kept free for a device that is plugged later; by default 4K with hotplug=on, if there is so much
        #[name = "io-reserve"]
        io_reserve: Option<Size>,
        /// Memory below 4 GiB kept free; by default 2M with hotplug=on, if there is so much
        #[name = "mem-reserve"]
        mem_reserve: Option<Size>,
        /// Prefetchable memory kept free; by default 1G with hotplug=on, if there is so much
        #[name = "pref64-reserve"]
        pref64_reserve: Option<Size>,
        /// Bus numbers kept free behind the port
        #[name = "bus-reserve"]
        bus_reserve: Int<0, 254> = "0",
    }
}

struct RootPortType;

impl Create<Plug, Cx> for RootPortType {
    const NAME: &'static str = "pcie-root-port";
    const GROUP: &'static str = "Bridges";
    const BUS: Option<&'static str> = Some("PCI");
    const ADDS_BUS: Option<&'static str> = Some(PCI);
    type Props = RootPortProps;

    fn create(props: RootPortProps, cx: &Cx) -> Result<Plug> {
        let _ = props.chassis;
        let slot = if props.slot == 0 { cx.next_slot } else { props.slot };
        let room = |given: Option<Size>, default: u64| match given {
            Some(size) => Room { bytes: size.0, hard: true },
            None => Room { bytes: if props.hotplug { default } else { 0 }, hard: false },
        };
        let reserve = Reserve {
            buses: props.bus_reserve.get() as u8,
            io: room(props.io_reserve, ROOM.0),
            low: room(props.mem_reserve, ROOM.1),
            high: room(props.pref64_reserve, ROOM.2),
        };
        let port = RootPort::with(&cx.id, slot, &cx.decode, &cx.router, props.hotplug, reserve)?;
        let bus = port.bus().clone();
        Ok(Plug { device: AnyDevice::Function(port), adds: Some(Adds::Pci(bus)) })
    }
}

/// A root port and the bus behind it.
pub struct RootPort {
    id: Arc<str>,
    core: Arc<PciCore>,
    slot: Arc<ExpressSlot>,
    reserve: Reserve,
    bus: Arc<PciBus>,
}

impl RootPort {
    /// A port whose bus is named like itself. `slot` is the number that the guest shows to people, up to 8191, unique in
    /// the machine.
    ///
    /// # Errors
    /// None that a user could cause; the capabilities are made to fit.
    pub fn new(id: &str, slot: u16, decode: &Arc<Decode>, router: &Arc<Router>) -> Result<Arc<RootPort>> {
        RootPort::with(id, slot, decode, router, true, Reserve::default())
    }

    fn with(
        id: &str,
        slot: u16,
        decode: &Arc<Decode>,
        router: &Arc<Router>,
        hotplug: bool,
        reserve: Reserve,
    ) -> Result<Arc<RootPort>> {
        let mut config = ConfigSpace::new();
        bridge_header(&mut config);
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set_u8(INTERRUPT_PIN, INTD);
        let power = config.add_capability(CAP_POWER, &[3, 0, POWER_NO_SOFT_RESET as u8, 0, 0, 0])?;
        config.allow(power + super::regs::POWER_CONTROL, &POWER_STATE.to_le_bytes());
        let express = config.add_capability(CAP_EXPRESS, &express_body(slot, hotplug))?;
        for (off, mask) in [express::DEVICE_CONTROL, express::LINK_CONTROL, express::ROOT_CONTROL] {
            config.allow(express + off, &mask.to_le_bytes());
        }
        if hotplug {
            config.allow(express + slot::CONTROL, &slot::CONTROL_WRITABLE.to_le_bytes());
            config.allow_clear(express + slot::STATUS, &slot::STATUS_EVENTS.to_le_bytes());
        }
        config.allow_clear(express + express::DEVICE_STATUS.0, &express::DEVICE_STATUS.1.to_le_bytes());
        let spec = MsiSpec { vectors: 1, address_64bit: true, maskable: false };
        let msi = Msi::add(&mut config, spec, router, id)?;
        let core = Arc::new(PciCore::new(id, config, Some(msi), None));
        let slot = ExpressSlot::new(core.clone(), router, hotplug);
        let bus = PciBus::secondary(id, decode, slot.clone());
        Ok(Arc::new(RootPort { id: id.into(), core, slot, reserve, bus }))
    }

    /// The slot.
    pub fn slot(&self) -> &Arc<ExpressSlot> {
        &self.slot
    }

    /// The bus behind the port.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }
}

/// The type 1 header of a bridge, but for what it is (bridge 3.2).
pub(super) fn bridge_header(config: &mut ConfigSpace) {
    config.set(CLASS, &CLASS_BRIDGE);
    config.set_u8(HEADER_TYPE, HEADER_BRIDGE);
    let command =
        COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
    config.allow(COMMAND, &command.to_le_bytes());
    config.allow_clear(STATUS, &STATUS_ERRORS.to_le_bytes());
    config.allow(PRIMARY_BUS, &[0xff; 3]);
    config.allow_clear(SECONDARY_STATUS, &STATUS_ERRORS.to_le_bytes());
    // Parity response, SERR#, legacy VGA with its ports' 16 bits, and the reset of the bus behind; no ISA filter.
    let control = BRIDGE_CONTROL_RESET | BRIDGE_CONTROL_VGA | BRIDGE_CONTROL_VGA_16BIT | 0b11;
    config.allow(BRIDGE_CONTROL, &control.to_le_bytes());
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
fn express_body(slot: u16, hotplug: bool) -> Vec<u8> {
    let mut cap = [0; express::LEN];
    let number = u32::from(slot.min(express::SLOT_NUMBER_MAX)) << express::SLOT_NUMBER_SHIFT;
    let number = number | if hotplug { slot::HOT_PLUG } else { 0 };
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

impl Device for RootPort {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        self.slot.reset(self.bus.is_occupied());
    }
}

impl PciFunction for RootPort {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        let (what, power_lost) = self.slot.written(off, data.len(), || self.core.write(off, data));
        // What loses its power is unmapped and reset as by the bridge's own reset of the bus.
        if power_lost { what | Changes::SECONDARY_RESET } else { what }
    }

    fn reserve(&self) -> Reserve {
        self.reserve
    }

    fn secondary(&self) -> Option<&Arc<PciBus>> {
        Some(&self.bus)
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core().with(|config| config.mirror(Some(page.clone())));
        true
    }
}

#[cfg(test)]
mod tests;
