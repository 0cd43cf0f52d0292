//! `mux=on`: several front ends on one back end. All that they send goes out; what comes in goes to the one that has the
//! focus, and the keys of [`keys`] are for passthru.
//!
//! The lock protects who there is, who has the focus and the input that waits. It is held while a front end takes its
//! input, which calls back nothing but [`Chardev::resume`], and that only posts. Times have a lock of their own, because a
//! vCPU that writes holds its front end's.

pub mod keys;
mod times;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Chardev, FrontEnd, Peer, Ring};
use crate::event_loop::LoopHandle;
use keys::{Action, HELP, Keys};
use times::Times;

/// Most bytes of input that wait for a front end. Beyond it the user's keys wait, too.
const MAX_WAITING: usize = 4096;

/// A back end that several front ends share.
pub struct Mux {
    inner: Arc<dyn Chardev>,
    event_loop: LoopHandle,
    state: Mutex<State>,
    /// Whether `times` has to be asked.
    timed: AtomicBool,
    times: Mutex<Times>,
    since: Instant,
}

#[derive(Default)]
struct State {
    keys: Keys,
    fronts: Vec<Front>,
    /// Index of the one that hears the user.
    focus: usize,
}

struct Front {
    front: Weak<dyn FrontEnd>,
    waiting: VecDeque<u8>,
}

impl Mux {
    /// Puts a mux around `inner`.
    pub fn around(inner: Arc<dyn Chardev>, event_loop: LoopHandle) -> Arc<dyn Chardev> {
        let mux = Arc::new(Mux {
            inner: inner.clone(),
            event_loop,
            state: Mutex::default(),
            timed: AtomicBool::new(false),
            times: Mutex::default(),
            since: Instant::now(),
        });
        let front: Arc<dyn FrontEnd> = mux.clone();
        inner.attach(Arc::downgrade(&front));
        // The weak reference is the mux itself: `front` is only another name for it.
        Arc::new(Handle(mux))
    }

    /// Hands on what waits for front ends that have room again.
    fn pump(&self) {
        self.state.lock().fronts.iter_mut().for_each(Front::pump);
        self.inner.resume();
    }

    fn say(&self, text: &str) {
        self.inner.write(text.as_bytes());
    }

    fn fronts(&self) -> Vec<Arc<dyn FrontEnd>> {
        self.state.lock().fronts.iter().filter_map(|front| front.front.upgrade()).collect()
    }
}

impl State {
    fn focused(&mut self) -> Option<&mut Front> {
        self.fronts.get_mut(self.focus)
    }

    fn forget_the_gone(&mut self) {
        let focused = self.fronts.get(self.focus).map(|front| front.front.clone());
        self.fronts.retain(|front| front.front.strong_count() > 0);
        let still = focused.and_then(|focused| self.fronts.iter().position(|front| front.front.ptr_eq(&focused)));
        self.focus = still.unwrap_or(0);
    }
}

impl Front {
    fn pump(&mut self) {
        let Some(front) = self.front.upgrade() else {
            self.waiting.clear();
            return;
        };
        while !self.waiting.is_empty() {
            let count = front.room().min(self.waiting.len());
            if count == 0 {
                return;
            }
            let bytes: Vec<u8> = self.waiting.drain(..count).collect();
            front.input(&bytes);
        }
    }

    fn input(&mut self, bytes: &[u8]) {
        // The mux has told of no more room than there is; only what came before a change of the focus can be too much.
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        self.waiting.extend(bytes.iter().take(room));
        self.pump();
    }
}

/// The user's side: the mux is the front end of the back end that it is around.
impl FrontEnd for Mux {
    fn room(&self) -> usize {
        let mut state = self.state.lock();
        state.focused().map_or(MAX_WAITING, |front| MAX_WAITING.saturating_sub(front.waiting.len()))
    }

    fn input(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.forget_the_gone();
        for action in state.keys.feed(bytes) {
            match action {
                Action::Send(bytes) => state.focused().into_iter().for_each(|front| front.input(&bytes)),
                Action::Break => {
                    if let Some(front) = state.focused().and_then(|front| front.front.upgrade()) {
                        front.input_break();
                    }
                }
                Action::Next if !state.fronts.is_empty() => {
                    state.focus = (state.focus + 1) % state.fronts.len();
                    if let Some(front) = state.focused().and_then(|front| front.front.upgrade()) {
                        front.focused();
                    }
                }
                Action::Next => {}
                Action::Times => {
                    let now = !self.timed.load(Ordering::Relaxed);
                    *self.times.lock() = Times::default();
                    self.timed.store(now, Ordering::Relaxed);
                }
                Action::Help => self.say(HELP),
                Action::Quit => self.event_loop.stop(),
            }
        }
    }

    fn input_break(&self) {
        let front = self.state.lock().focused().and_then(|front| front.front.upgrade());
        if let Some(front) = front {
            front.input_break();
        }
    }

    fn output_ready(&self) {
        self.fronts().iter().for_each(|front| front.output_ready());
    }

    fn peer_changed(&self, present: bool) {
        self.fronts().iter().for_each(|front| front.peer_changed(present));
    }
}

/// What the front ends have of a mux: the back end that it is around refers to the mux weakly, they hold it.
struct Handle(Arc<Mux>);

impl Chardev for Handle {
    fn write(&self, data: &[u8]) {
        let Mux { inner, times, timed, since, .. } = &*self.0;
        if timed.load(Ordering::Relaxed) {
            inner.write(&times.lock().mark(data, since.elapsed()));
        } else {
            inner.write(data);
        }
    }

    fn ready(&self) -> bool {
        self.0.inner.ready()
    }

