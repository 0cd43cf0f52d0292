//! What a machine is asked to be: the parsed forms of `-m`, `--smp`, `--cpu` and `--serial`, and all of a command line.

pub mod action;
pub mod cpu;
pub mod drive;
pub mod files;
pub mod memory;
pub mod mon;
pub mod numa;
pub mod placement;
pub mod serial;
pub mod smp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use memory::{HugePages, MemoryOptions};

use uuid::Uuid;

use crate::backends::chardev::shorthand::Target;
use crate::backends::net::NETDEVS;
use crate::cpu::{Model, Topology};
use crate::monitor::QmpOptions;
use crate::object::{Args, Catalogue, Kind};
use crate::placement::Choice;

/// What `passthru run` was asked for, checked as far as that is possible without the host.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// The guest's memory.
    pub memory: MemoryOptions,
    /// The guest's memory nodes, where the user says them.
    pub numa: numa::Numa,
    /// The number of CPUs and their topology.
    pub smp: Topology,
    /// Which of the host's CPUs the guest gets.
    pub placement: Choice,
    /// The CPU model.
    pub cpu: Model,
    /// The machine's type (key `type`) and properties, for the machine registry.
    pub machine: Args,
    /// The devices' types (key `driver`) and properties in the user's order, for the device registry.
    pub devices: Vec<Args>,
    /// The types and properties of back ends and objects in the user's order, for the registry of each kind.
    pub back_ends: BTreeMap<Kind, Vec<Args>>,
    /// Where the serial port goes.
    pub serial: Target,
    /// Where people and programs find a monitor on a character back end, besides the one of the serial port.
    pub monitors: mon::Monitors,
    /// The control sockets.
    pub qmp: Vec<QmpOptions>,
    /// The guest's processors stand still until a monitor's `cont`.
    pub paused: bool,
    /// The number that the guest is known by.
    pub uuid: Option<Uuid>,
    /// What is done about a guest that is in trouble.
    pub actions: action::Actions,
    /// How long the guest has to power off on SIGTERM; zero: it is ended at once. `None`: as the kind of process has it.
    pub shutdown_timeout: Option<Duration>,
    /// Where the phases of the start are written.
    pub boot_trace: Option<PathBuf>,
    /// Holds the process's number while it runs.
    pub pid_file: Option<PathBuf>,
    /// Whether its devices are taken from the host's desktop (`bind --vm`).
    pub single_gpu: bool,
    /// Says on standard error what was chosen, and why.
    pub verbose: bool,
    /// The guest's name.
    pub name: Option<String>,
}

impl RunOptions {
    /// What was given of the option of this kind.
    pub fn back_ends(&self, kind: Kind) -> &[Args] {
        self.back_ends.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// The types of its network back ends, as they were given.
    pub fn netdev_types(&self) -> impl Iterator<Item = &str> {
        self.back_ends(Kind::Netdev).iter().filter_map(|netdev| netdev.peek(NETDEVS.key()))
    }
}
