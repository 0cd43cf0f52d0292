//! The monitor for people on a character back end: lines are edited and echoed here, because the terminal is raw, and run
//! as `human-monitor-command` runs them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::commands::{Later, Reply, human};
use super::control::{Control, Ticket};
use super::message::Failure;
use crate::backends::chardev::{Chardev, FrontEnd};
use crate::backends::table::Claim;
use crate::event_loop::{EventLoop, LoopHandle};

/// Most bytes that wait to be read.
const MAX_TYPED: usize = 4096;
/// The longest line; what is typed beyond it is not taken.
const MAX_LINE: usize = 1024;
const PROMPT: &str = "(passthru) ";
const BANNER: &str = concat!("passthru ", env!("CARGO_PKG_VERSION"), " monitor - type 'help' for more information\r\n");

/// A monitor on a back end.
pub(super) struct Hmp {
    typed: Arc<Typed>,
    editor: Editor,
    /// A command that is under way; what is typed waits for it.
    owed: Option<Later>,
    chardev: Claim<dyn Chardev>,
}

/// What was typed and not read yet.
struct Typed {
    bytes: Mutex<VecDeque<u8>>,
    /// Somebody new is at the other end, whom the banner is for.
    greet: AtomicBool,
    alone: bool,
    event_loop: LoopHandle,
}

impl FrontEnd for Typed {
    fn room(&self) -> usize {
        MAX_TYPED.saturating_sub(self.bytes.lock().len())
    }

    fn input(&self, bytes: &[u8]) {
        let mut typed = self.bytes.lock();
        let room = MAX_TYPED.saturating_sub(typed.len());
        typed.extend(bytes.iter().take(room));
        drop(typed);
        self.event_loop.post(EventLoop::yield_now);
    }

    fn focused(&self) {
        self.greet.store(true, Ordering::SeqCst);
        self.event_loop.post(EventLoop::yield_now);
    }

    fn peer_changed(&self, present: bool) {
        self.greet.store(present && self.alone, Ordering::SeqCst);
        self.event_loop.post(EventLoop::yield_now);
    }
}

impl Hmp {
    /// `alone`: no console shares the back end, which a banner would disturb.
    pub(super) fn new(chardev: Claim<dyn Chardev>, alone: bool, event_loop: LoopHandle) -> Hmp {
        let typed = Arc::new(Typed { bytes: Mutex::default(), alone, greet: AtomicBool::new(alone), event_loop });
        let front: Arc<dyn FrontEnd> = typed.clone();
        chardev.attach(Arc::downgrade(&front));
        Hmp { typed, editor: Editor::default(), owed: None, chardev }
    }

    /// Runs every line that is there in full.
    pub(super) fn serve(&mut self, control: &mut dyn Control) {
        if self.typed.greet.swap(false, Ordering::SeqCst) {
            self.editor = Editor::default();
            self.say(&format!("{BANNER}{PROMPT}"));
        }
        let mut taken = false;
        while self.owed.is_none() {
            let Some(byte) = self.typed.bytes.lock().pop_front() else { break };
            taken = true;
            let (echo, line) = self.editor.feed(byte);
            self.say(&echo);
            match line.map(|line| human::run(control, &line)) {
                None => {}
                Some(Reply::Now(text)) => self.answer(&text),
                Some(Reply::Later(later)) => self.owed = Some(later),
            }
        }
        if taken {
            self.chardev.resume();
        }
    }

    /// The command with this ticket is done.
    pub(super) fn settle(&mut self, ticket: Ticket, done: &Result<(), Failure>) {
        if let Some(later) = self.owed.take_if(|later| later.ticket == ticket) {
            let text = (later.finish)(done.clone()).unwrap_or_default();
            self.answer(&text);
            self.typed.event_loop.post(EventLoop::yield_now);
        }
    }

    fn answer(&self, text: &serde_json::Value) {
        self.say(text.as_str().unwrap_or_default());
        self.say(PROMPT);
    }

    fn say(&self, text: &str) {
        self.chardev.write(text.as_bytes());
    }
}

