//! Character back ends: where a serial port's bytes go to and come from.

mod output;
pub mod stdio;

use std::time::Duration;

pub use output::Output;

/// Called when a sink that was not ready is ready again, from a thread of the sink with none of its locks held.
pub type ReadyCallback = Box<dyn Fn() + Send + Sync>;

/// Where a device's bytes go. Nothing here may block: the callers are vCPUs.
pub trait CharSink: Send + Sync {
    /// Takes bytes for the sink. They may be dropped while it is not ready.
    fn write(&self, data: &[u8]);

    /// Whether the sink can take bytes. After an answer of `false` the callback of `on_ready` announces the change.
    fn ready(&self) -> bool;

    /// Sets the callback, before the first byte.
    fn on_ready(&self, callback: ReadyCallback);

    /// Waits until every byte has left, for at most `limit`; says whether that succeeded. For the end of the guest.
    fn flush(&self, limit: Duration) -> bool;
}

/// The sink that swallows everything.
#[derive(Debug, Clone, Copy)]
pub struct Null;

impl CharSink for Null {
    fn write(&self, _data: &[u8]) {}

    fn ready(&self) -> bool {
        true
    }

    fn on_ready(&self, _callback: ReadyCallback) {}

    fn flush(&self, _limit: Duration) -> bool {
        true
    }
}
