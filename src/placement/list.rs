//! CPUs that the user lists. Nothing is better known than what the user wants: only what cannot be is refused.

use super::{Plan, Request, beside, threads_note};
use crate::error::{Code, Error, Result};
use crate::host::topology::{CpuSet, Topology};

pub(super) fn plan(request: &Request, list: &CpuSet, topology: &Topology) -> Result<Plan> {
    let online = topology.online();
    let absent = list.without(&online);
    let refused = |cause: String| {
        Error::new(Code::NoPlace, cause)
            .evidence(format!("--cpu-placement {list}"))
            .evidence(format!("online: {online}"))
            .fix("`passthru plan` with --cpu-placement auto shows what could be listed")
    };
    if !absent.is_empty() {
        return Err(refused(format!("the host has no CPU {absent} that is online")));
    }
    if list.len() < request.vcpus as usize {
        return Err(refused(format!("{} CPUs are listed for {} virtual CPUs", list.len(), request.vcpus)));
    }
    // Threads of a core side by side, as the guest numbers them.
    let mut cpus: Vec<u32> = list.iter().collect();
    cpus.sort_by_key(|cpu| (topology.cpu(*cpu).map_or(*cpu, |cpu| cpu.core), *cpu));
    let (vcpus, rest) = cpus.split_at(request.vcpus as usize);
    let mut nodes: Vec<u32> = vcpus.iter().filter_map(|cpu| topology.cpu(*cpu)).map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();

    let mut notes: Vec<String> = threads_note(request, vcpus, topology).into_iter().collect();
    let taken: CpuSet = list.iter().filter(|cpu| topology.taken.contains(*cpu)).collect();
    if !taken.is_empty() {
        notes.push(format!("another virtual machine is pinned to CPUs {taken}, too"));
    }
    let halves: CpuSet = vcpus
        .iter()
        .filter_map(|cpu| topology.cpu(*cpu))
        .flat_map(|cpu| topology.core(cpu.core).without(list).iter().collect::<Vec<_>>())
        .collect();
    if !halves.is_empty() {
        notes.push(format!("CPUs {halves}, threads of the same cores, stay with the host"));
    }
    let emulator = if rest.is_empty() {
        let (emulator, note) = beside(list, &nodes, topology);
        notes.extend(note);
        emulator
    } else {
        rest.iter().copied().collect()
    };
    let idle = CpuSet::default();
    Ok(Plan { vcpus: vcpus.to_vec(), idle, interrupts: emulator.clone(), emulator, nodes, notes, ..Plan::default() })
}
