//! What the commands need of a machine: the seam between the protocol and what it controls.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::message::Failure;
use crate::backends::block::BlockNode;
use crate::backends::chardev::Chardev;
use crate::backends::iothread::IoThread;
use crate::backends::net::Netdev;
use crate::backends::table::Table;
use crate::object::{Args, Kind, Prop};
use crate::pci::view::{BarUse, BusView};

/// Whether the guest runs (QMP's `RunState`, those that there are).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Status {
    /// It has not started yet.
    Prelaunch,
    /// It runs.
    #[default]
    Running,
    /// A client stopped it.
    Paused,
    /// A device's error stopped it (`on-error=pause`).
    IoError,
    /// It has panicked (`--action panic=pause`).
    GuestPanicked,
    /// It did not write to its watchdog (`--action watchdog=pause`).
    Watchdog,
    /// It has powered off (`--action shutdown=pause`).
    Shutdown,
}

impl Status {
    /// QMP's word.
    pub fn name(self) -> &'static str {
        match self {
            Status::Prelaunch => "prelaunch",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::IoError => "io-error",
            Status::GuestPanicked => "guest-panicked",
            Status::Watchdog => "watchdog",
            Status::Shutdown => "shutdown",
        }
    }
}

/// A device that was plugged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceView {
    /// Its id, or the one that was made.
    pub id: String,
    /// Its type.
    pub of_type: String,
    /// The bus that it is on.
    pub bus: String,
    /// Its address there.
    pub addr: String,
    /// The bus that it adds.
    pub adds: Option<String>,
    /// What there is to say of it: name and value.
    pub facts: Vec<(&'static str, String)>,
    /// How its BARs answer the guest, if it is passed through.
    pub bars: Vec<BarUse>,
}

/// The guest and its process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmView {
    /// The guest's name, or the one that was made.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// When the guest was first started, in seconds since 1970.
    pub since: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// Exits of its processors to user space, by cause, since the first start.
    pub exits: BTreeMap<&'static str, u64>,
    /// The address spaces that its passed-through devices use.
    pub dma: Vec<DmaView>,
}

/// An IOMMU address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DmaView {
    /// The kernel's interface: iommufd or type1.
    pub iommu: String,
    /// Ranges that are mapped.
    pub mappings: usize,
    /// Bytes that are mapped.
    pub bytes: u64,
}

/// What the process and the kernel hold for the guest. A device that comes and goes leaves each count as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resources {
    /// Open file descriptors of the process.
    pub descriptors: usize,
    /// Threads of the process.
    pub threads: usize,
    /// KVM's memory slots.
    pub memory_slots: usize,
    /// GSIs that message-signalled interrupts hold, with a route each.
    pub gsi_routes: usize,
    /// Eventfds that KVM injects interrupts for.
    pub irqfds: usize,
    /// Ranges that IOMMUs map.
    pub iova_mappings: usize,
    /// Passed-through functions that are open.
    pub host_devices: usize,
    /// Functions on the guest's buses, those of the board too.
    pub functions: usize,
}

/// A processor of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuView {
    /// Its number, from 0.
    pub index: u32,
    /// The thread that runs it; 0 before the guest starts.
    pub thread: u32,
    /// The socket that it is in.
    pub socket: u32,
    /// Its core in the socket.
    pub core: u32,
    /// Its number in the core.
    pub thread_of_core: u32,
}

/// A device that is memory which comes and goes. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryView {
    /// Its id.
    pub id: String,
    /// The object that it is.
    pub backend: String,
    /// The guest's memory node.
    pub node: u16,
    /// First guest address.
    pub address: u64,
    /// The most that the guest can have.
    pub most: u64,
    /// What the guest is to have.
    pub requested: u64,
    /// What it has.
    pub plugged: u64,
    /// The unit.
    pub block: u64,
}

/// A wish to take a device out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The device's id.
    pub id: String,
    /// How long the guest has to give it up, in milliseconds; `None`: as long as it likes.
    pub timeout: Option<u64>,
    /// Take it away then, whatever the guest does. Without a time: at once.
    pub force: bool,
}

/// Names a command that is under way.
pub type Ticket = u64;

