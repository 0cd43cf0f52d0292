//! passthru: a virtual machine monitor for x86_64 Linux/KVM whose reason to exist is device passthrough.

pub mod bdf;
pub mod device;
pub mod error;
pub mod host;
pub mod irq;
pub mod log;
pub mod memory;
pub mod pci;
pub mod vfio;
