//! Which of the host's CPUs a guest's virtual CPUs get, and from which memory nodes its memory comes. Pure: a
//! [`Topology`] and a [`Request`] in, a [`Plan`] out; [`crate::machine`] carries it out, `passthru plan` prints it.
//!
//! - Each virtual CPU gets a CPU of the host for itself, and the guest gets whole cores: what runs on the other thread of
//!   a core takes half of it away.
//! - The memory node of the guest's devices goes first, because DMA and register accesses to another one cross the link
//!   between them; then one third-level cache where the guest fits below it.
//! - Cores of one kind, where there are two. CPU 0 is left to the host, whose own work gathers there, where there is
//!   a choice.
//! - Everything else of the guest (main thread, serial port, interrupts of its devices) goes beside it: on the same node,
//!   on CPUs where it stops no virtual CPU.

use serde::Serialize;

use crate::error::Result;
use crate::host::topology::{CpuSet, Topology};

mod cores;
mod list;
mod memory;
#[cfg(test)]
mod tests;

pub use memory::NodePages;

/// How the CPUs are chosen: `--cpu-placement`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// Not at all: the kernel's scheduler moves threads as it likes.
    #[default]
    Off,
    /// By the rules of this module.
    Auto,
    /// By the user.
    List(CpuSet),
}

/// What a guest needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// How the CPUs are chosen.
    pub choice: Choice,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// How many of them the guest takes for threads of one core.
    pub threads: u32,
    /// The memory nodes of its devices, as far as they are known, one for each device.
    pub near: Vec<u32>,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes of a huge page, if its memory is made of such.
    pub page: Option<u64>,
}

/// Where everything goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The host's CPU of each virtual CPU; none: they are not pinned.
    pub vcpus: Vec<u32>,
    /// Threads of the guest's cores that nobody gets.
    pub idle: CpuSet,
    /// CPUs of the process's other threads.
    pub emulator: CpuSet,
    /// CPUs of the devices' interrupts.
    pub interrupts: CpuSet,
    /// The memory nodes, the nearest first.
    pub nodes: Vec<u32>,
    /// Huge pages, by nodes.
    pub pages: Vec<NodePages>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

impl Plan {
    /// All CPUs that the guest's threads use.
    pub fn all(&self) -> CpuSet {
        self.vcpus.iter().copied().collect::<CpuSet>().with(&self.emulator)
    }
}

/// Plans a guest's place.
///
/// # Errors
/// [`crate::error::Code::NoPlace`] if there are not enough CPUs, or not the listed ones.
pub fn plan(request: &Request, topology: &Topology) -> Result<Plan> {
    let near = most_frequent(&request.near);
    let mut plan = match &request.choice {
        Choice::Off => Plan::default(),
        Choice::Auto => cores::plan(request, near, topology)?,
        Choice::List(list) => list::plan(request, list, topology)?,
    };
    let other = request.near.iter().find(|node| Some(**node) != near);
    if let (Some(near), Some(other)) = (near, other) {
        plan.notes.push(format!("its devices are on different memory nodes, {near} and {other}: node {near} counts"));
    }
    let order = memory::order(&plan.nodes, near, topology);
    memory::plan(request, &order, topology, &mut plan);
    Ok(plan)
}

/// What occurs most often; of several, the lowest.
fn most_frequent(nodes: &[u32]) -> Option<u32> {
    let count = |node: u32| nodes.iter().filter(|other| **other == node).count();
    nodes.iter().copied().max_by_key(|&node| (count(node), std::cmp::Reverse(node)))
}

/// CPUs that anything may be planned on.
fn usable(topology: &Topology) -> CpuSet {
    let online = topology.online();
    online.iter().filter(|cpu| topology.allowed.contains(*cpu)).collect::<CpuSet>().without(&topology.isolated)
}

/// Where the rest of the process goes when `guest` is taken, and what that is to be known for.
fn beside(guest: &CpuSet, nodes: &[u32], topology: &Topology) -> (CpuSet, Option<String>) {
    let free = usable(topology).without(guest).without(&topology.taken);
    let on_node = |cpu: &u32| topology.cpu(*cpu).is_some_and(|cpu| nodes.contains(&cpu.node));
    let near: CpuSet = free.iter().filter(on_node).collect();
    match (near.is_empty(), free.is_empty()) {
        (false, _) => (near, None),
        (true, false) => (free, Some("no CPU of its memory node is left for the devices' interrupts".to_owned())),
        (true, true) => (
            guest.clone(),
            Some("no CPU is left to the host: its work and the devices' interrupts stop virtual CPUs".to_owned()),
        ),
    }
}

/// What the guest's idea of its cores has to do with the host's.
fn threads_note(request: &Request, vcpus: &[u32], topology: &Topology) -> Option<String> {
    let cores: CpuSet = vcpus.iter().filter_map(|cpu| topology.cpu(*cpu)).map(|cpu| cpu.core).collect();
    let shared = cores.len() < vcpus.len();
    match (request.threads, shared) {
        (0 | 1, true) => {
            let hint = if request.vcpus.is_multiple_of(2) {
                format!(": `--smp {},threads=2` shows it what they are", request.vcpus)
            } else {
                String::new()
            };
            Some(format!("the guest takes the threads of {} cores for {} cores{hint}", cores.len(), vcpus.len()))
        }
        (2.., false) => Some("the guest takes whole cores for threads: leave `threads=` out of --smp".to_owned()),
        _ => None,
    }
}
