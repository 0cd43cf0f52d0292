//! Names for devices, which stay when addresses move: `/etc/passthru/devices.d/*.toml` says by what each is known (its
//! place, its serial number, its Ethernet address), and a name stands wherever an address does.
//!
//! A name means one device or is an error: of two cards that answer to a description none is taken.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Host;
use super::findings::{Finding, Subject};
use crate::bdf::{Bdf, DeviceAddr, ParseBdfError};
use crate::error::{Code, Error, Result};

mod declared;
mod identity;
pub(super) mod resolve;
mod usb;

pub use declared::Declared;
pub(super) use identity::Noted;
pub use identity::{Identity, Serial};
use resolve::Unresolved;
pub use usb::{UsbClaim, UsbKnownBy, UsbPort};

/// Longest name.
const MAX_NAME: usize = 32;
/// Where names are declared, below /etc/passthru.
const FOLDER: &str = "devices.d";
/// How many devices an error tells apart.
const MAX_TOLD: usize = 8;

/// A device's name: a letter, then letters, digits, `-` and `_`. No address is one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    fn is_one(text: &str) -> bool {
        let mut bytes = text.bytes();
        text.len() <= MAX_NAME
            && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if Name::is_one(&text) {
            return Ok(Name(text));
        }
        Err(format!("{text:?} is no name: a letter, then letters, digits, - and _, {MAX_NAME} at most"))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user calls a device: `01:00.0`, `01:00`, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRef {
    /// By its address.
    Address(DeviceAddr),
    /// By a name of devices.d.
    Name(Name),
}

impl FromStr for DeviceRef {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(address) => Ok(DeviceRef::Address(address)),
            Err(_) if Name::is_one(text) => Ok(DeviceRef::Name(Name(text.to_owned()))),
            Err(error) => Err(error),
        }
    }
}

impl Host {
    /// Whether devices.d declares this name.
    pub fn knows_name(&self, name: &str) -> bool {
        self.declared().0.iter().any(|declared| declared.name.0 == name)
    }

    /// The names that devices.d declares for PCI devices.
    pub fn names(&self) -> Vec<Name> {
        self.declared().0.into_iter().map(|declared| declared.name).collect()
    }

    /// The address that is meant.
    ///
    /// # Errors
    /// [`Code::UnknownName`] for a name that is not declared, [`Code::NamesUnusable`] if a file that could declare it
    /// cannot be read, [`Code::NameUnresolved`] if it means no device or several.
    pub fn locate(&self, device: &DeviceRef) -> Result<DeviceAddr> {
        let name = match device {
            DeviceRef::Address(address) => return Ok(*address),
            DeviceRef::Name(name) => name,
        };
        let (all, errors) = self.declared();
        match all.iter().find(|declared| declared.name == *name) {
            Some(declared) => self.resolve(declared, &self.identities()),
            None => Err(errors.into_iter().next().unwrap_or_else(|| self.unknown(name, &all))),
        }
    }

    /// The names that mean this function, alone or with the others of its device.
    pub fn names_of(&self, bdf: Bdf) -> Vec<Name> {
        self.all_names().into_iter().filter(|(_, addr)| addr.contains(bdf)).map(|(name, _)| name).collect()
    }

    /// All names that mean a device, and which.
    pub(super) fn all_names(&self) -> Vec<(Name, DeviceAddr)> {
        let (all, _) = self.declared();
        if all.is_empty() {
            return Vec::new();
        }
        let identities = self.identities();
        let means = |declared: Declared| {
            let addr = resolve::resolve(&declared, &identities).ok()?;
            Some((declared.name, addr))
        };
        all.into_iter().filter_map(means).collect()
    }

    /// Whether every name means a device; nothing where no name is declared.
    pub fn check_names(&self) -> Vec<Finding> {
        let (declarations, errors) = self.declarations();
        let all = declarations.devices;
        let mut findings: Vec<Finding> = errors.iter().map(|error| Finding::warn(Subject::Host, error)).collect();
        let identities = if all.is_empty() { Vec::new() } else { self.identities() };
        findings.extend(all.iter().map(|declared| match self.resolve(declared, &identities) {
            Ok(addr) => {
                let what = format!("the name {} means {addr}", declared.name);
                Finding::pass(Subject::Host, Code::NameUnresolved, what)
            }
            Err(error) => Finding::warn(Subject::Host, &error),
        }));
        findings.extend(self.check_reserved(&all, &identities).iter().map(|it| Finding::warn(Subject::Host, it)));
        findings.extend(self.check_claims(&declarations.usb));
        findings
    }

    fn resolve(&self, declared: &Declared, identities: &[Identity]) -> Result<DeviceAddr> {
        resolve::resolve(declared, identities).map_err(|why| unresolved(declared, why))
    }

    fn unknown(&self, name: &Name, all: &[Declared]) -> Error {
        let there: Vec<String> = all.iter().map(|declared| declared.name.to_string()).collect();
        let error = Error::new(Code::UnknownName, format!("no device is called {name}"))
            .evidence(format!("no file of {} declares the name", self.etc(FOLDER).display()));
        match there.as_slice() {
            [] => error.fix("write an address, as `passthru devices` prints it, or declare the name"),
            some => error.fix(format!("the names that there are: {}", some.join(", "))),
        }
    }
}

fn unresolved(declared: &Declared, why: Unresolved) -> Error {
    let name = &declared.name;
    let declared_in = format!("declared in {}", declared.file.display());
    match why {
        Unresolved::Nothing(near) => {
            let error = Error::new(Code::NameUnresolved, format!("no device is {name}")).evidence(declared_in);
            near.into_iter()
                .take(MAX_TOLD)
                .fold(error, |error, line| error.evidence(line))
                .fix("`passthru inspect ADDRESS` shows by what a device is known; put it into the file")
        }
        Unresolved::Several(several) => {
            let error = Error::new(Code::NameUnresolved, format!("{} devices are {name}", several.len()));
            several
                .into_iter()
                .take(MAX_TOLD)
                .fold(error.evidence(declared_in), |error, line| error.evidence(line))
                .fix("add to the file what tells them apart: path, slot, serial, address or function")
        }
    }
}

#[cfg(test)]
mod tests;
