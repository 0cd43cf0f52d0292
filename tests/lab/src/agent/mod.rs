//! The lab's agent: this same program, run in L1, where it executes commands that
//! arrive as JSON lines on a virtio-serial port and answers on it.

mod jobs;
mod picture;
pub mod protocol;
mod qmp;
mod server;
mod waker;

pub use server::serve;

/// Name of the virtio-serial port.
pub const PORT: &str = "org.passthru.lab.agent";
