//! The address of a PCI function: domain, bus, device and function (PCI Express Base Specification, section 2.2.4.2,
//! with Linux's domain number, which names a host bridge's own set of 256 buses).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};

/// The highest device (slot) number on a bus.
const MAX_DEVICE: u8 = 31;
/// The highest function number of a device.
const MAX_FUNCTION: u8 = 7;

/// A PCI function's address, written as `lspci -D` prints it: `0000:01:00.0`. Orders as `lspci` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bdf {
    /// PCI domain (segment group).
    pub domain: u16,
    /// Bus number.
    pub bus: u8,
    /// Device (slot) number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// The text is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a PCI address: expected [domain:]bus:device.function in hexadecimal, such as 01:00.0")]
pub struct ParseBdfError {
    text: String,
}

impl From<ParseBdfError> for Error {
    fn from(error: ParseBdfError) -> Error {
        Error::new(Code::Usage, error.to_string()).fix("`passthru devices` lists the addresses of this host's devices")
    }
}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseBdfError { text: text.chars().take(64).collect() })
    }
}

/// One function of a device, or all of them: `01:00.0`, or `01:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceAddr {
    /// PCI domain (segment group).
    pub domain: u16,
    /// Bus number.
    pub bus: u8,
    /// Device (slot) number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7; `None`: every function that there is.
    pub function: Option<u8>,
}

impl DeviceAddr {
    /// The one function that is meant, if it is one.
    pub fn bdf(self) -> Option<Bdf> {
        let DeviceAddr { domain, bus, device, function } = self;
        function.map(|function| Bdf { domain, bus, device, function })
    }

    /// Whether a function is meant.
    pub fn contains(self, bdf: Bdf) -> bool {
        (self.domain, self.bus, self.device) == (bdf.domain, bdf.bus, bdf.device)
            && self.function.is_none_or(|function| function == bdf.function)
    }
}

impl From<Bdf> for DeviceAddr {
    fn from(Bdf { domain, bus, device, function }: Bdf) -> DeviceAddr {
        DeviceAddr { domain, bus, device, function: Some(function) }
    }
}

impl FromStr for DeviceAddr {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('.') {
            return text.parse::<Bdf>().map(DeviceAddr::from);
        }
        let Bdf { domain, bus, device, .. } =
            parse(&format!("{text}.0")).ok_or_else(|| ParseBdfError { text: text.chars().take(64).collect() })?;
        Ok(DeviceAddr { domain, bus, device, function: None })
    }
}

impl fmt::Display for DeviceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)?;
        self.function.map_or(Ok(()), |function| write!(f, ".{function:x}"))
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (address, function) = text.split_once('.')?;
    let (front, device) = address.rsplit_once(':')?;
    let (domain, bus) = front.split_once(':').unwrap_or(("0", front));
    let bdf = Bdf {
        domain: u16::try_from(hex(domain, 4)?).ok()?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (bdf.device <= MAX_DEVICE && bdf.function <= MAX_FUNCTION).then_some(bdf)
}

/// One to `digits` hexadecimal digits and nothing else (`from_str_radix` alone would take a sign).
fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl Bdf {
    /// The address without domain 0000, as `lspci` prints it: for people, where room is scarce.
    pub fn short(self) -> ShortBdf {
        ShortBdf(self)
    }
}

/// An address that is written without domain 0000: `01:00.0`.
#[derive(Debug, Clone, Copy)]
pub struct ShortBdf(Bdf);

impl fmt::Display for ShortBdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.0.to_string();
        f.pad(full.strip_prefix("0000:").unwrap_or(&full))
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> String {
        bdf.to_string()
    }
}

impl TryFrom<String> for Bdf {
    type Error = ParseBdfError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read() {
        let table = [
            ("01:00.0", "0000:01:00.0"),
            ("0000:01:00.0", "0000:01:00.0"),
            ("0:1f.3", "0000:00:1f.3"),
            ("ffff:FF:1F.7", "ffff:ff:1f.7"),
            ("1:2:3.4", "0001:02:03.4"),
        ];
        for (text, wanted) in table {
            assert_eq!(text.parse::<Bdf>().unwrap().to_string(), wanted);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let table = [
            "",
            "01:00",
            "0100.0",
            "01:00.8",
            "01:20.0",
            "100:00.0",
            "10000:01:00.0",
            "+1:00.0",
            "01:-1.0",
            "01:00.0 ",
            "01:00.",
            ":00.0",
            "0:0:0:0.0",
            "01:00.0.0",
            "01:g0.0",
            "../../01:00.0",
            "nvme0",
        ];
        for text in table {
            let error = text.parse::<Bdf>().unwrap_err();
            assert!(error.to_string().contains("expected [domain:]bus:device.function"), "{text}");
        }
    }

    #[test]
    fn a_device_is_written_without_its_function() {
        let addr = |text: &str| text.parse::<DeviceAddr>().unwrap();
        assert_eq!(addr("1:0").to_string(), "0000:01:00");
        assert_eq!(addr("0001:02:03.4").to_string(), "0001:02:03.4");
        assert_eq!(addr("1:0.2").bdf(), Some("01:00.2".parse().unwrap()));
        assert_eq!(addr("1:0").bdf(), None);
        for (text, inside) in [("01:00", true), ("01:00.1", true), ("01:00.0", false), ("01:01", false)] {
            assert_eq!(addr(text).contains("01:00.1".parse().unwrap()), inside, "{text}");
        }
        for text in ["", ":", "01", "01:20", "01:00:", "1:2:3:4", "../01:00", "01:00."] {
            assert!(text.parse::<DeviceAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_has_the_written_form() {
        let bdf: Bdf = serde_json::from_str("\"02:00.1\"").unwrap();
        assert_eq!(serde_json::to_string(&bdf).unwrap(), "\"0000:02:00.1\"");
        assert!(serde_json::from_str::<Bdf>("\"x\"").is_err());
    }

    proptest! {
        #[test]
        fn written_and_read_back(domain: u16, bus: u8, device in 0u8..32, function in 0u8..8) {
            let bdf = Bdf { domain, bus, device, function };
            prop_assert_eq!(bdf.to_string().parse::<Bdf>().unwrap(), bdf);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<Bdf>();
            let _ = text.parse::<DeviceAddr>();
        }
    }
}
