//! The bus of ports, and what it has to say to the driver about them.
//!
//! The bus's lock protects its table, the driver's state and the messages that wait. A port's lock is taken inside it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::control::{FromDriver, LEN, ToDriver};
use super::port::Port;
use super::{CONTROL_RECEIVE, queues_of};
use crate::error::{Code, Error, Result};
use crate::guest_error;
use crate::virtio::{Activation, Chain, Served, VirtQueue};

/// Most messages that wait for the driver to take them. Each port has four at most when it is set up.
const MAX_MESSAGES: usize = 4096;

/// The ports of a device.
pub struct SerialBus {
    name: Arc<str>,
    /// The device's id.
    device: Arc<str>,
    max_ports: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: BTreeMap<u32, Arc<Port>>,
    driver: Option<Driver>,
    messages: VecDeque<Vec<u8>>,
}

/// A driver that runs.
struct Driver {
    queues: Vec<Option<Arc<VirtQueue>>>,
    /// It knows of several ports.
    multiport: bool,
    /// It has asked for the ports that there are.
    ready: bool,
}

impl SerialBus {
    /// A bus without a port.
    pub fn new(name: Arc<str>, device: Arc<str>, max_ports: u32) -> Arc<SerialBus> {
        Arc::new(SerialBus { name, device, max_ports, state: Mutex::default() })
    }

    /// The name that `bus=` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many ports there can be.
    pub fn max_ports(&self) -> u32 {
        self.max_ports
    }

    /// The port with this number.
    pub fn port(&self, number: u32) -> Option<Arc<Port>> {
        self.state.lock().ports.get(&number).cloned()
    }

    /// Every port.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        self.state.lock().ports.values().cloned().collect()
    }

    /// Puts a port where the driver finds it. Without a number of its own a console gets the first, which drivers of old
    /// know alone, and any other port the first free one behind that.
    ///
    /// # Errors
    /// [`Code::BadBus`]: its number is taken or too high, or none is free.
    pub fn attach(self: Arc<Self>, port: Arc<Port>) -> Result<()> {
        let mut state = self.state.lock();
        let number = choose(&state.ports, port.options().number, port.options().console, self.max_ports)
            .map_err(|cause| Error::new(Code::BadBus, format!("{cause} {}", self.name)))?;
        port.numbered(number);
        if let Some(driver) = &state.driver {
            port.connect(driver.queues_of(number));
        }
        state.ports.insert(number, port);
        drop(state);
        self.say(number, ToDriver::Add);
        Ok(())
    }

    /// Takes a port away.
    pub fn detach(&self, number: u32) {
        // Dropped when the lock is given back: a port's end ends in its back end.
        let port = self.state.lock().ports.remove(&number);
        if port.is_some() {
            self.say(number, ToDriver::Remove);
        }
    }

    /// Says something of a port to a driver that has asked for the ports.
    pub fn say(&self, number: u32, message: ToDriver) {
        let mut state = self.state.lock();
        if state.driver.as_ref().is_some_and(|driver| driver.multiport && driver.ready) {
            self.post(&mut state, number, [message]);
        }
    }

    fn post(&self, state: &mut State, number: u32, messages: impl IntoIterator<Item = ToDriver>) {
        for message in messages {
            if state.messages.len() >= MAX_MESSAGES {
                guest_error!(&self.device, "the driver takes no messages; one about port {number} is lost");
                return;
            }
            state.messages.push_back(message.bytes(number));
        }
        let queue = state.driver.as_ref().and_then(|driver| driver.queues.get(CONTROL_RECEIVE)?.clone());
        if let Some(queue) = queue {
            // EAGAIN would mean that the counter is at its maximum: readable all the same.
            let _ = queue.kick().write(1);
        }
    }

    /// A driver runs. `ready`: it is the one that ran before, and has asked for the ports.
    pub fn activate(&self, run: &Activation, multiport: bool) {
        let mut state = self.state.lock();
        let ready = state.driver.as_ref().is_some_and(|driver| driver.ready);
        let driver = Driver { queues: run.queues.clone(), multiport, ready };
        for (number, port) in &state.ports {
            port.connect(driver.queues_of(*number));
        }
        state.driver = Some(driver);
    }

    /// The queues are not to be touched any more.
    pub fn deactivate(&self) {
        let mut state = self.state.lock();
        state.ports.values().for_each(|port| port.connect(None));
        if let Some(driver) = &mut state.driver {
            driver.queues.clear();
        }
    }

    /// There is no driver any more.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.driver = None;
        state.messages.clear();
        drop(state);
        self.ports().iter().for_each(|port| port.driver_reset());
    }

    /// Serves a request of the control queue from the driver.
    pub fn hear(&self, mut chain: Chain<'_>) -> Served {
        let Some(message) = chain.readable.read_array::<LEN>() else {
            return Served::Malformed("a message about ports is too short");
        };
        match FromDriver::parse(message) {
            Some(FromDriver::DeviceReady(true)) => {
                let mut state = self.state.lock();
                if let Some(driver) = &mut state.driver {
                    driver.ready = true;
                }
                let numbers: Vec<u32> = state.ports.keys().copied().collect();
                numbers.into_iter().for_each(|number| self.post(&mut state, number, [ToDriver::Add]));
            }
            Some(FromDriver::PortReady(number, true)) => {
                if let Some(port) = self.port(number) {
                    let introduction = port.introduction();
                    self.post(&mut self.state.lock(), number, introduction);
                }
            }
            Some(FromDriver::PortOpen(number, open)) => {
                if let Some(port) = self.port(number) {
                    port.set_guest_open(open);
                }
            }
            Some(FromDriver::DeviceReady(false)) => guest_error!(&self.device, "the driver could not add the device"),
            Some(FromDriver::PortReady(number, false)) => {
                guest_error!(&self.device, "the driver could not add port {number}");
            }
            None => guest_error!(&self.device, "a message about ports is unknown"),
        }
        Served::Done(0)
    }

    /// Serves a request of the control queue to the driver.
    pub fn tell(&self, mut chain: Chain<'_>) -> Served {
        let mut state = self.state.lock();
        match state.messages.pop_front() {
            // One that is longer than the driver's buffer is cut, as QEMU does it.
            Some(message) => Served::Done(chain.writable.write(&message) as u32),
            None => Served::Later,
        }
    }
}

