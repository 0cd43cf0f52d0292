//! Queues that somebody else serves: a daemon ([`user`]) or the kernel. passthru negotiates, and says where guest memory
//! and rings are; then kicks go from KVM to the other side, and interrupts from there to KVM, without it.
//!
//! | file | what |
//! |---|---|
//! | [`memory`] | the table of the guest's memory |
//! | [`calls`] | the eventfds by which the other side interrupts the guest |
//! | [`kernel`] | vhost-net: threads of the kernel |
//! | [`user`] | vhost-user: the protocol, the devices, and what happens when a daemon goes and comes |
//!
//! Locks: a vhost-user device's state is locked inside the transport's lock or the memory map's layout lock, or by its own
//! thread with nothing held. Messages are sent with it, each batch within a deadline; nothing of the map or of the
//! transport is called with it.

pub mod calls;
pub mod kernel;
pub mod memory;
pub mod user;

use std::sync::Arc;

use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::VirtQueue;
use crate::kvm::doorbells::duplicate;

/// Why the other side does not do what it is told, for people.
pub type Failure = String;

/// What a library's error is, for people.
fn said(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Gives a queue to the other side: its size and place, where in the ring to begin, and its eventfds. `address` says by
/// which address the other side finds what is at a guest address.
fn hand_over(
    back_end: &impl VhostBackend,
    index: usize,
    queue: &Arc<VirtQueue>,
    call: &EventFd,
    address: impl Fn(u64, u64) -> Option<u64>,
) -> Result<(), Failure> {
    let rings = queue.rings();
    let size = u64::from(rings.size);
    let outside = || format!("the rings of queue {index} are not in memory that is shared");
    let config = VringConfigData {
        queue_max_size: rings.size,
        queue_size: rings.size,
        flags: 0,
        desc_table_addr: address(rings.descriptors, 16 * size).ok_or_else(outside)?,
        avail_ring_addr: address(rings.available, 6 + 2 * size).ok_or_else(outside)?,
        used_ring_addr: address(rings.used, 6 + 8 * size).ok_or_else(outside)?,
        log_addr: None,
    };
    back_end.set_vring_num(index, rings.size).map_err(said)?;
    back_end.set_vring_base(index, queue.position()).map_err(said)?;
    back_end.set_vring_addr(index, &config).map_err(said)?;
    back_end.set_vring_call(index, call).map_err(said)?;
    // The last: it starts the queue.
    back_end.set_vring_kick(index, &duplicate(queue.kick()).map_err(said)?).map_err(said)
}
