//! Where a function sits on its bus: slot and function number, as in `addr=02.0`.

use std::fmt;

use crate::error::{Code, Error, Result};

/// Slot (0 to 31) and function (0 to 7) in one byte, as configuration addresses hold them (PCI 3.2.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(u8);

impl Devfn {
    /// A slot's function; `None` if a number is out of range.
    pub fn new(slot: u8, function: u8) -> Option<Devfn> {
        (slot < 32 && function < 8).then_some(Devfn(slot << 3 | function))
    }

    /// From the byte of a configuration address.
    pub const fn from_byte(byte: u8) -> Devfn {
        Devfn(byte)
    }

    /// The byte of a configuration address.
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// The slot, 0 to 31; the specifications call it the device number.
    pub const fn slot(self) -> u8 {
        self.0 >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }

    /// Reads `slot[.function]`, both hexadecimal, as the property `addr=` takes it.
    ///
    /// # Errors
    /// [`Code::BadBus`] if the text is no address or a number is out of range.
    pub fn parse(text: &str) -> Result<Devfn> {
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        let hex = |digits: &str| {
            let digits = digits.strip_prefix("0x").unwrap_or(digits);
            // `from_str_radix` would take a sign.
            digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        };
        hex(slot).zip(hex(function)).and_then(|(slot, function)| Devfn::new(slot, function)).ok_or_else(|| {
            Error::new(Code::BadBus, format!("'{text}' is no address on a PCI bus"))
                .fix("write slot or slot.function in hexadecimal: addr=0 to addr=1f.7")
        })
    }
}

impl fmt::Display for Devfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.slot(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_hexadecimal_slot_and_function() {
        for (text, slot, function) in [("2", 2, 0), ("02.0", 2, 0), ("1f.7", 31, 7), ("0x10.1", 16, 1), ("1F", 31, 0)] {
            assert_eq!(Devfn::parse(text).unwrap(), Devfn::new(slot, function).unwrap(), "{text}");
        }
        for text in ["", ".", "1.", ".1", "20", "1.8", "+1", "1.-1", "1.0.0", "g", "100000"] {
            assert_eq!(Devfn::parse(text).unwrap_err().code(), Code::BadBus, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(byte: u8) {
            let devfn = Devfn::from_byte(byte);
            prop_assert_eq!(Devfn::parse(&devfn.to_string()).unwrap(), devfn);
            prop_assert_eq!(Devfn::new(devfn.slot(), devfn.function()), Some(devfn));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = Devfn::parse(&text);
        }
    }
}
