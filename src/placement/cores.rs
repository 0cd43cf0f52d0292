//! `auto`: whole cores, chosen among all sets of cores that could do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, Request, beside, threads_note, usable};
use crate::error::{Code, Error, Result};
use crate::host::topology::{CoreKind, CpuSet, Topology};

/// A core of which every thread can be had.
#[derive(Debug, Clone)]
struct Core {
    /// Its threads.
    cpus: Vec<u32>,
    l3: u32,
    node: u32,
    kind: CoreKind,
    /// Whether it has the lowest CPU, which does most of the kernel's own work.
    boot: bool,
}

/// A set of cores to choose from: those below a cache, those of a node, or those of several.
struct Scope {
    nodes: Vec<u32>,
    l3: Option<u32>,
}

/// Which of the cores of a scope are taken.
struct Filter {
    kind: Option<CoreKind>,
    boot: bool,
}

pub(super) fn plan(request: &Request, near: Option<u32>, topology: &Topology) -> Result<Plan> {
    let cores = whole_cores(topology);
    let wanted = request.vcpus as usize;
    let far = |node: u32| near.map_or(0, |near| distance(topology, near, node));
    let hybrid = topology.is_hybrid();
    let boot_l3 = topology.cpus.first().map(|cpu| cpu.l3);

    let mut best = None;
    for scope in scopes(&cores, near, topology) {
        for filter in filters(hybrid) {
            let found: Vec<&Core> = cores.iter().filter(|core| scope.has(core) && filter.takes(core)).collect();
            let room: usize = found.iter().map(|core| core.cpus.len()).sum();
            if room < wanted {
                continue;
            }
            // What matters most comes first; false and small numbers are better.
            let key = (
                scope.nodes.len(),
                scope.nodes.iter().map(|node| far(*node)).sum::<u32>(),
                filter.kind.is_none(),
                filter.boot,
                scope.l3.is_none(),
                filter.kind == Some(CoreKind::Efficiency),
                Reverse(scope.l3.and_then(|l3| topology.l3_sizes.get(&l3)).copied().unwrap_or(0)),
                (scope.l3.is_some() && scope.l3 == boot_l3, room),
                found.first().map(|core| core.cpus.clone()),
            );
            if best.as_ref().is_none_or(|(other, _)| key < *other) {
                best = Some((key, found));
            }
        }
    }
    let Some((_, found)) = best else { return Err(no_place(wanted, &cores, topology)) };
    Ok(take(request, near, found, topology))
}

/// Takes as many of the cores as are needed.
fn take(request: &Request, near: Option<u32>, mut cores: Vec<&Core>, topology: &Topology) -> Plan {
    let far = |node: u32| near.map_or(0, |near| distance(topology, near, node));
    let mut room: BTreeMap<u32, usize> = BTreeMap::new();
    cores.iter().for_each(|core| *room.entry(core.l3).or_default() += core.cpus.len());
    // Cores with all of their threads first, so that pairs of the guest's are pairs; then the fewest caches.
    cores.sort_by_key(|core| {
        let threads = Reverse(core.cpus.len());
        (core.boot, core.kind, threads, far(core.node), core.node, Reverse(room[&core.l3]), core.l3, core.cpus[0])
    });
    let mut threads = 0;
    let taken: Vec<&Core> = cores
        .into_iter()
        .take_while(|core| {
            let more = threads < request.vcpus as usize;
            threads += core.cpus.len();
            more
        })
        .collect();
    let all: Vec<u32> = taken.iter().flat_map(|core| core.cpus.iter().copied()).collect();
    let (vcpus, idle) = all.split_at(all.len().min(request.vcpus as usize));
    let mut nodes: Vec<u32> = taken.iter().map(|core| core.node).collect::<BTreeSet<_>>().into_iter().collect();
    nodes.sort_by_key(|node| (far(*node), *node));
    let guest: CpuSet = all.iter().copied().collect();
    let (emulator, mut notes) = beside(&guest, &nodes, topology);
    let mut said: Vec<String> = threads_note(request, vcpus, topology).into_iter().collect();
    said.extend(shortcomings(near, &nodes, &taken, topology));
    said.extend(notes.take());
    Plan {
        vcpus: vcpus.to_vec(),
        idle: idle.iter().copied().collect(),
        interrupts: emulator.clone(),
        emulator,
        nodes,
        notes: said,
        ..Plan::default()
    }
}

