//! The network back end `tap`: an interface of the host whose other end is the guest's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::{BackendCx, HEADER, MAX_PAIRS, NetQueue, Netdev, Offloads, tun};
use crate::error::{Code, Error, Result, explain_io};
use crate::host::link;
use crate::object::{Create, Int, Invalid, PropValue, TypeInfo, prop_enum, props};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<TapType>();

/// The device that taps are made with.
const NODE: &str = "/dev/net/tun";
/// The name under which the kernel takes the next free number.
const NEXT: &str = "tap%d";

props! {
    /// An interface of the host, which is made unless it is there.
    struct TapProps {
        /// Name of the interface; by default a new one, `tap` with the next free number
        ifname: Option<Interface>,
        /// Bridge of the host that it is put on
        br: Option<Interface>,
        /// Pairs of queues; each is served by a thread, and the guest has to use them
        queues: Int<1, MAX_PAIRS> = "1",
        /// Let threads of the kernel move the packets (vhost-net): no thread of ours, no system call for a packet
        vhost: bool = "off",
        /// QEMU's word: no program is run, passthru switches the interface on itself
        script: NoScript = "no",
        /// QEMU's word: no program is run at the end
        downscript: NoScript = "no",
    }
}

prop_enum! {
    /// QEMU can run a program when a tap comes and goes.
    enum NoScript {
        /// None is run.
        No = "no",
    }
}

/// The name of an interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interface(String);

impl PropValue for Interface {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let well_formed = !text.is_empty()
            && text.len() < tun::NAME_BYTES
            && !matches!(text, "." | "..")
            && !text.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control());
        match well_formed {
            true => Ok(Interface(text.to_owned())),
            false => Err(Invalid::expected("the name of an interface, of at most 15 characters")),
        }
    }
}

struct TapType;

impl Create<Arc<dyn Netdev>, BackendCx> for TapType {
    const NAME: &'static str = "tap";
    const GROUP: &'static str = "Network back ends";
    type Props = TapProps;

    fn create(props: TapProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        Ok(Arc::new(Tap::open(&props)?))
    }
}

/// The interface, as long as passthru runs, or longer if somebody made it persistent.
struct Tap {
    name: String,
    queues: Vec<Arc<Queue>>,
    pairs: Vec<Arc<dyn NetQueue>>,
    vhost: bool,
}

impl Tap {
    fn open(props: &TapProps) -> Result<Tap> {
        let several = props.queues.get() > 1;
        let mut name = props.ifname.as_ref().map_or(NEXT, |name| &name.0).to_owned();
        let mut queues: Vec<Arc<Queue>> = Vec::new();
        for index in 0..props.queues.get() {
            let queue = open(&mut name, several).map_err(|error| refused(&error, &name, several))?;
            // The guest uses the first pair until it asks for more.
            if index > 0 {
                tun::set_queue(&queue, false).map_err(|error| refused(&error, &name, several))?;
            }
            queues.push(Arc::new(Queue::new(queue).map_err(|error| refused(&error, &name, several))?));
        }
        // An interface that somebody made for this user need not be touched, and may not.
        let prepared =
            props.br.as_ref().map_or(Ok(()), |bridge| link::join(&name, &bridge.0)).and_then(|()| link::up(&name));
        prepared.map_err(|error| {
            Error::new(
                Code::NetdevFailed,
                format!("the interface {name} cannot be switched on: {}", explain_io(&error)),
            )
            .evidence(props.br.as_ref().map_or_else(|| format!("tap {name}"), |bridge| format!("bridge {}", bridge.0)))
            .fix(format!("as root: ip tuntap add {name} mode tap user USER && ip link set {name} up"))
        })?;
        let pairs = queues.iter().map(|queue| queue.clone() as Arc<dyn NetQueue>).collect();
        Ok(Tap { name, queues, pairs, vhost: props.vhost })
    }
}

/// Opens one queue. `name` becomes what the kernel has made of it.
fn open(name: &mut String, several: bool) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(Path::new(NODE))?;
    *name = tun::attach(&file, name, several)?;
    tun::set_header(&file)?;
    // Until the guest's driver says what it can take.
    tun::set_offloads(&file, Offloads::empty())?;
    Ok(file)
}

fn refused(error: &io::Error, name: &str, several: bool) -> Error {
    let failed = Error::new(Code::NetdevFailed, format!("the tap `{name}` cannot be opened: {}", explain_io(error)))
        .evidence(format!("{NODE}, {name}"));
    let multi = if several { " multi_queue" } else { "" };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            failed.fix(format!("as root: ip tuntap add {name} mode tap{multi} user USER && ip link set {name} up"))
        }
        Some(libc::EINVAL) => failed.fix(format!("as root: ip tuntap add {name} mode tap vnet_hdr{multi}")),
        Some(libc::EBUSY) => failed.fix("another program has it open: use another interface, or queues= on both"),
        Some(libc::ENOENT | libc::ENODEV) => failed.fix("modprobe tun"),
        _ => failed,
    }
}

impl Netdev for Tap {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.pairs
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, on: Offloads) -> io::Result<()> {
        self.queues.iter().try_for_each(|queue| tun::set_offloads(&queue.file, on))
    }

    fn set_pairs(&self, count: usize) -> io::Result<()> {
        // The kernel answers EINVAL to a queue that is as it is asked to be.
        let switch = |(index, queue): (usize, &Arc<Queue>)| match tun::set_queue(&queue.file, index < count) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => Ok(()),
        };
        self.queues.iter().enumerate().skip(1).try_for_each(switch)
    }

    fn place(&self) -> String {
        format!("tap {}", self.name)
    }

    fn taps(&self) -> Vec<&File> {
        self.queues.iter().filter(|_| self.vhost).map(|queue| &queue.file).collect()
    }
}

/// A descriptor of the tap.
struct Queue {
    file: File,
    watch: Arc<OwnedFd>,
}

impl Queue {
    fn new(file: File) -> io::Result<Queue> {
        let watch = Arc::new(file.try_clone()?.into());
        Ok(Queue { file, watch })
    }
}

impl NetQueue for Queue {
    fn watch(&self) -> &Arc<OwnedFd> {
        &self.watch
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(into) {
            Ok(count) if count < HEADER => Ok(None),
            Ok(count) => Ok(Some(count)),
            // A queue that was detached says EBADFD.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EBADFD)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match (&self.file).write(packet) {
            Ok(_) => Ok(true),
            // EIO: the interface is down. EINVAL: the guest's header contradicts the packet. Either loses the packet.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EINTR | libc::EBADFD | libc::EIO | libc::EINVAL)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces() {
        for text in ["tap0", "br-lan", "a23456789012345"] {
            assert!(Interface::parse(text).is_ok(), "{text}");
        }
        for text in ["", "a234567890123456", "tap%d", "a/b", "a b", ".."] {
            assert!(Interface::parse(text).is_err(), "{text}");
        }
    }
}
