//! What a physical function's driver is told about its virtual functions, by rtnetlink (kernel:
//! net/core/rtnetlink.c, `do_setvfinfo`; include/uapi/linux/if_link.h, IFLA_VF_*). One request and its answer at a time,
//! on a blocking socket.

use std::io;
use std::path::Path;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac, VfInfoSpoofCheck, VfInfoTrust,
    VfInfoVlan,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Mac, VfAttribute};

/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;

/// What a virtual function is, in the order of the attributes.
pub type VfState = Vec<VfAttribute>;

/// What the driver of the interface in the sysfs folder `interface` says about its virtual function `number`.
pub fn vf_state(interface: &Path, number: u32) -> io::Result<VfState> {
    let mut link = link_of(interface)?;
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]));
    for answer in ask(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        for attribute in link.attributes {
            let LinkAttribute::VfInfoList(all) = attribute else { continue };
            let state = all.iter().map(|LinkVfInfo(infos)| state_of(infos, number)).find(|state| !state.is_empty());
            return state.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// What is understood of one function's attributes; empty: it is another function.
fn state_of(infos: &[VfInfo], number: u32) -> VfState {
    let known = infos.iter().filter_map(|info| match info {
        VfInfo::Mac(mac) if mac.vf_id == number => {
            let bytes: [u8; MAC_BYTES] = mac.mac.first_chunk().copied()?;
            Some(VfAttribute::Mac(Mac(bytes)))
        }
        VfInfo::Vlan(vlan) if vlan.vf_id == number => {
            let id = u16::try_from(vlan.vlan_id).ok()?;
            Some(VfAttribute::Vlan { id, priority: u8::try_from(vlan.qos).ok()? })
        }
        VfInfo::SpoofCheck(check) if check.vf_id == number => Some(VfAttribute::SpoofCheck(check.enabled)),
        VfInfo::Trust(trust) if trust.vf_id == number => Some(VfAttribute::Trust(trust.enabled)),
        _ => None,
    });
    known.collect()
}

/// Tells the driver of an interface what its virtual function `number` is to be.
pub fn set_vf(interface: &Path, number: u32, attribute: VfAttribute) -> io::Result<()> {
    let info = match attribute {
        VfAttribute::Mac(Mac(bytes)) => VfInfo::Mac(VfInfoMac::new(number, &bytes)),
        VfAttribute::Vlan { id, priority } => VfInfo::Vlan(VfInfoVlan::new(number, id.into(), priority.into())),
        VfAttribute::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, on)),
        VfAttribute::Trust(on) => VfInfo::Trust(VfInfoTrust::new(number, on)),
    };
    let mut link = link_of(interface)?;
    link.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]));
    ask(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// A message about the interface, by its number: its name could change in between.
pub(in crate::host) fn link_of(interface: &Path) -> io::Result<LinkMessage> {
    let text = std::fs::read_to_string(interface.join("ifindex"))?;
    let mut link = LinkMessage::default();
    link.header.index = text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(link)
}

/// One request, and what the kernel answers to it.
pub(in crate::host) fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    // One datagram answers either: the link, or the acknowledgement.
    let (answer, _) = socket.recv_from_full()?;
    parse(&answer)
}

/// The messages of a datagram, or the error in it.
fn parse(mut bytes: &[u8]) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map_err(io::Error::other)?;
        // Messages begin at multiples of 4 bytes; a length of nothing would never end.
        let length = (message.header.length as usize).max(1).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(inner) => all.push(inner),
            _ => {}
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_function_that_is_meant_is_read() {
        let infos = [
            VfInfo::Mac(VfInfoMac::new(1, &[2, 0, 0, 0, 0, 1])),
            VfInfo::Vlan(VfInfoVlan::new(1, 7, 3)),
            VfInfo::SpoofCheck(VfInfoSpoofCheck::new(1, true)),
            VfInfo::Trust(VfInfoTrust::new(1, false)),
        ];
        let wanted = [
            VfAttribute::Mac(Mac([2, 0, 0, 0, 0, 1])),
            VfAttribute::Vlan { id: 7, priority: 3 },
            VfAttribute::SpoofCheck(true),
            VfAttribute::Trust(false),
        ];
        assert_eq!(state_of(&infos, 1), wanted);
        assert!(state_of(&infos, 0).is_empty());
    }

    /// The kernel answers for the interface that every machine has, which has no virtual functions.
    #[test]
    fn the_kernel_is_asked() {
        let refused = vf_state(Path::new("/sys/class/net/lo"), 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP), "{refused}");
        assert!(vf_state(Path::new("/nonexistent"), 0).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
