//! The device type `virtio-net-pci`: its properties, and how one is made of them.

use super::Net;
use super::config::Shape;
use super::path::Path;
use crate::backends::net::Offloads;
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::host::setting::Mac;
use crate::object::{Create, Int, NetdevRef, TypeInfo};
use crate::virtio::pci::{self, virtio_props};

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<NetType>();

virtio_props! {
    /// A network device on a network back end.
    struct NetProps {
        /// Its network back end
        netdev: NetdevRef,
        /// Its address; by default 52:54:00:12:34:56, and the next for the next device
        mac: Option<Mac>,
        /// MTU that the guest is told
        #[name = "host_mtu"]
        host_mtu: Option<Int<68, 65535>>,
        /// Several pairs of queues, as many as the back end has
        mq: bool = "off",
        /// Descriptors of a queue to the guest; a power of two
        #[name = "rx_queue_size"]
        rx_queue_size: Int<64, 1024> = "256",
        /// Offer that packets lie in several of the guest's buffers
        #[name = "mrg_rxbuf"]
        mrg_rxbuf: bool = "on",
        /// Offer that the other side computes checksums
        csum: bool = "on",
        /// Offer that segments of TCP are longer than the MTU, and cut by who needs them cut
        gso: bool = "on",
    }
}

struct NetType;

impl Create<Plug, Cx> for NetType {
    const NAME: &'static str = "virtio-net-pci";
    const GROUP: &'static str = "Network devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = NetProps;

    fn check(props: &NetProps) -> Result<()> {
        if !props.rx_queue_size.get().is_power_of_two() {
            return Err(Error::new(Code::BadProperty, "rx_queue_size is a power of two"));
        }
        props.pci().check()
    }

    fn create(props: NetProps, cx: &Cx) -> Result<Plug> {
        let netdev = cx.backends.netdevs.claim(props.netdev.as_str(), &cx.id)?;
        let pairs = if props.mq { netdev.pairs().len() } else { 1 };
        let offloads = match (props.csum, props.gso) {
            (true, true) => Offloads::all(),
            (true, false) => Offloads::CSUM,
            // A segment that is cut gets its checksum only then.
            (false, _) => Offloads::empty(),
        };
        let shape = Shape {
            mac: props.mac.unwrap_or_else(|| cx.backends.next_mac()).0,
            mtu: props.host_mtu.map(|mtu| mtu.get() as u16),
            pairs: pairs as u16,
            queue_size: props.rx_queue_size.get() as u16,
            mergeable: props.mrg_rxbuf,
            offloads,
        };
        let options = props.pci();
        let path = Path::of(&netdev, &shape, cx)?;
        pci::plug(Net::new(cx.id.clone(), netdev, shape, path), &options, cx)
    }
}
