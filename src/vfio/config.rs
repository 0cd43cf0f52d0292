//! Which bits of a passed-through function's configuration space are the hardware's, emulated, or hidden. Pure.
//!
//! | registers | who answers |
//! |---|---|
//! | ids, class, header type, BARs, interrupt line and pin, links of the lists | emulated |
//! | command | emulated; the hardware's follows it in the order that [`super::pci`] keeps |
//! | status | the hardware, but for the bit of the capability list |
//! | MSI, MSI-X (PCI 6.8) | emulated: VFIO programs the hardware's when eventfds are given to it |
//! | power management | the hardware; its state bits are emulated and follow in order |
//! | PCI Express (PCIe 7.5.3) | the hardware; port type and link as the guest's topology needs them |
//! | which errors are reported, and how (PCIe 6.2) | emulated; the hardware's stay as the host set them ([`reporting`]) |
//! | what [`HIDDEN`] and [`HIDDEN_EXTENDED`] list | nobody: unlinked, zero, not writable |
//! | Resizable BAR (PCIe 7.8.6) | emulated: the present size is the only one |
//! | all else from 40h on | the hardware, as far as VFIO lets it |
//!
//! VFIO has a filter of its own beneath this (kernel: drivers/vfio/pci/vfio_pci_config.c); what is emulated here is what
//! the guest's machine decides, and what the kernel leaves to user space.

use std::ops::Range;

use crate::pci::{ConfigSpace, MsiSpec, regs};

mod reporting;

/// Size of the configuration space in bytes.
pub const SIZE: usize = regs::CONFIG_SIZE as usize;

/// Bits of the command register that a guest can set.
const COMMAND_BITS: u16 = regs::COMMAND_IO
    | regs::COMMAND_MEMORY
    | regs::COMMAND_BUS_MASTER
    | regs::COMMAND_PARITY
    | regs::COMMAND_SERR
    | regs::COMMAND_INTX_DISABLE;
/// Latency timer; header type and self test follow it (PCI 6.2.4).
const LATENCY: u16 = 0x0d;
/// Length of the MSI-X capability in bytes (PCI 6.8.2).
const MSIX_LEN: u16 = 12;
/// Length of the power management capability in bytes.
const POWER_LEN: u16 = 8;
/// Id and version of an extended capability; the rest of its header is the link (PCIe 7.6.3).
const EXTENDED_ID_AND_VERSION: u32 = 0x000f_ffff;

/// Capabilities that a guest must not see, by id: Enhanced Allocation, because it contradicts the emulated BARs.
const HIDDEN: [u8; 1] = [0x14];

/// Extended capabilities that a guest must not see, with their lengths in bytes (PCIe 7.7 to 7.9):
/// they act on other functions, on the IOMMU, or on BARs.
const HIDDEN_EXTENDED: [(u16, u16); 8] = [
    (0x000e, 8),    // ARI: the guest's bus decides about function numbers
    (0x000f, 8),    // ATS: translations of the host's IOMMU
    (0x0010, 0x40), // SR-IOV: its functions belong to the host
    (0x0011, 0x40), // MR-IOV
    (0x0012, 0x30), // multicast: addresses of the host
    (0x0013, 0x10), // page requests to the host's IOMMU
    (0x001b, 8),    // PASID
    (0x0024, 0x34), // Resizable BARs of virtual functions
];

/// Capabilities whose registers act on nothing but themselves while the function is idle, with the lengths that they have
/// at most: power management, MSI, subsystem ids, PCI Express, MSI-X, advanced features. Not vital product data and what
/// vendors define.
const STEADY: [(u8, u16); 6] = [
    (regs::CAP_POWER, 8),
    (regs::CAP_MSI, 0x18),
    (0x0d, 8),
    (regs::CAP_EXPRESS, 0x3c),
    (regs::CAP_MSIX, MSIX_LEN),
    (regs::CAP_ADVANCED, 6),
];
/// The extended ones: error reporting, serial number, ACS, LTR, secondary PCI Express, L1 substates, precision time
/// measurement.
const STEADY_EXTENDED: [(u16, u16); 7] =
    [(0x0001, 0x48), (0x0003, 0xc), (0x000d, 8), (0x0018, 8), (0x0019, 0x2c), (0x001e, 0x14), (0x001f, 0xc)];

