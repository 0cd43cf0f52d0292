//! One port: a character back end on one side, two queues on the other.
//!
//! The port's lock is innermost but for the back end's queue: it is taken by the device's worker and by who brings input,
//! and held while neither the bus nor the machine is called.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::bus::SerialBus;
use super::control::ToDriver;
use crate::backends::chardev::{Chardev, FrontEnd};
use crate::backends::table::Claim;
use crate::device::{Device, Tell, Unit, Word};
use crate::error::Result;
use crate::virtio::{Buffers, Served, VirtQueue};

/// Most bytes of input that wait for the guest.
const MAX_BACKLOG: usize = 4096;
/// Room in the backlog at which the source of the input is asked to go on.
const RESUME_ROOM: usize = MAX_BACKLOG / 2;
/// Bytes that are given to the back end at once.
const CHUNK: usize = 4096;

/// What the user says of a port.
pub struct Options {
    /// Its id.
    pub id: Arc<str>,
    /// Its number, if the user chose one.
    pub number: Option<u32>,
    /// The name that the guest finds it by.
    pub name: Option<String>,
    /// Whether the guest is to use it as a console.
    pub console: bool,
}

/// A port.
pub struct Port {
    options: Options,
    bus: Arc<SerialBus>,
    tell: Tell,
    state: Mutex<State>,
    /// The last: the port lets go of the back end before it is given back.
    chardev: Claim<dyn Chardev>,
}

#[derive(Default)]
struct State {
    /// Its number, once it is on the bus.
    number: Option<u32>,
    /// Its queues while the driver runs, receive queue first.
    queues: Option<[Arc<VirtQueue>; 2]>,
    /// Whether a program of the guest's has it open. A console always is.
    guest_open: bool,
    /// Input for the guest; at most [`MAX_BACKLOG`] bytes.
    backlog: VecDeque<u8>,
    /// The source of the input has been told that there is no room.
    source_waits: bool,
    /// Bytes of the first request of the transmit queue that the back end has already.
    sent: u64,
    /// The back end is full.
    blocked: bool,
}

impl Port {
    /// A port on `chardev` that is on no bus yet.
    pub fn new(options: Options, bus: Arc<SerialBus>, tell: Tell, chardev: Claim<dyn Chardev>) -> Arc<Port> {
        let state = State { guest_open: options.console, ..State::default() };
        let port = Arc::new(Port { options, bus, tell, state: Mutex::new(state), chardev });
        let front_end: Weak<Port> = Arc::downgrade(&port);
        port.chardev.attach(front_end);
        port
    }

    /// What the user says of it.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// It has this number from now on.
    pub fn numbered(&self, number: u32) {
        self.state.lock().number = Some(number);
    }

    /// The driver uses these queues from now on, or none.
    pub fn connect(&self, queues: Option<[Arc<VirtQueue>; 2]>) {
        self.state.lock().queues = queues;
    }

    /// Whether somebody is at the other end. Nobody waits for a console's.
    fn host_open(&self) -> bool {
        self.options.console || self.chardev.peer().present
    }

    /// What the driver is told when it has set the port up.
    pub fn introduction(&self) -> Vec<ToDriver> {
        let console = self.options.console.then_some(ToDriver::Console);
        let name = self.options.name.clone().map(ToDriver::Name);
        let open = self.host_open().then_some(ToDriver::Open(true));
        console.into_iter().chain(name).chain(open).collect()
    }

    /// A program of the guest's has opened it, or closed it: what came for that program goes with it.
    pub fn set_guest_open(&self, open: bool) {
        let mut state = self.state.lock();
        if self.options.console || state.guest_open == open {
            return;
        }
        state.guest_open = open;
        state.backlog.clear();
        let announce = open && std::mem::take(&mut state.source_waits);
        drop(state);
        if announce {
            self.chardev.resume();
        }
        (self.tell)(&self.options.id, Word::PortOpen(open));
    }

    /// The driver has forgotten what it had set.
    pub fn driver_reset(&self) {
        self.set_guest_open(false);
        let mut state = self.state.lock();
        (state.sent, state.blocked) = (0, false);
    }

