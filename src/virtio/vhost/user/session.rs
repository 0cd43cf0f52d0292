//! One connection to a daemon, from its first message to its last: what it offers, and what it is told. Every exchange has
//! a deadline; after a failure the connection is closed, and whoever watches it hears of that.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::deadline::{LIMIT, within};
use super::notices::Notices;
use crate::virtio::vhost::calls::Calls;
use crate::virtio::vhost::memory::{MAX_REGIONS, Remote, Table, difference};
use crate::virtio::vhost::{Failure, hand_over, said};
use crate::virtio::{Interrupts, VirtQueue};

/// What of the protocol is used where the daemon has it, too.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(BACK_CHANNEL)
    .union(Protocol::CONFIGURE_MEM_SLOTS);
/// The daemon can say something unasked.
const BACK_CHANNEL: Protocol = Protocol::BACKEND_REQ;
/// VHOST_USER_F_PROTOCOL_FEATURES, among the device's features.
const HAS_PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What the driver has set up, for as long as it drives the device.
pub struct Run {
    /// What device and driver agreed on.
    pub features: u64,
    /// The queues that the daemon serves.
    pub queues: Vec<Option<Arc<VirtQueue>>>,
    /// How they interrupt.
    pub calls: Calls,
    /// For everything else that the driver is told.
    pub interrupts: Arc<Interrupts>,
}

impl Run {
    fn used(&self) -> impl Iterator<Item = (usize, &Arc<VirtQueue>)> {
        self.queues.iter().enumerate().filter_map(|(index, queue)| Some((index, queue.as_ref()?)))
    }

    /// The daemon has gone without saying where it was. What was not used is served again from the first such request on,
    /// which is right for a daemon that finishes requests in their order; others keep a record (INFLIGHT_SHMFD).
    pub fn rewind(&self) {
        for (_, queue) in self.used() {
            if let Some(used) = queue.used_index() {
                queue.set_position(used);
            }
        }
    }

    /// Wakes both sides: what each has said meanwhile went to a daemon that was not there, or came from it.
    pub fn nudge(&self) {
        for (_, queue) in self.used() {
            // EAGAIN would mean that the counter is at its maximum: awake all the same.
            let _ = queue.kick().write(1);
            self.interrupts.queue(queue.index());
        }
    }
}

/// The daemon's record of what it is at, which outlives it.
pub struct Inflight {
    shape: VhostUserInflight,
    record: File,
}

/// The connection.
pub struct Session {
    front: Frontend,
    socket: Arc<UnixStream>,
    features: u64,
    protocol: Protocol,
    notices: Option<Notices>,
    /// The most regions of memory that it is told of one by one, where it can be (CONFIGURE_MEM_SLOTS).
    slots: Option<u64>,
    /// Those that it was told of so.
    told: Vec<Remote>,
}

impl Session {
    /// Negotiates with the daemon on `socket`, which is to serve so many queues.
    ///
    /// # Errors
    /// What it does not do or say.
    pub fn open(socket: UnixStream, queues: u16) -> Result<Session, Failure> {
        let socket = Arc::new(socket);
        let mut front = Frontend::from_stream(socket.try_clone().map_err(said)?, queues.into());
        within(&socket.clone(), LIMIT, || {
            let features = front.get_features().map_err(said)?;
            let mut protocol = Protocol::empty();
            let (mut served, mut slots) = (1, None);
            if features & HAS_PROTOCOL != 0 {
                protocol = front.get_protocol_features().map_err(said)? & PROTOCOL;
                if !protocol.contains(Protocol::CONFIG) {
                    // There is nothing else that it could say.
                    protocol -= BACK_CHANNEL;
                }
                front.set_protocol_features(protocol).map_err(said)?;
                if protocol.contains(Protocol::REPLY_ACK) {
                    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
                }
                if protocol.contains(Protocol::MQ) {
                    served = front.get_queue_num().map_err(said)?;
                }
                if protocol.contains(Protocol::CONFIGURE_MEM_SLOTS) {
                    slots = Some(front.get_max_mem_slots().map_err(said)?);
                }
            }
            front.set_owner().map_err(said)?;
            // A daemon without MQ says nothing of their number; those of simple devices have the queues that they have.
            if protocol.contains(Protocol::MQ) && served < u64::from(queues) {
                return Err(format!("it serves {served} queues, not {queues}"));
            }
            let mut notices = None;
            if protocol.contains(BACK_CHANNEL) {
                let (ours, theirs) = Notices::new().map_err(said)?;
                front.set_backend_request_fd(&theirs).map_err(said)?;
                notices = Some(ours);
            }
            Ok(Session { front, socket, features, protocol, notices, slots, told: Vec::new() })
        })
    }

    /// What the daemon offers, the protocol's own bit included.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether it has the device's configuration space.
    pub fn has_config(&self) -> bool {
        self.protocol.contains(Protocol::CONFIG)
    }

    /// The connection, to wait for its end.
    pub fn socket(&self) -> &Arc<UnixStream> {
        &self.socket
    }

    /// What the daemon says unasked.
    pub fn notices(&mut self) -> Option<&mut Notices> {
        self.notices.as_mut()
    }

    /// The daemon says nothing more unasked, or nonsense.
    pub fn end_notices(&mut self) {
        self.notices = None;
    }

