//! The boot console: drivers that draw on the memory that the firmware left a display device with, and the virtual
//! consoles that are drawn by them. Both hold the device's BAR, or draw on it behind the guest's back.
//!
//! The firmware's framebuffer is a platform device (kernel: drivers/firmware/sysfb.c) with the driver efifb, vesafb,
//! simplefb or simpledrm. Since Linux 6.0 vfio-pci makes such a device go away by itself for a VGA device; one that has
//! gone cannot be brought back, and then the driver that the card gets back has the console.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Setting;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::pci::ResourceKind;
use crate::host::usage::lies_below;
use crate::host::{Host, PciDevice, read};

/// The platform devices that stand for the firmware's framebuffer, without their numbers.
const PLATFORM: [&str; 3] = ["efi-framebuffer", "simple-framebuffer", "vesa-framebuffer"];
/// The names by which they, and their drivers, hold memory.
const OWNERS: [&str; 8] =
    ["BOOTFB", "efifb", "efidrm", "simplefb", "simple-framebuffer", "simpledrm", "vesafb", "vesadrm"];
/// Longer names of devices and drivers do not exist.
const MAX_NAME: usize = 64;
/// More virtual console drivers than the kernel has room for (MAX_NR_CON_DRIVER is 16).
const MAX_CONSOLES: u32 = 16;

/// A virtual console driver: whether it draws the consoles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// N of `vtconN`.
    pub number: u32,
    /// Whether the consoles are bound to it.
    pub bound: bool,
}

impl Console {
    pub(super) fn now(&self, host: &Host) -> Console {
        Console { bound: host.console_is_bound(self.number).unwrap_or(self.bound), ..*self }
    }

    pub(super) fn set(&self, host: &Host) -> Result<()> {
        // One that has gone with its last framebuffer comes back with the next, bound.
        if self.now(host) == *self {
            return Ok(());
        }
        let file = host.console_path(self.number).join("bind");
        let refused = |why: String| {
            Error::new(Code::BootConsole, format!("{self}: refused")).evidence(why).fix(
                "`cat /sys/class/vtconsole/*/name` lists what else could draw the console; or boot with `fbcon=map:9`",
            )
        };
        let value = if self.bound { "1\n" } else { "0\n" };
        host.set_attribute(self, &file, value, |error| {
            refused(format!("writing to {}: {}", file.display(), explain_io(error)))
        })?;
        if self.now(host) == *self { Ok(()) } else { Err(refused(format!("{} says otherwise", file.display()))) }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        (self.number < MAX_CONSOLES).then_some(()).ok_or_else(|| format!("there is no vtcon{}", self.number))
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vtcon{} {}", self.number, if self.bound { "draws the consoles" } else { "lets go of the consoles" })
    }
}

/// The firmware's framebuffer and its driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framebuffer {
    /// The platform device: `efi-framebuffer.0`.
    pub device: String,
    /// The driver; `None`: it is to have none.
    pub driver: Option<String>,
}

impl Framebuffer {
    pub(super) fn now(&self, host: &Host) -> Framebuffer {
        let folder = host.platform_path(&self.device);
        // What is gone cannot be changed any more.
        let driver = if folder.exists() { read::link_name(folder.join("driver")) } else { self.driver.clone() };
        Framebuffer { device: self.device.clone(), driver }
    }

    pub(super) fn set(&self, host: &Host) -> Result<()> {
        let now = self.now(host);
        let step = match (&now.driver, &self.driver) {
            (Some(driver), _) if now != *self => Some((driver, "unbind")),
            (None, Some(driver)) => Some((driver, "bind")),
            _ => None,
        };
        let Some((driver, what)) = step else { return Ok(()) };
        let file = host.sys("bus/platform/drivers").join(driver).join(what);
        let refused = |why: String| {
            Error::new(Code::BootConsole, format!("{self}: refused"))
                .evidence(why)
                .fix("boot the host without its console on this card: `initcall_blacklist=sysfb_init` on the kernel's command line")
        };
        host.set_attribute(self, &file, &self.device, |error| {
            refused(format!("writing {} to {}: {}", self.device, file.display(), explain_io(error)))
        })?;
        if self.now(host) == *self { Ok(()) } else { Err(refused("the driver did not follow".into())) }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let known =
            |name: &str| PLATFORM.iter().any(|kind| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('.')));
        let plain = |name: &str| {
            let bytes = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
            bytes && (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.')
        };
        let good = known(&self.device) && plain(&self.device) && self.driver.as_deref().is_none_or(plain);
        good.then_some(()).ok_or_else(|| format!("{:?} is no framebuffer", self.device))
    }
}

impl fmt::Display for Framebuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.driver {
            Some(driver) => write!(f, "{driver} draws on {}", self.device),
            None => write!(f, "{} is drawn on no longer", self.device),
        }
    }
}

/// A range of a BAR that the boot framebuffer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The range, by physical address.
    pub range: Range<u64>,
    /// By whom, as /proc/iomem says.
    pub owner: String,
}