/// Extended capabilities that describe the link, which an endpoint on the root bus has not (PCIe 7.7.3 to 7.7.8).
const LINK_EXTENDED: [(u16, u16); 5] = [(0x0019, 0x2c), (0x001e, 0x14), (0x0025, 0xc), (0x0026, 0x40), (0x0027, 0x84)];

/// Resizable BAR (PCIe 7.8.6): for each of up to six BARs a dword of capabilities, with the sizes from 1 MiB on, and one
/// of control, with the size that it has.
const REBAR: u16 = 0x0015;
const REBAR_FIRST: u16 = 4;
const REBAR_COUNT_SHIFT: u32 = 5;
const REBAR_MAX: u32 = 6;
const REBAR_SIZE_SHIFT: u32 = 8;
const REBAR_SIZE: u32 = 0x3f;
/// Number of the BAR, number of BARs, size; above them are the sizes beyond 128 TiB.
const REBAR_CONTROL: u32 = 0x3fe7;
/// The largest size that the capabilities' bits 4 to 31 can show, as a power of two from 1 MiB on.
const REBAR_MAX_SIZE: u32 = 27;

/// PCI Express capability (PCIe 7.5.3): its registers from its start.
const EXPRESS_FLAGS: u16 = 0x02;
const EXPRESS_TYPE_SHIFT: u8 = 4;
const EXPRESS_LINK: u16 = 0x0c;
const EXPRESS_LINK_STATUS: u16 = 0x12;
const EXPRESS_LINK_END: u16 = 0x14;
const EXPRESS_LINK2: u16 = 0x2c;
const EXPRESS_LINK2_END: u16 = 0x34;
/// Version 1 of the capability ends before the second block of registers.
const EXPRESS_VERSION: u8 = 0xf;
/// Device/port types (PCIe 7.5.3.2).
const TYPE_ENDPOINT: u8 = 0x0;
const TYPE_LEGACY_ENDPOINT: u8 = 0x1;
const TYPE_INTEGRATED: u8 = 0x9;
/// Link capabilities and status of the narrowest and slowest link: 2.5 GT/s, one lane (PCIe 7.5.3.6, 7.5.3.8).
const LINK_X1: u16 = 0x0011;

/// Where in the guest's topology the function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attachment {
    /// On the root bus: a Root Complex Integrated Endpoint, which has no link.
    #[default]
    RootBus,
    /// Behind a root port or a switch.
    Port,
}

/// What the device has that decides about its configuration space, besides the space itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Abilities {
    /// Whether VFIO can deliver MSI.
    pub msi: bool,
    /// Whether VFIO can deliver MSI-X, and its table can be reached.
    pub msix: bool,
    /// Whether VFIO can deliver the pin's interrupt.
    pub intx: bool,
    /// Where the guest finds it.
    pub attachment: Attachment,
}

/// Which bits are whose.
pub struct Division {
    /// Bits whose reads come from the hardware.
    hardware: Vec<u8>,
    /// Bytes whose writes go to the hardware.
    forwarded: Vec<bool>,
    /// Offset of the MSI capability, if the guest sees it.
    pub msi: Option<u16>,
    /// Offset of the MSI-X capability, if the guest sees it.
    pub msix: Option<u16>,
    /// Offset of the power management capability.
    pub power: Option<u16>,
    /// Offset and value of the byte whose error reporting enables the hardware keeps.
    reporting: Option<(u16, u8)>,
    /// The structures in which a write has no effect outside of the structure, as long as nothing uses the function.
    steady: Vec<Range<u16>>,
}

/// The hardware's space as it shows it: the bytes, without any mask. What the image lacks reads as zero.
pub fn image(bytes: &[u8]) -> ConfigSpace {
    let mut config = ConfigSpace::new();
    config.set(0, bytes.get(..SIZE).unwrap_or(bytes));
    config
}

