//! Emulated devices of the board: what a PC has without a slot.

pub mod pm;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
