//! The controller as a PCI function: registers and doorbells in BAR 0, MSI-X in BAR 4.

use std::sync::Arc;

use parking_lot::Mutex;

use super::namespace::NvmeBus;
use super::registers::{Action, DOORBELLS, PAGE, Registers};
use super::shared::{Options, Shared};
use crate::device::{Cx, Device};
use crate::error::Result;
use crate::guest_error;
use crate::memory::ram::LiveRam;
use crate::memory::{Backing, HostSlice, IoHandler, Piece};
use crate::pci::pin::Pin;
use crate::pci::regs::{
    CLASS, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, DEVICE, INTERRUPT_PIN, REVISION,
    SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR,
};
use crate::pci::{BarContent, BarKind, Changes, ConfigSpace, Msix, MsixSpec, PciCore, PciFunction, endpoint};

/// QEMU's controller and its subsystem, which drivers know by its class.
const IDS: (u16, u16) = (0x1b36, 0x0010);
const SUBSYSTEM_IDS: (u16, u16) = (0x1af4, 0x1100);
const REVISION_2: u8 = 2;
/// Mass storage, non-volatile memory, NVM Express: class 01, subclass 08, interface 02.
const CLASS_NVME: [u8; 3] = [2, 8, 1];
const INTA: u8 = 1;
/// The BAR with the MSI-X table.
const MSIX_BAR: u8 = 4;

/// The controller.
pub struct Nvme {
    id: Arc<str>,
    core: Arc<PciCore>,
    pin: Arc<Pin>,
    control: Arc<Control>,
    bus: Arc<NvmeBus>,
}

/// The registers and what they lead to.
struct Control {
    shared: Arc<Shared>,
    /// Held while the controller starts and stops. No thread of the controller takes it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registers: Registers,
    /// It is gone for good.
    unplugged: bool,
}

impl Nvme {
    /// A controller with these namespaces.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(cx: &Cx, options: Options, bus: Arc<NvmeBus>) -> Result<Arc<Nvme>> {
        let mut config = ConfigSpace::new();
        config.set_u16(VENDOR, IDS.0);
        config.set_u16(DEVICE, IDS.1);
        config.set_u8(REVISION, REVISION_2);
        config.set(CLASS, &CLASS_NVME);
        config.set_u16(SUBSYSTEM_VENDOR, SUBSYSTEM_IDS.0);
        config.set_u16(SUBSYSTEM, SUBSYSTEM_IDS.1);
        config.set_u8(INTERRUPT_PIN, INTA);
        config.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        let spec = MsixSpec::exclusive(MSIX_BAR, options.pairs + 1);
        let msix = Msix::add(&mut config, spec, &cx.router, &cx.id)?;
        if !cx.on_root_bus {
            endpoint::express(&mut config)?;
        }
        let core = Arc::new(PciCore::new(cx.id.clone(), config, None, Some(msix)));
        let pin = Arc::new(Pin::new(core.clone(), cx.router.clone()));
        let ram = LiveRam::new(cx.memory.clone());
        let shared = Shared::new(options, bus.clone(), core.clone(), pin.clone(), ram);
        let control = Arc::new(Control { shared, state: Mutex::default() });
        Ok(Arc::new(Nvme { id: cx.id.clone(), core, pin, control, bus }))
    }
}

impl Control {
    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Start => {
                let started = match state.registers.admin() {
                    None => Err("sizes or command set that there are not".to_owned()),
                    Some(_) if state.unplugged => Err("it is gone".to_owned()),
                    Some(admin) => self.shared.start(admin).map_err(|error| error.to_string()),
                };
                if let Err(why) = &started {
                    guest_error!(self.shared.name(), "cannot start: {why}");
                }
                state.registers.started(started.is_ok());
            }
            Action::Stop => self.shared.stop(),
            Action::ShutDown => {
                // What stops the machine here is not tried again: the driver has given the disks up.
                self.shared.bus.all().iter().for_each(|(_, namespace)| drop(namespace.disk.flush()));
                state.registers.shut_down();
            }
            Action::Mask => self.shared.set_mask(state.registers.mask()),
        }
    }

    /// As after power-on.
    fn reset(&self) {
        let mut state = self.state.lock();
        self.shared.stop();
        state.registers = Registers::default();
        self.shared.set_mask(0);
    }
}

impl IoHandler for Control {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset < DOORBELLS {
            true => self.state.lock().registers.read(offset, data),
            // A doorbell has nothing to say.
            false => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(DOORBELLS) {
            if let Ok(value) = data.try_into().map(u32::from_le_bytes)
                && at.is_multiple_of(4)
            {
                self.shared.doorbell(at / 4, value);
            }
            return;
        }
        let mut state = self.state.lock();
        if let Some(action) = state.registers.write(offset, data) {
            self.act(&mut state, action);
        }
    }
}

impl Device for Nvme {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&self) {
        self.core.reset();
        self.control.reset();
    }

    fn resumed(&self) {
        self.control.shared.all().iter().for_each(|sq| sq.ring());
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let shared = &self.control.shared;
        let mut facts = vec![
            ("serial", shared.options.serial.clone()),
            ("queues", format!("{} of {} in use", shared.all().len().saturating_sub(1), shared.options.pairs)),
        ];
        // The namespace that came with the controller is no device of its own.
        let own = self.bus.all().into_iter().find(|(_, namespace)| **namespace.disk.id() == *self.id);
        facts.extend(own.into_iter().flat_map(|(_, namespace)| namespace.disk.facts()));
        facts
    }

    fn unplug(&self) {
        self.control.state.lock().unplugged = true;
        self.control.reset();
    }
}

impl PciFunction for Nvme {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn bar(&self, index: usize) -> Option<BarContent> {
        if index == usize::from(MSIX_BAR) {
            return Some(self.core.msix()?.exclusive_bar());
        }
        let doorbells = (u64::from(self.control.shared.options.pairs) + 1) * 8;
        let size = (DOORBELLS + doorbells).next_power_of_two().max(4 * PAGE);
        (index == 0).then(|| BarContent {
            name: format!("{} registers", self.id).into(),
            size,
            kind: BarKind::Mem64,
            prefetchable: false,
            pieces: vec![Piece { range: 0..size, backing: Backing::io(self.control.clone()) }],
        })
    }

    fn changed(&self, what: Changes) {
        if what.contains(Changes::RESET) {
            self.control.reset();
        }
        if what.intersects(Changes::BUS_MASTER | Changes::POWER) {
            for sq in self.control.shared.all() {
                match self.control.shared.may_run() {
                    true => sq.ring(),
                    // The command that its thread is at is the last one.
                    false => sq.settle(),
                }
            }
        }
        if what.intersects(Changes::INTX_DISABLE | Changes::MSIX | Changes::RESET) {
            self.control.shared.settle_pin();
            self.pin.settle();
        }
    }

    fn show_page(&self, page: &HostSlice) -> bool {
        self.core.with(|config| config.mirror(Some(page.clone())));
        true
    }
}
