//! The host's side of emulated devices. A back end knows no device.

pub mod block;
pub mod chardev;
pub mod entropy;
pub mod iothread;
pub mod memory;
pub mod net;
pub mod table;
pub mod unix_listener;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use block::{BlockNode, throttle};
use chardev::Chardev;
use iothread::IoThread;
use net::Netdev;
use table::Table;

use crate::error::Result;
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
    /// Threads that serve several devices: `--object iothread`.
    pub iothreads: Arc<Table<IoThread>>,
    /// Memory that devices show: `--object memory-backend-*`.
    pub memories: Arc<Table<HostMem>>,
    /// Those of `--netdev`.
    pub netdevs: Arc<Table<dyn Netdev>>,
    /// How many network devices were given an address.
    macs: AtomicU8,
}

impl Backends {
    /// Takes an object out that nobody uses.
    ///
    /// # Errors
    /// [`crate::error::Code::UnknownObject`], [`crate::error::Code::BackendInUse`].
    pub fn remove_object(&self, id: &str) -> Result<()> {
        let tables: [&dyn Objects; 4] = [&*self.throttles, &*self.entropies, &*self.iothreads, &*self.memories];
        let of_id = tables.iter().find(|table| table.has(id));
        of_id.unwrap_or(&tables[0]).discard(id)
    }

    /// The address of a network device whose user gave none: QEMU's, counted up.
    pub fn next_mac(&self) -> Mac {
        let count = self.macs.fetch_add(1, Ordering::Relaxed);
        Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56_u8.wrapping_add(count)])
    }
}

/// A table of objects, whatever they are.
trait Objects {
    fn has(&self, id: &str) -> bool;
    fn discard(&self, id: &str) -> Result<()>;
}

impl<T> Objects for Table<T> {
    fn has(&self, id: &str) -> bool {
        self.list().iter().any(|object| &*object.name == id)
    }

    fn discard(&self, id: &str) -> Result<()> {
        self.remove(id).map(drop)
    }
}

impl Default for Backends {
    fn default() -> Self {
        Backends {
            chardevs: Table::new(Kind::Chardev),
            nodes: Table::new(Kind::Node),
            throttles: Table::new(Kind::Object),
            entropies: Table::new(Kind::Object),
            iothreads: Table::new(Kind::Object),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::Code;

    #[test]
    fn an_object_goes_when_its_user_has_gone() {
        let backends = Backends::default();
        let source = entropy::open(Path::new(entropy::KERNEL)).unwrap();
        backends.entropies.add("r0".into(), "rng-random", Arc::new(source), true).unwrap();
        let claim = backends.entropies.claim("r0", "rng0").unwrap();
        assert_eq!(backends.remove_object("r0").unwrap_err().code(), Code::BackendInUse);
        assert_eq!(backends.remove_object("r1").unwrap_err().code(), Code::UnknownObject);
        drop(claim);
        backends.remove_object("r0").unwrap();
        assert_eq!(backends.remove_object("r0").unwrap_err().code(), Code::UnknownObject);
    }
}
