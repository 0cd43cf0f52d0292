//! Properties whose value is the name of what another option of the command line makes: a front end names its back end.

use crate::error::{Code, Error};

/// What another option of the command line makes. Each kind has names of its own, as in QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Where the characters of a device go and come from.
    Chardev,
    /// A node of the graph of block back ends.
    Node,
    /// Where the packets of a network device go and come from.
    Netdev,
    /// An object.
    Object,
}

impl Kind {
    /// Every kind, in the order in which they are made: what may be named first comes first.
    pub const ALL: [Kind; 4] = [Kind::Object, Kind::Chardev, Kind::Node, Kind::Netdev];

    /// The option that makes one.
    pub const fn option(self) -> &'static str {
        match self {
            Kind::Chardev => "--chardev",
            Kind::Node => "--blockdev",
            Kind::Netdev => "--netdev",
            Kind::Object => "--object",
        }
    }

    /// What it is, in words, in the singular.
    pub const fn what(self) -> &'static str {
        match self {
            Kind::Chardev => "character back end",
            Kind::Node => "block node",
            Kind::Netdev => "network back end",
            Kind::Object => "object",
        }
    }

    /// The key of its name.
    pub const fn key(self) -> &'static str {
        match self {
            Kind::Node => "node-name",
            Kind::Chardev | Kind::Netdev | Kind::Object => "id",
        }
    }
}

/// What the value of a property may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refers {
    /// What it names.
    pub kind: Kind,
    /// The types that it may be of; empty: any.
    pub types: &'static [&'static str],
    /// Whether several may name the same one.
    pub shared: bool,
}

impl Refers {
    /// Whatever is of this kind, for one user alone.
    pub const fn to(kind: Kind) -> Refers {
        Refers { kind, types: &[], shared: false }
    }

    /// The error for a name that there is nothing of, to whose cause `hint` is added.
    pub fn absent(self, name: &str, hint: &str) -> Error {
        let (kind, option, key) = (self.kind, self.kind.option(), self.kind.key());
        let of_type = self.types.join(" or ");
        let (types, example) = match self.types {
            [] => (String::new(), "TYPE"),
            [first, ..] => (format!(" of type {of_type}"), *first),
        };
        let code = if kind == Kind::Object { Code::UnknownObject } else { Code::UnknownBackend };
        Error::new(code, format!("there is no {} `{name}`{types}{hint}", kind.what()))
            .fix(format!("add `{option} {example},{key}={name}`"))
    }

    /// The error for a name that is one of another kind or type.
    pub fn wrong(self, name: &str, is: Kind, is_type: &str) -> Error {
        let (kind, types) = (self.kind.what(), self.types.join(" or "));
        let needed = if self.types.is_empty() { kind.to_owned() } else { format!("{kind} of type {types}") };
        Error::new(Code::WrongBackend, format!("`{name}` is a {} of type {is_type}, not a {needed}", is.what()))
            .fix(format!("`passthru run {} help` lists the types that fit", self.kind.option()))
    }

    /// The error for a name that has its user already.
    pub fn taken(self, name: &str, user: &str) -> Error {
        Error::new(Code::BackendInUse, format!("the {} `{name}` is used by `{user}` already", self.kind.what()))
            .fix(format!("give each its own, by another `{}`", self.kind.option()))
    }
}

/// Declares a kind of property whose values are names: `reference! { /// Doc. pub struct NodeRef(Refers::to(Kind::Node)) }`.
macro_rules! reference {
    ($($(#[doc = $doc:literal])+ $vis:vis struct $Name:ident($refers:expr);)*) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $Name($crate::object::Id);

        impl $Name {
            /// The name.
            $vis fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl $crate::object::PropValue for $Name {
            const KIND: &'static str = $refers.kind.value();
            const REFERS: Option<$crate::object::Refers> = Some($refers);

            fn parse(text: &str) -> Result<Self, $crate::object::Invalid> {
                $crate::object::Id::parse(text).map($Name)
            }
        }
    )*};
}
pub(crate) use reference;

impl Kind {
    /// What help shows between `<` and `>` for the name of one.
    pub(crate) const fn value(self) -> &'static str {
        match self {
            Kind::Chardev => "chardev id",
            Kind::Node => "node name",
            Kind::Netdev => "netdev id",
            Kind::Object => "object id",
        }
    }
}

reference! {
    /// The id of a character back end.
    pub struct ChardevRef(Refers::to(Kind::Chardev));
    /// The name of a block node.
    pub struct NodeRef(Refers::to(Kind::Node));
    /// The id of a network back end.
    pub struct NetdevRef(Refers::to(Kind::Netdev));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Id, PropField, PropValue};

    #[test]
    fn a_reference_is_an_id_and_says_what_it_names() {
        assert_eq!(<ChardevRef as PropValue>::parse("c0").unwrap().as_str(), "c0");
        assert!(<NodeRef as PropValue>::parse("0").is_err());
        assert_eq!(<Option<NodeRef> as PropField>::REFERS, Some(Refers::to(Kind::Node)));
        assert_eq!(<Option<Id> as PropField>::REFERS, None);
        assert_eq!(<NodeRef as PropValue>::KIND, "node name");
    }

    #[test]
    fn errors_say_what_mends_them() {
        let object = Refers { kind: Kind::Object, types: &["iommufd"], shared: true };
        for (error, words) in [
            (Refers::to(Kind::Node).absent("d0", ""), "add `--blockdev TYPE,node-name=d0`"),
            (
                object.absent("i0", ", did you mean `i1`?"),
                "there is no object `i0` of type iommufd, did you mean `i1`?",
            ),
            (object.absent("i0", ""), "add `--object iommufd,id=i0`"),
            (
                Refers::to(Kind::Node).wrong("c0", Kind::Chardev, "null"),
                "`c0` is a character back end of type null, not a block node",
            ),
            (
                Refers::to(Kind::Chardev).taken("c0", "serial0"),
                "the character back end `c0` is used by `serial0` already",
            ),
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
