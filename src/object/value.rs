//! The kinds of values that properties have, each with the text forms it is written in.

use std::fmt;
use std::path::PathBuf;

/// A kind of value that a property can have.
pub trait PropValue: Sized {
    /// What help shows between `<` and `>`.
    const KIND: &'static str;

    /// The value that `text` stands for; the error says what would have been right.
    fn parse(text: &str) -> Result<Self, Invalid>;
}

/// Why a text is not a value of a kind: the second half of a sentence, such as "expected on or off".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    /// What is wrong: "this is not JSON".
    pub fn new(reason: impl Into<String>) -> Self {
        Invalid(reason.into())
    }

    /// The text has to be what `form` says: "on or off".
    pub fn expected(form: impl fmt::Display) -> Self {
        Invalid(format!("expected {form}"))
    }

    /// The text has to be one of the words of `kind`: `on|off|auto`.
    pub fn expected_one_of(kind: &str) -> Self {
        Invalid::expected(match kind.rsplit_once('|') {
            Some((words, last)) => format!("{} or {last}", words.replace('|', ", ")),
            None => kind.to_owned(),
        })
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl PropValue for bool {
    const KIND: &'static str = "bool";

    fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "on" | "yes" | "true" | "y" => Ok(true),
            "off" | "no" | "false" | "n" => Ok(false),
            _ => Err(Invalid::expected("on or off")),
        }
    }
}

/// A whole number, decimal or with 0x in front.
fn whole(text: &str) -> Option<u64> {
    // from_str_radix takes a sign, which no property has.
    if text.starts_with(['+', '-']) {
        return None;
    }
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.starts_with(['+', '-']) => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A whole number from MIN to MAX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Int<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> PropValue for Int<MIN, MAX> {
    const KIND: &'static str = "number";

    fn parse(text: &str) -> Result<Self, Invalid> {
        match whole(text) {
            Some(number) if (MIN..=MAX).contains(&number) => Ok(Int(number)),
            _ => Err(Invalid::expected(format_args!("a number from {MIN} to {MAX}"))),
        }
    }
}

macro_rules! whole_numbers {
    ($($int:ident $kind:literal)*) => {$(
        impl PropValue for $int {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, Invalid> {
                whole(text)
                    .and_then(|number| $int::try_from(number).ok())
                    .ok_or_else(|| Invalid::expected(format_args!("a number from 0 to {}", $int::MAX)))
            }
        }
    )*};
}

whole_numbers! { u8 "uint8" u16 "uint16" u32 "uint32" u64 "uint64" }

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
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return whole(text).filter(|_| !digits.is_empty())?.checked_mul(1 << bare_shift);
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
    let mut total = u128::from(whole(integer).filter(|_| !integer.starts_with("0x"))?) << shift;
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

impl PropValue for String {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        Ok(text.to_owned())
    }
}

impl PropValue for PathBuf {
    const KIND: &'static str = "path";

    fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.contains('\0') {
            return Err(Invalid::expected("the name of a file"));
        }
        Ok(PathBuf::from(text))
    }
}

/// The name that the user gives to a device: a letter, then letters, digits, `-`, `.` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

/// The longest id.
const MAX_ID: usize = 127;

impl Id {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PropValue for Id {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let well_formed = text.len() <= MAX_ID
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if !well_formed {
            return Err(Invalid::expected("a letter, then letters, digits, `-`, `.` and `_`"));
        }
        Ok(Id(text.to_owned()))
    }
}

/// Declares an enum whose values are words: `prop_enum! { /// Doc. pub enum Mode { On = "on", Off = "off" } }`.
macro_rules! prop_enum {
    (
        $(#[$attribute:meta])*
        $vis:vis enum $Name:ident {
            $(#[$first_attribute:meta])* $First:ident = $first:literal
            $(, $(#[$rest_attribute:meta])* $Rest:ident = $rest:literal)* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $Name { $(#[$first_attribute])* $First, $($(#[$rest_attribute])* $Rest,)* }

        impl $crate::object::PropValue for $Name {
            const KIND: &'static str = concat!($first $(, "|", $rest)*);

            fn parse(text: &str) -> Result<Self, $crate::object::Invalid> {
                match text {
                    $first => Ok($Name::$First),
                    $($rest => Ok($Name::$Rest),)*
                    _ => Err($crate::object::Invalid::expected_one_of(Self::KIND)),
                }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $Name::$First => $first, $($Name::$Rest => $rest,)* })
            }
        }
    };
}
pub(crate) use prop_enum;

prop_enum! {
    /// Yes, no, or as passthru finds best.
    pub enum OnOffAuto {
        /// In any case, an error if it cannot be.
        On = "on",
        /// Never.
        Off = "off",
        /// Where it is possible and useful.
        Auto = "auto",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bools() {
        for text in ["on", "yes", "true", "y"] {
            assert_eq!(bool::parse(text), Ok(true));
        }
        for text in ["off", "no", "false", "n"] {
            assert_eq!(bool::parse(text), Ok(false));
        }
        for text in ["", "1", "On", "enable"] {
            assert!(bool::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(u8::parse("255"), Ok(255));
        assert_eq!(u16::parse("0xfFfF"), Ok(0xffff));
        assert_eq!(u64::parse("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(Int::<1, 4>::parse("4").map(Int::get), Ok(4));
        for text in ["256", "-1", "+1", "", "0x", "0x+1", "1 ", "one"] {
            assert!(u8::parse(text).is_err(), "{text}");
        }
        let error = Int::<1, 4>::parse("5").unwrap_err();
        assert_eq!(error.to_string(), "expected a number from 1 to 4");
    }

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

    #[test]
    fn ids() {
        for text in ["nic0", "a", "A-b.c_d"] {
            assert_eq!(Id::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "0nic", "-a", "a/b", "a b", "ä", &"x".repeat(128)] {
            assert!(Id::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn enums() {
        assert_eq!(OnOffAuto::KIND, "on|off|auto");
        assert_eq!(OnOffAuto::parse("auto"), Ok(OnOffAuto::Auto));
        assert_eq!(OnOffAuto::Off.to_string(), "off");
        assert_eq!(OnOffAuto::parse("of").unwrap_err().to_string(), "expected on, off or auto");
    }

    #[test]
    fn paths() {
        assert_eq!(PathBuf::parse("/dev/null"), Ok(PathBuf::from("/dev/null")));
        assert!(PathBuf::parse("").is_err());
        assert!(PathBuf::parse("a\0b").is_err());
    }

    proptest! {
        #[test]
        fn sizes_survive_the_round_trip(bytes: u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Ok(Size(bytes)));
            prop_assert_eq!(MemSize::parse(&MemSize(bytes).to_string()), Ok(MemSize(bytes)));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = Size::parse(&text);
            let _ = MemSize::parse(&text);
            let _ = u64::parse(&text);
            let _ = Id::parse(&text);
        }
    }
}
