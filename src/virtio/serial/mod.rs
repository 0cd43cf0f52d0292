//! virtio-serial: consoles and serial ports on character back ends (virtio 5.3, "console device").
//!
//! The device adds a bus, its ports are devices on it. A port of type `virtserialport` has flow control from end to end: a
//! full back end makes the guest's writer wait, a guest that does not read makes the host's writer wait. A console waits
//! for its back end for a second at most, as a 16550 does ([`crate::backends::chardev::output`]).

mod bus;
mod control;
mod front_end;
mod port;
mod server;

use std::sync::Arc;

use parking_lot::Mutex;

pub use bus::SerialBus;
pub use front_end::{CONSOLE, PORT, TYPE};

use super::{Activation, VirtioDevice, VirtioInfo, Worker, read_bytes};
use crate::error::Result;

/// The type of device.
const TYPE_CONSOLE: u16 = 3;
/// PCI class: simple communication controller, other.
const CLASS_COMMUNICATION: [u8; 3] = [0, 0x80, 7];
/// Descriptors of each queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// Queues of messages, to the driver and from it; those of ports lie around them (virtio 5.3.2).
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// The configuration space (virtio 5.3.4): columns, rows, ports, and a register for bytes without a queue.
const CONFIG_LEN: usize = 12;
const CONFIG_PORTS: usize = 4;
const CONFIG_EMERGENCY: usize = 8;

/// Feature bits (virtio 5.3.3): the driver knows of several ports, and may write bytes to the configuration space.
const MULTIPORT: u64 = 1 << 1;
const EMERGENCY: u64 = 1 << 2;

/// The receive and the transmit queue of a port.
fn queues_of(port: u32) -> [usize; 2] {
    let first = if port == 0 { 0 } else { 2 * (port as usize + 1) };
    [first, first + 1]
}

/// The port that a queue is of, and whether it is the receive queue.
fn port_of(queue: usize) -> (u32, bool) {
    let port = if queue < CONTROL_RECEIVE { 0 } else { queue / 2 - 1 };
    (port as u32, queue.is_multiple_of(2))
}

/// The device.
pub struct Serial {
    id: Arc<str>,
    worker: Mutex<Option<Worker>>,
    bus: Arc<SerialBus>,
}

impl Serial {
    /// A device with this bus.
    pub fn new(id: Arc<str>, bus: Arc<SerialBus>) -> Arc<Serial> {
        Arc::new(Serial { id, worker: Mutex::default(), bus })
    }
}

impl VirtioDevice for Serial {
    fn info(&self) -> VirtioInfo {
        let several = self.bus.max_ports() > 1;
        VirtioInfo {
            device_type: TYPE_CONSOLE,
            class: CLASS_COMMUNICATION,
            features: if several { MULTIPORT | EMERGENCY } else { EMERGENCY },
            config_len: CONFIG_LEN as u32,
            // Not more than 512 ports.
            queues: if several { 2 * (self.bus.max_ports() as u16 + 1) } else { 2 },
            queue_size: QUEUE_SIZE,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        space[CONFIG_PORTS..CONFIG_EMERGENCY].copy_from_slice(&self.bus.max_ports().to_le_bytes());
        read_bytes(&space, offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        if offset == CONFIG_EMERGENCY
            && let (Some(byte), Some(port)) = (data.first(), self.bus.port(0))
        {
            port.emergency(*byte);
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        let multiport = run.has(MULTIPORT);
        self.bus.activate(&run, multiport);
        let server = server::Server::new(self.bus.clone(), &run, multiport);
        *self.worker.lock() = Some(Worker::start(&self.id, server.sources(), server)?);
        Ok(())
    }

    fn deactivate(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
        self.bus.deactivate();
    }

    fn reset(&self) {
        self.bus.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("ports", format!("{} of {}", self.bus.ports().len(), self.bus.max_ports()))]
    }
}

#[cfg(test)]
mod tests;
