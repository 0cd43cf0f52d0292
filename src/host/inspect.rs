//! All that is known about one function before anything is opened, put together for `passthru inspect`.

use std::fmt;
use std::fs::File;
use std::io::Read;

use serde::Serialize;

use super::capabilities::{self, Capability};
use super::findings::Level;
use super::names::{Identity, Name};
use super::pci::{ROM_INDEX, Resource, ResourceKind};
use super::quirks::{self, Quirk};
use super::reset::ResetPlan;
use super::viable::Verdict;
use super::{Host, PciDevice, Use, read};
use crate::bdf::Bdf;
use crate::error::Result;

/// Configuration space that capabilities of the first kind lie in, and all of it.
const CONFIG: usize = 256;
const MAX_CONFIG: usize = 4096;
/// Registers of the header (PCIe 7.5.1).
const STATUS: usize = 0x06;
const INTERRUPT_PIN: usize = 0x3d;
/// Capability numbers of MSI and MSI-X (PCIe 7.7); the latter's registers, and the bytes of an entry of its table.
const CAP_MSI: u16 = 0x05;
const CAP_MSIX: u16 = 0x11;
const MSIX_TABLE: usize = 4;
const MSIX_ENTRY: u32 = 16;
/// What is smaller shares its page with other devices, unless the kernel moves it.
const PAGE: u64 = 4096;

/// A function and its surroundings.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The function.
    #[serde(flatten)]
    pub device: PciDevice,
    /// By what it is known when its address changes.
    pub identity: Identity,
    /// What /etc/passthru/devices.d calls it.
    pub names: Vec<Name>,
    /// The bridges above it, nearest first.
    pub bridges: Vec<Bdf>,
    /// The members of its IOMMU group, itself among them.
    pub group: Vec<Verdict>,
    /// What the host uses it for.
    pub uses: Vec<Use>,
    /// The power state that it is in: `D0`.
    pub power_state: Option<String>,
    /// Its link, if it has one.
    pub link: Option<Link>,
    /// Its interrupts; `None`: only root may read the registers that tell.
    pub interrupts: Option<Interrupts>,
    /// Its capabilities; empty where only root may read them.
    pub capabilities: Vec<Capability>,
    /// How a guest reaches each of its resources, in their order.
    pub access: Vec<Access>,
    /// What is to be done before a guest can have it; nothing: it is ready, or there is nothing that would do.
    pub steps: Vec<String>,
    /// Whether a guest can have it now.
    pub ready: bool,
    /// What is known to be wrong with devices of its kind.
    pub quirks: Vec<&'static Quirk>,
    /// How it would be reset.
    pub reset: ResetPlan,
    /// Why it is quarantined.
    pub quarantine: Option<String>,
}

/// A link's speed and width, now and at best, as the kernel writes them.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// `8.0 GT/s PCIe`.
    pub speed: String,
    /// Lanes.
    pub width: u32,
    /// The fastest that device and slot could do.
    pub max_speed: String,
    /// The most lanes.
    pub max_width: u32,
}

impl Link {
    /// Whether it could not be any faster.
    pub fn is_at_best(&self) -> bool {
        self.speed == self.max_speed && self.width == self.max_width
    }
}

/// Interrupts that a function has.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interrupts {
    /// The pin, A to D.
    pub pin: Option<char>,
    /// The most messages of MSI.
    pub msi: Option<u16>,
    /// Entries of the MSI-X table.
    pub msix: Option<u16>,
    /// Where that table is.
    pub msix_table: Option<Table>,
}

/// A table in a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The BAR.
    pub bar: usize,
    /// From its beginning.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// How a guest reaches a BAR or the ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Mapped: at the speed of the hardware.
    Mapped,
    /// Mapped but for the pages of the MSI-X table.
    MappedButTable(Table),
    /// Mapped if the kernel gives it a page of its own.
    MappedIfAlone,
    /// By an exit for each access.
    Trapped,
    /// From a copy, read once.
    Copied,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Access::Mapped => f.write_str("mapped"),
            Access::MappedButTable(Table { offset, size, .. }) => {
                write!(f, "mapped, but for the MSI-X table ({size:#x} bytes at {offset:#x})")
            }
            Access::MappedIfAlone => f.write_str("mapped if its page is its own"),
            Access::Trapped => f.write_str("trapped"),
            Access::Copied => f.write_str("copied"),
        }
    }
}