    /// Serves a request of the receive queue: input for the guest, as much as there is.
    pub fn receive(&self, mut into: Buffers<'_>) -> Served {
        let mut state = self.state.lock();
        if state.backlog.is_empty() {
            return Served::Later;
        }
        let (front, back) = state.backlog.as_slices();
        let mut written = into.write(front);
        if written == front.len() {
            written += into.write(back);
        }
        state.backlog.drain(..written);
        let room = MAX_BACKLOG.saturating_sub(state.backlog.len());
        let announce = room >= RESUME_ROOM && std::mem::take(&mut state.source_waits);
        drop(state);
        if announce {
            self.chardev.resume();
        }
        // Not more than the backlog.
        Served::Done(written as u32)
    }

    /// Serves a request of the transmit queue: the guest's bytes, as many as the back end takes. When it is full the
    /// request stays where it is, and [`FrontEnd::output_ready`] goes on with it.
    pub fn transmit(&self, mut from: Buffers<'_>) -> Served {
        let mut state = self.state.lock();
        let mut rest = from.split_off(state.sent);
        let mut chunk = [0; CHUNK];
        while !rest.is_empty() {
            if !self.chardev.ready() {
                state.blocked = true;
                return Served::Later;
            }
            let len = rest.read(&mut chunk);
            self.chardev.write(&chunk[..len]);
            state.sent += len as u64;
        }
        (state.sent, state.blocked) = (0, false);
        Served::Done(0)
    }

    /// Whether the guest's kernel stands still until the back end takes more: Linux writes to a console with a lock held.
    pub fn holds_up_the_guest(&self) -> bool {
        self.options.console && self.state.lock().blocked
    }

    /// Writes a byte without any queue (virtio 5.3.4, emerg_wr).
    pub fn emergency(&self, byte: u8) {
        self.chardev.write(&[byte]);
    }

    /// Wakes the worker for one of its queues: 0 receive, 1 transmit.
    fn wake(&self, queue: usize) {
        let queues = self.state.lock().queues.clone();
        if let Some(queue) = queues.as_ref().and_then(|queues| queues.get(queue)) {
            // EAGAIN would mean that the counter is at its maximum: readable all the same.
            let _ = queue.kick().write(1);
        }
    }
}

impl FrontEnd for Port {
    /// What nobody in the guest has opened takes nothing: the input waits on the host.
    fn room(&self) -> usize {
        let mut state = self.state.lock();
        let room = if state.guest_open { MAX_BACKLOG.saturating_sub(state.backlog.len()) } else { 0 };
        state.source_waits = room == 0;
        room
    }

    fn input(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let room = MAX_BACKLOG.saturating_sub(state.backlog.len());
        state.backlog.extend(bytes.iter().take(room));
        drop(state);
        self.wake(0);
    }

    fn output_ready(&self) {
        self.wake(1);
    }

    fn peer_changed(&self, present: bool) {
        let number = self.state.lock().number;
        if let Some(number) = number.filter(|_| !self.options.console) {
            self.bus.say(number, ToDriver::Open(present));
        }
    }
}

impl Device for Port {
    fn id(&self) -> &str {
        &self.options.id
    }

    /// The device is reset with its driver.
    fn reset(&self) {}

    fn facts(&self) -> Vec<(&'static str, String)> {
        let state = self.state.lock();
        let yes = |on: bool| if on { "open" } else { "closed" };
        let name = self.options.name.clone().map(|name| ("name", name));
        let facts = [("chardev", self.chardev.name().to_string()), ("guest", yes(state.guest_open).into())];
        facts.into_iter().chain(name).collect()
    }
}

impl Unit for Port {
    fn addr(&self) -> String {
        self.state.lock().number.map_or_else(String::new, |number| number.to_string())
    }

    fn attach(self: Arc<Self>) -> Result<()> {
        self.bus.clone().attach(self)
    }

    fn detach(&self) {
        let number = self.state.lock().number.take();
        if let Some(number) = number {
            self.bus.detach(number);
        }
        self.connect(None);
    }
}
