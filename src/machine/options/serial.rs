//! `--serial`: where the guest's serial port goes.

use crate::backends::chardev::shorthand::{self, Target};
use crate::error::Result;

/// The id of the back end that is made for the port, as QEMU has it, and the port's own name.
pub const ID: &str = "serial0";

/// Reads the option.
pub fn parse(text: &str) -> Result<Target> {
    shorthand::parse("--serial", text, ID)
}

/// The name of the port's back end, if there is a port.
pub fn back_end(target: &Target) -> Option<String> {
    match target {
        Target::None => None,
        Target::Named(id) => Some(id.to_string()),
        Target::New(_) => Some(ID.to_owned()),
    }
}
