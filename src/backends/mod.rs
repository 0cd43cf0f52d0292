//! The host's side of emulated devices. A back end knows no device.

pub mod block;
pub mod chardev;
pub mod table;

use std::sync::Arc;

use crate::event_loop::LoopHandle;

/// What making a back end needs.
pub struct BackendCx {
    /// The name that the user gave.
    pub name: Arc<str>,
    /// The main loop, which moves what comes from outside.
    pub event_loop: LoopHandle,
}