    fn exchange<R>(&mut self, work: impl FnOnce(&mut Session) -> Result<R, Failure>) -> Result<R, Failure> {
        let socket = self.socket.clone();
        within(&socket, LIMIT, || work(self)).inspect_err(|_| {
            // What the two sides know of each other is uncertain now: they begin anew. An error: it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        })
    }

    /// The first `len` bytes of the configuration space.
    ///
    /// # Errors
    /// The daemon does not say.
    pub fn config(&mut self, len: usize) -> Result<Vec<u8>, Failure> {
        self.exchange(|it| {
            let size = u32::try_from(len).map_err(said)?;
            let (_, bytes) =
                it.front.get_config(0, size, VhostUserConfigFlags::empty(), &vec![0; len]).map_err(said)?;
            // Of another length than was asked for would be another device's.
            if bytes.len() == len { Ok(bytes) } else { Err(format!("it gives {} bytes, not {len}", bytes.len())) }
        })
    }

    /// Writes the configuration space.
    ///
    /// # Errors
    /// The daemon does not take it.
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Failure> {
        self.exchange(|it| it.front.set_config(offset, VhostUserConfigFlags::empty(), data).map_err(said))
    }

    /// Lets the daemon serve the queues. `inflight`: its record, which is asked for where it has none yet.
    ///
    /// # Errors
    /// The daemon does not do it.
    pub fn start(&mut self, run: &Run, table: &Table, inflight: &mut Option<Inflight>) -> Result<(), Failure> {
        self.exchange(|it| {
            it.front.set_features(run.features | it.features & HAS_PROTOCOL).map_err(said)?;
            it.give_memory(table)?;
            it.share_record(run, inflight)?;
            for (index, queue) in run.used() {
                let Some(call) = run.calls.of(index) else { continue };
                hand_over(&it.front, index, queue, call, |at, len| table.address(at, len))?;
            }
            it.enable(run, true)?;
            it.heard()
        })
    }

    /// Returns when the daemon has done all that it was told. One that answers nothing but questions is asked one: a kick that
    /// comes before it has heard that its queue is enabled would be lost, as would be a request in memory that it has not
    /// mapped yet.
    fn heard(&self) -> Result<(), Failure> {
        match self.protocol.contains(Protocol::REPLY_ACK) {
            true => Ok(()),
            false => self.front.get_features().map_err(said).map(drop),
        }
    }

    /// Gives the daemon the record of the one before it, or asks for one.
    fn share_record(&mut self, run: &Run, inflight: &mut Option<Inflight>) -> Result<(), Failure> {
        if !self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if inflight.is_none() {
            let size = run.used().map(|(_, queue)| queue.rings().size).max().unwrap_or(0);
            let wanted = VhostUserInflight::new(0, 0, run.queues.len() as u16, size);
            let (shape, record) = self.front.get_inflight_fd(&wanted).map_err(said)?;
            if shape.mmap_size == 0 {
                // It keeps none for this device.
                return Ok(());
            }
            *inflight = Some(Inflight { shape, record });
        }
        match inflight {
            Some(Inflight { shape, record }) => self.front.set_inflight_fd(shape, record.as_raw_fd()).map_err(said),
            None => Ok(()),
        }
    }

    /// Without the protocol's features a queue is enabled by its kick.
    fn enable(&mut self, run: &Run, on: bool) -> Result<(), Failure> {
        if self.features & HAS_PROTOCOL == 0 {
            return Ok(());
        }
        run.used().try_for_each(|(index, _)| self.front.set_vring_enable(index, on).map_err(said))
    }

    /// Ends the daemon's work at the queues, which keep their places.
    ///
    /// # Errors
    /// The daemon does not do it: it may still be at it. The connection is closed.
    pub fn stop(&mut self, run: &Run) -> Result<(), Failure> {
        self.exchange(|it| {
            it.enable(run, false)?;
            for (index, queue) in run.used() {
                let next = it.front.get_vring_base(index).map_err(said)?;
                queue.set_position(next as u16);
            }
            Ok(())
        })
    }

    /// The guest's memory is another.
    ///
    /// # Errors
    /// The daemon does not take it.
    pub fn set_memory(&mut self, table: &Table) -> Result<(), Failure> {
        self.exchange(|it| {
            it.give_memory(table)?;
            it.heard()
        })
    }

    /// All at once, or what has changed since the last time where the daemon can be told of that: it need not let go of
    /// what stays, and a message has not room for all that there may be.
    fn give_memory(&mut self, table: &Table) -> Result<(), Failure> {
        let wanted = table.remote()?;
        let most = self.slots.unwrap_or(MAX_REGIONS as u64);
        if wanted.len() as u64 > most {
            return Err(format!("the guest's memory has {} parts, the daemon takes {most}", wanted.len()));
        }
        if self.slots.is_none() {
            let infos: Vec<_> = wanted.iter().map(|region| region.info).collect();
            return self.front.set_mem_table(&infos).map_err(said).map(drop);
        }
        // What leaves goes first: the other may lie in its place.
        let (gone, come) = difference(&self.told, &wanted);
        for region in &gone {
            self.front.remove_mem_region(&region.info).map_err(said)?;
        }
        for region in &come {
            self.front.add_mem_region(&region.info).map_err(said)?;
        }
        self.told = wanted;
        Ok(())
    }

    /// The queues interrupt another way.
    ///
    /// # Errors
    /// The daemon does not take it.
    pub fn set_calls(&mut self, run: &Run) -> Result<(), Failure> {
        self.exchange(|it| {
            run.used().try_for_each(|(index, _)| match run.calls.of(index) {
                Some(call) => it.front.set_vring_call(index, call).map_err(said),
                None => Ok(()),
            })?;
            it.heard()
        })
    }
}
