//! The thread that serves a device: the queues of all ports and of the messages about them. Nothing that it does can block,
//! so one is enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bus::SerialBus;
use super::{CONTROL_RECEIVE, CONTROL_TRANSMIT, port_of};
use crate::virtio::{Activation, Serve, Served, Source, VirtQueue};

/// How often a console's back end that is full is looked at again. After a second without a byte it drops what comes, and
/// the guest goes on.
const RETRY: Duration = Duration::from_millis(100);

/// What the worker does.
pub struct Server {
    bus: Arc<SerialBus>,
    /// Those that the driver uses.
    queues: Vec<Arc<VirtQueue>>,
    /// Whether the queues for messages are such.
    multiport: bool,
    retry: Option<Instant>,
}

impl Server {
    /// For the queues of a driver that runs.
    pub fn new(bus: Arc<SerialBus>, run: &Activation, multiport: bool) -> Server {
        Server { bus, queues: run.queues.iter().flatten().cloned().collect(), multiport, retry: None }
    }

    /// What the worker waits for, in the order of the queues.
    pub fn sources(&self) -> Vec<Source> {
        self.queues.iter().map(|queue| Source::Event(queue.kick().clone())).collect()
    }

    fn serve(&self, queue: &VirtQueue) {
        let index = usize::from(queue.index());
        match index {
            CONTROL_RECEIVE if self.multiport => drop(queue.drain(|chain| self.bus.tell(chain))),
            CONTROL_TRANSMIT if self.multiport => drop(queue.drain(|chain| self.bus.hear(chain))),
            _ => {
                let (number, receive) = port_of(index);
                match (self.bus.port(number), receive) {
                    (Some(port), true) => drop(queue.drain(|chain| port.receive(chain.writable))),
                    (Some(port), false) => drop(queue.drain(|chain| port.transmit(chain.readable))),
                    // Nobody hears it.
                    (None, false) => drop(queue.drain(|_| Served::Done(0))),
                    (None, true) => {}
                }
            }
        }
    }
}

impl Serve for Server {
    fn ready(&mut self, source: usize) {
        if let Some(queue) = self.queues.get(source).cloned() {
            self.serve(&queue);
        }
        if self.retry.is_none() && self.bus.ports().iter().any(|port| port.holds_up_the_guest()) {
            self.retry = Some(Instant::now() + RETRY);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn expired(&mut self) {
        self.retry = None;
        let transmit = |queue: &&Arc<VirtQueue>| !port_of(usize::from(queue.index())).1;
        self.queues.iter().filter(transmit).for_each(|queue| self.serve(queue));
        if self.bus.ports().iter().any(|port| port.holds_up_the_guest()) {
            self.retry = Some(Instant::now() + RETRY);
        }
    }
}
