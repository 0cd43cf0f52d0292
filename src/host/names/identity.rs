//! By what a device is known, whatever its address is today.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::host::capabilities;
use crate::host::setting::Mac;
use crate::host::{Host, read};

/// Number and registers of the capability "device serial number" (PCIe 7.9.3).
const CAP_SERIAL: u16 = 0x0003;
const SERIAL_LOW: usize = 4;
const SERIAL_HIGH: usize = 8;
/// Where extended capabilities begin; only root may read as far.
const EXTENDED: usize = 0x100;

/// A PCI Express device's serial number: 64 bits (an EUI-64), written as `lspci -vv` does, `a0-36-9f-ff-ff-12-34-56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Serial(pub u64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_be_bytes().map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join("-"))
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.to_string()
    }
}

impl TryFrom<String> for Serial {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |part: &str| {
            let plain = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(['-', ':']).map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes
            .map(|bytes| Serial(u64::from_be_bytes(bytes)))
            .ok_or_else(|| "expected eight bytes in hexadecimal, such as \"a0-36-9f-ff-ff-12-34-56\"".to_owned())
    }
}

/// What the journal remembers of a device: who runs a guest may not read its serial number, and on vfio-pci it has no
/// interface any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<Serial>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    macs: Vec<Mac>,
}

/// By what a function is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor and device ID.
    pub ids: (u16, u16),
    /// Those of the subsystem: the card's maker.
    pub subsystem: Option<(u16, u16)>,
    /// Its serial number; many devices have none.
    pub serial: Option<Serial>,
    /// Whether the lack of a serial number means that it has none; otherwise it may not be read.
    #[serde(skip)]
    pub serial_is_known: bool,
    /// The way to it from its root port, by device and function numbers, which do not change when buses are numbered
    /// anew: `0000:00:1c.0/00.0`.
    pub path: String,
    /// The number or name of the physical slot that it is in, where the firmware or the port says so.
    pub slot: Option<String>,
    /// The Ethernet addresses of its interfaces, now or before it was bound.
    pub macs: Vec<Mac>,
}

impl Host {
    /// By what each function that a guest could have is known.
    pub fn identities(&self) -> Vec<Identity> {
        let slots = self.slots();
        let guests = self.devices().into_iter().filter(|device| !device.bridge);
        guests.map(|device| self.identity_in(&slots, device.bdf, (device.vendor, device.device))).collect()
    }

    /// By what a function is known.
    pub(in crate::host) fn identity(&self, bdf: Bdf, ids: (u16, u16)) -> Identity {
        self.identity_in(&self.slots(), bdf, ids)
    }

    /// What of a function must be noted before its driver goes.
    pub(in crate::host) fn noted_of(&self, bdf: Bdf, ids: (u16, u16)) -> Noted {
        let Identity { serial, macs, .. } = self.identity(bdf, ids);
        Noted { serial, macs }
    }

    fn identity_in(&self, slots: &[(String, String)], bdf: Bdf, ids: (u16, u16)) -> Identity {
        let at = self.device_path(bdf);
        let noted = self.journal_entry(bdf).ok().flatten().filter(|entry| entry.ids == ids);
        let noted = noted.map(|entry| entry.noted).unwrap_or_default();
        let id = |name: &str| read::hex(at.join(name)).and_then(|id| u16::try_from(id).ok());
        let config = self.config(bdf);
        let macs: Vec<Mac> = read::names(at.join("net"))
            .iter()
            .filter_map(|name| read::text(at.join("net").join(name).join("address"))?.parse().ok())
            .collect();
        let place = bdf.to_string();
        let place = place.split_once('.').map_or("", |(device, _)| device);
        Identity {
            bdf,
            ids,
            subsystem: id("subsystem_vendor").zip(id("subsystem_device")).filter(|ids| *ids != (0, 0)),
            serial: serial(&config).or(noted.serial),
            serial_is_known: config.len() > EXTENDED || noted.serial.is_some(),
            path: path(&read::real(&at).unwrap_or(at)),
            slot: slots.iter().find(|(_, address)| address == place).map(|(slot, _)| slot.clone()),
            macs: if macs.is_empty() { noted.macs } else { macs },
        }
    }

    /// Physical slots, and the device that each is for (kernel: drivers/pci/slot.c).
    fn slots(&self) -> Vec<(String, String)> {
        let folder = self.sys("bus/pci/slots");
        let slot = |name: String| Some((name.clone(), read::text(folder.join(name).join("address"))?));
        read::names(&folder).into_iter().filter_map(slot).collect()
    }
}

/// The serial number in a configuration space.
fn serial(config: &[u8]) -> Option<Serial> {
    let at = capabilities::list(config).iter().find(|it| it.id == CAP_SERIAL && usize::from(it.at) >= EXTENDED)?.at;
    let register = |offset: usize| {
        let bytes = config.get(usize::from(at) + offset..)?.first_chunk()?;
        Some(u64::from(u32::from_le_bytes(*bytes)))
    };
    let serial = register(SERIAL_HIGH)? << 32 | register(SERIAL_LOW)?;
    (serial != 0 && serial != u64::MAX).then_some(Serial(serial))
}

/// The way to a function from its root port: the last components of its folder, without the bus numbers of all but the
/// first.
fn path(folder: &Path) -> String {
    let above = folder.iter().filter_map(|part| part.to_str()?.parse::<Bdf>().ok());
    let parts = above.enumerate().map(|(depth, bdf)| match depth {
        0 => bdf.to_string(),
        _ => format!("{:02x}.{:x}", bdf.device, bdf.function),
    });
    parts.collect::<Vec<_>>().join("/")
}
