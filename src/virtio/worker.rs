//! What serves a queue: a thread of its own, named by the device's id, or one that serves others as well.

use std::sync::Arc;

use crate::backends::iothread::IoThread;
pub use crate::backends::iothread::{Serve, Source};
use crate::backends::table::Claim;
use crate::error::Result;

/// The name of a device's thread with this number.
pub fn name(id: &str, index: usize) -> String {
    match index {
        0 => id.to_owned(),
        index => format!("{id}.{index}"),
    }
}

/// A running worker. Dropping it returns when it is not at work any more.
pub struct Worker {
    thread: Arc<IoThread>,
    key: u32,
}

impl Worker {
    /// Starts a thread that first finds every source ready once: what came before it is not lost.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no thread or descriptor is left.
    pub fn start(name: &str, sources: Vec<Source>, serve: impl Serve + 'static) -> Result<Worker> {
        Worker::on(Arc::new(IoThread::start(name)?), sources, serve)
    }

    /// As [`Worker::start`], on the user's thread if there is one, which must not go before it.
    ///
    /// # Errors
    /// Those of [`Worker::start`].
    pub fn start_on(
        thread: Option<&Claim<IoThread>>,
        name: &str,
        sources: Vec<Source>,
        serve: impl Serve + 'static,
    ) -> Result<Worker> {
        match thread {
            Some(thread) => Worker::on(thread.back().clone(), sources, serve),
            None => Worker::start(name, sources, serve),
        }
    }

    fn on(thread: Arc<IoThread>, sources: Vec<Source>, serve: impl Serve + 'static) -> Result<Worker> {
        let key = thread.serve(sources, serve)?;
        Ok(Worker { thread, key })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.thread.end(self.key);
    }
}
