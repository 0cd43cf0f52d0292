//! The machine.
pub mod options;
