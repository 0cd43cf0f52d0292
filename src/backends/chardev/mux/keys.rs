//! The keys by which a user speaks to passthru instead of the guest: Ctrl-A, then one key, as in QEMU. Pure.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What the keys mean, printed for Ctrl-A h.
pub const HELP: &str = "\r\n\
    Ctrl-A h       shows this help\r\n\
    Ctrl-A x       ends passthru, and with it the guest\r\n\
    Ctrl-A s       saves disks that are on a snapshot; passthru has none\r\n\
    Ctrl-A t       shows when each line was sent, or no longer\r\n\
    Ctrl-A b       sends a break (then a key: the guest's magic SysRq)\r\n\
    Ctrl-A c       goes to the next of console and monitor\r\n\
    Ctrl-A Ctrl-A  sends Ctrl-A\r\n";

/// What the user has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// These bytes are for the front end that has the focus.
    Send(Vec<u8>),
    /// Show [`HELP`].
    Help,
    /// Send a break to the guest.
    Break,
    /// Give the focus to the next front end.
    Next,
    /// Show times, or no longer.
    Times,
    /// End passthru; nothing follows.
    Quit,
}

/// The state between two reads: a Ctrl-A and its key may arrive apart.
#[derive(Debug, Default)]
pub struct Keys {
    prefixed: bool,
}

impl Keys {
    /// What the next bytes from the user mean, in order. An unknown key after Ctrl-A means nothing.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            let action = match (std::mem::take(&mut self.prefixed), byte) {
                (false, PREFIX) => {
                    self.prefixed = true;
                    continue;
                }
                (false, _) | (true, PREFIX) => {
                    plain.push(byte);
                    continue;
                }
                (true, b'x' | b'X') => Action::Quit,
                (true, b'h' | b'H' | b'?') => Action::Help,
                (true, b'b' | b'B') => Action::Break,
                (true, b'c' | b'C') => Action::Next,
                (true, b't' | b'T') => Action::Times,
                (true, _) => continue,
            };
            if !plain.is_empty() {
                actions.push(Action::Send(std::mem::take(&mut plain)));
            }
            let quit = action == Action::Quit;
            actions.push(action);
            if quit {
                return actions;
            }
        }
        if !plain.is_empty() {
            actions.push(Action::Send(plain));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send(bytes: &[u8]) -> Action {
        Action::Send(bytes.to_vec())
    }

    #[test]
    fn keys() {
        for (input, expected) in [
            (&b"ls\r"[..], vec![send(b"ls\r")]),
            (b"", vec![]),
            (b"\x01", vec![]),
            (b"\x01x", vec![Action::Quit]),
            (b"a\x01xb", vec![send(b"a"), Action::Quit]),
            (b"a\x01hb", vec![send(b"a"), Action::Help, send(b"b")]),
            (b"\x01?", vec![Action::Help]),
            (b"\x01bm", vec![Action::Break, send(b"m")]),
            (b"\x01c\x01t\x01s", vec![Action::Next, Action::Times]),
            (b"\x01\x01", vec![send(b"\x01")]),
            (b"\x01\x01x", vec![send(b"\x01x")]),
            (b"\x01\x01\x01x", vec![send(b"\x01"), Action::Quit]),
            (b"a\x01zb", vec![send(b"ab")]),
            (b"x\x03\x04h", vec![send(b"x\x03\x04h")]),
        ] {
            assert_eq!(Keys::default().feed(input), expected, "{input:?}");
        }
    }

    proptest! {
        /// However a terminal cuts its input into reads, the meaning is the same.
        #[test]
        fn cuts_do_not_matter(input in proptest::collection::vec(prop_oneof![Just(1u8), Just(b'h'), Just(b'b'), Just(b'c'), Just(b't'), Just(b'q')], 0..40), cut in 0usize..40) {
            let merge = |actions: Vec<Action>| {
                let mut merged: Vec<Action> = Vec::new();
                for action in actions {
                    match (merged.last_mut(), action) {
                        (Some(Action::Send(bytes)), Action::Send(more)) => bytes.extend(more),
                        (_, action) => merged.push(action),
                    }
                }
                merged
            };
            let whole = Keys::default().feed(&input);
            let (first, second) = input.split_at(cut.min(input.len()));
            let mut keys = Keys::default();
            let mut parts = keys.feed(first);
            parts.extend(keys.feed(second));
            prop_assert_eq!(merge(parts), merge(whole));
        }
    }
}
