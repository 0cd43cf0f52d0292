//! A `[[usb]]` of devices.d: a USB device by its name, and by what it is known.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::Name;
use super::declared::{Ids, Word};
use crate::bdf::Bdf;
use crate::host::usb::UsbDevice;

/// Tiers of hubs that USB allows below a root hub (USB 2.0, 4.1.1).
const MAX_PORTS: usize = 6;

/// A USB device that is claimed for guests: all that is given must be true of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsbClaim {
    /// What it is called.
    pub name: Name,
    /// The file that says so.
    pub file: PathBuf,
    /// What is true of it.
    pub known_by: UsbKnownBy,
    /// The VM that is started when it appears.
    pub start: Option<Name>,
}

/// By what a USB device is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsbKnownBy {
    /// Vendor and product ID.
    pub id: Option<(u16, u16)>,
    /// What it says that its serial number is.
    pub serial: Option<String>,
    /// The ports that lead to it.
    pub port: Option<UsbPort>,
    /// The PCI function whose controller it hangs on.
    pub controller: Option<Bdf>,
}

impl UsbKnownBy {
    /// Whether all of it is true of a device.
    pub(in crate::host) fn fits(&self, device: &UsbDevice) -> bool {
        self.id.is_none_or(|id| id == (device.vendor, device.product))
            && self.serial.as_ref().is_none_or(|serial| device.serial.as_ref() == Some(serial))
            && self.port.as_ref().is_none_or(|port| port.leads_to(&device.name))
            && self.controller.is_none_or(|controller| device.controller == Some(controller))
    }
}

/// The ports that lead to a USB device: `1-4.2` on bus 1, or `4.2` on any bus, since a bus's number changes with the order in
/// which the controllers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsbPort {
    bus: Option<u32>,
    ports: String,
}

impl UsbPort {
    fn leads_to(&self, name: &str) -> bool {
        let Some((bus, ports)) = name.split_once('-') else { return false };
        self.ports == ports && self.bus.is_none_or(|number| bus.parse() == Ok(number))
    }
}

impl fmt::Display for UsbPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bus.iter().try_for_each(|bus| write!(f, "{bus}-"))?;
        f.write_str(&self.ports)
    }
}

impl FromStr for UsbPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As the kernel writes numbers, so that equal ports are equal texts.
        let number = |text: &str| text.parse::<u8>().ok().filter(|port| *port > 0 && port.to_string() == text);
        let parse = || {
            let (bus, ports) = match text.split_once('-') {
                Some((bus, ports)) => (Some(bus.parse().ok()?), ports),
                None => (None, text),
            };
            let good = ports.split('.').count() <= MAX_PORTS && ports.split('.').all(|port| number(port).is_some());
            good.then(|| UsbPort { bus, ports: ports.to_owned() })
        };
        parse().ok_or(
            "expected the ports as `passthru devices --usb` prints them, such as \"1-4.2\", or \"4.2\" on any bus",
        )
    }
}

/// A `[[usb]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub name: Name,
    id: Option<Word<Ids>>,
    serial: Option<String>,
    port: Option<Word<UsbPort>>,
    controller: Option<Word<Bdf>>,
    start: Option<Name>,
}

impl Table {
    pub fn declare(self, file: &Path) -> Result<UsbClaim, &'static str> {
        let known_by = UsbKnownBy {
            id: self.id.map(|it| (it.0.0, it.0.1)),
            serial: self.serial,
            port: self.port.map(|it| it.0),
            controller: self.controller.map(|it| it.0),
        };
        if known_by.id.is_none() && known_by.serial.is_none() && known_by.port.is_none() {
            return Err("it says nothing that the device is known by: id, serial, port");
        }
        Ok(UsbClaim { name: self.name, file: file.to_owned(), known_by, start: self.start })
    }
}
