//! The host's side of emulated devices. A back end knows no device.

pub mod chardev;
pub mod table;