    fn flush(&self, limit: Duration) -> bool {
        self.0.inner.flush(limit)
    }

    /// The last one has the focus, as in QEMU.
    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        let mut state = self.0.state.lock();
        state.forget_the_gone();
        state.fronts.push(Front { front: front_end, waiting: VecDeque::new() });
        state.focus = state.fronts.len() - 1;
        drop(state);
        self.0.inner.resume();
    }

    fn resume(&self) {
        let mux = Arc::downgrade(&self.0);
        self.0.event_loop.post(move |_| {
            if let Some(mux) = mux.upgrade() {
                mux.pump();
            }
        });
    }

    fn peer(&self) -> Peer {
        self.0.inner.peer()
    }

    fn is_awaited(&self) -> bool {
        self.0.inner.is_awaited()
    }

    fn ring(&self) -> Option<&Ring> {
        self.0.inner.ring()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Port, Recorder, event_loop, settle};
    use super::*;
    use crate::event_loop::{EventLoop, Return};

    struct Bench {
        event_loop: EventLoop,
        inner: Arc<Recorder>,
        mux: Arc<dyn Chardev>,
    }

    impl Bench {
        fn new() -> Bench {
            let (event_loop, inner) = (event_loop(), Arc::new(Recorder::default()));
            let mux = Mux::around(inner.clone(), event_loop.handle());
            Bench { event_loop, inner, mux }
        }

        fn port(&self, room: usize) -> Arc<Port> {
            let port = Port::new(room);
            self.mux.attach(port.weak());
            port
        }

        fn type_in(&self, bytes: &[u8]) {
            self.inner.front.get().unwrap().input(bytes);
        }
    }

    #[test]
    fn the_focus_goes_round_and_everybody_is_heard() {
        let bench = Bench::new();
        let (serial, monitor) = (bench.port(100), bench.port(100));
        bench.type_in(b"info\x01cls\x01b\x01\x01\x01cquit");
        assert_eq!((serial.seen(), monitor.seen()), (b"ls\x01".to_vec(), b"infoquit".to_vec()));
        assert_eq!(serial.breaks.load(Ordering::SeqCst), 1);
        bench.mux.write(b"from anybody");
        assert_eq!(*bench.inner.bytes.lock(), b"from anybody");
        bench.type_in(b"\x01h");
        assert!(bench.inner.bytes.lock().ends_with(HELP.as_bytes()));
    }

    #[test]
    fn input_waits_for_its_front_end_and_the_keys_still_work() {
        let mut bench = Bench::new();
        let (slow, other) = (bench.port(2), bench.port(100));
        bench.type_in(b"\x01cabcde\x01cx");
        assert_eq!((slow.seen(), other.seen()), (b"ab".to_vec(), b"x".to_vec()));
        slow.room.store(100, Ordering::SeqCst);
        bench.mux.resume();
        settle(&mut bench.event_loop);
        assert_eq!(slow.seen(), b"abcde");
        assert!(bench.inner.resumed.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let bench = Bench::new();
        let _hung = bench.port(0);
        let front = bench.inner.front.get().unwrap();
        while front.room() > 0 {
            bench.type_in(&[7; 100]);
        }
        bench.type_in(b"dropped");
        assert_eq!(front.room(), 0);
        bench.type_in(b"\x01x");
    }

    #[test]
    fn a_front_end_that_goes_gives_the_focus_back() {
        let bench = Bench::new();
        let serial = bench.port(100);
        let device = bench.port(100);
        drop(device);
        bench.type_in(b"a");
        assert_eq!(serial.seen(), b"a");
        drop(serial);
        bench.type_in(b"nobody\x01c\x01b");
    }

    #[test]
    fn ctrl_a_x_ends_the_loop() {
        let mut bench = Bench::new();
        bench.type_in(b"\x01x");
        assert_eq!(bench.event_loop.run().unwrap(), Return::Stopped);
    }

    #[test]
    fn times_are_shown_at_the_start_of_lines() {
        let bench = Bench::new();
        bench.type_in(b"\x01t");
        bench.mux.write(b"a\nb");
        let text = String::from_utf8(bench.inner.bytes.lock().clone()).unwrap();
        assert_eq!(text.matches("[00:00:").count(), 2, "{text}");
        bench.type_in(b"\x01t");
        bench.inner.bytes.lock().clear();
        bench.mux.write(b"c\nd");
        assert_eq!(*bench.inner.bytes.lock(), b"c\nd");
    }

    #[test]
    fn everybody_hears_that_there_is_room_and_who_comes() {
        let bench = Bench::new();
        let (a, b) = (bench.port(0), bench.port(0));
        let front = bench.inner.front.get().unwrap();
        front.output_ready();
        front.peer_changed(true);
        for port in [a, b] {
            assert_eq!((port.readies.load(Ordering::SeqCst), port.peers.lock().clone()), (1, vec![true]));
        }
    }

    proptest! {
        /// Whatever is typed, in any pieces, with any room: nothing is lost that there was room for, and all is bounded.
        #[test]
        fn any_typing(pieces in prop::collection::vec((prop::collection::vec(prop_oneof![Just(1u8), Just(b'c'), Just(b'b'), Just(b't'), any::<u8>()], 0..60), 0usize..50), 0..20)) {
            let bench = Bench::new();
            let ports = [bench.port(0), bench.port(20)];
            for (bytes, room) in pieces {
                ports[0].room.store(room, Ordering::SeqCst);
                bench.inner.front.get().unwrap().input(&bytes);
                let state = &bench.inner.front.get().unwrap();
                prop_assert!(state.room() <= MAX_WAITING);
            }
            prop_assert!(ports[1].seen().len() <= 20);
        }
    }
}
