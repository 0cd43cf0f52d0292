//! PCI addresses as users write them: of host devices (`lspci -D`), and of places on a guest's bus (QEMU's `addr=`).

use std::fmt;
use std::str::FromStr;

use super::{Invalid, PropValue};

/// Highest device number on a PCI bus.
const MAX_DEVICE: u32 = 0x1f;
/// Highest function number of a PCI device.
const MAX_FUNCTION: u32 = 7;

/// The address of a PCI function of the host: `[domain:]bus:device.function`, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    /// PCI domain (segment); Linux numbers those of VMD controllers from 0x10000.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// As the kernel and `lspci -D` write it: `0000:01:00.0`.
impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl PropValue for Bdf {
    const KIND: &'static str = "bdf";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let split = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            Some(Bdf {
                domain: hex(domain, 8, u32::MAX)?,
                bus: hex(bus, 2, 0xff)?.try_into().ok()?,
                device: hex(device, 2, MAX_DEVICE)?.try_into().ok()?,
                function: hex(function, 1, MAX_FUNCTION)?.try_into().ok()?,
            })
        };
        split().ok_or_else(|| Invalid::expected("a PCI address such as 0000:01:00.0 or 01:00.0"))
    }
}

impl FromStr for Bdf {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Bdf::parse(text)
    }
}

/// A place on a guest's PCI bus: `slot[.function]` in hexadecimal, as in QEMU's `addr=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddr {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7; 0 if the user gave none.
    pub function: u8,
}

impl fmt::Display for PciAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

impl PropValue for PciAddr {
    const KIND: &'static str = "slot[.function]";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let split = || {
            let (device, function) = text.split_once('.').unwrap_or((text, "0"));
            Some(PciAddr {
                device: hex(device.strip_prefix("0x").unwrap_or(device), 2, MAX_DEVICE)?.try_into().ok()?,
                function: hex(function.strip_prefix("0x").unwrap_or(function), 1, MAX_FUNCTION)?.try_into().ok()?,
            })
        };
        split().ok_or_else(|| {
            Invalid::expected("a slot from 0 to 1f (hexadecimal) and a function from 0 to 7: 02 or 02.0")
        })
    }
}

/// One to `digits` hexadecimal digits that stand for at most `max`.
fn hex(text: &str, digits: usize, max: u32) -> Option<u32> {
    if text.is_empty() || text.len() > digits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok().filter(|&number| number <= max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_addresses() {
        let expected = Bdf { domain: 0, bus: 1, device: 0x1f, function: 7 };
        for text in ["0000:01:1f.7", "01:1f.7", "1:1F.7", "0:1:1f.7"] {
            assert_eq!(Bdf::parse(text), Ok(expected), "{text}");
        }
        assert_eq!(Bdf::parse("10000:e1:00.0").unwrap().domain, 0x10000);
        for text in [
            "",
            "01",
            "01:00",
            "01:20.0",
            "01:00.8",
            "100:00.0",
            "01:00.0.0",
            "g1:00.0",
            "+1:00.0",
            "0:0:0:0.0",
            ":00.0",
            "01:.0",
            "01:00.",
            " 01:00.0",
            "123456789:01:00.0",
        ] {
            assert!(Bdf::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn guest_addresses() {
        for (text, device, function) in
            [("2", 2, 0), ("02.0", 2, 0), ("1f.7", 31, 7), ("0x1c.0x1", 28, 1), ("A", 10, 0)]
        {
            assert_eq!(PciAddr::parse(text), Ok(PciAddr { device, function }), "{text}");
        }
        for text in ["", "20", "1.8", ".1", "1.", "-1", "0x", "001", "1.0.0"] {
            assert!(PciAddr::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_is_read_back(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let bdf = Bdf { domain, bus, device, function };
            prop_assert_eq!(Bdf::parse(&bdf.to_string()), Ok(bdf));
            let addr = PciAddr { device, function };
            prop_assert_eq!(PciAddr::parse(&addr.to_string()), Ok(addr));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f:.x\\PC]{0,20}") {
            let _ = Bdf::parse(&text);
            let _ = PciAddr::parse(&text);
        }
    }
}
