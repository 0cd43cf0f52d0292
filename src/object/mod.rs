//! The object model: how the user names, configures and lists everything that can be plugged into a machine.
//!
//! One declaration is the syntax, the parser and the help. [`Args`] splits `type,key=value,...` (QEMU's grammar, or its
//! JSON form); `props!` declares the properties of a type, their kinds ([`PropValue`]), default values and texts; a
//! [`Registry`] is an explicit table of types that finds, creates and describes them.

mod address;
mod args;
mod grammar;
mod props;
mod reference;
mod registry;
mod size;
mod suggest;
#[cfg(test)]
pub(crate) mod testing;
mod value;

pub use address::PciAddr;
pub use args::{Args, HelpTopic};
pub use props::{Common, PciPlace, Preset, Prop, PropField, Props, options_help};
pub(crate) use props::{dashed, props};
pub(crate) use reference::reference;
pub use reference::{ChardevRef, Kind, NetdevRef, NodeRef, Refers};
pub use registry::{Catalogue, Create, Registry, TypeInfo};
pub use size::{MemSize, Size};
pub use suggest::{did_you_mean, nearest};
pub(crate) use value::prop_enum;
pub use value::{Id, Int, Invalid, OnOffAuto, PropValue};
