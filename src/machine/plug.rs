//! Plugging: the one path by which a device comes into the machine, whoever asks for it.

use std::sync::Arc;

use super::places::Place;
use crate::backends::Backends;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::event_loop::Token;
use crate::irq::Router;
use crate::memory::Memory;
use crate::monitor::control::DeviceView;
use crate::pci::decode::Decode;
use crate::pci::host_bridge::{self, HostBridge};
use crate::pci::slot::ExpressSlot;
use crate::pci::{Devfn, PciBus, PciFunction, PciRoot, Slot};
use crate::vfio::space::Vfio;

/// Every device of the command line, in its place.
pub struct Plugged {
    parts: Parts,
    buses: Vec<Arc<PciBus>>,
    /// In the order in which they were plugged; what is behind a port comes after it and goes before it.
    devices: Vec<Device>,
}

/// What every device is made with.
pub struct Parts {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// The guest's interrupts.
    pub router: Arc<Router>,
    /// The machine's decode lock.
    pub decode: Arc<Decode>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
    /// The machine's back ends.
    pub backends: Arc<Backends>,
}

/// A device that was made and is not in its place yet. Dropping it leaves nothing of it.
pub struct Made {
    of_type: &'static str,
    bus: Arc<PciBus>,
    addr: Devfn,
    /// What the user wrote.
    line: String,
    function: Arc<dyn PciFunction>,
    adds: Option<Arc<PciBus>>,
}

impl Made {
    /// The device's id.
    pub fn id(&self) -> Arc<str> {
        self.function.id().into()
    }

    /// Whether a guest that runs can be shown it ([`crate::device::Device::mapped`]).
    pub fn mapped(&self) -> Option<Result<()>> {
        self.function.mapped()
    }
}

/// A device in its place.
struct Device {
    of_type: &'static str,
    slot: Slot,
    function: Arc<dyn PciFunction>,
    /// What the event loop waits for on its behalf.
    tokens: Vec<Token>,
}

impl Plugged {
    /// Plugs the host bridge, then each device in the user's order.
    pub fn new(root: &PciRoot, parts: Parts, places: &mut [Place]) -> Result<Plugged> {
        let mut plugged = Plugged { parts, buses: vec![root.bus().clone()], devices: Vec::new() };
        let bridge = HostBridge::new();
        let slot = root.bus().attach(bridge.clone(), Some(host_bridge::ADDRESS))?;
        plugged.devices.push(Device { of_type: host_bridge::ID, slot, function: bridge, tokens: Vec::new() });
        for place in places {
            let made = plugged.make(place)?;
            plugged.attach(made)?;
        }
        // What the kernel could not reset alone when it opened it comes from its host driver as that left it.
        plugged.devices.iter().for_each(|device| device.function.reset_shared());
        Ok(plugged)
    }

    /// Makes one device. A failure leaves nothing of it.
    pub fn make(&self, place: &mut Place) -> Result<Made> {
        let Some(bus) = self.buses.iter().find(|bus| bus.name() == &*place.bus).cloned() else {
            return Err(Error::new(Code::BadBus, format!("there is no bus `{}`", place.bus)));
        };
        let Parts { memory, router, decode, vfio, backends } = &self.parts;
        let cx = Cx {
            id: place.id.clone(),
            on_root_bus: bus.is_root(),
            next_slot: u16::try_from(self.buses.len()).unwrap_or(u16::MAX),
            memory: memory.clone(),
            router: router.clone(),
            decode: decode.clone(),
            vfio: vfio.clone(),
            backends: backends.clone(),
        };
        let line = place.args.written();
        let Plug { function, adds } = place.of_type.create(&mut place.args, &cx)?;
        Ok(Made { of_type: place.of_type.name(), bus, addr: place.addr, line, function, adds })
    }

    /// Puts a device into the running machine. With function 0 the guest finds the slot's other functions, which have
    /// waited for it: what could not be reset alone is reset before, as at the start of the machine.
    pub fn attach_hot(&mut self, made: Made) -> Result<()> {
        if made.addr.function() == 0 {
            let waiting = made.bus.functions().into_iter().filter(|(devfn, _)| devfn.slot() == made.addr.slot());
            waiting.for_each(|(_, function)| function.reset_shared());
            made.function.reset_shared();
        }
        self.attach(made)
    }

