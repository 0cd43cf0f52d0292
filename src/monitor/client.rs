//! One connection: bytes in, bytes out, both bounded. Never blocks.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use serde_json::Value;

use super::commands::Later;
use super::control::Ticket;
use super::message::{self, Failure, Parsed, Stream};

/// Bytes taken at once; requests are answered before more is read.
const CHUNK: usize = 4096;
/// Output that a client may leave unread. One that leaves more is dropped.
const MAX_UNREAD: usize = 1 << 20;

/// A client.
pub(super) struct Client {
    stream: Rc<UnixStream>,
    input: Stream,
    output: Vec<u8>,
    negotiated: bool,
    /// Requests whose commands are under way, with the clients' names for them.
    owed: Vec<(Option<Value>, Later)>,
    /// A request that has to wait for them.
    held: Option<Parsed>,
    /// The client has sent all that it will.
    ended: bool,
    /// Nothing more can be sent.
    broken: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Client {
        Client {
            stream: Rc::new(stream),
            input: Stream::default(),
            output: Vec::new(),
            negotiated: false,
            owed: Vec::new(),
            held: None,
            ended: false,
            broken: false,
        }
    }

    /// What the event loop waits for.
    pub(super) fn descriptor(&self) -> Rc<UnixStream> {
        self.stream.clone()
    }

    pub(super) fn interest(&self) -> EpollFlags {
        let deaf = self.ended || self.held.is_some();
        let input = if deaf { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        if self.output.is_empty() { input } else { input | EpollFlags::EPOLLOUT }
    }

    pub(super) fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// The client may use all commands from now on, and hears of events.
    pub(super) fn negotiated(&mut self) {
        self.negotiated = true;
    }

    /// Whether the connection can be closed.
    pub(super) fn is_over(&self) -> bool {
        self.broken || self.ended && self.output.is_empty() && self.owed.is_empty()
    }

    /// Takes some of the bytes that have come.
    pub(super) fn receive(&mut self) {
        let mut chunk = [0; CHUNK];
        match (&*self.stream).read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.feed(chunk.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
    }

    /// The next request, or what is wrong with what was sent in the place of one. While answers are owed, only what has
    /// a name: a client without names takes the next answer for that of its first request.
    pub(super) fn next_request(&mut self) -> Option<Parsed> {
        let next = match self.held.take() {
            Some(held) => held,
            None => self.input.next_message()?.map_err(|failure| (None, failure)).and_then(message::request),
        };
        let named = match &next {
            Ok(request) => request.id.is_some(),
            Err((id, _)) => id.is_some(),
        };
        if named || self.owed.is_empty() {
            return Some(next);
        }
        self.held = Some(next);
        None
    }

    /// The answer to the request `id` comes later.
    pub(super) fn owe(&mut self, id: Option<Value>, later: Later) {
        self.owed.push((id, later));
    }

    /// The command with this ticket is done.
    pub(super) fn settle(&mut self, ticket: Ticket, done: &Result<(), Failure>) {
        if let Some(at) = self.owed.iter().position(|(_, later)| later.ticket == ticket) {
            let (id, later) = self.owed.remove(at);
            self.send(&message::answer(id, (later.finish)(done.clone())));
        }
    }

    /// Sends a message, now or when there is room.
    pub(super) fn send(&mut self, message: &Value) {
        if self.broken {
            return;
        }
        self.output.extend_from_slice(message.to_string().as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.flush();
        if self.output.len() > MAX_UNREAD {
            crate::log::warn(format_args!("a client of the control socket does not read and is dropped"));
            self.broken = true;
        }
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() && !self.broken {
            match (&*self.stream).write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.broken = true,
            }
        }
    }

    /// The end of the process: gives a slow client a moment to read the rest.
    pub(super) fn finish(&mut self, limit: Duration) {
        self.flush();
        if self.output.is_empty() || self.broken {
            return;
        }
        let patient = self.stream.set_nonblocking(false).and_then(|()| self.stream.set_write_timeout(Some(limit)));
        if patient.is_ok() {
            // Nobody is left to tell.
            let _ = (&*self.stream).write_all(&self.output);
        }
    }
}
