//! The leaves that tell a processor where it is: Intel SDM volume 2, CPUID leaves 1, 4, 0xB and 0x1F; AMD APM volume 3,
//! appendix E, functions 0x8000_0001, 0x8000_0008, 0x8000_001D and 0x8000_001E.

use super::leaves::Leaves;
use super::{CMP_LEGACY, HT, TOPOEXT, Vendor};
use crate::cpu::topology::Topology;

/// Level types of leaf 0xB, in ECX bits 15 to 8.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What is the same for every processor of the machine.
pub(super) fn describe(leaves: &mut Leaves, vendor: Vendor, topology: &Topology) {
    let per_socket = topology.per_socket();
    leaves.switch(HT, per_socket > 1);
    if let Some(one) = leaves.get_mut(1, 0) {
        // Intel counts the ids that the package can hold, AMD the processors that are there. 8 bits.
        let count = if vendor == Vendor::Amd { per_socket } else { 1 << topology.socket_shift() };
        one.ebx = one.ebx & 0xff00_ffff | count.min(255) << 16;
    }
    // Host values would name the host's arrangement. AMD has 0x8000_0026 in place of 0x1F.
    let max_basic = leaves.get(0, 0).map_or(0, |zero| zero.eax);
    for leaf in [0xb, 0x1f, 0x8000_001e, 0x8000_0026] {
        leaves.remove(leaf);
    }
    extended_topology(leaves, 0xb, topology);
    if max_basic >= 0x1f && vendor != Vendor::Amd {
        extended_topology(leaves, 0x1f, topology);
    }
    if let Some(zero) = leaves.get_mut(0, 0) {
        zero.eax = max_basic.max(0xb);
    }
    match vendor {
        Vendor::Amd => describe_amd(leaves, topology),
        Vendor::Intel | Vendor::Other => {
            let cores = 1 << (topology.socket_shift() - topology.core_shift());
            for cache in leaves.all_mut(4).filter(|cache| cache.eax & 0x1f != 0) {
                let sharing = sharing(cache.eax, topology);
                cache.eax = cache.eax & 0x3fff | (sharing - 1) << 14 | (cores - 1).min(63) << 26;
            }
        }
    }
}

fn describe_amd(leaves: &mut Leaves, topology: &Topology) {
    let per_socket = topology.per_socket();
    leaves.switch(CMP_LEGACY, per_socket > 1);
    if let Some(sizes) = leaves.get_mut(0x8000_0008, 0) {
        sizes.ecx = (per_socket - 1) | topology.socket_shift() << 12;
    }
    for cache in leaves.all_mut(0x8000_001d).filter(|cache| cache.eax & 0x1f != 0) {
        cache.eax = cache.eax & 0x3fff | (sharing(cache.eax, topology) - 1) << 14;
    }
}

/// Leaf 0xB and 0x1F: one subleaf for threads, one for cores, and an empty one that ends the list.
fn extended_topology(leaves: &mut Leaves, leaf: u32, topology: &Topology) {
    leaves.set(leaf, Some(0), [topology.core_shift(), topology.threads(), LEVEL_THREAD << 8, 0]);
    leaves.set(leaf, Some(1), [topology.socket_shift(), topology.per_socket(), LEVEL_CORE << 8 | 1, 0]);
    leaves.set(leaf, Some(2), [0, 0, 2, 0]);
}

/// How many APIC ids share a cache, from EAX of its description: caches of level 1 and 2 belong to a core, others to the
/// socket. Linux derives the cache's number from ids, so ids in gaps count.
fn sharing(eax: u32, topology: &Topology) -> u32 {
    match eax >> 5 & 7 {
        1 | 2 => 1 << topology.core_shift(),
        _ => 1 << topology.socket_shift(),
    }
}

/// What is different for each processor.
pub(super) fn number(leaves: &mut Leaves, topology: &Topology, apic_id: u32) {
    if let Some(one) = leaves.get_mut(1, 0) {
        one.ebx = one.ebx & 0x00ff_ffff | apic_id << 24;
    }
    for leaf in [0xb, 0x1f] {
        leaves.all_mut(leaf).for_each(|level| level.edx = apic_id);
    }
    if leaves.has(TOPOEXT) {
        let core = topology.core_of(apic_id) | (topology.threads() - 1) << 8;
        // One memory node in each socket.
        let node = topology.socket_of(apic_id);
        leaves.set(0x8000_001e, None, [apic_id, core, node, 0]);
    }
}
