//! Explicit tables of types: finding, creating and describing them.

use super::{Args, Prop, Props, did_you_mean, options_help};
use crate::error::{Code, Error, Result};

/// What a file that adds a type implements: its name, its properties, and how one is made of them. `O` is what is made
/// (a device's `Plug`, a machine), `C` is what making one needs.
pub trait Create<O, C> {
    /// The name that the user writes.
    const NAME: &'static str;
    /// The heading under which help lists the type, such as `Host devices`.
    const GROUP: &'static str;
    /// The kind of bus that it is put on, such as `PCI`.
    const BUS: Option<&'static str> = None;
    /// The kind of bus that it adds, if it adds one.
    const ADDS_BUS: Option<&'static str> = None;
    /// The properties; their doc comment is the type's line in help.
    type Props: Props;

    /// Whether the properties fit together. Needs nothing of the host: it is asked before any device is made.
    fn check(_props: &Self::Props) -> Result<()> {
        Ok(())
    }

    /// Makes one.
    fn create(props: Self::Props, cx: &C) -> Result<O>;
}

/// One row of a registry's table.
#[derive(Debug)]
pub struct TypeInfo<O, C> {
    name: &'static str,
    group: &'static str,
    bus: Option<&'static str>,
    adds_bus: Option<&'static str>,
    doc: &'static str,
    props: &'static [Prop],
    check: fn(&Args) -> Result<()>,
    create: fn(&mut Args, &C) -> Result<O>,
}

impl<O, C> TypeInfo<O, C> {
    /// The row of `K`, for a `static`.
    pub const fn of<K: Create<O, C>>() -> Self {
        TypeInfo {
            name: K::NAME,
            group: K::GROUP,
            bus: K::BUS,
            adds_bus: K::ADDS_BUS,
            doc: K::Props::DOC,
            props: K::Props::TABLE,
            check: |args| parse::<K, O, C>(&mut args.clone()).map(drop),
            create: erased::<K, O, C>,
        }
    }

    /// The name that the user writes.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of bus that it is put on.
    pub fn bus(&self) -> Option<&'static str> {
        self.bus
    }

    /// The kind of bus that it adds, if it adds one.
    pub fn adds_bus(&self) -> Option<&'static str> {
        self.adds_bus
    }

    /// One line about the type.
    pub fn doc(&self) -> &'static str {
        self.doc
    }

    /// The type's own properties.
    pub fn props(&self) -> &'static [Prop] {
        self.props
    }

    /// Whether one can be made of `args` as far as they alone can say: what [`TypeInfo::create`] will refuse of them is
    /// refused here, before anything is made.
    pub fn check(&self, args: &Args) -> Result<()> {
        (self.check)(args)
    }

    /// Makes one. [`Registry::take_type`] has taken the type's name from `args`, the caller the common properties; all
    /// that is left must be the type's own.
    pub fn create(&self, args: &mut Args, cx: &C) -> Result<O> {
        (self.create)(args, cx)
    }
}

/// The properties, if they are all known and fit together.
fn parse<K: Create<O, C>, O, C>(args: &mut Args) -> Result<K::Props> {
    let props = K::Props::parse(args)?;
    args.finish()?;
    K::check(&props).map_err(|error| error.evidence(args.written()))?;
    Ok(props)
}

/// Parses all properties before anything is made of them; a failure names the option that it belongs to.
fn erased<K: Create<O, C>, O, C>(args: &mut Args, cx: &C) -> Result<O> {
    let props = parse::<K, O, C>(args)?;
    K::create(props, cx).map_err(|error| error.evidence(args.written()))
}

/// A table of types that one option of the command line chooses from.
#[derive(Debug)]
pub struct Registry<O: 'static, C: 'static> {
    /// What the types are, in the singular: `device type`.
    pub what: &'static str,
    /// The option as it is written on the command line: `--device`.
    pub option: &'static str,
    /// The key that names the type: `driver` for devices, `type` for machines.
    pub key: &'static str,
    /// Properties that every type has and that are taken before [`TypeInfo::create`].
    pub common: &'static [Prop],
    /// What types on a bus of a kind have besides: where they go on it.
    pub on_bus: &'static [(&'static str, &'static [Prop])],
    /// Other names of types: the name, and that of the type.
    pub aliases: &'static [(&'static str, &'static str)],
    /// The types, grouped as help lists them.
    pub types: &'static [&'static TypeInfo<O, C>],
}

impl<O, C> Registry<O, C> {
    /// The type called `name`, or of which that is another name.
    pub fn find(&self, name: &str) -> Result<&'static TypeInfo<O, C>> {
        let proper = self.aliases.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, proper)| proper);
        self.types.iter().copied().find(|found| found.name == proper).ok_or_else(|| {
            let hint = did_you_mean(name, self.types.iter().map(|known| known.name));
            Error::new(Code::UnknownType, format!("there is no {} `{name}`{hint}", self.what)).fix(self.list_fix())
        })
    }

    /// The type that `args` names, whose name is thereby taken from them.
    pub fn take_type(&self, args: &mut Args) -> Result<&'static TypeInfo<O, C>> {
        let Some(name) = args.take(self.key) else {
            return Err(Error::new(Code::UnknownType, format!("`{}` names no {}", self.option, self.what))
                .evidence(args.written())
                .fix(self.list_fix()));
        };
        let found = self.find(&name).map_err(|error| error.evidence(args.written()))?;
        args.set_type(found.name);
        Ok(found)
    }

    /// All properties of a type: its own, then those of its bus's kind, then those of every type.
    pub fn props_of(&self, of_type: &TypeInfo<O, C>) -> Vec<&'static [Prop]> {
        let on_bus = self.on_bus.iter().filter(|(bus, _)| of_type.bus == Some(bus)).map(|(_, props)| *props);
        std::iter::once(of_type.props).chain(on_bus).chain([self.common]).collect()
    }

    fn list_fix(&self) -> String {
        format!("`passthru run {} help` lists the {}s", self.option, self.what)
    }
}

