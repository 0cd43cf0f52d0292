//! `logfile=`: a copy of what the guest sends, in a file.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::output::Output;
use super::{Attached, Chardev, FrontEnd, Peer, Ring};
use crate::error::Result;

/// A back end whose output goes to a file, too. It is ready when both are: the copy misses nothing.
pub struct Logged {
    inner: Arc<dyn Chardev>,
    file: Output,
    front: Arc<Attached>,
}

impl Logged {
    /// Puts the log around a back end.
    ///
    /// # Errors
    /// [`crate::error::Code::FileUnusable`] if the file cannot be written.
    pub fn around(inner: Arc<dyn Chardev>, path: &Path, append: bool) -> Result<Arc<dyn Chardev>> {
        let front = Arc::new(Attached::default());
        Ok(Arc::new(Logged { inner, file: Output::file(path, append, &front)?, front }))
    }
}

impl Chardev for Logged {
    fn write(&self, data: &[u8]) {
        self.file.write(data);
        self.inner.write(data);
    }

    fn ready(&self) -> bool {
        self.inner.ready() && self.file.ready()
    }

    fn flush(&self, limit: Duration) -> bool {
        let file = self.file.flush(limit);
        self.inner.flush(limit) && file
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end.clone());
        self.inner.attach(front_end);
    }

    fn resume(&self) {
        self.inner.resume();
    }

    fn peer(&self) -> Peer {
        self.inner.peer()
    }

    fn is_awaited(&self) -> bool {
        self.inner.is_awaited()
    }

    fn ring(&self) -> Option<&Ring> {
        self.inner.ring()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Recorder;
    use super::*;

    #[test]
    fn both_get_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let inner = Arc::new(Recorder::default());
        let logged = Logged::around(inner.clone(), &path, false).unwrap();
        logged.write(b"hello");
        assert!(logged.flush(Duration::from_secs(60)));
        assert_eq!((std::fs::read(&path).unwrap(), inner.bytes.lock().clone()), (b"hello".to_vec(), b"hello".to_vec()));
        inner.full.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(!logged.ready());
    }
}