/// Plans the space of a function that shows `bytes`, 256 or 4096 of them. Gives the emulated registers after power-on,
/// to which MSI and MSI-X are still to be added, and the division.
pub fn plan(bytes: &[u8], abilities: Abilities) -> (ConfigSpace, Division) {
    let source = image(bytes);
    let mut plan = Planner {
        config: image(bytes),
        division: Division {
            hardware: vec![0; SIZE],
            forwarded: vec![false; SIZE],
            msi: None,
            msix: None,
            power: None,
            reporting: None,
            steady: Vec::new(),
        },
    };
    plan.header(&source, abilities);
    plan.capabilities(&source, abilities);
    if bytes.len() > usize::from(regs::EXTENDED_START) {
        plan.extended(&source, abilities.attachment);
    }
    plan.keep_reporting(&source);
    (plan.config, plan.division)
}

impl Division {
    /// Whether any bit of these bytes is the hardware's.
    pub fn reads_hardware(&self, off: u16, len: usize) -> bool {
        self.bits(off, len).iter().any(|bits| *bits != 0)
    }

    /// Puts the hardware's bits into the emulated ones.
    pub fn merge(&self, off: u16, hardware: &[u8], emulated: &mut [u8]) {
        for ((bits, hardware), emulated) in self.bits(off, emulated.len()).iter().zip(hardware).zip(emulated) {
            *emulated = *emulated & !bits | hardware & bits;
        }
    }

    /// The parts of a write that the hardware gets: offsets in the written bytes.
    pub fn forwarded(&self, off: u16, len: usize) -> Vec<Range<usize>> {
        let start = usize::from(off).min(SIZE);
        let end = start.saturating_add(len).min(SIZE);
        let mut parts: Vec<Range<usize>> = Vec::new();
        let flags = self.forwarded.get(start..end).unwrap_or_default();
        for (index, _) in flags.iter().enumerate().filter(|(_, forwarded)| **forwarded) {
            match parts.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => parts.push(index..index + 1),
            }
        }
        parts
    }

    /// The structure around a register, if a write to it has no effect elsewhere while nothing uses the function.
    pub fn steady(&self, off: u16) -> Option<Range<u16>> {
        self.steady.iter().find(|range| range.contains(&off)).cloned()
    }

    fn bits(&self, off: u16, len: usize) -> &[u8] {
        let start = usize::from(off).min(SIZE);
        let end = start.saturating_add(len).min(SIZE);
        self.hardware.get(start..end).unwrap_or_default()
    }
}

struct Planner {
    config: ConfigSpace,
    division: Division,
}

impl Planner {
    /// Reads and writes of these bytes are the hardware's.
    fn give(&mut self, range: Range<u16>) {
        for at in range.start..range.end.min(regs::CONFIG_SIZE) {
            self.division.hardware[usize::from(at)] = 0xff;
            self.division.forwarded[usize::from(at)] = true;
        }
    }

    /// Reads and writes of these bytes are the core's, up to `limit`.
    fn emulate(&mut self, at: u16, len: u16, limit: u16) {
        for at in at..at.saturating_add(len).min(limit) {
            self.division.hardware[usize::from(at)] = 0;
            self.division.forwarded[usize::from(at)] = false;
        }
    }

    /// These bytes are zero and cannot be written, up to `limit`.
    fn hide(&mut self, at: u16, len: u16, limit: u16) {
        self.emulate(at, len, limit);
        for at in at..at.saturating_add(len).min(limit) {
            self.config.set_u8(at, 0);
        }
    }