/// How a guest reaches a resource (vfio-pci's rule: drivers/vfio/pci/vfio_pci_core.c, `vfio_pci_probe_mmaps`).
fn access(resource: &Resource, table: Option<Table>) -> Access {
    match resource.kind {
        _ if resource.index == ROM_INDEX => Access::Copied,
        ResourceKind::Io => Access::Trapped,
        _ if resource.size < PAGE => Access::MappedIfAlone,
        _ => match table.filter(|table| table.bar == resource.index) {
            Some(table) => Access::MappedButTable(table),
            None => Access::Mapped,
        },
    }
}

impl Host {
    /// Everything about a function.
    ///
    /// # Errors
    /// [`crate::error::Code::DeviceAbsent`].
    pub fn inspect(&self, bdf: Bdf) -> Result<Inspection> {
        let device = self.device(bdf)?;
        let quarantine = match self.quarantined(&device) {
            Ok(note) => note.map(|note| note.reason),
            Err(error) => Some(error.cause().to_owned()),
        };
        let config = self.config(bdf);
        let interrupts = interrupts(&config);
        let table = interrupts.as_ref().and_then(|found| found.msix_table);
        let findings = self.check_device(bdf, false);
        let failed = || findings.iter().filter(|finding| finding.level == Level::Fail);
        let mut steps: Vec<String> = failed().filter_map(|finding| finding.fix.clone()).collect();
        steps.dedup();
        Ok(Inspection {
            ready: failed().next().is_none(),
            steps,
            capabilities: capabilities::list(&config),
            access: device.resources.iter().map(|resource| access(resource, table)).collect(),
            bridges: std::iter::successors(self.bridge_above(bdf), |(at, _)| self.bridge_above(*at))
                .map(|(at, _)| at)
                .collect(),
            group: device.iommu_group.map(|id| self.verdicts(&self.group(id))).unwrap_or_default(),
            uses: self.uses(bdf),
            power_state: read::text(self.device_path(bdf).join("power_state")).filter(|state| !state.is_empty()),
            link: self.link(bdf),
            interrupts,
            quirks: quirks::of(device.vendor, device.device, (device.class >> 16) as u8).collect(),
            reset: self.reset_plan(&device),
            quarantine,
            identity: self.identity(bdf, (device.vendor, device.device)),
            names: self.names_of(bdf),
            device,
        })
    }

    pub(super) fn link(&self, bdf: Bdf) -> Option<Link> {
        let at = self.device_path(bdf);
        let width = |name: &str| read::number::<u32>(at.join(name));
        let speed = |name: &str| read::text(at.join(name)).filter(|speed| !speed.is_empty());
        Some(Link {
            speed: speed("current_link_speed")?,
            // A virtual function says 0: the link is its physical function's.
            width: width("current_link_width").filter(|width| *width > 0)?,
            max_speed: speed("max_link_speed")?,
            max_width: width("max_link_width")?,
        })
    }

    /// As much of its configuration space as may be read.
    pub(super) fn config(&self, bdf: Bdf) -> Vec<u8> {
        let mut config = Vec::new();
        if let Ok(file) = File::open(self.device_path(bdf).join("config")) {
            // What was read before an error counts: the kernel ends early for whom it does not show all.
            let _ = file.take(MAX_CONFIG as u64).read_to_end(&mut config);
        }
        config
    }
}

