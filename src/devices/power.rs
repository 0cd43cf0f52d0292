//! What a guest can ask of the machine's power supply, and how the devices that hear it tell the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A guest's wish that only the machine can fulfil.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off (ACPI S5).
    Shutdown,
    /// Reset the whole machine.
    Reset,
}

/// The devices' end of the channel to the machine.
///
/// Only the first event counts until [`PowerSender::rearm`]: the guest's CPUs run on until the machine stops them, and
/// a guest that writes a reset port in a loop must not fill a queue.
#[derive(Clone)]
pub struct PowerSender(Arc<Channel>);

struct Channel {
    sent: AtomicBool,
    deliver: Box<dyn Fn(PowerEvent) + Send + Sync>,
}

impl PowerSender {
    /// `deliver` is called on a vCPU's thread: it hands the event to the main thread and returns.
    pub fn new(deliver: impl Fn(PowerEvent) + Send + Sync + 'static) -> Self {
        PowerSender(Arc::new(Channel { sent: AtomicBool::new(false), deliver: Box::new(deliver) }))
    }

    /// Tells the machine.
    pub fn send(&self, event: PowerEvent) {
        if !self.0.sent.swap(true, Ordering::AcqRel) {
            (self.0.deliver)(event);
        }
    }

    /// Listens again: the machine has stopped all vCPUs and is about to start them anew.
    pub fn rearm(&self) {
        self.0.sent.store(false, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// A sender, and what it has delivered.
    pub(crate) fn recorder() -> (PowerSender, Arc<Mutex<Vec<PowerEvent>>>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        (PowerSender::new(move |event| sink.lock().push(event)), events)
    }

    #[test]
    fn first_event_counts_until_rearmed() {
        let (sender, events) = recorder();
        sender.send(PowerEvent::Reset);
        sender.clone().send(PowerEvent::Shutdown);
        assert_eq!(*events.lock(), [PowerEvent::Reset]);
        sender.rearm();
        sender.send(PowerEvent::Shutdown);
        assert_eq!(*events.lock(), [PowerEvent::Reset, PowerEvent::Shutdown]);
    }
}
