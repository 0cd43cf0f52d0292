//! All that is known about one function before anything is opened, put together for `passthru inspect`.

use std::fs::File;
use std::io::Read;

use serde::Serialize;

use super::quirks::{self, Quirk};
use super::reset::ResetPlan;
use super::viable::Verdict;
use super::{Host, PciDevice, Use, read};
use crate::bdf::Bdf;
use crate::error::Result;

/// Configuration space that capabilities of the first kind lie in.
const CONFIG: usize = 256;
/// As many capabilities as there is room for: a list that goes on is broken.
const MAX_CAPABILITIES: usize = 48;
/// Registers of the header (PCIe 7.5.1): status with its bit "capabilities", first capability, interrupt pin.
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const FIRST_CAPABILITY: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
/// Capability numbers of MSI and MSI-X (PCIe 7.7).
const CAP_MSI: u8 = 0x05;
const CAP_MSIX: u8 = 0x11;

/// A function and its surroundings.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The function.
    #[serde(flatten)]
    pub device: PciDevice,
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
        Ok(Inspection {
            bridges: std::iter::successors(self.bridge_above(bdf), |(at, _)| self.bridge_above(*at))
                .map(|(at, _)| at)
                .collect(),
            group: device.iommu_group.map(|id| self.verdicts(&self.group(id))).unwrap_or_default(),
            uses: self.uses(bdf),
            power_state: read::text(self.device_path(bdf).join("power_state")).filter(|state| !state.is_empty()),
            link: self.link(bdf),
            interrupts: self.interrupts(bdf),
            quirks: quirks::of(device.vendor, device.device, (device.class >> 16) as u8).collect(),
            reset: self.reset_plan(&device),
            quarantine,
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

    fn interrupts(&self, bdf: Bdf) -> Option<Interrupts> {
        let mut config = Vec::new();
        let file = File::open(self.device_path(bdf).join("config")).ok()?;
        file.take(CONFIG as u64).read_to_end(&mut config).ok()?;
        interrupts(&config)
    }
}

/// Reads the interrupts out of the first 256 bytes of configuration space.
fn interrupts(config: &[u8]) -> Option<Interrupts> {
    let byte = |at: usize| config.get(at).copied();
    // The kernel shows others than root the first 64 bytes, and a device that is gone reads as ones.
    byte(CONFIG - 1).filter(|_| byte(STATUS) != Some(0xff))?;
    let pin = byte(INTERRUPT_PIN).filter(|pin| (1..=4).contains(pin)).map(|pin| char::from(b'A' + pin - 1));
    let mut found = Interrupts { pin, ..Interrupts::default() };
    let listed = byte(STATUS)? & STATUS_CAPABILITIES != 0;
    let mut at = usize::from(byte(FIRST_CAPABILITY).filter(|_| listed).unwrap_or(0) & !3);
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            break;
        }
        let control = u16::from_le_bytes([byte(at + 2).unwrap_or(0), byte(at + 3).unwrap_or(0)]);
        match byte(at)? {
            // Bits 3 to 1: the logarithm of the number of messages; more than 32 are reserved.
            CAP_MSI => found.msi = Some(1 << (control >> 1 & 7).min(5)),
            CAP_MSIX => found.msix = Some((control & 0x7ff) + 1),
            _ => {}
        }
        at = usize::from(byte(at + 1)? & !3);
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
        config[FIRST_CAPABILITY] = 0x50;
        config[0x50..0x54].copy_from_slice(&[CAP_MSI, 0x70, 0x8a, 0]);
        config[0x70..0x74].copy_from_slice(&[CAP_MSIX, 0x50, 4, 0x80]);
        let wanted = Interrupts { pin: Some('A'), msi: Some(32), msix: Some(5) };
        assert_eq!(interrupts(&config), Some(wanted), "and a list without an end ends");
        assert_eq!(interrupts(&config[..64]), None);
        assert_eq!(interrupts(&[0xff; CONFIG]), None);
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
