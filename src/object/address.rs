//! PCI addresses as properties: a host device's (`host=`, written as `lspci -D` does) and a place on a guest's bus
//! (QEMU's `addr=`).

use std::fmt;

use super::{Invalid, PropValue};
use crate::bdf::{Bdf, DeviceAddr};

/// Highest device number on a PCI bus.
const MAX_DEVICE: u32 = 0x1f;
/// Highest function number of a PCI device.
const MAX_FUNCTION: u32 = 7;

impl PropValue for Bdf {
    const KIND: &'static str = "bdf";

    fn parse(text: &str) -> Result<Self, Invalid> {
        text.parse().map_err(|_| Invalid::expected("a PCI address such as 0000:01:00.0 or 01:00.0"))
    }
}

impl PropValue for DeviceAddr {
    const KIND: &'static str = "bdf|name";

    /// Names have become addresses before (`machine::functions`).
    fn parse(text: &str) -> Result<Self, Invalid> {
        let expected =
            "a PCI address such as 0000:01:00.0, 01:00 for all functions, or a name of /etc/passthru/devices.d";
        text.parse().map_err(|_| Invalid::expected(expected))
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
            Invalid::expected("a slot from 0 to 1f (hexadecimal) and a function from 0 to 7, such as 02 or 02.0")
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
        assert_eq!(Bdf::parse("01:1F.7").unwrap().to_string(), "0000:01:1f.7");
        let error = Bdf::parse("01:00").unwrap_err();
        assert_eq!(error.to_string(), "expected a PCI address such as 0000:01:00.0 or 01:00.0");
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
        fn guest_addresses_are_read_back(device in 0u8..32, function in 0u8..8) {
            let addr = PciAddr { device, function };
            prop_assert_eq!(PciAddr::parse(&addr.to_string()), Ok(addr));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f:.x\\PC]{0,20}") {
            let _ = PciAddr::parse(&text);
        }
    }
}