    fn header(&mut self, source: &ConfigSpace, abilities: Abilities) {
        self.division.steady.push(0..regs::CAPABILITIES_START);
        let config = &mut self.config;
        config.set_u16(regs::COMMAND, 0);
        config.allow(regs::COMMAND, &COMMAND_BITS.to_le_bytes());
        config.set_u16(regs::STATUS, 0);
        // Latency timer, layout, and the built-in self test, whose start would stop the function.
        config.set(LATENCY, &[0, regs::HEADER_ENDPOINT, 0]);
        config.set(regs::BAR0, &[0; 24]);
        config.set_u32(regs::ROM, 0);
        config.set_u8(regs::INTERRUPT_LINE, 0);
        let pin = source.u8(regs::INTERRUPT_PIN);
        config.set_u8(regs::INTERRUPT_PIN, if abilities.intx && (1..=4).contains(&pin) { pin } else { 0 });
        let status = usize::from(regs::STATUS);
        for (at, bits) in (status..).zip((!regs::STATUS_CAPABILITIES).to_le_bytes()) {
            self.division.hardware[at] = bits;
            self.division.forwarded[at] = true;
        }
    }

    fn capabilities(&mut self, source: &ConfigSpace, abilities: Abilities) {
        const END: u16 = regs::EXTENDED_START;
        self.give(regs::CAPABILITIES_START..END);
        let found = source.capabilities();
        let mut shown = Vec::new();
        for &(id, at) in &found {
            // A capability has no length of its own: it ends where another begins.
            let end = found.iter().map(|(_, other)| *other).filter(|other| *other > at).min().unwrap_or(END);
            let keep = match id {
                regs::CAP_MSI => {
                    let len = MsiSpec::from_control(source.u16(at + 2)).len();
                    let keep = abilities.msi && self.division.msi.is_none() && at + len <= END;
                    self.division.msi = self.division.msi.or(keep.then_some(at));
                    self.emulate(at, len, END);
                    keep
                }
                regs::CAP_MSIX => {
                    let keep = abilities.msix && self.division.msix.is_none() && at + MSIX_LEN <= END;
                    self.division.msix = self.division.msix.or(keep.then_some(at));
                    self.emulate(at, MSIX_LEN, END);
                    keep
                }
                _ => !HIDDEN.contains(&id),
            };
            if !keep {
                self.hide(at, end - at, END);
                continue;
            }
            match id {
                regs::CAP_POWER if self.division.power.is_none() && at + POWER_LEN <= END => self.power(at),
                regs::CAP_EXPRESS => self.express(source, at, abilities.attachment),
                _ => {}
            }
            if let Some((_, len)) = STEADY.iter().find(|(steady, _)| *steady == id) {
                self.division.steady.push(at..end.min(at + len));
            }
            shown.push(at);
        }
        self.config.set_u8(regs::CAPABILITIES, 0);
        for (index, &at) in shown.iter().enumerate() {
            let link = match index.checked_sub(1).and_then(|before| shown.get(before)) {
                None => regs::CAPABILITIES,
                Some(before) => before + 1,
            };
            self.emulate(at, 2, END);
            self.config.set_u8(at + 1, 0);
            self.config.set_u8(link, at as u8);
        }
        if !shown.is_empty() {
            self.config.set_u16(regs::STATUS, regs::STATUS_CAPABILITIES);
        }
    }

    /// The state's bits follow the guest's writes in the order that decoding needs; all else is the hardware's.
    fn power(&mut self, at: u16) {
        let control = at + regs::POWER_CONTROL;
        let state = regs::POWER_STATE as u8;
        self.emulate(control, 2, regs::EXTENDED_START);
        self.division.hardware[usize::from(control)] = !state;
        self.division.hardware[usize::from(control) + 1] = 0xff;
        self.config.set_u8(control, self.config.u8(control) & !state);
        self.config.allow(control, &[state]);
        self.division.power = Some(at);
    }

