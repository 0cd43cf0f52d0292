//! Plugging: the one path by which a device comes into the machine, whoever asks for it.

use std::sync::Arc;

use super::places::Place;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::irq::Router;
use crate::memory::Memory;
use crate::monitor::control::DeviceView;
use crate::pci::decode::Decode;
use crate::pci::host_bridge::{self, HostBridge};
use crate::pci::{PciBus, PciFunction, PciRoot, Slot};
use crate::vfio::space::Vfio;

/// Every device of the command line, in its place.
pub struct Plugged {
    buses: Vec<Arc<PciBus>>,
    /// In the order in which they were plugged; what is behind a port comes after it and goes before it.
    devices: Vec<Device>,
}

/// A device in its place.
struct Device {
    of_type: &'static str,
    slot: Slot,
    function: Arc<dyn PciFunction>,
}

impl Plugged {
    /// Plugs the host bridge, then each device in the user's order.
    pub fn new(
        root: &PciRoot,
        memory: &Arc<Memory>,
        router: &Arc<Router>,
        decode: &Arc<Decode>,
        vfio: &Arc<Vfio>,
        places: &mut [Place],
    ) -> Result<Plugged> {
        let mut plugged = Plugged { buses: vec![root.bus().clone()], devices: Vec::new() };
        let bridge = HostBridge::new();
        let slot = root.bus().attach(bridge.clone(), Some(host_bridge::ADDRESS))?;
        plugged.devices.push(Device { of_type: host_bridge::ID, slot, function: bridge });
        for place in places {
            plugged.plug(place, memory, router, decode, vfio)?;
        }
        // What the kernel could not reset alone when it opened it comes from its host driver as that left it.
        plugged.devices.iter().for_each(|device| device.function.reset_shared());
        Ok(plugged)
    }

    fn plug(
        &mut self,
        place: &mut Place,
        memory: &Arc<Memory>,
        router: &Arc<Router>,
        decode: &Arc<Decode>,
        vfio: &Arc<Vfio>,
    ) -> Result<()> {
        let Some(bus) = self.buses.iter().find(|bus| bus.name() == &*place.bus).cloned() else {
            return Err(Error::new(Code::BadBus, format!("there is no bus `{}`", place.bus)));
        };
        let cx = Cx {
            id: place.id.clone(),
            on_root_bus: bus.is_root(),
            next_slot: u16::try_from(self.buses.len()).unwrap_or(u16::MAX),
            memory: memory.clone(),
            router: router.clone(),
            decode: decode.clone(),
            vfio: vfio.clone(),
        };
        let Plug { function, adds } = place.of_type.create(&mut place.args, &cx)?;
        let slot = bus
            .attach(function.clone(), Some(&place.addr.to_string()))
            .map_err(|error| error.evidence(place.args.written()))?;
        self.buses.extend(adds);
        self.devices.push(Device { of_type: place.of_type.name(), slot, function });
        Ok(())
    }

    /// The highest bus number that the machine needs.
    pub fn last_bus(&self) -> u8 {
        // `places` allows no more buses than there are numbers.
        u8::try_from(self.buses.len() - 1).unwrap_or(u8::MAX)
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
