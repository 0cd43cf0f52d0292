//! The network back end `socket`, QEMU's older words for what [`super::stream`] does: `connect=HOST:PORT`.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::stream::Stream;
use super::{BackendCx, Netdev};
use crate::error::Result;
use crate::object::{Create, Invalid, PropValue, TypeInfo, props};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<SocketType>();

props! {
    /// A TCP socket that is connected to, on which each packet follows its length: stream in QEMU's older words.
    struct SocketProps {
        /// Host and port of it; without a host, this one
        connect: Place,
    }
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place(String, u16);

impl PropValue for Place {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (host, port) = text.rsplit_once(':')?;
            let host = match host.trim_matches(['[', ']']) {
                "" => "127.0.0.1",
                host => host,
            };
            Some(Place(host.to_owned(), port.parse().ok()?))
        };
        read().ok_or_else(|| Invalid::expected("[HOST]:PORT"))
    }
}

struct SocketType;

impl Create<Arc<dyn Netdev>, BackendCx> for SocketType {
    const NAME: &'static str = "socket";
    const GROUP: &'static str = "Network back ends";
    type Props = SocketProps;

    fn create(props: SocketProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        let Place(host, port) = props.connect;
        let socket: io::Result<OwnedFd> = TcpStream::connect((host.as_str(), port)).map(OwnedFd::from);
        Ok(Arc::new(Stream::connected(socket, format!("tcp:{host}:{port}"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (text, host, port) in
            [(":1234", "127.0.0.1", 1234), ("a.example:80", "a.example", 80), ("[::1]:5", "::1", 5)]
        {
            assert_eq!(Place::parse(text), Ok(Place(host.into(), port)), "{text}");
        }
        for text in ["", "1234", "host:", "host:99999"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
