//! Packets in a stream of bytes, each behind its length in 32 bits, most significant first: what QEMU's `stream` and passt
//! speak. Pure but for the socket.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{HEADER, MAX_PACKET, NetQueue, Sent};

/// Bytes of a length.
const LENGTH: usize = 4;
/// What is taken from the socket at a time; more than one packet of any length.
const ROOM: usize = 4 * (LENGTH + MAX_PACKET);
/// Bytes to send that are gathered before a system call; with one more packet the most that wait.
const GATHERED: usize = 64 << 10;

/// A stream socket as a queue. Packets have no header on it: what would be in one is zero.
pub struct Framed {
    watch: Arc<OwnedFd>,
    /// The same once more: epoll waits for one thing by each descriptor.
    room: Arc<OwnedFd>,
    socket: UnixStream,
    /// Only the thread that receives takes it.
    input: Mutex<Input>,
    /// Only the thread that sends takes it.
    output: Mutex<Output>,
}

impl Framed {
    /// Of a connected socket, whatever its family.
    ///
    /// # Errors
    /// The process may not have another descriptor.
    pub fn new(socket: OwnedFd) -> io::Result<Framed> {
        // std's type for one family serves all: it only reads and writes.
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let again = || Ok::<_, io::Error>(Arc::new(OwnedFd::from(socket.try_clone()?)));
        let (watch, room) = (again()?, again()?);
        Ok(Framed { watch, room, socket, input: Mutex::default(), output: Mutex::default() })
    }
}

impl NetQueue for Framed {
    fn watch(&self) -> &Arc<OwnedFd> {
        &self.watch
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        self.input.lock().receive(&mut &self.socket, into)
    }

    fn send(&self, packet: &[u8]) -> io::Result<Sent> {
        self.output.lock().send(&mut &self.socket, packet)
    }

    fn flush(&self) -> io::Result<bool> {
        self.output.lock().flush(&mut &self.socket)
    }

    fn room(&self) -> Option<&Arc<OwnedFd>> {
        Some(&self.room)
    }
}

/// Bytes that have come and are no whole packet yet.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    /// Where the next packet begins.
    from: usize,
    /// Up to where there are bytes.
    to: usize,
}

impl Input {
    fn receive(&mut self, socket: &mut impl Read, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(len) = self.take(into)? {
                return Ok(Some(len));
            }
            self.bytes.resize(ROOM, 0);
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            // There is room: a packet that is not whole is shorter than `ROOM`.
            match socket.read(&mut self.bytes[self.to..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.to += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next packet, if it is whole. One that is too long for Ethernet means that the other end speaks something else.
    fn take(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let there = &self.bytes[self.from..self.to];
        let Some((length, rest)) = there.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_PACKET - HEADER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(packet) = rest.get(..length) else { return Ok(None) };
        let (header, body) = into.split_at_mut(HEADER);
        header.fill(0);
        body[..length].copy_from_slice(packet);
        self.from += LENGTH + length;
        Ok(Some(HEADER + length))
    }
}

/// Packets that the socket has not got yet, each behind its length. Many small ones need one system call.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// So many of them are sent.
    sent: usize,
}

impl Output {
    fn send(&mut self, socket: &mut impl Write, packet: &[u8]) -> io::Result<Sent> {
        if self.bytes.len() >= GATHERED && !self.flush(socket)? {
            return Ok(Sent::Later);
        }
        let frame = packet.get(HEADER..).unwrap_or_default();
        self.bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(frame);
        Ok(Sent::Taken)
    }

    /// Whether all is sent.
    fn flush(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            match socket.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(body: &[u8]) -> Vec<u8> {
        [&[0; HEADER], body].concat()
    }

    fn pair() -> (Framed, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Framed::new(ours.into()).unwrap(), theirs)
    }

    #[test]
    fn a_packet_follows_its_length() {
        let (queue, mut other) = pair();
        assert_eq!(queue.send(&packet(b"hello")).unwrap(), Sent::Taken);
        assert!(queue.flush().unwrap());
        let mut wire = [0; 9];
        other.read_exact(&mut wire).unwrap();
        assert_eq!(&wire, b"\0\0\0\x05hello");
        let mut buffer = vec![1; MAX_PACKET];
        assert_eq!(queue.receive(&mut buffer).unwrap(), None);
        other.write_all(b"\0\0\0\x02ab\0\0\0").unwrap();
        assert_eq!(queue.receive(&mut buffer).unwrap(), Some(HEADER + 2));
        assert_eq!(&buffer[..HEADER + 2], packet(b"ab"));
        assert_eq!(queue.receive(&mut buffer).unwrap(), None, "half of a length");
        drop(other);
        assert!(queue.receive(&mut buffer).is_err());
    }

    #[test]
    fn a_stream_of_something_else_ends() {
        let (queue, mut other) = pair();
        other.write_all(b"GET / HTTP/1.1").unwrap();
        assert_eq!(queue.receive(&mut vec![0; MAX_PACKET]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn many_packets_are_one_write() {
        struct Count(usize, Vec<u8>);
        impl Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut output, mut wire) = (Output::default(), Count(0, Vec::new()));
        for _ in 0..30 {
            assert_eq!(output.send(&mut wire, &packet(&[7; 1514])).unwrap(), Sent::Taken);
        }
        assert!(output.flush(&mut wire).unwrap());
        assert_eq!((wire.0, wire.1.len()), (1, 30 * (LENGTH + 1514)));
    }

    #[test]
    fn a_full_socket_takes_no_packet_and_loses_none() {
        let (queue, mut other) = pair();
        let big = packet(&vec![7; 60000]);
        let taken = (0..100).take_while(|_| queue.send(&big).unwrap() == Sent::Taken).count();
        assert!(taken < 100);
        assert!(!queue.flush().unwrap());
        let bound = GATHERED + LENGTH + MAX_PACKET;
        assert!(queue.output.lock().bytes.len() <= bound);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            other.read_to_end(&mut all).unwrap();
            all
        });
        while !queue.flush().unwrap() {
            std::thread::yield_now();
        }
        drop(queue);
        assert_eq!(reader.join().unwrap().len(), taken * (LENGTH + 60000));
    }

    proptest! {
        /// However the stream is cut, the packets are the same.
        #[test]
        fn cuts_do_not_matter(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..10),
            cuts in prop::collection::vec(1usize..20, 1..60),
        ) {
            let wire: Vec<u8> =
                packets.iter().flat_map(|packet| [&(packet.len() as u32).to_be_bytes()[..], packet].concat()).collect();
            let mut input = Input::default();
            let mut buffer = vec![0; MAX_PACKET];
            let (mut rest, mut found) = (&wire[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (mut now, then) = rest.split_at((*cut).min(rest.len()));
                rest = then;
                while let Ok(Some(len)) = input.receive(&mut now, &mut buffer) {
                    found.push(buffer[HEADER..len].to_vec());
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, packets);
        }
    }
}
