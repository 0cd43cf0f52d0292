//! The files of devices.d: what a name stands for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::usb::{self, UsbClaim};
use super::{FOLDER, Name, Serial};
use crate::bdf::DeviceAddr;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::setting::Mac;
use crate::host::{Host, read};

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 256 << 10;
const SUFFIX: &str = ".toml";

/// One device by its name, and by what it is known: all that is given must be true of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// What it is called.
    pub name: Name,
    /// The file that says so.
    pub file: PathBuf,
    /// What is true of it.
    pub known_by: KnownBy,
    /// Whether the name means all functions of the device.
    pub all_functions: bool,
    /// Whether vfio-pci gets it before any host driver does.
    pub reserve: bool,
    /// The VM that is started when it appears.
    pub start: Option<Name>,
}

/// By what a device is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownBy {
    pub address: Option<DeviceAddr>,
    /// Vendor and device ID.
    pub id: Option<(u16, u16)>,
    /// Those of the subsystem.
    pub subsystem: Option<(u16, u16)>,
    pub serial: Option<Serial>,
    pub path: Option<String>,
    pub slot: Option<String>,
    pub mac: Option<Mac>,
    pub function: Option<u8>,
}

/// What files of devices.d declare.
#[derive(Debug, Default)]
pub(in crate::host) struct Declarations {
    /// PCI devices.
    pub devices: Vec<Declared>,
    /// USB devices that are claimed.
    pub usb: Vec<UsbClaim>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    device: Vec<Spanned<Table>>,
    #[serde(default)]
    usb: Vec<Spanned<usb::Table>>,
}

/// A `[[device]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    name: Name,
    address: Option<Word<DeviceAddr>>,
    id: Option<Word<Ids>>,
    subsystem: Option<Word<Ids>>,
    serial: Option<Word<Serial>>,
    path: Option<String>,
    slot: Option<String>,
    mac: Option<Word<Mac>>,
    function: Option<u8>,
    #[serde(default)]
    all_functions: bool,
    #[serde(default)]
    reserve: bool,
    start: Option<Name>,
}

/// A text that stands for something.
pub(super) struct Word<T>(pub T);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Word<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map(Word).map_err(serde::de::Error::custom)
    }
}

/// `8086:1521`, as `lspci -nn` and `lsusb` print it.
pub(super) struct Ids(pub u16, pub u16);

impl FromStr for Ids {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |part: &str| {
            let plain = part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(part, 16).ok()).flatten()
        };
        let parse = || {
            let (vendor, device) = text.split_once(':')?;
            Some(Ids(hex(vendor)?, hex(device)?))
        };
        parse().ok_or("expected vendor and device ID in hexadecimal, such as \"8086:1521\"")
    }
}

impl Table {
    fn declare(self, file: &Path) -> Result<Declared, &'static str> {
        let known_by = KnownBy {
            address: self.address.map(|it| it.0),
            id: self.id.map(|it| (it.0.0, it.0.1)),
            subsystem: self.subsystem.map(|it| (it.0.0, it.0.1)),
            serial: self.serial.map(|it| it.0),
            path: self.path,
            slot: self.slot,
            mac: self.mac.map(|it| it.0),
            function: self.function,
        };
        if known_by == (KnownBy { function: known_by.function, ..KnownBy::default() }) {
            return Err("it says nothing that the device is known by: address, id, subsystem, serial, path, slot, mac");
        }
        let whole = known_by.address.is_some_and(|address| address.function.is_none());
        if self.all_functions && (known_by.function.is_some() || known_by.address.is_some() != whole) {
            return Err("all-functions contradicts the function that is named");
        }
        if self.reserve && known_by.mac.is_some() {
            return Err(
                "a device has no mac before a driver has it: reserve needs another key, such as path or serial",
            );
        }
        Ok(Declared {
            name: self.name,
            file: file.to_owned(),
            // An address without function, and no other word about functions, means them all.
            all_functions: self.all_functions || (whole && known_by.function.is_none()),
            known_by,
            reserve: self.reserve,
            start: self.start,
        })
    }
}

impl Host {
    /// The PCI devices that the files of devices.d declare: see [`Host::declarations`].
    pub(in crate::host) fn declared(&self) -> (Vec<Declared>, Vec<Error>) {
        let (all, errors) = self.declarations();
        (all.devices, errors)
    }

    /// What the files of devices.d declare, in their order, and what is wrong with them: a file that cannot be understood
    /// declares nothing, and of two declarations of one name only the first is one.
    pub(in crate::host) fn declarations(&self) -> (Declarations, Vec<Error>) {
        let folder = self.etc(FOLDER);
        let (mut all, mut errors) = (Declarations::default(), Vec::new());
        let mut seen: BTreeSet<Name> = BTreeSet::new();
        for name in read::names(&folder).iter().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.')) {
            let file = folder.join(name);
            let mut some = match text(&file).and_then(|text| parse(&file, &text)) {
                Ok(some) => some,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let mut is_first = |name: &Name| {
                let first = seen.insert(name.clone());
                if !first {
                    errors.push(unusable(&file, &format!("the name {name} is declared twice")));
                }
                first
            };
            some.devices.retain(|declared| is_first(&declared.name));
            some.usb.retain(|claim| is_first(&claim.name));
            all.devices.extend(some.devices);
            all.usb.extend(some.usb);
        }
        (all, errors)
    }
}

fn text(file: &Path) -> Result<String> {
    let unreadable = |error: std::io::Error| unusable(file, &explain_io(&error));
    let size = std::fs::metadata(file).map_err(unreadable)?.len();
    if size > MAX_FILE {
        return Err(unusable(file, &format!("it has {size} bytes, more than {MAX_FILE}")));
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

/// What a file's text declares.
pub(super) fn parse(file: &Path, text: &str) -> Result<Declarations> {
    let wrong = |at: Option<Range<usize>>, what: &str| {
        let line = at.map(|at| text.get(..at.start).unwrap_or_default().matches('\n').count() + 1);
        unusable(file, &line.map_or(what.to_owned(), |line| format!("line {line}: {what}")))
    };
    let contents: Contents =
        toml::from_str(text).map_err(|error: toml::de::Error| wrong(error.span(), error.message()))?;
    let devices = contents.device.into_iter().map(|table| {
        let at = table.span();
        table.into_inner().declare(file).map_err(|what| wrong(Some(at), what))
    });
    let devices = devices.collect::<Result<Vec<Declared>>>()?;
    let usb = contents.usb.into_iter().map(|table| {
        let at = table.span();
        table.into_inner().declare(file).map_err(|what| wrong(Some(at), what))
    });
    Ok(Declarations { devices, usb: usb.collect::<Result<Vec<UsbClaim>>>()? })
}

fn unusable(file: &Path, what: &str) -> Error {
    Error::new(Code::NamesUnusable, "a file of device names is not understood")
        .evidence(format!("{}: {what}", file.display()))
        .fix("mend the file; `passthru explain PT044` has an example")
}
