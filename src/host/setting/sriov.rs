//! Virtual functions: what their physical function lets them do (address, VLAN, rights), which only the physical
//! function's driver can set, through the network interface that it has.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::{Host, PciDevice, bounded, read};
use crate::object::{Invalid, PropValue};

/// Highest VLAN number (IEEE 802.1Q: 4095 is reserved); 0 is none.
pub const MAX_VLAN: i64 = 4094;
/// More virtual functions than a physical function has (PCIe 9.3.3.5: a 16-bit number).
const MAX_VFS: u32 = 0xffff;
/// Flag of an interface that is up (kernel: include/uapi/linux/if.h).
const IFF_UP: u32 = 0x1;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        parse(&text).ok_or_else(|| format!("{text:?} is not an Ethernet address"))
    }
}

impl FromStr for Mac {
    type Err = String;

    /// Takes the address of one card: neither a group's nor nobody's.
    fn from_str(text: &str) -> Result<Mac, String> {
        let mac = parse(text).ok_or("expected six bytes in hexadecimal, such as 52:54:00:12:34:56")?;
        match mac.0 {
            [0, 0, 0, 0, 0, 0] => Err("an address of zeros is nobody's".into()),
            [first, ..] if first & 1 != 0 => {
                Err("this is the address of a group of cards (its first byte is odd)".into())
            }
            _ => Ok(mac),
        }
    }
}

impl PropValue for Mac {
    const KIND: &'static str = "mac address";

    fn parse(text: &str) -> Result<Self, Invalid> {
        text.parse().map_err(|why: String| Invalid::new(why))
    }
}

fn parse(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac(bytes))
}

/// One thing that a physical function says of its virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfAttribute {
    /// Its Ethernet address; zeros: it may choose one.
    Mac(Mac),
    /// The VLAN that it is in without knowing; 0: none.
    Vlan {
        /// Number, 0 to 4094.
        id: u16,
        /// Priority, 0 to 7.
        priority: u8,
    },
    /// Whether frames with another sender than its own address are dropped.
    SpoofCheck(bool),
    /// Whether it may change its address and hear everything.
    Trust(bool),
}

impl fmt::Display for VfAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on: bool| if on { "on" } else { "off" };
        match *self {
            VfAttribute::Mac(mac) => write!(f, "MAC {mac}"),
            VfAttribute::Vlan { id: 0, .. } => f.write_str("no VLAN"),
            VfAttribute::Vlan { id, priority: 0 } => write!(f, "VLAN {id}"),
            VfAttribute::Vlan { id, priority } => write!(f, "VLAN {id}, priority {priority}"),
            VfAttribute::SpoofCheck(is) => write!(f, "spoof check {}", on(is)),
            VfAttribute::Trust(is) => write!(f, "trust {}", on(is)),
        }
    }
}

/// A virtual function, as its physical function numbers it, and one thing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfSetting {
    /// The physical function.
    pub physfn: Bdf,
    /// The virtual function's number, from 0.
    pub number: u32,
    /// What it is to be.
    pub is: VfAttribute,
}

impl VfSetting {
    pub(super) fn is_about_the_same(&self, other: &VfSetting) -> bool {
        let same_kind = std::mem::discriminant(&self.is) == std::mem::discriminant(&other.is);
        same_kind && (self.physfn, self.number) == (other.physfn, other.number)
    }

