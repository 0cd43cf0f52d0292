//! `props!`: one declaration is a struct, its parser and its help.

use super::{Args, Id, Invalid, PciAddr, PropValue, Refers};
use crate::error::Result;

/// What a property is if the user does not give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// The user must give it.
    Required,
    /// It may be absent.
    Absent,
    /// This value, written as the user would write it.
    Text(&'static str),
}

/// One property of a type, as help shows it.
#[derive(Debug, Clone, Copy)]
pub struct Prop {
    /// The key that the user writes.
    pub name: &'static str,
    /// The kind of value: `bool`, `size`, `on|off|auto`.
    pub kind: &'static str,
    /// What it is if the user does not give it.
    pub preset: Preset,
    /// What it does.
    pub doc: &'static str,
    /// Whether a text is a value of the kind.
    pub check: fn(&str) -> Result<(), Invalid>,
    /// What the value names, if it is the name of a back end or an object.
    pub refers: Option<Refers>,
}

/// Properties that are declared with `props!`.
pub trait Props: Sized {
    /// One line about what has these properties.
    const DOC: &'static str;
    /// The properties in the order of their declaration.
    const TABLE: &'static [Prop];

    /// Takes the properties from `args`. Keys that are not in the table are left there for [`Args::finish`].
    fn parse(args: &mut Args) -> Result<Self>;
}

/// The type of a field: a kind of value, or an `Option` of one.
pub trait PropField: Sized {
    /// What help shows between `<` and `>`.
    const KIND: &'static str;
    /// What the property is where the declaration has no default value.
    const PRESET: Preset;
    /// What the value names, if it is the name of a back end or an object.
    const REFERS: Option<Refers>;

    /// The value that `text` stands for.
    fn parse_field(text: &str) -> Result<Self, Invalid>;

    /// The value where the user gave none and the declaration has no default.
    fn absent() -> Option<Self>;
}

impl<T: PropValue> PropField for T {
    const KIND: &'static str = T::KIND;
    const PRESET: Preset = Preset::Required;
    const REFERS: Option<Refers> = T::REFERS;

    fn parse_field(text: &str) -> Result<Self, Invalid> {
        T::parse(text)
    }

    fn absent() -> Option<Self> {
        None
    }
}

impl<T: PropValue> PropField for Option<T> {
    const KIND: &'static str = T::KIND;
    const PRESET: Preset = Preset::Absent;
    const REFERS: Option<Refers> = T::REFERS;

    fn parse_field(text: &str) -> Result<Self, Invalid> {
        T::parse(text).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// Declares the properties of a type:
///
/// ```text
/// props! {
///     /// Entropy source for the guest.
///     pub struct Props {
///         /// Host file the entropy is read from.
///         filename: PathBuf = "/dev/urandom",
///         /// Bytes the guest may take per second.
///         max_bytes: Option<Size>,
///         /// Experimental.
///         #[name = "x-fast"]
///         fast: bool = "off",
///     }
/// }
/// ```
///
/// A field with a default value may be left out by the user (the text goes through the kind's own parser and is shown
/// in help), an `Option` may be absent, any other field is required. The user writes `max-bytes` for `max_bytes`.
macro_rules! props {
    (
        $(#[doc = $summary:literal])+
        $vis:vis struct $Name:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[name = $key:literal])?
                $field:ident : $kind:ty $(= $default:literal)?
            ),* $(,)?
        }
    ) => {
        $(#[doc = $summary])+
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $Name {
            $( $(#[doc = $doc])+ pub $field: $kind, )*
        }

        impl $crate::object::Props for $Name {
            const DOC: &'static str = concat!($($summary),+).trim_ascii();
            const TABLE: &'static [$crate::object::Prop] = &[$(
                $crate::object::Prop {
                    name: $crate::object::props!(@name $field $($key)?),
                    kind: <$kind as $crate::object::PropField>::KIND,
                    preset: $crate::object::props!(@preset $kind $(, $default)?),
                    doc: concat!($($doc),+).trim_ascii(),
                    check: |text| <$kind as $crate::object::PropField>::parse_field(text).map(drop),
                    refers: <$kind as $crate::object::PropField>::REFERS,
                },
            )*];

            #[allow(unused_variables, reason = "a type may have no property")]
            fn parse(args: &mut $crate::object::Args) -> $crate::error::Result<Self> {
                Ok($Name {
                    $( $field: args.take_field(
                        $crate::object::props!(@name $field $($key)?),
                        $crate::object::props!(@default $($default)?),
                    )?, )*
                })
            }
        }
    };
    (@name $field:ident $key:literal) => { $key };
    (@name $field:ident) => {
        const {
            const BYTES: [u8; stringify!($field).len()] = $crate::object::dashed(stringify!($field));
            match std::str::from_utf8(&BYTES) {
                Ok(name) => name,
                Err(_) => panic!("a field's name is ASCII"),
            }
        }
    };
    (@preset $kind:ty, $default:literal) => { $crate::object::Preset::Text($default) };
    (@preset $kind:ty) => { <$kind as $crate::object::PropField>::PRESET };
    (@default $default:literal) => { Some($default) };
    (@default) => { None };
}
pub(crate) use props;

/// The bytes of `name` with `-` for `_`, evaluated at compile time by `props!`.
pub(crate) const fn dashed<const N: usize>(name: &str) -> [u8; N] {
    let bytes = name.as_bytes();
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = if bytes[i] == b'_' { b'-' } else { bytes[i] };
        i += 1;
    }
    out
}