/// A machine under control. Called on the main thread, while no callback of the event loop runs.
pub trait Control {
    /// Whether the guest runs.
    fn status(&self) -> Status;
    /// Makes the guest stand still; idempotent.
    fn stop(&mut self);
    /// Lets it go on; idempotent.
    ///
    /// # Errors
    /// It has powered off: a reset is what it needs.
    fn cont(&mut self) -> Result<(), Failure>;
    /// Sends its first processor a non-maskable interrupt.
    ///
    /// # Errors
    /// It does not run.
    fn inject_nmi(&mut self) -> Result<(), Failure>;
    /// Resets the machine, once the request is answered.
    fn reset(&mut self);
    /// Presses the power button.
    fn power_button(&mut self);
    /// Ends the process, once the request is answered.
    fn quit(&mut self);
    /// Plugs a device by the properties that `--device` takes. A ticket: it is under way, and what comes of it goes to
    /// [`super::Monitor::answer`].
    ///
    /// # Errors
    /// What keeps it from being plugged; nothing of it is left then.
    fn device_add(&mut self, args: Args) -> Result<Option<Ticket>, Failure>;
    /// Begins to take a device out. That it is done is told by an event.
    ///
    /// # Errors
    /// There is none of that id, or it cannot be taken out.
    fn device_del(&mut self, removal: &Removal) -> Result<(), Failure>;
    /// The properties of a device type.
    ///
    /// # Errors
    /// There is no such type.
    fn properties(&self, of_type: &str) -> Result<Vec<&'static Prop>, Failure>;
    /// The types that there are, each with the kind that it is of.
    fn types(&self) -> Vec<(&'static str, &'static str)>;
    /// The machine types, each with the most processors that it can have.
    fn machines(&self) -> Vec<(&'static str, u32)>;
    /// The threads that serve several devices.
    fn iothreads(&self) -> Arc<Table<IoThread>>;
    /// The character back ends.
    fn chardevs(&self) -> Arc<Table<dyn Chardev>>;
    /// The network back ends.
    fn netdevs(&self) -> Arc<Table<dyn Netdev>>;
    /// Makes a back end or an object by the properties that the option of its kind takes.
    ///
    /// # Errors
    /// What keeps it from being made; nothing of it is left then.
    fn add_back_end(&mut self, kind: Kind, args: Args) -> Result<(), Failure>;
    /// Takes an object out that nobody uses.
    ///
    /// # Errors
    /// There is none of this name that can go, or it has a user.
    fn remove_object(&mut self, id: &str) -> Result<(), Failure>;
    /// Bytes of memory that the guest has beside its balloon; `None`: there is no balloon.
    fn balloon(&self) -> Option<u64>;
    /// The devices that are memory which comes and goes.
    fn memory_devices(&self) -> Vec<MemoryView>;
    /// Bytes of -m.
    fn base_memory(&self) -> u64;
    /// Says how much memory of a device the guest is to have.
    ///
    /// # Errors
    /// It has not so much, or not in such units; or there is no such device.
    fn request_memory(&mut self, id: &str, bytes: u64) -> Result<(), Failure>;
    /// Asks the guest to have no more than so many bytes.
    ///
    /// # Errors
    /// There is no balloon.
    fn inflate(&mut self, bytes: u64) -> Result<(), Failure>;
    /// Changes what is done about a guest in trouble: `panic` or `watchdog`, and the word.
    ///
    /// # Errors
    /// There is no such word.
    fn set_action(&mut self, trouble: &str, word: &str) -> Result<(), Failure>;
    /// The guest's name, as the user or the machine has given it, and the number that it is known by.
    fn identity(&self) -> (String, Option<Uuid>);
    /// The guest's processors.
    fn cpus(&self) -> Vec<CpuView>;
    /// The block nodes.
    fn nodes(&self) -> Arc<Table<dyn BlockNode>>;
    /// Begins to commit the overlay of a node, as the job of this name. That it is done is told by an event.
    ///
    /// # Errors
    /// The node cannot be exchanged.
    fn block_commit(&mut self, node: Arc<dyn BlockNode>, job: String) -> Result<(), Failure>;
    /// The root bus with all that is behind it.
    fn pci(&self) -> BusView;
    /// The devices, in the order in which they were plugged.
    fn devices(&self) -> Vec<DeviceView>;
    /// The guest and its process.
    fn vm(&self) -> VmView;
    /// What is held for the guest.
    fn resources(&self) -> Resources;
}
