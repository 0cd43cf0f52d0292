//! What every device of the machine has in common: what making one needs, and what can be asked of it.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::backends::Backends;
use crate::devices::isa::{self, IsaBus};
use crate::devices::nvme::NvmeBus;
use crate::error::Result;
use crate::irq::Router;
use crate::memory::Memory;
use crate::memory::room::Room;
use crate::object::prop_enum;
use crate::pci::decode::Decode;
use crate::pci::view::BarUse;
use crate::pci::{PciBus, PciFunction};
use crate::scsi::ScsiBus;
use crate::vfio::Vfio;
use crate::virtio::serial::SerialBus;

/// A device that was plugged. Its drop order is its unplug order: leases and mappings go when the last owner goes.
pub trait Device: Send + Sync {
    /// The id that the user gave, or one that the machine made.
    fn id(&self) -> &str;

    /// Puts the device into the state after power-on. Called with every vCPU stopped, at the start and at each guest
    /// reset; bus mastering is off when it returns, so that memory can be used anew.
    fn reset(&self);

    /// The second half of a reset: what resets several functions at once, after each of them has been through
    /// [`Device::reset`].
    fn reset_shared(&self) {}

    /// What there is to say of the device now, for people: name and value.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// How its BARs answer the guest, if it is passed through.
    fn bars(&self) -> Vec<BarUse> {
        Vec::new()
    }

    /// Whether all that the device may reach by DMA is mapped for it, so that a guest which runs can be shown it; `None`:
    /// not yet.
    fn mapped(&self) -> Option<Result<()>> {
        Some(Ok(()))
    }

    /// What the host may say of the device while it runs. Asked once, when it was plugged.
    ///
    /// # Errors
    /// The process may not have another descriptor.
    fn notices(&self) -> Result<Vec<NoticeFd>> {
        Ok(Vec::new())
    }

    /// What is done when the host says something.
    fn policy(&self) -> Policy {
        Policy::default()
    }

    /// The registers that tell of an error, as they are now.
    fn report_error(&self) -> ErrorReport {
        ErrorReport::default()
    }

    /// The guest goes on after it stood still: what waited for that is tried again.
    fn resumed(&self) {}

    /// It as a balloon, if it is one.
    fn balloon(&self) -> Option<&dyn Balloon> {
        None
    }

    /// It as memory that comes and goes, if it is that.
    fn pluggable_memory(&self) -> Option<&dyn PluggableMemory> {
        None
    }

    /// Silences the host's side for good: no interrupt, no DMA. Later accesses by the guest read as ones. Idempotent.
    fn unplug(&self) {}
}

/// What the host can say of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It wants the device back.
    Request,
    /// The device had an uncorrectable error.
    Error,
}

/// A descriptor that becomes readable when the host says something.
pub struct NoticeFd {
    /// What it says.
    pub notice: Notice,
    /// What to wait for.
    pub watch: OwnedFd,
    /// The same eventfd, to empty it.
    pub fd: Arc<EventFd>,
}

prop_enum! {
    /// What is done when a device had an uncorrectable error.
    #[derive(Default)]
    pub enum OnError {
        #[default]
        Pause = "pause",
        Reset = "reset",
        Detach = "detach",
        Poweroff = "poweroff",
        Ignore = "ignore",
    }
}

impl OnError {
    /// The word that the user writes.
    pub fn name(self) -> &'static str {
        match self {
            OnError::Pause => "pause",
            OnError::Reset => "reset",
            OnError::Detach => "detach",
            OnError::Poweroff => "poweroff",
            OnError::Ignore => "ignore",
        }
    }
}

/// What is done when the host says something of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// After an uncorrectable error.
    pub on_error: OnError,
    /// How long the guest has to give the device up when the host wants it back.
    pub request_timeout: Duration,
}

/// What the registers tell of a device's error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorReport {
    /// The host's address of the device.
    pub host: String,
    /// Names and values; `None`: the register cannot be read.
    pub registers: Vec<(&'static str, Option<u32>)>,
}

/// What making a device needs.
pub struct Cx {
    /// The id that the user gave, or one that was made.
    pub id: Arc<str>,
    /// Whether it goes to the root bus, where an endpoint is integrated into the root complex, or to a conventional bus.
    pub on_root_bus: bool,
    /// A slot number that no root port has yet.
    pub next_slot: u16,
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
    /// The name of the bus that it adds; empty if it adds none.
    pub adds: Arc<str>,
    /// The bus that it goes to, if that is no PCI bus.
    pub bus: Option<UnitBus>,
    /// What the device has to tell the machine, it tells by this, from any thread.
    pub tell: Tell,
}

/// What making an object needs: something that devices name and that is no device itself.
pub struct ObjectCx {
    /// The id that the user gave.
    pub id: Arc<str>,
    /// The machine's VFIO context.
    pub vfio: Arc<Vfio>,
    /// The back ends of the machine.
    pub backends: Arc<Backends>,
}

/// The kinds of buses, as `bus` of help has them.
pub const PCI: &str = "PCI";
/// See [`PCI`].
pub const SCSI: &str = "SCSI";
/// See [`PCI`].
pub const NVME: &str = "nvme-bus";
/// See [`PCI`].
pub const ISA: &str = "ISA";
/// See [`PCI`].
pub const SERIAL: &str = "virtio-serial-bus";

/// The name of the bus of this kind that the device with this id adds, as QEMU has it.
pub fn bus_name(kind: &str, id: &str) -> String {
    match kind {
        PCI | NVME => id.to_owned(),
        _ => format!("{id}.0"),
    }
}