props! {
    /// Where a device goes and what it is called; every device has these properties.
    pub struct Common {
        /// Unique name of the device, and of the bus that it adds
        id: Option<Id>,
        /// Bus that the device is put on; without it the first bus of its kind
        bus: Option<String>,
    }
}

props! {
    /// Where a PCI function goes on its bus.
    pub struct PciPlace {
        /// Slot and function on the bus, in hexadecimal; without it the next free slot
        addr: Option<PciAddr>,
        /// Whether the slot may have other functions; a guest is told of them in any case
        multifunction: Option<bool>,
    }
}

/// The list of `tables`' properties, sorted by name as in QEMU:
/// `  host=<bdf>           - What it does (default: ...)`.
pub fn options_help(heading: &str, tables: &[&[Prop]]) -> String {
    /// Least width of the keys, as in QEMU.
    const WIDTH: usize = 22;
    let mut all: Vec<&Prop> = tables.iter().copied().flatten().collect();
    all.sort_by_key(|prop| prop.name);
    if all.is_empty() {
        return format!("{heading}: none\n");
    }
    let key = |prop: &Prop| format!("{}=<{}>", prop.name, prop.kind);
    let width = all.iter().map(|prop| key(prop).len()).max().unwrap_or(0).max(WIDTH);
    let mut out = format!("{heading}:\n");
    for prop in all {
        let key = key(prop);
        let note = match prop.preset {
            Preset::Required => " (required)".to_owned(),
            Preset::Absent => String::new(),
            Preset::Text(text) => format!(" (default: {text})"),
        };
        out += &format!("  {key:width$} - {}{note}\n", prop.doc.trim_end_matches('.'));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{OnOffAuto, Size};

    props! {
        /// A thing of two
        /// lines.
        pub(super) struct Sample {
            /// Required number
            count: u8,
            /// Optional size, in bytes
            /// and no more
            max_bytes: Option<Size>,
            /// Renamed switch.
            #[name = "x-peer"]
            peer: OnOffAuto = "auto",
        }
    }

    fn parse(text: &str) -> Result<Sample> {
        let mut args = Args::parse("--sample", None, text)?;
        let sample = Sample::parse(&mut args)?;
        args.finish().map(|()| sample)
    }

    #[test]
    fn the_declaration_is_the_table() {
        assert_eq!(Sample::DOC, "A thing of two lines.");
        let table = Sample::TABLE.iter().map(|prop| (prop.name, prop.kind, prop.preset, prop.doc)).collect::<Vec<_>>();
        assert_eq!(
            table,
            [
                ("count", "uint8", Preset::Required, "Required number"),
                ("max-bytes", "size", Preset::Absent, "Optional size, in bytes and no more"),
                ("x-peer", "on|off|auto", Preset::Text("auto"), "Renamed switch."),
            ]
        );
        assert!((Sample::TABLE[0].check)("255").is_ok());
        assert!((Sample::TABLE[0].check)("256").is_err());
    }

    #[test]
    fn the_declaration_is_the_parser() {
        let sample = parse("count=3,x-peer=on").unwrap();
        assert_eq!(sample, Sample { count: 3, max_bytes: None, peer: OnOffAuto::On });
        let sample = parse("count=3,max-bytes=1K").unwrap();
        assert_eq!(sample, Sample { count: 3, max_bytes: Some(Size(1024)), peer: OnOffAuto::Auto });
        for (text, cause) in [
            ("", "`--sample` needs the property `count`"),
            ("count=256", "`--sample` cannot have count=`256`: expected a number from 0 to 255"),
            ("count=1,max_bytes=1", "`--sample` has no property `max_bytes`, did you mean `max-bytes`?"),
            ("count=1,peer=on", "`--sample` has no property `peer`, did you mean `x-peer`?"),
        ] {
            assert_eq!(parse(text).unwrap_err().cause(), cause);
        }
    }

    #[test]
    fn the_declaration_is_the_help() {
        assert_eq!(
            options_help("sample options", &[Sample::TABLE, PciPlace::TABLE, Common::TABLE]),
            "sample options:
  addr=<slot[.function]> - Slot and function on the bus, in hexadecimal; without it the next free slot
  bus=<str>              - Bus that the device is put on; without it the first bus of its kind
  count=<uint8>          - Required number (required)
  id=<str>               - Unique name of the device, and of the bus that it adds
  max-bytes=<size>       - Optional size, in bytes and no more
  multifunction=<bool>   - Whether the slot may have other functions; a guest is told of them in any case
  x-peer=<on|off|auto>   - Renamed switch (default: auto)
"
        );
    }
}
