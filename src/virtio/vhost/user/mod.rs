//! vhost-user: a daemon at a unix socket is the device (QEMU's "Vhost-user Protocol"). It maps the guest's memory and
//! serves the queues there; KVM rings its doorbells and takes its interrupts by eventfds.
//!
//! | file | what |
//! |---|---|
//! | [`types`] | the device types, in one table |
//! | [`session`] | one connection to a daemon |
//! | [`deadline`] | how long a daemon has to answer |
//! | [`notices`] | what a daemon says unasked |
//! | [`watch`] | the thread that hears of a daemon's end, and connects to the next |
//!
//! While no daemon is there (`reconnect-ms=`), the guest's requests wait in their rings.

pub mod deadline;
pub mod notices;
pub mod session;
pub mod types;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use session::{Inflight, Run, Session};
use watch::Watch;

use super::Failure;
use super::calls::Calls;
use super::memory::Table;
use crate::backends::chardev::{Chardev, Lent};
use crate::backends::table::Claim;
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::memory::{FlatRange, Listening, Memory, MemoryListener, Space, Stage};
use crate::virtio::{Activation, VirtioDevice, VirtioInfo, feature, read_bytes};

/// How long the daemon is waited for when the device is made.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
/// Types of device that have a legacy interface: block and SCSI.
const TRANSITIONAL: [u16; 2] = [2, 8];
/// Features of transport and rings (virtio 6), which are not the device's.
const RESERVED: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

/// What a type of device is beside what its daemon says.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The type (virtio 5).
    pub device_type: u16,
    /// PCI class code.
    pub class: [u8; 3],
    /// Its queues.
    pub queues: u16,
    /// How many of them the daemon serves: the first ones.
    pub served: u16,
    /// Descriptors of each at most.
    pub queue_size: u16,
    /// Who has the configuration space.
    pub config: Config,
}

/// The configuration space of a device.
#[derive(Debug, Clone)]
pub enum Config {
    /// Ours.
    Own(Vec<u8>),
    /// The daemon's, so many bytes of it.
    Daemon(usize),
    /// The daemon's, with these bytes of ours at an offset.
    Patched(usize, usize, Vec<u8>),
}

impl Config {
    fn len(&self) -> usize {
        match self {
            Config::Own(bytes) => bytes.len(),
            Config::Daemon(len) | Config::Patched(len, ..) => *len,
        }
    }
}

/// The device.
pub struct VhostUser {
    /// Before the socket that it watches.
    _watch: Watch,
    _listening: Listening,
    shared: Arc<Shared>,
    /// What the daemon offered when the device was made; a later one must offer it, too.
    offered: u64,
}

/// What the threads share.
struct Shared {
    id: Arc<str>,
    shape: Shape,
    peer: Box<dyn Lent>,
    state: Mutex<State>,
    /// After the socket of it.
    _chardev: Claim<dyn Chardev>,
}

struct State {
    /// While a daemon is there.
    session: Option<Session>,
    /// While the driver drives the device.
    run: Option<Run>,
    inflight: Option<Inflight>,
    /// The configuration space as the daemon had it last.
    config: Vec<u8>,
    table: Table,
}

impl Shared {
    /// Connects to a daemon, and gets from it what the device needs.
    fn connect(&self, limit: Duration) -> Result<(Session, Vec<u8>), Failure> {
        let socket = self.peer.connect(limit).map_err(|error| explain_io(&error))?;
        let opened = self.greet(socket);
        if opened.is_err() {
            self.peer.lost();
        }
        opened
    }

    fn greet(&self, socket: std::os::unix::net::UnixStream) -> Result<(Session, Vec<u8>), Failure> {
        let mut session = Session::open(socket, self.shape.served)?;
        if session.features() & feature::VERSION_1 == 0 {
            return Err("it does not know virtio 1.0".to_owned());
        }
        let config = self.read_config(&mut session)?;
        Ok((session, config))
    }

