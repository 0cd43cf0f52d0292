//! The requests of /dev/net/tun (kernel: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h).

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use super::{HEADER, Offloads};

const TUN: c_uint = b'T' as c_uint;
ioctl_iow_nr!(TUNSETIFF, TUN, 202, c_int);
ioctl_ior_nr!(TUNGETIFF, TUN, 210, c_uint);
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, c_int);
ioctl_iow_nr!(TUNSETQUEUE, TUN, 217, c_int);

const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;
const TUN_F_TSO_ECN: u64 = 0x08;

/// Bytes of an interface's name, with its end (IFNAMSIZ).
pub const NAME_BYTES: usize = 16;

/// `struct ifreq`: a name and, of the union, what these requests use.
#[repr(C)]
#[derive(Default)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: i16,
    rest: [u16; 11],
}

impl InterfaceRequest {
    fn new(name: &str, flags: i16) -> io::Result<InterfaceRequest> {
        let mut request = InterfaceRequest { flags, ..Default::default() };
        // The last byte is the name's end.
        if name.len() >= NAME_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

fn result(returned: c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the open /dev/net/tun a queue of the tap `name`, which comes to be if it is not there; `tap%d` takes the next free
/// number. Gives its name.
pub fn attach(tun: &impl AsRawFd, name: &str, multi_queue: bool) -> io::Result<String> {
    let several = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    let mut request = InterfaceRequest::new(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several)?;
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `request` has the size and layout of.
    result(unsafe { ioctl_with_mut_ref(tun, TUNSETIFF(), &mut request) })?;
    Ok(request.name())
}

/// Name and flags of the interface that an open tap or macvtap is a queue of; EBADFD if it is none yet.
pub fn interface(tap: &impl AsRawFd) -> io::Result<(String, Flags)> {
    let mut request = InterfaceRequest::default();
    // SAFETY: the kernel writes one `struct ifreq`, which `request` has the size and layout of.
    result(unsafe { ioctl_with_mut_ref(tap, TUNGETIFF(), &mut request) })?;
    Ok((request.name(), Flags(request.flags)))
}

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(i16);

impl Flags {
    /// As sysfs has them: /sys/class/net/NAME/tun_flags.
    pub fn parse(text: &str) -> Option<Flags> {
        i16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok().map(Flags)
    }

    /// Whether it has several queues.
    pub fn several(self) -> bool {
        self.0 & IFF_MULTI_QUEUE != 0
    }

    /// Whether its packets are Ethernet frames behind a header, and nothing else.
    pub fn framed(self) -> bool {
        self.0 & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) == IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    }
}

/// Each packet has a header of [`HEADER`] bytes.
pub fn set_header(tap: &impl AsRawFd) -> io::Result<()> {
    let size = HEADER as c_int;
    // SAFETY: the kernel reads one int.
    result(unsafe { ioctl_with_ref(tap, TUNSETVNETHDRSZ(), &size) })
}

/// What the kernel may leave to the reader of the tap.
pub fn set_offloads(tap: &impl AsRawFd, on: Offloads) -> io::Result<()> {
    let table = [
        (Offloads::CSUM, TUN_F_CSUM),
        (Offloads::TSO4, TUN_F_TSO4),
        (Offloads::TSO6, TUN_F_TSO6),
        (Offloads::ECN, TUN_F_TSO_ECN),
    ];
    let bits = table.into_iter().filter(|(offload, _)| on.contains(*offload)).map(|(_, bit)| bit).sum();
    // SAFETY: the argument is a number, no address.
    result(unsafe { ioctl_with_val(tap, TUNSETOFFLOAD(), bits) })
}

/// Whether a queue of a tap with several gets packets.
pub fn set_queue(tap: &impl AsRawFd, on: bool) -> io::Result<()> {
    let request = InterfaceRequest::new("", if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE })?;
    // SAFETY: the kernel reads one `struct ifreq`, which `request` has the size and layout of.
    result(unsafe { ioctl_with_ref(tap, TUNSETQUEUE(), &request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<InterfaceRequest>(), size_of::<libc::ifreq>());
        assert_eq!(InterfaceRequest::new("tap0", 0).unwrap().name(), "tap0");
        assert!(InterfaceRequest::new("sixteen-letters-", 0).is_err());
        for (text, several, framed) in [("0x5102\n", true, true), ("0x5002", false, true), ("0x1002", false, false)] {
            let flags = Flags::parse(text).unwrap();
            assert_eq!((flags.several(), flags.framed()), (several, framed), "{text}");
        }
        assert_eq!(Flags::parse("tap"), None);
    }
}