    pub(super) fn now(&self, host: &Host) -> Result<VfSetting> {
        let interface = host.interface_of(self.physfn)?;
        let state = host
            .effects()
            .vf_state(&interface, self.number)
            .map_err(|error| self.refused(host, "ask for it (RTM_GETLINK)", &error))?;
        let same = |is: &VfAttribute| std::mem::discriminant(is) == std::mem::discriminant(&self.is);
        match state.into_iter().find(same) {
            Some(is) => Ok(VfSetting { is, ..*self }),
            None => Err(self.refused(host, "ask for it", &std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))),
        }
    }

    pub(super) fn set(&self, host: &Host) -> Result<()> {
        let interface = host.interface_of(self.physfn)?;
        let asked = host.effects().set_vf(&interface, self.number, self.is);
        asked.map_err(|error| match bounded::is_stuck(&error) {
            false => self.refused(host, "set it (RTM_SETLINK)", &error),
            true => {
                let VfSetting { physfn, number, is } = self;
                bounded::stuck(format_args!("virtual function {number} of {physfn}: {is}"), error.to_string())
            }
        })?;
        let now = self.now(host)?;
        if now == *self {
            return Ok(());
        }
        let answer = std::io::Error::other(format!("the driver says yes, and then that it is {}", now.is));
        Err(self.refused(host, "set it", &answer))
    }

    fn refused(&self, host: &Host, doing: &str, answer: &std::io::Error) -> Error {
        let VfSetting { physfn, number, is } = self;
        let error = Error::new(Code::VfRefused, format!("virtual function {number} of {physfn} cannot have {is}"))
            .evidence(format!("could not {doing}: {}", explain_io(answer)));
        let name = host.interface_of(*physfn).ok().and_then(|path| read::name_of(&path)).unwrap_or_default();
        let error = match host.interface_is_down(*physfn) {
            true => error.evidence(format!("{name}, the interface of {physfn}, is down")),
            false => error,
        };
        match answer.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => error.fix("run it as root"),
            _ if host.interface_is_down(*physfn) => error.fix(format!("`ip link set {name} up`, then try again")),
            _ => {
                error.fix(format!("`ip link show {name}` shows what its driver offers; `dmesg` may say why it objects"))
            }
        }
    }
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.is, self.physfn)
    }
}

impl Host {
    /// The setting of a virtual function that makes it `is`.
    pub(super) fn vf_setting(&self, device: &PciDevice, is: VfAttribute) -> Result<VfSetting> {
        let bdf = device.bdf;
        let Some(physfn) = device.physfn else {
            return Err(Error::new(Code::NotVirtual, format!("{bdf} is no virtual function"))
                .evidence(device.name())
                .fix("its own driver in the guest sets its address; leave the option out"));
        };
        let number = self.vf_number(physfn, bdf).ok_or_else(|| {
            Error::new(Code::NotVirtual, format!("{physfn} does not know {bdf} as its virtual function"))
                .evidence(format!("no virtfnN in {} leads to it", self.device_path(physfn).display()))
        })?;
        self.interface_of(physfn)?;
        Ok(VfSetting { physfn, number, is })
    }

    /// The number by which a physical function knows a virtual function (links `virtfnN`).
    pub fn vf_number(&self, physfn: Bdf, bdf: Bdf) -> Option<u32> {
        let folder = self.device_path(physfn);
        let numbers = read::names(&folder).into_iter().filter_map(|name| name.strip_prefix("virtfn")?.parse().ok());
        let mut numbers = numbers.filter(|number: &u32| *number < MAX_VFS);
        numbers.find(|number| {
            read::link_name(folder.join(format!("virtfn{number}"))).is_some_and(|name| name == bdf.to_string())
        })
    }

    /// The folder of the network interface that a physical function's driver has made.
    fn interface_of(&self, physfn: Bdf) -> Result<PathBuf> {
        let folder = self.device_path(physfn).join("net");
        if let Some(name) = read::names(&folder).into_iter().next() {
            return Ok(folder.join(name));
        }
        let error = Error::new(Code::NoPhysicalInterface, format!("{physfn} has no network interface on this host"));
        Err(match self.driver(physfn) {
            Some(driver) => error.evidence(format!("its driver is {driver}")),
            None => error.evidence("it has no driver"),
        }
        .fix("only the physical function's driver can set that: leave it on its host driver"))
    }

    /// Whether a physical function has an interface and it is down: its virtual functions have no link then.
    pub(in crate::host) fn interface_is_down(&self, physfn: Bdf) -> bool {
        let flags = self.interface_of(physfn).ok().and_then(|path| read::hex(path.join("flags")));
        flags.is_some_and(|flags| flags & IFF_UP == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_of_one_card() {
        assert_eq!("52:54:00:AB:cd:01".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:01");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "52-54-00-12-34-56",
            "+2:54:00:12:34:56",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        let json = serde_json::to_string(&Mac([0; 6])).unwrap();
        assert_eq!(serde_json::from_str::<Mac>(&json).unwrap(), Mac([0; 6]), "the journal knows an address of zeros");
    }

    proptest! {
        #[test]
        fn written_and_read_back(bytes: [u8; 6]) {
            prop_assert_eq!(Mac::try_from(Mac(bytes).to_string()), Ok(Mac(bytes)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<Mac>();
        }
    }
}