/// A line as it is typed. Pure.
#[derive(Debug, Default)]
pub struct Editor {
    line: String,
    /// Inside an escape sequence, such as an arrow's, which means nothing here.
    escape: Escape,
    /// The last byte was a carriage return: a line feed after it ends no second line.
    returned: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

impl Editor {
    /// What a byte makes visible, and the line that it ends.
    pub fn feed(&mut self, byte: u8) -> (String, Option<String>) {
        let returned = std::mem::replace(&mut self.returned, byte == b'\r');
        match (&self.escape, byte) {
            (Escape::Begun, b'[' | b'O') => self.escape = Escape::Sequence,
            (Escape::Sequence, 0x20..=0x3f) => {}
            (Escape::Begun | Escape::Sequence, _) => self.escape = Escape::None,
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::None, b'\n') if returned => {}
            (Escape::None, b'\r' | b'\n') => return ("\r\n".into(), Some(std::mem::take(&mut self.line))),
            (Escape::None, 0x08 | 0x7f) => {
                if self.line.pop().is_some() {
                    return ("\x08 \x08".into(), None);
                }
            }
            // Ctrl-U and Ctrl-C give the line up.
            (Escape::None, 0x15 | 0x03) => {
                let wiped = "\x08 \x08".repeat(self.line.len());
                self.line.clear();
                return (wiped, None);
            }
            (Escape::None, b' '..=b'~') if self.line.len() < MAX_LINE => {
                self.line.push(char::from(byte));
                return (char::from(byte).into(), None);
            }
            (Escape::None, _) => {}
        }
        (String::new(), None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::commands::tests::Fake;
    use super::*;
    use crate::backends::chardev::testing::{Recorder, event_loop};
    use crate::backends::table::Table;
    use crate::object::Kind;

    fn lines(editor: &mut Editor, bytes: &[u8]) -> Vec<String> {
        bytes.iter().filter_map(|byte| editor.feed(*byte).1).collect()
    }

    #[test]
    fn a_line_is_edited() {
        for (typed, expected) in [
            (&b"info status\r"[..], vec!["info status"]),
            (b"a\r\nb\n\n", vec!["a", "b", ""]),
            (b"stopp\x7f\r", vec!["stop"]),
            (b"\x7f\x7fx\r", vec!["x"]),
            (b"quit\x15cont\r", vec!["cont"]),
            (b"a\x1b[A\x1b[1;5Cb\x1bOHc\r", vec!["abc"]),
            (b"no end", vec![]),
        ] {
            assert_eq!(lines(&mut Editor::default(), typed), expected, "{typed:?}");
        }
        assert_eq!(Editor::default().feed(b'x').0, "x");
    }

    #[test]
    fn lines_are_run_and_answered_with_a_prompt() {
        let event_loop = event_loop();
        let table: Arc<Table<dyn Chardev>> = Table::new(Kind::Chardev);
        let recorder = Arc::new(Recorder::default());
        table.add("c0".into(), "null", recorder.clone(), false).unwrap();
        let mut hmp = Hmp::new(table.claim("c0", "mon0").unwrap(), true, event_loop.handle());
        let front = recorder.front.get().unwrap();
        let mut fake = Fake::default();
        let said = |hmp: &mut Hmp, fake: &mut Fake| {
            hmp.serve(fake);
            String::from_utf8(std::mem::take(&mut *recorder.bytes.lock())).unwrap()
        };
        assert_eq!(said(&mut hmp, &mut fake), format!("{BANNER}{PROMPT}"));
        front.input(b"info status\r");
        assert_eq!(said(&mut hmp, &mut fake), format!("info status\r\nVM status: running\r\n{PROMPT}"));
        fake.slow = Some(7);
        front.input(b"device_add vfio-pci,host=01:00.0\rstop\r");
        assert!(!said(&mut hmp, &mut fake).ends_with(PROMPT), "it is under way");
        hmp.settle(7, &Ok(()));
        assert!(said(&mut hmp, &mut fake).ends_with(&format!("{PROMPT}stop\r\n{PROMPT}")));
        assert_eq!(fake.calls.last().unwrap(), "stop");
    }

    proptest! {
        #[test]
        fn any_typing(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut editor = Editor::default();
            for byte in bytes {
                let (_, line) = editor.feed(byte);
                prop_assert!(line.is_none_or(|line| line.len() <= MAX_LINE && !line.contains(char::is_control)));
            }
        }
    }
}
