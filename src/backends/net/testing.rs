//! A pair of queues whose other end is a test's.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use super::{NetQueue, Sent};

/// How long a test waits for a packet.
const PATIENCE: Duration = Duration::from_secs(60);

struct Pair(UnixDatagram, Arc<OwnedFd>);

/// Queues, and the socket that has their packets, each with its header.
pub fn queue_pair() -> (Arc<dyn NetQueue>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let watch = Arc::new(ours.try_clone().unwrap().into());
    (Arc::new(Pair(ours, watch)), theirs)
}

impl NetQueue for Pair {
    fn watch(&self) -> &Arc<OwnedFd> {
        &self.1
    }
    fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.recv(into) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn send(&self, packet: &[u8]) -> io::Result<Sent> {
        self.0.send(packet).map(|_| Sent::Taken)
    }
}
