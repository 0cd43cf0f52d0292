//! Where a socket is: a file, or a host and a port.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::backends::unix_listener::UnixListener;

/// How long a host on the network has to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A file.
    Unix(PathBuf),
    /// A host, by name or number, and a port.
    Tcp(String, u16),
}

/// QEMU's form.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            // A number with colons is one of IPv6.
            Address::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Address {
    /// Connects to whoever listens there. May take seconds.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
            Address::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                        Ok(stream) => return prepare(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Listens there.
    pub(super) fn listen(&self) -> io::Result<Listener> {
        match self {
            Address::Unix(path) => UnixListener::new(path).map(Listener::Unix),
            Address::Tcp(host, port) => {
                let listener = TcpListener::bind((host.as_str(), *port))?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
        }
    }
}

/// What is typed goes out at once, and nothing blocks.
fn prepare(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// A socket that clients connect to.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// The next client, if one waits.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        match self {
            Listener::Unix(listener) => listener.accept().map(OwnedFd::from),
            Listener::Tcp(listener) => listener.accept().and_then(|(stream, _)| prepare(stream)).ok(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_qemu_does() {
        for (address, text) in [
            (Address::Unix("/run/a".into()), "unix:/run/a"),
            (Address::Tcp("localhost".into(), 4444), "tcp:localhost:4444"),
            (Address::Tcp("::1".into(), 1), "tcp:[::1]:1"),
        ] {
            assert_eq!(address.to_string(), text);
        }
    }
}
