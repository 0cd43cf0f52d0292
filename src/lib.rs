//! passthru: a virtual machine monitor for x86_64 Linux/KVM whose reason to exist is device passthrough.

pub mod backends;
pub mod bdf;
pub mod boot;
pub mod cli;
pub mod cpu;
pub mod device;
pub mod devices;
pub mod error;
pub mod event_loop;
pub mod host;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod memory;
pub mod object;
pub mod pci;
pub mod pci_names;
pub mod terminal;
pub mod vfio;