impl Driver {
    fn queues_of(&self, number: u32) -> Option<[Arc<VirtQueue>; 2]> {
        let [receive, transmit] = queues_of(number).map(|index| self.queues.get(index).cloned().flatten());
        Some([receive?, transmit?])
    }
}

/// The number of a port; what stands against it, for people.
fn choose<T>(taken: &BTreeMap<u32, T>, wanted: Option<u32>, console: bool, max: u32) -> Result<u32, String> {
    match wanted {
        Some(number) if number >= max => Err(format!("port {number} is too high: there are {max} ports on")),
        Some(0) if !console => Err("port 0 is kept for a console on".to_owned()),
        Some(number) if taken.contains_key(&number) => Err(format!("port {number} is taken on")),
        Some(number) => Ok(number),
        None => {
            let first = if console { 0 } else { 1 };
            (first..max).find(|number| !taken.contains_key(number)).ok_or_else(|| "no port is free on".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_port_is_a_consoles() {
        let mut taken = BTreeMap::new();
        assert_eq!(choose(&taken, None, false, 3), Ok(1));
        assert_eq!(choose(&taken, None, true, 3), Ok(0));
        assert_eq!(choose(&taken, Some(2), false, 3), Ok(2));
        assert!(choose(&taken, Some(0), false, 3).is_err());
        assert!(choose(&taken, Some(3), false, 3).is_err());
        taken.extend([(0, ()), (1, ()), (2, ())]);
        assert!(choose(&taken, None, true, 3).is_err());
        assert!(choose(&taken, Some(1), true, 3).is_err());
        assert_eq!(choose(&taken, None, true, 4), Ok(3));
    }
}
