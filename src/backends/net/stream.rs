//! The network back end `stream`: a socket on which each packet follows its length, as QEMU's has it. The other end is
//! another guest's, passt, or a program that connects such ends.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use super::frames::Framed;
use super::{BackendCx, NetQueue, Netdev, Offloads};
use crate::error::{Code, Error, Result, explain_io};
use crate::object::{Create, TypeInfo, prop_enum, props};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<StreamType>();

props! {
    /// A socket that is connected to, on which each packet follows its length.
    struct StreamProps {
        /// Kind of its address
        #[name = "addr.type"]
        kind: AddressKind,
        /// File of the socket (unix)
        #[name = "addr.path"]
        path: Option<PathBuf>,
        /// Name or address of the host (inet)
        #[name = "addr.host"]
        host: Option<String>,
        /// TCP port (inet)
        #[name = "addr.port"]
        port: Option<u16>,
    }
}

prop_enum! {
    /// The kind of a socket's address.
    enum AddressKind {
        /// A file.
        Unix = "unix",
        /// Host and port of TCP.
        Inet = "inet",
    }
}

/// Where the socket is.
enum Address {
    Unix(PathBuf),
    Inet(String, u16),
}

fn address(props: StreamProps) -> Result<Address> {
    match (props.kind, props.path, props.host, props.port) {
        (AddressKind::Unix, Some(path), None, None) => Ok(Address::Unix(path)),
        (AddressKind::Inet, None, Some(host), Some(port)) => Ok(Address::Inet(host, port)),
        (AddressKind::Unix, ..) => {
            Err(Error::new(Code::BadProperty, "addr.type=unix needs addr.path and nothing else"))
        }
        (AddressKind::Inet, ..) => {
            Err(Error::new(Code::BadProperty, "addr.type=inet needs addr.host and addr.port and nothing else"))
        }
    }
}

struct StreamType;

impl Create<Arc<dyn Netdev>, BackendCx> for StreamType {
    const NAME: &'static str = "stream";
    const GROUP: &'static str = "Network back ends";
    type Props = StreamProps;

    fn check(props: &StreamProps) -> Result<()> {
        address(props.clone()).map(drop)
    }

    fn create(props: StreamProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        let (place, socket): (String, io::Result<OwnedFd>) = match address(props)? {
            Address::Unix(path) => (format!("unix:{}", path.display()), UnixStream::connect(&path).map(OwnedFd::from)),
            Address::Inet(host, port) => {
                (format!("tcp:{host}:{port}"), TcpStream::connect((host.as_str(), port)).map(OwnedFd::from))
            }
        };
        Ok(Arc::new(Stream::connected(socket, place)?))
    }
}

/// A connected socket.
pub(super) struct Stream {
    pairs: [Arc<dyn NetQueue>; 1],
    place: String,
}

impl Stream {
    /// On a socket that was to be connected.
    ///
    /// # Errors
    /// [`Code::NetdevFailed`]: it is not.
    pub(super) fn connected(socket: io::Result<OwnedFd>, place: String) -> Result<Stream> {
        let queue = socket.and_then(Framed::new).map_err(|error| {
            Error::new(Code::NetdevFailed, format!("{place} cannot be connected to: {}", explain_io(&error)))
                .fix("start the program at the other end first")
        })?;
        Ok(Stream::new(queue, place))
    }

    /// `place`: where it goes, for people.
    pub(super) fn new(queue: Framed, place: String) -> Stream {
        Stream { pairs: [Arc::new(queue)], place }
    }
}

impl Netdev for Stream {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.pairs
    }

    fn offloads(&self) -> Offloads {
        // There is no header on the wire that could tell of one.
        Offloads::empty()
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_pairs(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}
