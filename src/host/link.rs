//! Network interfaces of the host: switched on, put on a bridge (rtnetlink, RTM_SETLINK).

use std::io;
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::setting::netlink::{ask, link_of};

/// The interface's folder in sysfs.
fn folder(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

/// Switches an interface on, unless it is.
///
/// # Errors
/// The kernel refuses: EPERM for who may not.
pub fn up(name: &str) -> io::Result<()> {
    let mut link = link_of(&folder(name))?;
    if is_up(name) {
        return Ok(());
    }
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    set(link)
}

/// Puts an interface on a bridge, unless it is there.
///
/// # Errors
/// ENODEV if there is no such bridge; the kernel refuses.
pub fn join(name: &str, bridge: &str) -> io::Result<()> {
    let controller = link_of(&folder(bridge)).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?.header.index;
    if std::fs::read_link(folder(name).join("master")).is_ok_and(|master| master.ends_with(bridge)) {
        return Ok(());
    }
    let mut link = link_of(&folder(name))?;
    link.attributes.push(LinkAttribute::Controller(controller));
    set(link)
}

fn is_up(name: &str) -> bool {
    let flags = std::fs::read_to_string(folder(name).join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    flags & LinkFlags::Up.bits() != 0
}

fn set(link: LinkMessage) -> io::Result<()> {
    ask(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked() {
        up("lo").unwrap();
        assert_eq!(join("lo", "no-such-bridge").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(up("no-such-link").is_err());
    }
}
