//! For unit tests: a back end that records, a front end that records, and a loop that runs as long as there is work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Attached, Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::event_loop::EventLoop;

/// A back end that keeps what it gets and is ready when told so.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) full: AtomicBool,
    pub(crate) resumed: AtomicUsize,
    pub(crate) front: Attached,
}

impl Chardev for Recorder {
    fn write(&self, data: &[u8]) {
        self.bytes.lock().extend_from_slice(data);
    }

    fn ready(&self) -> bool {
        !self.full.load(Ordering::SeqCst)
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end);
    }

    fn resume(&self) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }

    fn peer(&self) -> Peer {
        Peer::always("recorder")
    }
}

/// A front end that keeps its input and takes a limited amount at once.
#[derive(Default)]
pub(crate) struct Port {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) room: AtomicUsize,
    pub(crate) breaks: AtomicUsize,
    pub(crate) readies: AtomicUsize,
    pub(crate) peers: Mutex<Vec<bool>>,
}

impl Port {
    pub(crate) fn new(room: usize) -> Arc<Port> {
        let port = Port::default();
        port.room.store(room, Ordering::SeqCst);
        Arc::new(port)
    }

    pub(crate) fn seen(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    /// It as a back end takes it.
    pub(crate) fn weak(self: &Arc<Self>) -> Weak<dyn FrontEnd> {
        let front_end: Arc<dyn FrontEnd> = self.clone();
        Arc::downgrade(&front_end)
    }
}

impl FrontEnd for Port {
    fn room(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }

    fn input(&self, bytes: &[u8]) {
        self.room.fetch_sub(bytes.len().min(self.room()), Ordering::SeqCst);
        self.bytes.lock().extend_from_slice(bytes);
    }

    fn input_break(&self) {
        self.breaks.fetch_add(1, Ordering::SeqCst);
    }

    fn output_ready(&self) {
        self.readies.fetch_add(1, Ordering::SeqCst);
    }

    fn peer_changed(&self, present: bool) {
        self.peers.lock().push(present);
    }
}

/// What a back end called `c0` is made with.
pub(crate) fn cx(event_loop: &EventLoop) -> BackendCx {
    BackendCx { name: "c0".into(), event_loop: event_loop.handle(), backends: Arc::default() }
}

/// A loop that no signal may reach.
pub(crate) fn event_loop() -> EventLoop {
    EventLoop::new(|_, signal| panic!("{signal}")).unwrap()
}

/// Runs the loop for a moment: several turns, in which everything that is ready has its own.
pub(crate) fn settle(event_loop: &mut EventLoop) {
    for _ in 0..5 {
        event_loop.run_until(Some(Instant::now() + Duration::from_millis(1))).unwrap();
    }
}

/// Runs the loop until `done`.
pub(crate) fn run_until(event_loop: &mut EventLoop, mut done: impl FnMut() -> bool) {
    while !done() {
        settle(event_loop);
    }
}
