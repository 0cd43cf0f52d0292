//! Numbers of bytes, as properties: `4096`, `768M`, `1.5G`.

use std::fmt;

use super::value::whole;
use super::{Invalid, PropValue};

/// A number of bytes: `4096`, `64K`, `1.5G`; the suffixes K, M, G and T are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number of bytes whose bare numbers are MiB, as in QEMU's `-m 768`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemSize(pub u64);

/// Digits of a size's fraction that are looked at: enough for any byte of a tebibyte.
const MAX_FRACTION_DIGITS: usize = 12;

const SIZE_FORM: &str = "a size such as 768M or 2G, below 16 EiB";

/// The bytes that `text` stands for; a number without suffix counts in units of `1 << bare_shift`.
fn bytes(text: &str, bare_shift: u32) -> Option<u64> {
    // A hexadecimal number has no suffix: B could be either.
    if text.starts_with("0x") || text.starts_with("0X") {
        return whole(text)?.checked_mul(1 << bare_shift);
    }
    let (number, shift) = match text.char_indices().next_back()? {
        (at, 'b' | 'B') => (text.get(..at)?, 0),
        (at, 'k' | 'K') => (text.get(..at)?, 10),
        (at, 'm' | 'M') => (text.get(..at)?, 20),
        (at, 'g' | 'G') => (text.get(..at)?, 30),
        (at, 't' | 'T') => (text.get(..at)?, 40),
        _ => (text, bare_shift),
    };
    let (integer, fraction) = number.split_once('.').map_or((number, None), |(i, f)| (i, Some(f)));
    let mut total = u128::from(whole(integer)?) << shift;
    if let Some(digits) = fraction {
        if digits.is_empty() || digits.len() > MAX_FRACTION_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
        // Rounded down to a whole byte, as QEMU does.
        total = total.checked_add((digits.parse::<u128>().ok()? << shift) / scale)?;
    }
    u64::try_from(total).ok()
}

impl PropValue for Size {
    const KIND: &'static str = "size";

    fn parse(text: &str) -> Result<Self, Invalid> {
        bytes(text, 0).map(Size).ok_or_else(|| Invalid::expected(SIZE_FORM))
    }
}

impl PropValue for MemSize {
    const KIND: &'static str = "size";

    fn parse(text: &str) -> Result<Self, Invalid> {
        bytes(text, 20).map(MemSize).ok_or_else(|| Invalid::expected(SIZE_FORM))
    }
}

/// Shown in the largest unit that divides it: `768M`, `4097`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for MemSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 1024 {
            // A bare number would be read back as MiB.
            0 if self.0 != 0 => Size(self.0).fmt(f),
            _ => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("1B", 1),
            ("64k", 64 << 10),
            ("768M", 768 << 20),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("0x1000", 4096),
            ("0.0001K", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(expected)), "{text}");
        }
        for text in [
            "",
            "M",
            ".5G",
            "1.G",
            "1.5.5G",
            "-1",
            "1e3",
            "16777216T",
            "1X",
            "1KB",
            "0x",
            "0x1M",
            "é",
            "1.0000000000001G",
        ] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_memory_size_is_mebibytes() {
        assert_eq!(MemSize::parse("768"), Ok(MemSize(768 << 20)));
        assert_eq!(MemSize::parse("768M"), Ok(MemSize(768 << 20)));
        assert_eq!(MemSize::parse("1048576K"), Ok(MemSize(1 << 30)));
        assert!(MemSize::parse("18446744073709551615").is_err());
        assert!(MemSize::parse("0xffffffffffffffff").is_err());
    }

    proptest! {
        #[test]
        fn sizes_survive_the_round_trip(bytes: u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Ok(Size(bytes)));
            prop_assert_eq!(MemSize::parse(&MemSize(bytes).to_string()), Ok(MemSize(bytes)));
        }

        #[test]
        fn no_text_panics(text in "[0-9.xBKMGTkmgt\\PC]{0,24}") {
            let _ = Size::parse(&text);
            let _ = MemSize::parse(&text);
        }
    }
}
