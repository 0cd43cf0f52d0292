//! The device type `e1000e`.

use super::function::{E1000e, Ids};
use crate::device::{Cx, Plug};
use crate::error::{Code, Error, Result};
use crate::host::setting::Mac;
use crate::object::{Create, NetdevRef, TypeInfo, props};

/// The row of the table of device types.
pub static TYPE: TypeInfo<Plug, Cx> = TypeInfo::of::<E1000eType>();

props! {
    /// Network controller (Intel 82574L) on a network back end, for guests without virtio.
    pub struct E1000eProps {
        /// Its network back end
        netdev: NetdevRef,
        /// Its address; by default 52:54:00:12:34:56, and the next for the next device
        mac: Option<Mac>,
        /// Vendor of the subsystem that the guest is told
        #[name = "subsys_ven"]
        subsys_ven: u16 = "0x8086",
        /// The subsystem
        subsys: u16 = "0",
    }
}

struct E1000eType;

impl Create<Plug, Cx> for E1000eType {
    const NAME: &'static str = "e1000e";
    const GROUP: &'static str = "Network devices";
    const BUS: Option<&'static str> = Some("PCI");
    type Props = E1000eProps;

    fn create(props: E1000eProps, cx: &Cx) -> Result<Plug> {
        let netdev = cx.backends.netdevs.claim(props.netdev.as_str(), &cx.id)?;
        if netdev.daemon().is_some() {
            return Err(Error::new(
                Code::WrongBackend,
                format!("`{}` serves queues of virtio, which e1000e has not", netdev.name()),
            )
            .evidence(netdev.place())
            .fix("use virtio-net-pci, or another --netdev"));
        }
        let ids = Ids { subsystem_vendor: props.subsys_ven, subsystem: props.subsys };
        let mac = props.mac.unwrap_or_else(|| cx.backends.next_mac()).0;
        Ok(Plug::function(E1000e::new(cx, netdev, mac, ids)?))
    }
}
