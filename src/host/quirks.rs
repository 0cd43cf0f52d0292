//! Devices that do not do what their registers say: one table, with the reason and where it comes from. Pure.
//!
//! | kind | who acts on it |
//! |---|---|
//! | [`Kind::NoFlr`], [`Kind::NoBusReset`], [`Kind::NoPmReset`] | the kernel leaves the method out of `reset_method`; said by `inspect` |
//! | [`Kind::OwnReset`] | nobody here: said by `inspect` and when a reset fails |
//! | [`Kind::SharesNoLine`], [`Kind::NoIntx`] | the kernel; said by `inspect`, and the pin is hidden from the guest for the latter |
//! | [`Kind::NoRom`] | `rom=auto` shows none |
//! | [`Kind::PendingBitsAt`] | the MSI-X capability is read so |
//!
//! "quirks.c" is the kernel's drivers/pci/quirks.c, "vfio-pci" its drivers/vfio/pci/vfio_pci.c, "QEMU" QEMU's list of
//! the same purpose.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Serialize, Serializer};

/// What is wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A function-level reset hangs it or does nothing.
    NoFlr,
    /// A reset of its bus loses it until the host is powered off.
    NoBusReset,
    /// D3hot and back is no reset, though its registers say so.
    NoPmReset,
    /// It needs a sequence of its vendor's to be reset; without one it works once for each start of the host.
    OwnReset,
    /// Its pin cannot be masked alone: it takes a line of the host's interrupt controller for itself.
    SharesNoLine,
    /// It does not say whether its pin is raised: only MSI and MSI-X work.
    NoIntx,
    /// Running or reading its expansion ROM in a guest hangs it or the host.
    NoRom,
    /// Its MSI-X pending bits are at this offset, not where the capability says.
    PendingBitsAt(u32),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::NoFlr => "no function-level reset",
            Kind::NoBusReset => "no bus reset",
            Kind::NoPmReset => "no reset by power states",
            Kind::OwnReset => "needs its vendor's reset",
            Kind::SharesNoLine => "INTx takes a host's line alone",
            Kind::NoIntx => "no INTx",
            Kind::NoRom => "expansion ROM hidden",
            Kind::PendingBitsAt(offset) => return write!(f, "MSI-X pending bits at {offset:#x}"),
        })
    }
}

/// A row of the table.
#[derive(Debug, Serialize)]
pub struct Quirk {
    /// Vendor id.
    #[serde(skip)]
    pub vendor: u16,
    /// Device ids.
    #[serde(skip)]
    pub devices: RangeInclusive<u16>,
    /// Base class of those devices that it is about; `None`: of all.
    #[serde(skip)]
    pub class: Option<u8>,
    /// What is wrong.
    #[serde(serialize_with = "as_text")]
    pub kind: Kind,
    /// Which devices these are, and what they do.
    pub reason: &'static str,
    /// Who says so.
    pub source: &'static str,
}

fn as_text<S: Serializer>(kind: &Kind, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(kind)
}

/// The base class of display controllers.
const DISPLAY: u8 = 3;

const fn row(
    vendor: u16,
    devices: RangeInclusive<u16>,
    kind: Kind,
    reason: &'static str,
    source: &'static str,
) -> Quirk {
    Quirk { vendor, devices, class: None, kind, reason, source }
}

const fn display(
    vendor: u16,
    devices: RangeInclusive<u16>,
    kind: Kind,
    reason: &'static str,
    source: &'static str,
) -> Quirk {
    Quirk { class: Some(DISPLAY), ..row(vendor, devices, kind, reason, source) }
}

