//! Plugging: the one path by which a device comes into the machine, whoever asks for it.

use std::sync::Arc;

use super::places::Place;
use crate::backends::Backends;
use crate::device::{self, Adds, AnyDevice, Cx, Plug, Tell, Unit, UnitBus};
use crate::devices::isa::IsaBus;
use crate::error::{Code, Error, Result};
use crate::event_loop::Token;
use crate::irq::Router;
use crate::memory::Memory;
use crate::memory::room::Room;
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
    /// Buses of devices that are no PCI functions.
    unit_buses: Vec<UnitBus>,
    /// In the order in which they were plugged; what is behind a port comes after it and goes before it.
    devices: Vec<Device>,
}

/// What every device is made with.
pub struct Parts {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// The addresses for memory that comes while the guest runs.
    pub room: Arc<Room>,
    /// The guest's interrupts.
    pub router: Arc<Router>,
    /// The machine's decode lock.
    pub decode: Arc<Decode>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
    /// The machine's back ends.
    pub backends: Arc<Backends>,
    /// The board's bus for what has fixed ports.
    pub isa: Arc<IsaBus>,
    /// What devices tell the machine by.
    pub tell: Tell,
}

/// A device that was made and is not in its place yet. Dropping it leaves nothing of it.
pub struct Made {
    of_type: &'static str,
    goes_to: GoesTo,
    /// What the user wrote.
    line: String,
    adds: Option<Adds>,
}

/// Where a device that was made is to go.
enum GoesTo {
    Pci { bus: Arc<PciBus>, addr: Devfn, function: Arc<dyn PciFunction> },
    Units { bus: UnitBus, unit: Arc<dyn Unit> },
}

impl Made {
    /// The device's id.
    pub fn id(&self) -> Arc<str> {
        self.device().id().into()
    }

    fn device(&self) -> Arc<dyn device::Device> {
        match &self.goes_to {
            GoesTo::Pci { function, .. } => function.clone(),
            GoesTo::Units { unit, .. } => unit.clone(),
        }
    }

    /// Whether a guest that runs can be shown it ([`crate::device::Device::mapped`]).
    pub fn mapped(&self) -> Option<Result<()>> {
        self.device().mapped()
    }
}

/// A device in its place.
struct Device {
    of_type: &'static str,
    seat: Seat,
    /// The name of the bus that it adds, if that is no PCI bus.
    adds: Option<Arc<str>>,
    /// What the event loop waits for on its behalf.
    tokens: Vec<Token>,
}

/// Where a device is.
enum Seat {
    Pci { slot: Slot, function: Arc<dyn PciFunction> },
    Units { bus: UnitBus, unit: Arc<dyn Unit> },
}

impl Device {
    fn device(&self) -> Arc<dyn device::Device> {
        match &self.seat {
            Seat::Pci { function, .. } => function.clone(),
            Seat::Units { unit, .. } => unit.clone(),
        }
    }

    fn function(&self) -> Option<&Arc<dyn PciFunction>> {
        match &self.seat {
            Seat::Pci { function, .. } => Some(function),
            Seat::Units { .. } => None,
        }
    }

    fn is(&self, id: &str) -> bool {
        match &self.seat {
            Seat::Pci { function, .. } => function.id() == id,
            Seat::Units { unit, .. } => unit.id() == id,
        }
    }

    fn bus(&self) -> &str {
        match &self.seat {
            Seat::Pci { slot, .. } => slot.bus().name(),
            Seat::Units { bus, .. } => bus.name(),
        }
    }
}

impl Seat {
    /// Off the bus first: from here on its registers read as ones and its BARs cannot be mapped again.
    fn leave(self) {
        match self {
            Seat::Pci { slot, function } => {
                drop(slot);
                function.unplug();
            }
            Seat::Units { unit, .. } => {
                unit.detach();
                unit.unplug();
            }
        }
    }
}

impl Plugged {
    /// Plugs the host bridge, then each device in the user's order.
    pub fn new(root: &PciRoot, parts: Parts, places: &mut [Place]) -> Result<Plugged> {
        let buses = vec![root.bus().clone()];
        let unit_buses = vec![UnitBus::Isa(parts.isa.clone())];
        let mut plugged = Plugged { parts, buses, unit_buses, devices: Vec::new() };
        let bridge = HostBridge::new();
        let slot = root.bus().attach(bridge.clone(), Some(host_bridge::ADDRESS))?;
        let seat = Seat::Pci { slot, function: bridge };
        plugged.devices.push(Device { of_type: host_bridge::ID, seat, adds: None, tokens: Vec::new() });
        for place in places {
            let made = plugged.make(place)?;
            plugged.attach(made)?;
        }
        // What the kernel could not reset alone when it opened it comes from its host driver as that left it.
        plugged.devices.iter().for_each(|device| device.device().reset_shared());
        Ok(plugged)
    }

