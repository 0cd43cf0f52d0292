//! For unit tests: what every registry's and every option's table must fulfil, and a registry of made-up types.

use super::{Common, Create, Preset, Prop, Props, Registry, Size, TypeInfo, props};
use crate::error::{Code, Error, Result};

/// Names are unique, everything is documented, and default values are values of their kinds.
pub(crate) fn check_registry<O, C>(registry: &Registry<O, C>) {
    let mut names: Vec<&str> = registry.types.iter().map(|of_type| of_type.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), registry.types.len(), "two types have the same name");
    for (alias, _) in registry.aliases {
        assert!(names.binary_search(alias).is_err() && registry.find(alias).is_ok(), "{alias} names no type");
    }
    for of_type in registry.types {
        assert!(!of_type.doc().is_empty(), "{} is undocumented", of_type.name());
        let props = registry.props_of(of_type).concat();
        assert!(props.iter().all(|prop| prop.name != registry.key), "{} takes its own name", of_type.name());
        check_props(of_type.name(), &props);
    }
}

/// The same for one table; `owner` is named in the failure.
pub(crate) fn check_props(owner: &str, props: &[Prop]) {
    for (index, prop) in props.iter().enumerate() {
        let name = prop.name;
        assert!(!prop.doc.is_empty(), "{owner}.{name} is undocumented");
        assert!(!name.contains(['=', ',']), "{owner}.{name} cannot be written by a user");
        assert!(props[..index].iter().all(|other| other.name != name), "{owner}.{name} is declared twice");
        if let Preset::Text(text) = prop.preset {
            let checked = (prop.check)(text);
            assert!(checked.is_ok(), "{owner}.{name}: the default value `{text}`: {checked:?}");
        }
    }
}

props! {
    /// A device that is only a number.
    pub struct Number {
        /// The number
        value: u32,
        /// A size
        room: Size = "4K",
    }
}

struct NumberType;

impl Create<u32, u32> for NumberType {
    const NAME: &'static str = "number";
    const GROUP: &'static str = "Arithmetic";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = Number;

    fn create(props: Number, cx: &u32) -> Result<u32> {
        props.value.checked_add(*cx).ok_or_else(|| Error::new(Code::DeviceFailed, "the sum is too large"))
    }
}

props! {
    /// A device without properties
    pub struct Nothing {}
}

struct NothingType;

impl Create<u32, u32> for NothingType {
    const NAME: &'static str = "nothing";
    const GROUP: &'static str = "Others";
    type Props = Nothing;

    fn create(_: Nothing, _: &u32) -> Result<u32> {
        Ok(0)
    }
}

static NUMBER: TypeInfo<u32, u32> = TypeInfo::of::<NumberType>();
static NOTHING: TypeInfo<u32, u32> = TypeInfo::of::<NothingType>();

/// Device types for tests of what uses a registry.
pub(crate) static DEVICES: Registry<u32, u32> = Registry {
    what: "device type",
    option: "--device",
    key: "driver",
    common: Common::TABLE,
    on_bus: &[],
    aliases: &[("num", "number")],
    types: &[&NUMBER, &NOTHING],
};

/// Object types for tests of what uses a registry.
pub(crate) static OBJECTS: Registry<u32, u32> = Registry {
    what: "object type",
    option: "--object",
    key: "qom-type",
    common: &[],
    on_bus: &[],
    aliases: &[],
    types: &[&NOTHING],
};

/// Machine types for tests of what uses a registry.
pub(crate) static MACHINES: Registry<u32, u32> = Registry {
    what: "machine type",
    option: "-M",
    key: "type",
    common: &[],
    on_bus: &[],
    aliases: &[],
    types: &[&NOTHING],
};
