//! The kinds of values that properties have, each with the text forms it is written in.

use std::fmt;
use std::path::PathBuf;

use super::Refers;

/// A kind of value that a property can have.
pub trait PropValue: Sized {
    /// What help shows between `<` and `>`.
    const KIND: &'static str;
    /// What the value names, if it is a name that another option of the command line gives.
    const REFERS: Option<Refers> = None;

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
pub(super) fn whole(text: &str) -> Option<u64> {
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
        fn no_text_panics(text: String) {
            let _ = u64::parse(&text);
            let _ = Id::parse(&text);
        }
    }
}
