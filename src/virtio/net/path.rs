//! Who moves the packets of a network device.

use std::sync::Arc;

use super::config::{self, Shape};
use crate::backends::net::{Netdev, Offloads};
use crate::backends::table::Claim;
use crate::device::Cx;
use crate::error::Result;
use crate::virtio::vhost::kernel::KernelNet;
use crate::virtio::vhost::user::{Config, Shape as DaemonShape, VhostUser};
use crate::virtio::{VirtioDevice, feature};

/// Who moves them.
pub enum Path {
    /// Threads of ours.
    Threads,
    /// Threads of the kernel (`vhost=on`).
    Kernel(KernelNet),
    /// A daemon.
    Daemon(Arc<VhostUser>),
}

impl Path {
    /// As the back end has it.
    ///
    /// # Errors
    /// [`crate::error::Code::VhostNetFailed`]; those of [`VhostUser::new`].
    pub fn of(netdev: &Claim<dyn Netdev>, shape: &Shape, cx: &Cx) -> Result<Path> {
        if let Some(chardev) = netdev.daemon() {
            let chardev = cx.backends.chardevs.claim(chardev, &cx.id)?;
            let served = 2 * shape.pairs;
            let daemon = DaemonShape {
                device_type: super::TYPE_NETWORK,
                class: super::CLASS_ETHERNET,
                queues: served,
                served,
                queue_size: shape.queue_size,
                config: Config::Own(Vec::new()),
            };
            return Ok(Path::Daemon(VhostUser::new(cx.id.clone(), daemon, chardev, &cx.memory)?));
        }
        match netdev.taps().is_empty() {
            true => Ok(Path::Threads),
            false => KernelNet::new(cx.id.clone(), &cx.memory).map(Path::Kernel),
        }
    }

    /// What the device offers on it: what whoever moves packets knows, and what is the device's own.
    pub fn features(&self, shape: &Shape, back: Offloads) -> u64 {
        let wanted = config::features(shape, back);
        match self {
            Path::Threads => wanted,
            Path::Kernel(kernel) => wanted & (kernel.features() | !config::bit::MRG_RXBUF),
            Path::Daemon(daemon) => wanted & (daemon.info().features | config::OWN),
        }
    }

    /// What of rings and transport is known on it.
    pub fn ring_features(&self) -> u64 {
        match self {
            Path::Threads => u64::MAX,
            Path::Kernel(kernel) => kernel.features() | feature::VERSION_1,
            Path::Daemon(daemon) => daemon.ring_features(),
        }
    }
}