/// Reads the interrupts out of configuration space, of which there must be 256 bytes.
fn interrupts(config: &[u8]) -> Option<Interrupts> {
    let byte = |at: usize| config.get(at).copied();
    // The kernel shows others than root the first 64 bytes, and a device that is gone reads as ones.
    byte(CONFIG - 1).filter(|_| byte(STATUS) != Some(0xff))?;
    let pin = byte(INTERRUPT_PIN).filter(|pin| (1..=4).contains(pin)).map(|pin| char::from(b'A' + pin - 1));
    let mut found = Interrupts { pin, ..Interrupts::default() };
    for capability in capabilities::list(config).iter().filter(|it| usize::from(it.at) < CONFIG) {
        let at = usize::from(capability.at);
        let control = u16::from_le_bytes([byte(at + 2).unwrap_or(0), byte(at + 3).unwrap_or(0)]);
        match capability.id {
            // Bits 3 to 1: the logarithm of the number of messages; more than 32 are reserved.
            CAP_MSI => found.msi = Some(1 << (control >> 1 & 7).min(5)),
            CAP_MSIX => {
                let entries = (control & 0x7ff) + 1;
                let place =
                    config.get(at + MSIX_TABLE..).and_then(|rest| rest.first_chunk()).map(|it| u32::from_le_bytes(*it));
                found.msix = Some(entries);
                found.msix_table = place.map(|place| Table {
                    bar: (place & 7) as usize,
                    offset: place & !7,
                    size: u32::from(entries) * MSIX_ENTRY,
                });
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};
    use proptest::prelude::*;

    #[test]
    fn interrupts_are_read_from_the_capabilities() {
        let mut config = vec![0u8; CONFIG];
        config[STATUS] = 0x10;
        config[INTERRUPT_PIN] = 1;
        config[0x34] = 0x50;
        config[0x50..0x54].copy_from_slice(&[0x05, 0x70, 0x8a, 0]);
        config[0x70..0x78].copy_from_slice(&[0x11, 0x50, 4, 0x80, 0x03, 0x20, 0, 0]);
        let table = Some(Table { bar: 3, offset: 0x2000, size: 80 });
        let wanted = Interrupts { pin: Some('A'), msi: Some(32), msix: Some(5), msix_table: table };
        assert_eq!(interrupts(&config), Some(wanted), "and a list without an end ends");
        assert_eq!(interrupts(&config[..64]), None);
        assert_eq!(interrupts(&[0xff; CONFIG]), None);
    }

    #[test]
    fn resources_are_reached_as_vfio_maps_them() {
        let resource = |index, size, kind| Resource { index, start: 0, size, kind, prefetchable: false };
        let table = Table { bar: 2, offset: 0x2000, size: 80 };
        let cases = [
            (resource(0, 0x1000, ResourceKind::Mem32), Access::Mapped),
            (resource(1, 0x20, ResourceKind::Io), Access::Trapped),
            (resource(2, 0x4000, ResourceKind::Mem64), Access::MappedButTable(table)),
            (resource(4, 0x100, ResourceKind::Mem32), Access::MappedIfAlone),
            (resource(6, 0x10000, ResourceKind::Mem32), Access::Copied),
        ];
        for (resource, wanted) in cases {
            assert_eq!(access(&resource, Some(table)), wanted);
        }
    }

    #[test]
    fn surroundings_are_found() {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").bridge().driver("pcieport").group(1).add();
        tree.pci("0000:01:00.0").below("0000:00:01.0").driver("e1000e").group(2).add();
        for (name, text) in [
            ("power_state", "D0\n"),
            ("current_link_speed", "2.5 GT/s PCIe\n"),
            ("current_link_width", "1\n"),
            ("max_link_speed", "8.0 GT/s PCIe\n"),
            ("max_link_width", "4\n"),
        ] {
            tree.attribute("0000:01:00.0", name, text);
        }
        let seen = tree.host().inspect(bdf("01:00.0")).unwrap();
        assert_eq!(seen.bridges, [bdf("00:01.0")]);
        assert_eq!(seen.power_state.as_deref(), Some("D0"));
        assert_eq!(seen.link.map(|link| (link.width, link.max_width)), Some((1, 4)));
        assert_eq!(seen.interrupts, None, "the tree's configuration space ends after the header");
        assert_eq!(seen.group.len(), 1);
    }

    proptest! {
        #[test]
        fn no_configuration_space_panics(config in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = interrupts(&config);
        }
    }
}
