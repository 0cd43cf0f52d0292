//! passthru: a virtual machine monitor for x86_64 Linux/KVM whose reason to exist is device passthrough.

pub mod bdf;
pub mod cli;
pub mod error;
pub mod host;
pub mod object;