    fn read_config(&self, session: &mut Session) -> Result<Vec<u8>, Failure> {
        let (Config::Daemon(len) | Config::Patched(len, ..)) = &self.shape.config else { return Ok(Vec::new()) };
        if !session.has_config() {
            return Err("it does not give the device's configuration space".to_owned());
        }
        let mut bytes = session.config(*len)?;
        if let Config::Patched(_, at, own) = &self.shape.config
            && let Some(place) = bytes.get_mut(*at..at + own.len())
        {
            place.copy_from_slice(own);
        }
        Ok(bytes)
    }

    /// A daemon refuses what it was told. Its connection is closed: the thread that watches it does the rest.
    fn refused(&self, what: &str, why: &Failure) {
        crate::log::warn(format_args!("{}: {what}: the daemon at {}: {why}", self.id, self.peer.place()));
    }

    /// The daemon is gone; whether another is waited for.
    fn lost(&self) {
        let mut state = self.state.lock();
        state.session = None;
        self.peer.lost();
        let again = self.peer.again().is_some();
        let then = if again { "it is waited for" } else { "there is no reconnect-ms=: the device is dead" };
        crate::log::warn(format_args!("{}: the daemon at {} is gone; {then}", self.id, self.peer.place()));
        if let Some(run) = &state.run {
            run.rewind();
            if !again {
                run.interrupts.need_reset();
            }
        }
    }

    /// Another daemon is there.
    fn joined(&self, mut session: Session, config: Vec<u8>) {
        let mut state = self.state.lock();
        let State { run, inflight, table, .. } = &mut *state;
        if let Some(run) = run {
            match session.start(run, table, inflight) {
                Ok(()) => run.nudge(),
                Err(why) => self.refused("it does not go on", &why),
            }
        }
        let changed = config != state.config;
        state.config = config;
        state.session = Some(session);
        if let Some(run) = state.run.as_ref().filter(|_| changed) {
            run.interrupts.config_changed();
        }
        crate::log::note(format_args!("{}: the daemon at {} is there again", self.id, self.peer.place()));
    }

    /// The daemon may have said something unasked.
    fn hear(&self) {
        let mut state = self.state.lock();
        let State { session: Some(session), .. } = &mut *state else { return };
        match session.notices().map(|notices| notices.take()) {
            Some(Some(true)) => {}
            Some(None) => return session.end_notices(),
            Some(Some(false)) | None => return,
        }
        match self.read_config(session) {
            Ok(config) => state.config = config,
            Err(why) => self.refused("its configuration space cannot be read", &why),
        }
        if let Some(run) = &state.run {
            run.interrupts.config_changed();
        }
    }

    fn follow_memory(&self, edit: impl FnOnce(&mut Table) -> bool) {
        let mut state = self.state.lock();
        let State { session, run, table, .. } = &mut *state;
        if edit(table)
            && let (Some(session), Some(_)) = (session, run)
            && let Err(why) = session.set_memory(table)
        {
            self.refused("it does not take the guest's memory", &why);
        }
    }
}

impl MemoryListener for Shared {
    fn remove(&self, range: &FlatRange) {
        self.follow_memory(|table| table.remove(range));
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        self.follow_memory(|table| table.add(range));
        Ok(())
    }
}

impl VhostUser {
    /// A device whose daemon is at the socket of `chardev`, and is there.
    ///
    /// # Errors
    /// [`Code::WrongBackend`]: no unix socket; [`Code::VhostUserFailed`]: no daemon that can be this device;
    /// [`Code::MemoryNotShared`].
    pub fn new(
        id: Arc<str>,
        shape: Shape,
        chardev: Claim<dyn Chardev>,
        memory: &Arc<Memory>,
    ) -> Result<Arc<VhostUser>> {
        if !Table::of(&memory.view(Space::Mmio)).is_shared() {
            return Err(Error::new(Code::MemoryNotShared, "the guest's memory cannot be given to the daemon")
                .fix("start the guest with -m SIZE,share=on, to plug such devices into it later"));
        }
        let peer = chardev.lend().ok_or_else(|| {
            Error::new(Code::WrongBackend, format!("`{}` is not a unix socket", chardev.name()))
                .evidence(chardev.peer().place)
                .fix(format!("write --chardev socket,path=FILE,id={}", chardev.name()))
        })?;
        let state = State { session: None, run: None, inflight: None, config: Vec::new(), table: Table::default() };
        let shared = Arc::new(Shared { id, shape, peer, state: Mutex::new(state), _chardev: chardev });
        let (session, config) = shared.connect(FIRST_LIMIT).map_err(|why| {
            Error::new(Code::VhostUserFailed, "the daemon of the device cannot be used")
                .evidence(format!("{}: {why}", shared.peer.place()))
        })?;
        let offered = session.features();
        {
            let mut state = shared.state.lock();
            (state.session, state.config) = (Some(session), config);
        }
        let listening = memory.listen(Stage::Remote, shared.clone())?;
        let watch = Watch::start(&shared, offered)?;
        Ok(Arc::new(VhostUser { _watch: watch, _listening: listening, shared, offered }))
    }
}