/// Where the best plan that there is is not a good one.
fn shortcomings(near: Option<u32>, nodes: &[u32], taken: &[&Core], topology: &Topology) -> Vec<String> {
    let mut notes = Vec::new();
    let caches: BTreeSet<u32> = taken.iter().map(|core| core.l3).collect();
    let kinds: BTreeSet<CoreKind> = taken.iter().map(|core| core.kind).collect();
    if let [first, second, ..] = nodes {
        notes.push(format!("its CPUs are on several memory nodes, {first} and {second}: no single one has enough"));
    } else if caches.len() > 1 {
        notes.push(format!("its CPUs are below {} third-level caches: below one there are not enough", caches.len()));
    }
    if let (Some(near), Some(first)) = (near, nodes.first())
        && !nodes.contains(&near)
    {
        notes.push(format!(
            "its devices are on memory node {near}, where too few CPUs are free; its CPUs are on {first}"
        ));
    }
    if kinds.len() > 1 {
        notes.push("its CPUs are of both kinds, fast and small".to_owned());
    }
    if let Some(boot) = taken.iter().find(|core| core.boot) {
        notes.push(format!("it has CPU {}, on which the host's own work gathers", boot.cpus[0]));
    }
    if !topology.isolated.is_empty() {
        let isolated = &topology.isolated;
        notes.push(format!("CPUs {isolated} are isolated: only a list uses them, `--cpu-placement {isolated}`"));
    }
    notes
}

/// The cores of which every thread that is online is free.
fn whole_cores(topology: &Topology) -> Vec<Core> {
    let free = usable(topology).without(&topology.taken);
    let first = topology.cpus.first().map(|cpu| cpu.core);
    let mut cores: BTreeMap<u32, Core> = BTreeMap::new();
    for cpu in &topology.cpus {
        let boot = first == Some(cpu.core);
        let new = || Core { cpus: Vec::new(), l3: cpu.l3, node: cpu.node, kind: cpu.kind, boot };
        cores.entry(cpu.core).or_insert_with(new).cpus.push(cpu.id);
    }
    cores.into_values().filter(|core| core.cpus.iter().all(|cpu| free.contains(*cpu))).collect()
}

/// Below each cache, on each node, and on the nodes that are nearest to each other, as few as possible.
fn scopes(cores: &[Core], near: Option<u32>, topology: &Topology) -> Vec<Scope> {
    let caches: BTreeSet<(u32, u32)> = cores.iter().map(|core| (core.node, core.l3)).collect();
    let nodes: BTreeSet<u32> = cores.iter().map(|core| core.node).collect();
    let mut scopes: Vec<Scope> = caches.iter().map(|&(node, l3)| Scope { nodes: vec![node], l3: Some(l3) }).collect();
    let starts =
        near.filter(|near| nodes.contains(near)).map_or_else(|| nodes.iter().copied().collect(), |near| vec![near]);
    scopes.extend(nodes.iter().map(|node| Scope { nodes: vec![*node], l3: None }));
    for start in starts {
        let mut order: Vec<u32> = nodes.iter().copied().collect();
        order.sort_by_key(|node| (distance(topology, start, *node), *node));
        scopes.extend((2..=order.len()).map(|count| Scope { nodes: order[..count].to_vec(), l3: None }));
    }
    scopes
}

impl Scope {
    fn has(&self, core: &Core) -> bool {
        self.nodes.contains(&core.node) && self.l3.is_none_or(|l3| core.l3 == l3)
    }
}

fn filters(hybrid: bool) -> Vec<Filter> {
    let kinds: &[Option<CoreKind>] = match hybrid {
        true => &[Some(CoreKind::Performance), Some(CoreKind::Efficiency), None],
        // One kind, whatever it is called.
        false => &[Some(CoreKind::Performance), Some(CoreKind::Efficiency)],
    };
    kinds.iter().flat_map(|&kind| [false, true].map(|boot| Filter { kind, boot })).collect()
}

impl Filter {
    fn takes(&self, core: &Core) -> bool {
        self.kind.is_none_or(|kind| core.kind == kind) && (self.boot || !core.boot)
    }
}

/// How far a node is, by the firmware's table; the node itself is nearest, whatever that says.
pub(super) fn distance(topology: &Topology, from: u32, to: u32) -> u32 {
    match topology.node(from).and_then(|node| node.distances.get(&to)) {
        _ if from == to => 0,
        // Bounded, because distances are added up and the firmware may have said anything.
        Some(distance) => (*distance).clamp(1, 255),
        None => 255,
    }
}

fn no_place(wanted: usize, cores: &[Core], topology: &Topology) -> Error {
    let free: usize = cores.iter().map(|core| core.cpus.len()).sum();
    let online = topology.online();
    let error = Error::new(
        Code::NoPlace,
        format!("{wanted} virtual CPUs need as many of the host's, and {free} are free in whole cores"),
    )
    .evidence(if online.is_empty() { "sysfs shows no CPU".to_owned() } else { format!("online: {online}") });
    let why = [
        ("isolated", topology.isolated.clone()),
        ("not for this process", online.without(&topology.allowed).without(&topology.isolated)),
        ("pinned to by other virtual machines", topology.taken.clone()),
    ];
    why.iter()
        .filter(|(_, cpus)| !cpus.is_empty())
        .fold(error, |error, (why, cpus)| error.evidence(format!("{why}: {cpus}")))
        .fix("fewer virtual CPUs with --smp, or leave --cpu-placement out")
}