/// What the command line needs of a registry: its help, and whether an option can be right.
pub trait Catalogue {
    /// The key that names the type.
    fn key(&self) -> &'static str;

    /// The names of the types.
    fn names(&self) -> Vec<&'static str>;

    /// The list of the types, grouped.
    fn help(&self) -> String;

    /// The properties of the type called `name`.
    fn help_for(&self, name: &str) -> Result<String>;

    /// The names of all properties of the type called `name`.
    fn properties(&self, name: &str) -> Option<Vec<&'static str>>;

    /// Whether one can be made of `args` as far as they alone can say.
    fn check(&self, args: &Args) -> Result<()>;
}

impl<O, C> Catalogue for Registry<O, C> {
    fn key(&self) -> &'static str {
        self.key
    }

    fn names(&self) -> Vec<&'static str> {
        self.types.iter().map(|of_type| of_type.name).collect()
    }

    fn help(&self) -> String {
        let mut out = String::new();
        let mut group = "";
        let width = self.types.iter().map(|of_type| of_type.name.len()).max().unwrap_or(0);
        for of_type in self.types {
            if of_type.group != group {
                let space = if group.is_empty() { "" } else { "\n" };
                group = of_type.group;
                out += &format!("{space}{group}:\n");
            }
            let doc = of_type.doc.trim_end_matches('.');
            let alias = self.aliases.iter().find(|(_, proper)| *proper == of_type.name);
            let alias = alias.map_or(String::new(), |(alias, _)| format!(", alias \"{alias}\""));
            out += &match of_type.bus {
                Some(bus) => format!("name \"{}\", bus {bus}{alias}, desc \"{doc}\"\n", of_type.name),
                None => format!("{:width$}  {doc}\n", of_type.name),
            };
        }
        out
    }

    fn help_for(&self, name: &str) -> Result<String> {
        let of_type = self.find(name)?;
        Ok(options_help(&format!("{name} options"), &self.props_of(of_type)))
    }

    fn properties(&self, name: &str) -> Option<Vec<&'static str>> {
        let of_type = self.find(name).ok()?;
        Some(self.props_of(of_type).into_iter().flatten().map(|prop| prop.name).collect())
    }

    fn check(&self, args: &Args) -> Result<()> {
        let mut args = args.clone();
        let of_type = self.take_type(&mut args)?;
        for prop in self.props_of(of_type).into_iter().skip(1).flatten() {
            if let Some(text) = args.take(prop.name) {
                (prop.check)(&text).map_err(|invalid| args.bad_value(prop.name, &text, invalid))?;
            }
        }
        of_type.check(&args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Common;
    use crate::object::testing::{DEVICES, check_registry};

    fn create(text: &str) -> Result<u32> {
        let mut args = Args::parse("--device", Some("driver"), text)?;
        let of_type = DEVICES.take_type(&mut args)?;
        Common::parse(&mut args)?;
        of_type.create(&mut args, &40)
    }

    #[test]
    fn a_type_is_found_and_made() {
        assert_eq!(create("number,value=2,id=n").unwrap(), 42);
        assert_eq!(create(r#"{"driver":"number","value":2}"#).unwrap(), 42);
        assert_eq!(create("nothing").unwrap(), 0);
        assert_eq!(create("num,value=2").unwrap(), 42);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, code, cause) in [
            ("", Code::UnknownType, "`--device` names no device type"),
            ("numbr", Code::UnknownType, "there is no device type `numbr`, did you mean `number`?"),
            ("number", Code::BadProperty, "`number` needs the property `value`"),
            ("number,value=0xffffffff", Code::DeviceFailed, "the sum is too large"),
            ("number,value=1,ad=2", Code::BadProperty, "`number` has no property `ad`, did you mean `id`?"),
            (
                "number,value=1,id=2",
                Code::BadProperty,
                "`number` cannot have id=`2`: expected a letter, then letters, digits, `-`, `.` and `_`",
            ),
        ] {
            let error = create(text).unwrap_err();
            assert_eq!((error.code(), error.cause()), (code, cause), "{text}");
            assert_eq!(error.evidence_lines(), [format!("--device {text}")]);
        }
    }

    #[test]
    fn help_is_grouped_and_in_the_look_of_qemu() {
        assert_eq!(
            DEVICES.help(),
            "Arithmetic:
name \"number\", bus PCI, alias \"num\", desc \"A device that is only a number\"

Others:
nothing  A device without properties
"
        );
        assert_eq!(DEVICES.help_for("nothing").unwrap(), options_help("nothing options", &[Common::TABLE]));
        assert!(DEVICES.help_for("number").unwrap().contains("  room=<size>            - A size (default: 4K)\n"));
        assert_eq!(DEVICES.help_for("numbers").unwrap_err().code(), Code::UnknownType);
    }

    #[test]
    fn the_made_up_table_is_sound() {
        check_registry(&DEVICES);
    }
}
