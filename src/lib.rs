//! passthru: a virtual machine monitor for x86_64 Linux/KVM whose reason to exist is device passthrough.

pub mod cpu;
pub mod device;
pub mod error;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod memory;