/// The table, by kind.
pub static TABLE: &[Quirk] = &[
    row(0x1022, 0x1487..=0x1487, Kind::NoFlr, "Starship/Matisse HD audio: hangs", "quirks.c, quirk_no_flr"),
    row(0x1022, 0x148c..=0x148c, Kind::NoFlr, "Starship USB 3.0: hangs", "quirks.c, quirk_no_flr"),
    row(0x1022, 0x149c..=0x149c, Kind::NoFlr, "Matisse USB 3.0: hangs", "quirks.c, quirk_no_flr"),
    row(0x1022, 0x7901..=0x7901, Kind::NoFlr, "FCH AHCI: disks are lost", "quirks.c, quirk_no_flr"),
    row(0x8086, 0x1502..=0x1503, Kind::NoFlr, "82579LM and 82579V: hang", "quirks.c, quirk_no_flr"),
    row(0x14c3, 0x0616..=0x0616, Kind::NoFlr, "MT7922 Wi-Fi: does not come back", "quirks.c, quirk_no_flr"),
    row(
        0x168c,
        0x0030..=0x0034,
        Kind::NoBusReset,
        "Atheros AR93xx to AR95xx Wi-Fi: link lost",
        "quirks.c, quirk_no_bus_reset",
    ),
    row(
        0x168c,
        0x003c..=0x003e,
        Kind::NoBusReset,
        "Atheros QCA98xx and QCA6174 Wi-Fi: link lost",
        "quirks.c, quirk_no_bus_reset",
    ),
    row(0x11c1, 0x5900..=0x5901, Kind::NoBusReset, "LSI FW643 FireWire: link lost", "quirks.c, quirk_no_bus_reset"),
    row(0x104c, 0xb005..=0xb005, Kind::NoBusReset, "TI KeyStone C667x: stops", "quirks.c, quirk_no_bus_reset"),
    row(0x1b21, 0x1164..=0x1164, Kind::NoBusReset, "ASM1164 SATA: link does not train", "quirks.c, quirk_no_bus_reset"),
    display(0x1002, 0..=0xffff, Kind::NoPmReset, "Radeon: its state survives D3hot", "quirks.c, quirk_no_pm_reset"),
    display(
        0x1002,
        0x67c0..=0x67ff,
        Kind::OwnReset,
        "Polaris: hangs at the second start",
        "the vendor-reset module's list",
    ),
    display(
        0x1002,
        0x6860..=0x687f,
        Kind::OwnReset,
        "Vega 10: hangs at the second start",
        "the vendor-reset module's list",
    ),
    display(
        0x1002,
        0x7310..=0x734f,
        Kind::OwnReset,
        "Navi 10 and 14: hang at the second start",
        "the vendor-reset module's list",
    ),
    row(0x1425, 0x0030..=0x0030, Kind::SharesNoLine, "Chelsio T310", "quirks.c, quirk_broken_intx_masking"),
    row(0x1814, 0x0601..=0x0601, Kind::SharesNoLine, "Ralink RT2800 Wi-Fi", "quirks.c, quirk_broken_intx_masking"),
    row(0x1b7c, 0x0004..=0x0004, Kind::SharesNoLine, "Ceton InfiniTV4", "quirks.c, quirk_broken_intx_masking"),
    row(0x10ec, 0x8169..=0x8169, Kind::SharesNoLine, "Realtek RTL8169", "quirks.c, quirk_broken_intx_masking"),
    row(
        0x1102,
        0x000b..=0x000b,
        Kind::SharesNoLine,
        "Creative 20K2 audio: spurious interrupts",
        "quirks.c, quirk_broken_intx_masking",
    ),
    row(0x8086, 0x1563..=0x1563, Kind::NoIntx, "X550: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x8086, 0x1572..=0x1572, Kind::NoIntx, "X710: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x8086, 0x1574..=0x1574, Kind::NoIntx, "XL710: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x8086, 0x1580..=0x1581, Kind::NoIntx, "XL710: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x8086, 0x1583..=0x158b, Kind::NoIntx, "XL710 and XXV710: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x8086, 0x37d0..=0x37d2, Kind::NoIntx, "X722: no interrupt status", "vfio-pci, vfio_pci_nointx"),
    row(0x14e4, 0x168e..=0x168e, Kind::NoRom, "BCM57810: the ROM hangs the guest", "QEMU, rom_denylist"),
    row(0x1924, 0x0a03..=0x0a03, Kind::NoRom, "SFC9220: the ROM hangs the guest", "QEMU, rom_denylist"),
    row(
        0x1425,
        0x5800..=0x58ff,
        Kind::PendingBitsAt(0x1000),
        "Chelsio T5 virtual function",
        "QEMU, vfio_msix_early_setup",
    ),
];

/// The rows about a device; `class` is its base class.
pub fn of(vendor: u16, device: u16, class: u8) -> impl Iterator<Item = &'static Quirk> {
    TABLE.iter().filter(move |quirk| {
        quirk.vendor == vendor && quirk.devices.contains(&device) && quirk.class.is_none_or(|wanted| wanted == class)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(vendor: u16, device: u16, class: u8) -> Vec<Kind> {
        of(vendor, device, class).map(|quirk| quirk.kind).collect()
    }

    #[test]
    fn rows_are_found_by_vendor_device_and_class() {
        assert_eq!(kinds(0x8086, 0x1502, 2), [Kind::NoFlr]);
        assert_eq!(kinds(0x8086, 0x10d3, 2), []);
        assert_eq!(kinds(0x1002, 0x67df, 3), [Kind::NoPmReset, Kind::OwnReset]);
        assert_eq!(kinds(0x1002, 0x67df, 4), [], "the audio function of the card");
        assert_eq!(kinds(0x1425, 0x58a0, 2), [Kind::PendingBitsAt(0x1000)]);
    }

    #[test]
    fn every_row_has_a_reason_and_a_source_and_none_is_there_twice() {
        for (index, quirk) in TABLE.iter().enumerate() {
            assert!(!quirk.reason.is_empty() && !quirk.source.is_empty() && !quirk.kind.to_string().is_empty());
            assert!(!quirk.devices.is_empty());
            let again = TABLE[index + 1..].iter().find(|other| {
                other.vendor == quirk.vendor
                    && other.kind == quirk.kind
                    && other.devices.contains(quirk.devices.start())
            });
            assert!(again.is_none(), "{quirk:?} and {again:?}");
        }
    }
}
