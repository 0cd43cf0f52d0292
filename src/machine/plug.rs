//! Plugging: the one path by which a device comes into the machine, whoever asks for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::types::DEVICES;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::irq::Router;
use crate::memory::Memory;
use crate::object::{Args, Common, Props};
use crate::pci::decode::Decode;
use crate::pci::host_bridge::{self, HostBridge};
use crate::pci::{PciBus, PciFunction, PciRoot, Slot};
use crate::vfio::space::Vfio;

/// The board's own bus: it has a name, so that a device that is put there is told why that cannot be.
const ISA_BUS: &str = "isa.0";

/// Every device of the command line, in its place.
pub struct Plugged {
    buses: Vec<Arc<PciBus>>,
    ids: BTreeSet<Arc<str>>,
    /// In the order in which they were plugged; what is behind a port comes after it and goes before it.
    devices: Vec<(Slot, Arc<dyn PciFunction>)>,
}

impl Plugged {
    /// Plugs the host bridge, then each device in the user's order.
    pub fn new(
        root: &PciRoot,
        memory: &Arc<Memory>,
        router: &Arc<Router>,
        decode: &Arc<Decode>,
        vfio: &Arc<Vfio>,
        devices: &mut [Args],
    ) -> Result<Plugged> {
        let mut plugged = Plugged { buses: vec![root.bus().clone()], ids: BTreeSet::new(), devices: Vec::new() };
        let bridge = HostBridge::new();
        let slot = root.bus().attach(bridge.clone(), Some(host_bridge::ADDRESS))?;
        plugged.devices.push((slot, bridge));
        for args in devices {
            plugged.plug(args, memory, router, decode, vfio)?;
        }
        Ok(plugged)
    }

    fn plug(
        &mut self,
        args: &mut Args,
        memory: &Arc<Memory>,
        router: &Arc<Router>,
        decode: &Arc<Decode>,
        vfio: &Arc<Vfio>,
    ) -> Result<()> {
        let of_type = DEVICES.take_type(args)?;
        let common = Common::parse(args)?;
        let id: Arc<str> = match &common.id {
            Some(id) => id.as_str().into(),
            // The character that no id of the user's can have keeps the two apart.
            None => format!("{}#{}", of_type.name(), self.devices.len()).into(),
        };
        if self.ids.contains(&id) || self.buses.iter().any(|bus| bus.name() == &*id) {
            return Err(Error::new(Code::DuplicateId, format!("the id `{id}` is used twice")).evidence(args.written()));
        }
        let bus = self.bus(common.bus.as_deref(), of_type.name()).map_err(|error| error.evidence(args.written()))?;
        let cx = Cx {
            id: id.clone(),
            on_root_bus: bus.is_root(),
            next_slot: u16::try_from(self.buses.len()).unwrap_or(u16::MAX),
            memory: memory.clone(),
            router: router.clone(),
            decode: decode.clone(),
            vfio: vfio.clone(),
        };
        let Plug { function, adds } = of_type.create(args, &cx)?;
        let addr = common.addr.map(|addr| addr.to_string());
        let slot = bus
            .attach(function.clone(), addr.as_deref())
            .map_err(|error| error.evidence(self.list_buses()).evidence(args.written()))?;
        self.ids.insert(id);
        self.buses.extend(adds);
        self.devices.push((slot, function));
        Ok(())
    }

    /// The bus that `bus=` names, or the first one.
    fn bus(&self, name: Option<&str>, of_type: &str) -> Result<Arc<PciBus>> {
        let Some(name) = name else { return self.buses.first().cloned().ok_or_else(|| self.no_bus("pcie.0")) };
        if name == ISA_BUS {
            return Err(Error::new(Code::BadBus, format!("{of_type} needs a PCI bus, and {ISA_BUS} is an ISA bus"))
                .evidence(self.list_buses()));
        }
        self.buses.iter().find(|bus| bus.name() == name).cloned().ok_or_else(|| self.no_bus(name))
    }

    fn no_bus(&self, name: &str) -> Error {
        let hint = crate::object::did_you_mean(name, self.buses.iter().map(|bus| bus.name()));
        Error::new(Code::BadBus, format!("there is no bus `{name}`{hint}"))
            .evidence(self.list_buses())
            .fix("a device that adds a bus, such as `pcie-root-port,id=NAME`, comes before the devices on it")
    }

    fn list_buses(&self) -> String {
        let names: Vec<&str> = self.buses.iter().map(|bus| bus.name()).collect();
        format!("the buses are {} (PCI) and {ISA_BUS} (ISA)", names.join(", "))
    }

    /// The highest bus number that the machine needs.
    pub fn last_bus(&self) -> u8 {
        // Every bus takes an address of another, so there are far fewer than 256.
        u8::try_from(self.buses.len() - 1).unwrap_or(u8::MAX)
    }

    /// Puts every device into the state after power-on.
    pub fn reset(&self) {
        for (_, function) in &self.devices {
            function.reset();
        }
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        while let Some((slot, function)) = self.devices.pop() {
            // Off the bus first: from here on its BARs cannot be mapped again.
            drop(slot);
            function.unplug();
        }
    }
}
