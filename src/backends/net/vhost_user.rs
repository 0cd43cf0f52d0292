//! The network back end `vhost-user`: a daemon that serves the device's queues itself, such as passt or a switch of DPDK's.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{BackendCx, MAX_PAIRS, NetQueue, Netdev, Offloads, Sent};
use crate::error::{Error, Result};
use crate::object::{Create, Int, Kind, Refers, TypeInfo, props, reference};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<VhostUserType>();

reference! {
    /// The id of the socket of a daemon.
    pub struct SocketRef(Refers { kind: Kind::Chardev, types: &["socket"], shared: false });
}

props! {
    /// A daemon that serves the network device's queues itself.
    struct VhostUserProps {
        /// The socket of the daemon
        chardev: SocketRef,
        /// Pairs of queues
        queues: Int<1, MAX_PAIRS> = "1",
        /// QEMU's word: without effect, there is no other way to serve them
        vhostforce: bool = "on",
    }
}

struct VhostUserType;

impl Create<Arc<dyn Netdev>, BackendCx> for VhostUserType {
    const NAME: &'static str = "vhost-user";
    const GROUP: &'static str = "Network back ends";
    type Props = VhostUserProps;

    fn create(props: VhostUserProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        let idle: Arc<dyn NetQueue> = Arc::new(Idle(Arc::new(never.into())));
        let pairs = (0..props.queues.get()).map(|_| idle.clone()).collect();
        Ok(Arc::new(VhostUser { chardev: props.chardev, pairs }))
    }
}

/// The name of a daemon; the device talks to it.
struct VhostUser {
    chardev: SocketRef,
    pairs: Vec<Arc<dyn NetQueue>>,
}

impl Netdev for VhostUser {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.pairs
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_pairs(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn place(&self) -> String {
        format!("vhost-user {}", self.chardev.as_str())
    }

    fn daemon(&self) -> Option<&str> {
        Some(self.chardev.as_str())
    }
}

/// A queue that is served elsewhere: nothing comes, and nothing can be sent.
struct Idle(Arc<OwnedFd>);

impl NetQueue for Idle {
    fn watch(&self) -> &Arc<OwnedFd> {
        &self.0
    }

    fn receive(&self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn send(&self, _: &[u8]) -> io::Result<Sent> {
        Ok(Sent::Taken)
    }
}
