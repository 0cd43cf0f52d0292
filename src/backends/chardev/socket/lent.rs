//! A socket that a device uses for a protocol of its own: the main loop lets it alone for as long.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::address::Listener;
use super::{Address, Lent, Role, Socket};

/// Lends the socket, if it is one that descriptors can be sent over.
pub(super) fn lend(socket: Arc<Socket>) -> Option<Box<dyn Lent>> {
    let Address::Unix(_) = socket.address else { return None };
    // From here on whatever the loop has posted for the socket does nothing.
    socket.lent.store(true, Ordering::SeqCst);
    socket.awaited.store(false, Ordering::SeqCst);
    socket.output.disconnect();
    socket.input.stop_soon();
    if let Some(token) = socket.accepting.lock().take() {
        socket.event_loop.post(move |event_loop| event_loop.remove(token));
    }
    Some(Box::new(Lease(socket)))
}

struct Lease(Arc<Socket>);

impl Lent for Lease {
    fn connect(&self, limit: Duration) -> io::Result<UnixStream> {
        let socket = &self.0;
        let waiting = socket.current.lock().take();
        let fd: OwnedFd = match (waiting, &socket.listener) {
            (Some(fd), _) => fd.try_clone()?,
            (None, None) => socket.address.connect()?,
            (None, Some(listener)) => accept(listener, limit)?,
        };
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false)?;
        socket.present.store(true, Ordering::SeqCst);
        Ok(stream)
    }

    fn lost(&self) {
        self.0.present.store(false, Ordering::SeqCst);
    }

    fn again(&self) -> Option<Duration> {
        match self.0.role {
            // A server waits for its next client.
            Role::Server { .. } => Some(Duration::ZERO),
            Role::Client { reconnect } => reconnect,
        }
    }

    fn place(&self) -> String {
        self.0.address.to_string()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.lost();
        self.0.lent.store(false, Ordering::SeqCst);
        self.0.listen_soon();
    }
}

/// The next client, waiting for it.
fn accept(listener: &Listener, limit: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(fd) = listener.accept() {
            return Ok(fd);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Rounded up, or the last millisecond would be spent in a loop.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::super::testing::{Port, event_loop, settle};
    use super::*;
    use crate::backends::chardev::Chardev;
    use crate::backends::{BackendCx, Backends};
    use crate::event_loop::EventLoop;

    const LIMIT: Duration = Duration::from_secs(30);

    fn socket(path: &std::path::Path, role: Role, event_loop: &EventLoop) -> Arc<Socket> {
        let cx =
            BackendCx { name: "c0".into(), event_loop: event_loop.handle(), backends: Arc::new(Backends::default()) };
        Socket::new(Address::Unix(path.into()), role, &cx).unwrap()
    }

    #[test]
    fn a_client_gives_its_connection_away_before_a_byte_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut event_loop = event_loop();
        let client = socket(&path, Role::Client { reconnect: None }, &event_loop);
        // With a loop that has run and with one that has not.
        let (mut daemon, _) = server.accept().unwrap();
        settle(&mut event_loop);
        let lent = client.lend().unwrap();
        let port = Port::new(100);
        client.attach(port.weak());
        daemon.write_all(b"hello").unwrap();
        settle(&mut event_loop);
        let mut stream = lent.connect(LIMIT).unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes, port.seen().is_empty(), lent.again()), (b"hello", true, None));
        assert!(client.peer().present);
        lent.lost();
        assert!(!client.peer().present);
        // The next one is connected to as it is asked for.
        let mut again = lent.connect(LIMIT).unwrap();
        let (mut daemon, _) = server.accept().unwrap();
        daemon.write_all(b"again").unwrap();
        again.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"again");
    }

    #[test]
    fn a_server_waits_for_its_client_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut event_loop = event_loop();
        let server = socket(&path, Role::Server { wait: true }, &event_loop);
        let lent = server.lend().unwrap();
        assert!(!server.is_awaited());
        settle(&mut event_loop);
        assert_eq!(lent.connect(Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut daemon = UnixStream::connect(&path).unwrap();
        let mut stream = lent.connect(LIMIT).unwrap();
        daemon.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!((byte, lent.again()), ([b'x'], Some(Duration::ZERO)));
        // A back end again, for whoever is next.
        drop(lent);
        let port = Port::new(100);
        server.attach(port.weak());
        settle(&mut event_loop);
        UnixStream::connect(&path).unwrap().write_all(b"y").unwrap();
        settle(&mut event_loop);
        settle(&mut event_loop);
        assert_eq!(port.seen(), b"y");
    }
}