/// A bus that a device adds for devices that are no PCI functions.
#[derive(Clone)]
pub enum UnitBus {
    /// Disks of a SCSI host adapter.
    Scsi(Arc<ScsiBus>),
    /// Namespaces of an NVMe controller.
    Nvme(Arc<NvmeBus>),
    /// Ports and interrupts of a PC.
    Isa(Arc<IsaBus>),
    /// Consoles and ports of a virtio serial device.
    Serial(Arc<SerialBus>),
}

impl UnitBus {
    /// The name that `bus=` takes.
    pub fn name(&self) -> &str {
        match self {
            UnitBus::Scsi(bus) => bus.name(),
            UnitBus::Nvme(bus) => bus.name(),
            UnitBus::Isa(_) => isa::NAME,
            UnitBus::Serial(bus) => bus.name(),
        }
    }

    /// Whether devices come and go while the guest runs.
    pub fn hotplug(&self) -> bool {
        match self {
            UnitBus::Scsi(bus) => bus.hotplug(),
            UnitBus::Nvme(_) | UnitBus::Isa(_) => false,
            UnitBus::Serial(_) => true,
        }
    }
}

/// A device on a bus that another device adds.
pub trait Unit: Device {
    /// Its address there, for people.
    fn addr(&self) -> String;

    /// Puts it on its bus, where the guest finds it; a guest that runs is told, if the bus can.
    ///
    /// # Errors
    /// [`crate::error::Code::BadBus`]: its address is taken.
    fn attach(self: Arc<Self>) -> Result<()>;

    /// Takes it off its bus: when this returns the guest reaches it no more. A guest that runs is told.
    fn detach(&self);
}

/// A device that was made and is not on a bus yet.
pub struct Plug {
    /// What goes to the bus.
    pub device: AnyDevice,
    /// A bus that comes with it.
    pub adds: Option<Adds>,
}

/// What goes to a bus.
#[derive(Clone)]
pub enum AnyDevice {
    /// A function, to a PCI bus.
    Function(Arc<dyn PciFunction>),
    /// Anything else, to the bus that [`Cx::bus`] was.
    Unit(Arc<dyn Unit>),
}

/// A bus that comes with a device.
pub enum Adds {
    /// A PCI bus.
    Pci(Arc<PciBus>),
    /// Another one.
    Units(UnitBus),
}

impl Plug {
    /// A PCI function that adds no bus.
    pub fn function(function: Arc<dyn PciFunction>) -> Plug {
        Plug { device: AnyDevice::Function(function), adds: None }
    }
}

impl AnyDevice {
    /// The device.
    pub fn device(&self) -> Arc<dyn Device> {
        match self {
            AnyDevice::Function(function) => function.clone(),
            AnyDevice::Unit(unit) => unit.clone(),
        }
    }

    /// The function, if it is one.
    pub fn as_function(&self) -> Option<&Arc<dyn PciFunction>> {
        match self {
            AnyDevice::Function(function) => Some(function),
            AnyDevice::Unit(_) => None,
        }
    }
}

/// What a device can tell the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Its back end could not do a request.
    IoError(IoError),
    /// A program of the guest's has opened a port, or closed it.
    PortOpen(bool),
    /// The guest has put pages into the balloon, or taken some out.
    BalloonChanged,
    /// The guest has got memory, or given some back.
    MemoryChanged,
    /// The guest says something of itself.
    Guest(GuestEvent),
    /// The guest has not written to its watchdog in time.
    Watchdog,
}

/// What a guest says of itself by a panic device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// Its kernel has panicked.
    Panicked,
    /// It has panicked, and runs the kernel that it keeps for that.
    CrashLoaded,
    /// It shuts down.
    Shutdown,
}

/// A balloon as the machine has it, in pages of 4 KiB.
pub trait Balloon {
    /// Asks the guest to do without so many pages.
    fn set_target(&self, pages: u32);

    /// How many it says it does without. The next change is told by [`Word::BalloonChanged`].
    fn actual(&self) -> u32;
}

/// Memory that comes and goes while the guest runs, as the machine has it. All sizes are in bytes.
pub trait PluggableMemory {
    /// How much the guest is to have.
    fn requested(&self) -> u64;

    /// Says how much the guest is to have.
    ///
    /// # Errors
    /// [`crate::error::Code::BadProperty`]: more than there is, or no whole number of blocks.
    fn request(&self, bytes: u64) -> Result<()>;

    /// How much it has. The next change is told by [`Word::MemoryChanged`].
    fn plugged(&self) -> u64;

    /// The guest addresses that it may have memory at.
    fn range(&self) -> Range<u64>;

    /// The unit in which it comes and goes.
    fn block_size(&self) -> u64;

    /// The guest's memory node that it belongs to.
    fn node(&self) -> u16;

    /// The name of the object that it is.
    fn backend(&self) -> String;
}

/// A request that a disk's back end could not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoError {
    /// The block node.
    pub node: Arc<str>,
    /// Whether something was to be changed, rather than read.
    pub write: bool,
    /// Whether the medium is full.
    pub full: bool,
    /// What is done about it: `report`, `ignore`, or `stop`.
    pub action: &'static str,
    /// What the system says.
    pub reason: String,
}

/// Takes what a device tells: the device's id, then the word. Waits for nothing.
pub type Tell = Arc<dyn Fn(&Arc<str>, Word) + Send + Sync>;
