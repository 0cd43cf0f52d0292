//! What `--cpu` asks for: `host|max[,+feature][,-feature]`.
//!
//! Both models are everything that KVM offers on this host. Nested virtualisation (vmx, svm) is left out unless it is
//! asked for: a guest that does not use it must not pay for it, and cannot misuse it.

use super::features::{self, Bit};
use crate::error::{Code, Error, Result};
use crate::object::did_you_mean;

/// A parsed `--cpu`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// The switches in the order of the command line; a later one overrides an earlier one.
    pub switches: Vec<Switch>,
}

/// One `+feature` or `-feature`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The feature's name as the user wrote it.
    pub name: String,
    /// Its bit.
    pub bit: Bit,
    /// `+`.
    pub on: bool,
}

impl Switch {
    /// Switches a feature on or off, by the name that /proc/cpuinfo has for it or QEMU's spelling of that.
    ///
    /// # Errors
    /// [`Code::UnknownCpu`] for an unknown feature, with the name that was probably meant.
    pub fn new(name: &str, on: bool) -> Result<Switch> {
        if let Some(bit) = features::find(name) {
            return Ok(Switch { name: name.to_owned(), bit, on });
        }
        let hint = did_you_mean(name, features::all().map(|(known, _)| known));
        Err(Error::new(Code::UnknownCpu, format!("there is no CPU feature `{name}`{hint}"))
            .fix("write +FEATURE or -FEATURE with the names that /proc/cpuinfo shows as flags"))
    }
}