impl Host {
    /// The settings that take the host's boot console off a device; none if it is no display device.
    pub(super) fn boot_consoles(&self, device: &PciDevice) -> Vec<Setting> {
        if !device.is_display() {
            return Vec::new();
        }
        let held = !self.framebuffer_ranges(device).is_empty();
        let below = |path: PathBuf| read::real(path).is_some_and(|path| lies_below(&path, device.bdf));
        let platform: Vec<String> = read::names(self.sys("bus/platform/devices"))
            .into_iter()
            .filter(|name| PLATFORM.iter().any(|kind| name.starts_with(kind)))
            // Since Linux 6.9 it is a child of the display device; before, only the memory tells whose it is.
            .filter(|name| held || below(self.platform_path(name)))
            .collect();
        let graphics = self.sys("class/graphics");
        let draws = read::names(&graphics).into_iter().filter(|name| name.starts_with("fb")).any(|name| {
            let real = read::real(graphics.join(name));
            let of_platform =
                |path: &PathBuf| platform.iter().any(|name| path.iter().any(|part| part == name.as_str()));
            real.is_some_and(|path| lies_below(&path, device.bdf) || of_platform(&path))
        });
        // The consoles first: whoever draws them must not lose its framebuffer while it does.
        let consoles = self.framebuffer_consoles().into_iter().filter(|_| draws);
        let consoles = consoles.map(|number| Setting::Console(Console { number, bound: false }));
        let bound = platform.into_iter().filter(|name| self.platform_path(name).join("driver").exists());
        consoles.chain(bound.map(|device| Setting::Framebuffer(Framebuffer { device, driver: None }))).collect()
    }

    /// `Code::BootConsole` if the boot framebuffer still holds a part of the device's BARs: VFIO could not have them.
    pub(in crate::host) fn refuse_held_memory(&self, device: &PciDevice) -> Result<()> {
        let ranges = self.framebuffer_ranges(device);
        let Some(first) = ranges.first() else { return Ok(()) };
        let error = Error::new(Code::BootConsole, format!("the host's boot console holds memory of {}", device.bdf));
        let lines =
            ranges.iter().map(|held| format!("{:#x} to {:#x}: {}", held.range.start, held.range.end - 1, held.owner));
        Err(lines.fold(error, Error::evidence).fix(format!(
            "`initcall_blacklist=sysfb_init` on the kernel's command line keeps {} away; Linux 6.0 and newer make way for \
             vfio-pci by themselves on a VGA device",
            first.owner
        )))
    }

    /// The ranges of a device's BARs that a boot framebuffer holds. Only root reads the addresses in /proc/iomem.
    pub fn framebuffer_ranges(&self, device: &PciDevice) -> Vec<Held> {
        let bars = || device.resources.iter().filter(|bar| bar.kind != ResourceKind::Io && bar.size > 0);
        let inside = |range: &Range<u64>| {
            bars().any(|bar| range.start >= bar.start && range.end <= bar.start.saturating_add(bar.size))
        };
        let lines = read::lines(self.proc("iomem"));
        lines
            .iter()
            .filter_map(|line| iomem(line))
            .filter(|held| OWNERS.contains(&held.owner.as_str()) && inside(&held.range))
            .collect()
    }

    fn framebuffer_consoles(&self) -> Vec<u32> {
        let numbers = read::names(self.sys("class/vtconsole")).into_iter();
        let numbers = numbers.filter_map(|name| name.strip_prefix("vtcon")?.parse::<u32>().ok());
        numbers
            .filter(|number| {
                let name = read::text(self.console_path(*number).join("name")).unwrap_or_default();
                name.contains("frame buffer") && self.console_is_bound(*number) == Some(true)
            })
            .collect()
    }

    fn console_is_bound(&self, number: u32) -> Option<bool> {
        read::number::<u8>(self.console_path(number).join("bind")).map(|bound| bound != 0)
    }

    fn console_path(&self, number: u32) -> PathBuf {
        self.sys(format!("class/vtconsole/vtcon{number}"))
    }

    fn platform_path(&self, name: &str) -> PathBuf {
        self.sys("bus/platform/devices").join(name)
    }
}

/// A line of /proc/iomem: `  e0000000-e02fffff : BOOTFB`.
fn iomem(line: &str) -> Option<Held> {
    let (range, owner) = line.trim().split_once(" : ")?;
    let (first, last) = range.split_once('-')?;
    let (start, last) = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    let range = start..last.checked_add(1)?;
    // Others than root read zeros.
    (last > start).then(|| Held { range, owner: owner.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_is_read_by_line() {
        let held = iomem("    e0000000-e02fffff : BOOTFB").unwrap();
        assert_eq!((held.range, held.owner.as_str()), (0xe000_0000..0xe030_0000, "BOOTFB"));
        assert!(iomem("00000000-00000000 : BOOTFB").is_none());
    }

    #[test]
    fn only_framebuffers_are_believed() {
        let framebuffer = |device: &str, driver: Option<&str>| Framebuffer {
            device: device.to_owned(),
            driver: driver.map(str::to_owned),
        };
        assert!(framebuffer("efi-framebuffer.0", Some("efi-framebuffer")).check().is_ok());
        for (device, driver) in [
            ("serial8250", None),
            ("efi-framebuffer.0/../x", None),
            ("efi-framebuffer.0", Some("../x")),
            ("simple-framebuffer.0", Some("")),
        ] {
            assert!(framebuffer(device, driver).check().is_err(), "{device} {driver:?}");
        }
        assert!(Console { number: 99, bound: true }.check().is_err());
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,60}") {
            let _ = iomem(&line);
        }
    }
}