impl VirtioDevice for VhostUser {
    fn info(&self) -> VirtioInfo {
        let shape = &self.shared.shape;
        VirtioInfo {
            device_type: shape.device_type,
            class: shape.class,
            features: self.offered & !RESERVED,
            config_len: shape.config.len() as u32,
            queues: shape.queues,
            queue_size: shape.queue_size,
        }
    }

    /// As in QEMU, disks and SCSI adapters alone are transitional.
    fn modern_only(&self) -> bool {
        !TRANSITIONAL.contains(&self.shared.shape.device_type)
    }

    fn ring_features(&self) -> u64 {
        self.offered & RESERVED
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        match &self.shared.shape.config {
            Config::Own(bytes) => read_bytes(bytes, offset, data),
            Config::Daemon(_) | Config::Patched(..) => read_bytes(&self.shared.state.lock().config, offset, data),
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = self.shared.state.lock();
        let State { session: Some(session), .. } = &mut *state else { return };
        if !session.has_config() {
            return;
        }
        let written = session.set_config(offset as u32, data).and_then(|()| self.shared.read_config(session));
        match written {
            Ok(config) => state.config = config,
            Err(why) => guest_error!(&self.shared.id, "a write to its configuration space is refused: {why}"),
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        let shared = &self.shared;
        let mut queues = run.queues;
        queues.truncate(shared.shape.served.into());
        let calls = Calls::new(&shared.id, &queues, &run.interrupts)?;
        let run = Run { features: run.features & self.offered, queues, calls, interrupts: run.interrupts };
        let mut state = shared.state.lock();
        let State { session, inflight, table, .. } = &mut *state;
        let started = match session {
            Some(session) => session.start(&run, table, inflight).map(|()| run.nudge()),
            None => Err("it is not there".to_owned()),
        };
        state.run = Some(run);
        match started {
            // The next one does it.
            Err(_) if shared.peer.again().is_some() => Ok(()),
            started => started.map_err(|why| {
                Error::new(Code::VhostUserFailed, "the daemon does not serve the device")
                    .evidence(format!("{}: {why}", shared.peer.place()))
            }),
        }
    }

    fn deactivate(&self) {
        let mut state = self.shared.state.lock();
        let Some(run) = state.run.take() else { return };
        let stopped = state.session.as_mut().map(|session| session.stop(&run));
        if let Some(Err(why)) = &stopped {
            self.shared.refused("it does not stop", why);
        }
        if !matches!(stopped, Some(Ok(()))) {
            run.rewind();
        }
    }

    fn interrupts_changed(&self) {
        let mut state = self.shared.state.lock();
        let State { session, run: Some(run), .. } = &mut *state else { return };
        match Calls::new(&self.shared.id, &run.queues, &run.interrupts) {
            Ok(calls) => run.calls = calls,
            Err(error) => return guest_error!(&self.shared.id, "its interrupts stay as they are: {error}"),
        }
        if let Some(Err(why)) = session.as_mut().map(|session| session.set_calls(run)) {
            self.shared.refused("it does not interrupt another way", &why);
        }
    }

    fn reset(&self) {
        // The rings that it is about are no more.
        self.shared.state.lock().inflight = None;
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let state = self.shared.state.lock();
        let there = if state.session.is_some() { "there" } else { "gone" };
        vec![("daemon", format!("{}, {there}", self.shared.peer.place()))]
    }
}

#[cfg(test)]
mod tests;
