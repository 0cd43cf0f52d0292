//! Emulated devices that are no virtio device: what a PC has without a slot, and small functions.

pub mod disk;
pub mod e1000e;
pub mod i6300esb;
pub mod isa;
pub mod ivshmem;
pub mod nvme;
pub mod pm;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod serial;