    /// Puts a device where it belongs. A failure leaves nothing of it.
    fn attach(&mut self, made: Made) -> Result<()> {
        let Made { of_type, bus, addr, line, function, adds } = made;
        let slot = bus.attach(function.clone(), Some(&addr.to_string())).map_err(|error| error.evidence(line))?;
        self.buses.extend(adds);
        self.devices.push(Device { of_type, slot, function, tokens: Vec::new() });
        Ok(())
    }

    /// The highest bus number that the machine needs.
    pub fn last_bus(&self) -> u8 {
        // `places` allows no more buses than there are numbers; what ports keep free beyond them is refused later.
        let kept: usize = self.devices.iter().map(|device| usize::from(device.function.reserve().buses)).sum();
        u8::try_from(self.buses.len() - 1 + kept).unwrap_or(u8::MAX)
    }

    fn find(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.function.id() == id)
    }

    /// The device with this id.
    pub fn function(&self, id: &str) -> Option<Arc<dyn PciFunction>> {
        self.find(id).map(|device| device.function.clone())
    }

    /// The ids of all devices, in the order in which they were plugged.
    pub fn ids(&self) -> Vec<Arc<str>> {
        self.devices.iter().map(|device| device.function.id().into()).collect()
    }

    /// The ids of what is on a bus.
    pub fn ids_on(&self, bus: &str) -> Vec<Arc<str>> {
        let on = self.devices.iter().filter(|device| device.slot.bus().name() == bus);
        on.map(|device| device.function.id().into()).collect()
    }

    /// The name of the bus that a device is on.
    pub fn bus_of(&self, id: &str) -> Option<String> {
        self.find(id).map(|device| device.slot.bus().name().to_owned())
    }

    /// Every slot, with the name of the bus behind it.
    pub fn slots(&self) -> Vec<(Arc<str>, Arc<ExpressSlot>)> {
        self.buses.iter().filter_map(|bus| Some((bus.name().into(), bus.express_slot()?.clone()))).collect()
    }

    /// The slot with hot-plug that a device is in, with the name of its bus. A bridge stays where it is.
    pub fn slot_of(&self, id: &str) -> Option<(Arc<str>, Arc<ExpressSlot>)> {
        let device = self.find(id).filter(|device| device.function.secondary().is_none())?;
        let slot = device.slot.bus().express_slot().filter(|slot| slot.hotplug())?;
        Some((device.slot.bus().name().into(), slot.clone()))
    }

    /// Whether a bus takes devices while the guest runs.
    pub fn hotplug(&self, bus: &str) -> bool {
        self.slots().iter().any(|(name, slot)| &**name == bus && slot.hotplug())
    }

    /// What the event loop waits for is forgotten with the device.
    pub fn keep_token(&mut self, id: &str, token: Token) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.function.id() == id) {
            device.tokens.push(token);
        }
    }

    /// Takes a device out: off its bus, silenced, closed. Gives what the event loop waited for on its behalf.
    pub fn remove(&mut self, id: &str) -> Vec<Token> {
        let Some(at) = self.devices.iter().position(|device| device.function.id() == id) else { return Vec::new() };
        let Device { slot, function, tokens, .. } = self.devices.remove(at);
        // Off the bus first: from here on its registers read as ones and its BARs cannot be mapped again.
        drop(slot);
        function.unplug();
        tokens
    }

    /// Puts every device into the state after power-on.
    pub fn reset(&self) {
        for device in &self.devices {
            device.function.reset();
        }
        for Device { function, .. } in &self.devices {
            function.reset_shared();
        }
    }

    /// Every device, for people.
    pub fn views(&self) -> Vec<DeviceView> {
        let view = |device: &Device| DeviceView {
            id: device.function.id().to_owned(),
            of_type: device.of_type.to_owned(),
            bus: device.slot.bus().name().to_owned(),
            addr: device.slot.devfn().to_string(),
            adds: device.function.secondary().map(|bus| bus.name().to_owned()),
            facts: device.function.facts(),
            bars: device.function.bars(),
        };
        self.devices.iter().map(view).collect()
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        while let Some(Device { slot, function, .. }) = self.devices.pop() {
            // Off the bus first: from here on its BARs cannot be mapped again.
            drop(slot);
            function.unplug();
        }
    }
}
