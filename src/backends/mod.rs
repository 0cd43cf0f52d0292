//! The host's side of emulated devices. A back end knows no device.

pub mod block;
pub mod chardev;
pub mod net;
pub mod table;
pub mod unix_listener;

use std::sync::Arc;

use block::BlockNode;
use chardev::Chardev;
use net::Netdev;
use table::Table;

use crate::event_loop::LoopHandle;
use crate::object::Kind;

/// The back ends of one machine.
pub struct Backends {
    /// Those of `--chardev`.
    pub chardevs: Arc<Table<dyn Chardev>>,
    /// Those of `--blockdev`.
    pub nodes: Arc<Table<dyn BlockNode>>,
    /// Those of `--netdev`.
    pub netdevs: Arc<Table<dyn Netdev>>,
}

impl Default for Backends {
    fn default() -> Self {
        let chardevs = Table::new(Kind::Chardev);
        Backends { chardevs, nodes: Table::new(Kind::Node), netdevs: Table::new(Kind::Netdev) }
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