    /// Makes one device. A failure leaves nothing of it.
    pub fn make(&self, place: &mut Place) -> Result<Made> {
        let none = || Error::new(Code::BadBus, format!("there is no bus `{}`", place.bus));
        let bus = self.buses.iter().find(|bus| bus.name() == &*place.bus).cloned();
        let unit_bus = self.unit_buses.iter().find(|bus| bus.name() == &*place.bus).cloned();
        let Parts { memory, room, router, decode, vfio, backends, tell, isa: _ } = &self.parts;
        let cx = Cx {
            id: place.id.clone(),
            on_root_bus: bus.as_ref().is_some_and(|bus| !bus.is_express_port()),
            next_slot: u16::try_from(self.buses.len()).unwrap_or(u16::MAX),
            memory: memory.clone(),
            room: room.clone(),
            router: router.clone(),
            decode: decode.clone(),
            vfio: vfio.clone(),
            backends: backends.clone(),
            adds: place.adds.clone(),
            bus: unit_bus.clone(),
            tell: tell.clone(),
        };
        let line = place.args.written();
        // Known before anything is opened for it.
        if place.addr.is_some() != bus.is_some() || place.addr.is_some() == unit_bus.is_some() {
            return Err(none());
        }
        let Plug { device, adds } = place.of_type.create(&mut place.args, &cx)?;
        let goes_to = match (device, bus, place.addr, unit_bus) {
            (AnyDevice::Function(function), Some(bus), Some(addr), _) => GoesTo::Pci { bus, addr, function },
            (AnyDevice::Unit(unit), _, _, Some(bus)) => GoesTo::Units { bus, unit },
            _ => return Err(none()),
        };
        Ok(Made { of_type: place.of_type.name(), goes_to, line, adds })
    }

    /// Puts a device into the running machine. With function 0 the guest finds the slot's other functions, which have
    /// waited for it: what could not be reset alone is reset before, as at the start of the machine.
    pub fn attach_hot(&mut self, made: Made) -> Result<()> {
        if let GoesTo::Pci { bus, addr, function } = &made.goes_to
            && addr.function() == 0
        {
            let waiting = bus.functions().into_iter().filter(|(devfn, _)| devfn.slot() == addr.slot());
            waiting.for_each(|(_, function)| function.reset_shared());
            function.reset_shared();
        }
        self.attach(made)
    }

    /// Puts a device where it belongs. A failure leaves nothing of it.
    fn attach(&mut self, made: Made) -> Result<()> {
        let Made { of_type, goes_to, line, adds } = made;
        let seat = match goes_to {
            GoesTo::Pci { bus, addr, function } => {
                let slot = bus.attach(function.clone(), Some(&addr.to_string()));
                slot.map(|slot| Seat::Pci { slot, function })
            }
            GoesTo::Units { bus, unit } => unit.clone().attach().map(|()| Seat::Units { bus, unit }),
        };
        let seat = seat.map_err(|error| error.evidence(line))?;
        let mut adds_units = None;
        match adds {
            Some(Adds::Pci(bus)) => self.buses.push(bus),
            Some(Adds::Units(bus)) => {
                adds_units = Some(bus.name().into());
                self.unit_buses.push(bus);
            }
            None => {}
        }
        self.devices.push(Device { of_type, seat, adds: adds_units, tokens: Vec::new() });
        Ok(())
    }

    /// The highest bus number that the machine needs.
    pub fn last_bus(&self) -> u8 {
        // `places` allows no more buses than there are numbers; what ports keep free beyond them is refused later.
        let kept: usize = self.pci().map(|function| usize::from(function.reserve().buses)).sum();
        u8::try_from(self.buses.len() - 1 + kept).unwrap_or(u8::MAX)
    }

