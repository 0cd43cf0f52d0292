//! The host's side of emulated devices. A back end knows no device.

pub mod block;
pub mod chardev;
pub mod entropy;
pub mod memory;
pub mod net;
pub mod table;
pub mod unix_listener;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use block::{BlockNode, throttle};
use chardev::Chardev;
use net::Netdev;
use table::Table;

use crate::event_loop::LoopHandle;
use crate::host::setting::Mac;
use crate::memory::HostMem;
use crate::object::Kind;

/// The back ends of one machine.
pub struct Backends {
    /// Those of `--chardev`.
    pub chardevs: Arc<Table<dyn Chardev>>,
    /// Those of `--blockdev`.
    pub nodes: Arc<Table<dyn BlockNode>>,
    /// Limits that nodes share: `--object throttle-group`.
    pub throttles: Arc<Table<throttle::Group>>,
    /// Sources of random numbers: `--object rng-*`.
    pub entropies: Arc<Table<File>>,
    /// Memory that devices show: `--object memory-backend-*`.
    pub memories: Arc<Table<HostMem>>,
    /// Those of `--netdev`.
    pub netdevs: Arc<Table<dyn Netdev>>,
    /// How many network devices were given an address.
    macs: AtomicU8,
}

impl Backends {
    /// The address of a network device whose user gave none: QEMU's, counted up.
    pub fn next_mac(&self) -> Mac {
        let count = self.macs.fetch_add(1, Ordering::Relaxed);
        Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56_u8.wrapping_add(count)])
    }
}

impl Default for Backends {
    fn default() -> Self {
        Backends {
            chardevs: Table::new(Kind::Chardev),
            nodes: Table::new(Kind::Node),
            throttles: Table::new(Kind::Object),
            entropies: Table::new(Kind::Object),
            memories: Table::new(Kind::Object),
            netdevs: Table::new(Kind::Netdev),
            macs: AtomicU8::new(0),
        }
    }
}

/// What making a back end needs.
pub struct BackendCx {
    /// The name that the user gave.
    pub name: Arc<str>,
    /// The main loop, which moves what comes from outside.
    pub event_loop: LoopHandle,
    /// The back ends that there are already, which a new one may stand on.
    pub backends: Arc<Backends>,
}
