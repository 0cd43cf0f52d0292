//! What every registry's and every option's table must fulfil; the unit tests of the real tables call this.

use super::{Preset, Prop, Registry};

/// Names are unique, everything is documented, and default values are values of their kinds.
pub(crate) fn check_registry<O, C>(registry: &Registry<O, C>) {
    let mut names: Vec<&str> = registry.types.iter().map(|of_type| of_type.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), registry.types.len(), "two types have the same name");
    for of_type in registry.types {
        assert!(!of_type.doc().is_empty(), "{} is undocumented", of_type.name());
        let mut props = of_type.props().to_vec();
        props.extend_from_slice(registry.common);
        assert!(props.iter().all(|prop| prop.name != registry.key), "{} takes its own name", of_type.name());
        check_props(of_type.name(), &props);
    }
}

/// The same for one table; `owner` is named in the failure.
pub(crate) fn check_props(owner: &str, props: &[Prop]) {
    for (index, prop) in props.iter().enumerate() {
        let name = prop.name;
        assert!(!prop.doc.is_empty(), "{owner}.{name} is undocumented");
        assert!(!name.contains(['_', '=', ',']), "{owner}.{name} cannot be written by a user");
        assert!(props[..index].iter().all(|other| other.name != name), "{owner}.{name} is declared twice");
        if let Preset::Text(text) = prop.preset {
            let checked = (prop.check)(text);
            assert!(checked.is_ok(), "{owner}.{name}: the default value `{text}`: {checked:?}");
        }
    }
}