    fn express(&mut self, source: &ConfigSpace, at: u16, attachment: Attachment) {
        const END: u16 = regs::EXTENDED_START;
        let flags = source.u8(at + EXPRESS_FLAGS);
        let second = flags & EXPRESS_VERSION >= 2;
        let port_type = flags >> EXPRESS_TYPE_SHIFT;
        let shown = match (attachment, port_type) {
            (Attachment::RootBus, TYPE_ENDPOINT | TYPE_LEGACY_ENDPOINT) => TYPE_INTEGRATED,
            (Attachment::Port, TYPE_INTEGRATED) => TYPE_ENDPOINT,
            _ => return,
        };
        self.emulate(at + EXPRESS_FLAGS, 1, END);
        self.config.set_u8(at + EXPRESS_FLAGS, flags & EXPRESS_VERSION | shown << EXPRESS_TYPE_SHIFT);
        self.hide(at + EXPRESS_LINK, EXPRESS_LINK_END - EXPRESS_LINK, END);
        if second {
            self.hide(at + EXPRESS_LINK2, EXPRESS_LINK2_END - EXPRESS_LINK2, END);
        }
        if attachment == Attachment::Port && at + EXPRESS_LINK_END <= END {
            self.config.set_u16(at + EXPRESS_LINK, LINK_X1);
            self.config.set_u16(at + EXPRESS_LINK_STATUS, LINK_X1);
        }
    }

    /// Shows each resizable BAR with its present size as the only one, and lets nothing be written: a size changes on the
    /// host (`bar-size=`), before the guest plans its addresses. `false`: it cannot be shown so.
    fn resizable(&mut self, source: &ConfigSpace, at: u16) -> bool {
        const END: u16 = regs::CONFIG_SIZE;
        let count = (source.u32(at + REBAR_FIRST + 4) >> REBAR_COUNT_SHIFT & 7).min(REBAR_MAX) as u16;
        if count == 0 || at + REBAR_FIRST + 8 * count > END {
            return false;
        }
        let size = |index: u16| source.u32(at + REBAR_FIRST + 8 * index + 4) >> REBAR_SIZE_SHIFT & REBAR_SIZE;
        if (0..count).any(|index| size(index) > REBAR_MAX_SIZE) {
            return false;
        }
        self.emulate(at, REBAR_FIRST + 8 * count, END);
        for index in 0..count {
            let capability = at + REBAR_FIRST + 8 * index;
            self.config.set_u32(capability, 1 << (4 + size(index)));
            self.config.set_u32(capability + 4, source.u32(capability + 4) & REBAR_CONTROL);
        }
        true
    }

    fn extended(&mut self, source: &ConfigSpace, attachment: Attachment) {
        const END: u16 = regs::CONFIG_SIZE;
        self.give(regs::EXTENDED_START..END);
        let found = source.ext_capabilities();
        let mut shown = Vec::new();
        for &(id, at) in &found {
            let link = LINK_EXTENDED.iter().filter(|_| attachment == Attachment::RootBus);
            match HIDDEN_EXTENDED.iter().chain(link).find(|(hidden, _)| *hidden == id) {
                Some((_, len)) => self.hide(at, *len, END),
                None => {
                    if let Some((_, len)) = STEADY_EXTENDED.iter().find(|(steady, _)| *steady == id) {
                        let end = found.iter().map(|(_, other)| *other).filter(|other| *other > at).min();
                        self.division.steady.push(at..end.unwrap_or(END).min(at + len));
                    }
                    if id == REBAR && !self.resizable(source, at) {
                        self.hide(at, REBAR_FIRST + 8 * REBAR_MAX as u16, END);
                        continue;
                    }
                    shown.push(at);
                }
            }
        }
        // The list begins at 100h whatever is there: where nothing may be shown, a null capability (PCIe 7.9.29) links on.
        self.emulate(regs::EXTENDED_START, 4, END);
        if shown.first() != Some(&regs::EXTENDED_START) {
            self.config.set_u32(regs::EXTENDED_START, 0);
            shown.insert(0, regs::EXTENDED_START);
        }
        for (index, &at) in shown.iter().enumerate() {
            let next = shown.get(index + 1).copied().unwrap_or(0);
            self.emulate(at, 4, END);
            self.config.set_u32(at, self.config.u32(at) & EXTENDED_ID_AND_VERSION | u32::from(next) << 20);
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables of ranges")]
mod tests;