    fn find(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.is(id))
    }

    fn pci(&self) -> impl Iterator<Item = &Arc<dyn PciFunction>> {
        self.devices.iter().filter_map(Device::function)
    }

    /// How many PCI functions there are.
    pub fn functions(&self) -> usize {
        self.pci().count()
    }

    /// The device with this id.
    pub fn device(&self, id: &str) -> Option<Arc<dyn device::Device>> {
        self.find(id).map(Device::device)
    }

    /// Asks the balloon, if there is one.
    pub fn with_balloon<R>(&self, ask: impl FnOnce(&dyn device::Balloon) -> R) -> Option<R> {
        let device = self.devices.iter().map(Device::device).find(|device| device.balloon().is_some())?;
        device.balloon().map(ask)
    }

    /// Every device that is memory which comes and goes.
    pub fn pluggable_memories(&self) -> Vec<Arc<dyn device::Device>> {
        self.devices.iter().map(Device::device).filter(|device| device.pluggable_memory().is_some()).collect()
    }

    /// The guest goes on.
    pub fn resumed(&self) {
        self.devices.iter().for_each(|device| device.device().resumed());
    }

    /// The ids of all devices, in the order in which they were plugged.
    pub fn ids(&self) -> Vec<Arc<str>> {
        self.devices.iter().map(|device| device.device().id().into()).collect()
    }

    /// The ids of what is on a bus.
    pub fn ids_on(&self, bus: &str) -> Vec<Arc<str>> {
        self.devices.iter().filter(|device| device.bus() == bus).map(|device| device.device().id().into()).collect()
    }

    /// These devices, each followed by what is on the bus that it adds for other devices than PCI functions: these go with
    /// it.
    pub fn with_units(&self, ids: &[Arc<str>]) -> Vec<Arc<str>> {
        let with = |id: &Arc<str>| {
            let adds = self.find(id).and_then(|device| device.adds.as_deref());
            let units = adds.map(|bus| self.ids_on(bus)).unwrap_or_default();
            std::iter::once(id.clone()).chain(units)
        };
        ids.iter().flat_map(with).collect()
    }

    /// The name of the bus that a device is on.
    pub fn bus_of(&self, id: &str) -> Option<String> {
        self.find(id).map(|device| device.bus().to_owned())
    }

    /// Every slot, with the name of the bus behind it.
    pub fn slots(&self) -> Vec<(Arc<str>, Arc<ExpressSlot>)> {
        self.buses.iter().filter_map(|bus| Some((bus.name().into(), bus.express_slot()?.clone()))).collect()
    }

    /// The slot with hot-plug that a device is in, with the name of its bus. A bridge stays where it is.
    pub fn slot_of(&self, id: &str) -> Option<(Arc<str>, Arc<ExpressSlot>)> {
        let Seat::Pci { slot, function } = &self.find(id)?.seat else { return None };
        let bus = slot.bus();
        let slot = bus.express_slot().filter(|slot| slot.hotplug() && function.secondary().is_none())?;
        Some((bus.name().into(), slot.clone()))
    }

    /// Whether a bus takes devices while the guest runs.
    pub fn hotplug(&self, bus: &str) -> bool {
        self.slots().iter().any(|(name, slot)| &**name == bus && slot.hotplug())
            || self.unit_buses.iter().any(|units| units.name() == bus && units.hotplug())
    }

    /// Whether a device is on a bus from which it goes at once, without the guest being asked.
    pub fn goes_at_once(&self, id: &str) -> bool {
        self.find(id).is_some_and(|device| matches!(&device.seat, Seat::Units { bus, .. } if bus.hotplug()))
    }

    /// What the event loop waits for is forgotten with the device.
    pub fn keep_token(&mut self, id: &str, token: Token) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.is(id)) {
            device.tokens.push(token);
        }
    }

    /// Takes a device out: off its bus, silenced, closed. Gives what the event loop waited for on its behalf.
    pub fn remove(&mut self, id: &str) -> Vec<Token> {
        let Some(at) = self.devices.iter().position(|device| device.is(id)) else { return Vec::new() };
        let Device { seat, tokens, adds, .. } = self.devices.remove(at);
        seat.leave();
        self.unit_buses.retain(|bus| Some(bus.name()) != adds.as_deref());
        tokens
    }

    /// Puts every device into the state after power-on.
    pub fn reset(&self) {
        for device in &self.devices {
            device.device().reset();
        }
        for device in &self.devices {
            device.device().reset_shared();
        }
    }

    /// Every device, for people.
    pub fn views(&self) -> Vec<DeviceView> {
        let view = |device: &Device| DeviceView {
            id: device.device().id().to_owned(),
            of_type: device.of_type.to_owned(),
            bus: device.bus().to_owned(),
            addr: match &device.seat {
                Seat::Pci { slot, .. } => slot.devfn().to_string(),
                Seat::Units { unit, .. } => unit.addr(),
            },
            adds: match device.function().and_then(|function| function.secondary()) {
                Some(bus) => Some(bus.name().to_owned()),
                None => device.adds.as_deref().map(str::to_owned),
            },
            facts: device.device().facts(),
            bars: device.device().bars(),
        };
        self.devices.iter().map(view).collect()
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        while let Some(Device { seat, .. }) = self.devices.pop() {
            seat.leave();
        }
    }
}
