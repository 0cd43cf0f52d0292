//! A network back end that leads nowhere, from which each look takes one packet until it is empty.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use passthru::backends::net::{HEADER, NetQueue, Netdev, Offloads, Sent};

/// Packets that come.
const PACKETS: u32 = 4;

/// The back end.
pub struct Wire {
    pairs: Vec<Arc<dyn NetQueue>>,
}

struct End {
    watch: Arc<OwnedFd>,
    left: AtomicU32,
}

/// Both ends, of which the other keeps it open.
static SOCKET: LazyLock<Option<(Arc<OwnedFd>, UnixStream)>> =
    LazyLock::new(|| UnixStream::pair().ok().map(|(a, b)| (Arc::new(a.into()), b)));

impl Wire {
    /// With packets of several lengths. `None`: no descriptor is left.
    pub fn new() -> Option<Wire> {
        let watch = SOCKET.as_ref()?.0.clone();
        Some(Wire { pairs: vec![Arc::new(End { watch, left: PACKETS.into() })] })
    }
}

impl NetQueue for End {
    fn watch(&self) -> &Arc<OwnedFd> {
        &self.watch
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
            self.left.store(0, Ordering::Relaxed);
            return Ok(None);
        }
        let len = HEADER + 60 * left as usize;
        into[..len].fill(0x5a);
        Ok(Some(len))
    }

    fn send(&self, packet: &[u8]) -> io::Result<Sent> {
        assert!(packet.len() >= HEADER);
        Ok(Sent::Taken)
    }
}

impl Netdev for Wire {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.pairs
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_pairs(&self, count: usize) -> io::Result<()> {
        assert!(count <= self.pairs.len());
        Ok(())
    }

    fn place(&self) -> String {
        "nowhere".into()
    }
}
