//! What a daemon says unasked, on a connection of its own (vhost-user, "Back-end message types"): that the configuration
//! space has changed. Anything else is answered with a failure, and what is no message closes the connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Bytes of a message's header: request, flags, size of what follows.
const HEADER: usize = 12;
/// The longest message that is looked at; the protocol has none that is longer.
const MAX_SIZE: u32 = 4096;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGED: u32 = 2;
/// Of the flags: the version, and what asks for an answer.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// The answers.
const DONE: u64 = 0;
const REFUSED: u64 = 1;

/// The connection.
pub struct Notices {
    ours: UnixStream,
    /// What of a message has come.
    bytes: Vec<u8>,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    request: u32,
    wants_reply: bool,
    /// Of the whole message.
    len: usize,
}

/// The message at the start of `bytes`; `Ok(None)`: not all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Message>, ()> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    let (Some(request), Some(flags), Some(size)) = (word(0), word(4), word(8)) else { return Ok(None) };
    if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || size > MAX_SIZE {
        return Err(());
    }
    let len = HEADER + size as usize;
    Ok((bytes.len() >= len).then_some(Message { request, wants_reply: flags & NEED_REPLY != 0, len }))
}

/// The answer to a message.
fn answer(request: u32, value: u64) -> Vec<u8> {
    let words = [request, VERSION | REPLY, size_of::<u64>() as u32];
    words.into_iter().flat_map(u32::to_le_bytes).chain(value.to_le_bytes()).collect()
}

impl Notices {
    /// A connection, and the daemon's end of it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<(Notices, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Notices { ours, bytes: Vec::new() }, theirs))
    }

    /// What becomes readable when the daemon says something.
    pub fn socket(&self) -> &UnixStream {
        &self.ours
    }

    /// Takes what has come. Whether the configuration space has changed; `None`: the connection is of no use any more.
    pub fn take(&mut self) -> Option<bool> {
        let mut chunk = [0; HEADER + MAX_SIZE as usize];
        // Descriptors that come with a message are closed by the kernel: read(2) does not take them.
        let count = match self.ours.read(&mut chunk) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(_) => return None,
        };
        self.bytes.extend_from_slice(&chunk[..count]);
        let mut changed = false;
        while let Some(message) = parse(&self.bytes).ok()? {
            let known = message.request == CONFIG_CHANGED;
            changed |= known;
            if message.wants_reply {
                // A daemon that does not take its answers does not get them.
                let _ = self.ours.write(&answer(message.request, if known { DONE } else { REFUSED }));
            }
            self.bytes.drain(..message.len);
        }
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let words = [request, flags, body.len() as u32];
        words.into_iter().flat_map(u32::to_le_bytes).chain(body.iter().copied()).collect()
    }

    #[test]
    fn a_change_is_heard_in_pieces_and_answered() {
        let (mut notices, mut daemon) = Notices::new().unwrap();
        assert_eq!(notices.take(), Some(false));
        let bytes = message(CONFIG_CHANGED, VERSION | NEED_REPLY, &[]);
        daemon.write_all(&bytes[..5]).unwrap();
        assert_eq!(notices.take(), Some(false));
        daemon.write_all(&bytes[5..]).unwrap();
        daemon.write_all(&message(9, VERSION | NEED_REPLY, &[1; 40])).unwrap();
        assert_eq!(notices.take(), Some(true));
        let mut answers = [0; 40];
        daemon.read_exact(&mut answers).unwrap();
        assert_eq!(answers[..], [answer(CONFIG_CHANGED, DONE), answer(9, REFUSED)].concat());
        drop(daemon);
        assert_eq!(notices.take(), None);
    }

    #[test]
    fn what_is_no_message_ends_it() {
        for bytes in [message(2, 0, &[]), message(2, VERSION | REPLY, &[]), {
            let mut long = message(2, VERSION, &[]);
            long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
            long
        }] {
            let (mut notices, mut daemon) = Notices::new().unwrap();
            daemon.write_all(&bytes).unwrap();
            assert_eq!(notices.take(), None);
        }
    }

    proptest! {
        #[test]
        fn a_message_never_ends_behind_what_has_come(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(message)) = parse(&bytes) {
                prop_assert!((HEADER..=bytes.len()).contains(&message.len));
            }
        }
    }
}
