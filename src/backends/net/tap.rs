//! The network back end `tap`: an interface of the host whose other end is the guest's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{BackendCx, HEADER, MAX_PAIRS, NetQueue, Netdev, Offloads, Sent, tun};
use crate::error::{Code, Error, Result, explain_io};
use crate::host::{Host, inherited, link};
use crate::object::{Create, Int, Invalid, PropValue, TypeInfo, prop_enum, props};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<TapType>();

/// The device that taps are made with.
const NODE: &str = "/dev/net/tun";
/// What a descriptor that the user names has to be.
const WANTED: &str = "an open tap or macvtap";
/// The name under which the kernel takes the next free number.
const NEXT: &str = "tap%d";

props! {
    /// An interface of the host, which is made unless it is there.
    struct TapProps {
        /// Name of the interface; by default a new one, `tap` with the next free number
        ifname: Option<Interface>,
        /// Bridge of the host that it is put on
        br: Option<Interface>,
        /// Descriptor of a tap or macvtap (/dev/tapN) that passthru was started with, instead of ifname
        fd: Option<Descriptor>,
        /// Several of them, which are its queues: 3:4:5
        fds: Option<Descriptors>,
        /// Pairs of queues, one by default; each is served by a thread, and the guest has to use them
        queues: Option<Int<1, MAX_PAIRS>>,
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

/// The number of a descriptor that passthru was started with.
type Descriptor = Int<3, { i32::MAX as u64 }>;

/// Several numbers of descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Descriptors(Vec<RawFd>);

impl PropValue for Descriptors {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let numbers: Result<Vec<RawFd>, Invalid> =
            text.split(':').map(|number| Descriptor::parse(number).map(|number| number.get() as RawFd)).collect();
        match numbers {
            Ok(numbers) if numbers.len() as u64 <= MAX_PAIRS => Ok(Descriptors(numbers)),
            _ => Err(Invalid::expected("numbers from 3 on, separated by colons")),
        }
    }
}

/// Where the queues come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// An interface by its name.
    Interface,
    /// Descriptors.
    Descriptors(Vec<RawFd>),
}

fn source(props: &TapProps) -> Result<Source> {
    let numbers = match (&props.fd, &props.fds) {
        (None, None) => return Ok(Source::Interface),
        (Some(fd), None) => vec![fd.get() as RawFd],
        (None, Some(fds)) => fds.0.clone(),
        (Some(_), Some(_)) => return Err(Error::new(Code::BadProperty, "fd= and fds= exclude each other")),
    };
    if props.ifname.is_some() || props.br.is_some() || props.queues.is_some() {
        return Err(Error::new(Code::BadProperty, "fd= and fds= exclude ifname=, br= and queues=")
            .fix("whoever opened the interface has named it and put it on its bridge: leave them out"));
    }
    Ok(Source::Descriptors(numbers))
}

struct TapType;

impl Create<Arc<dyn Netdev>, BackendCx> for TapType {
    const NAME: &'static str = "tap";
    const GROUP: &'static str = "Network back ends";
    type Props = TapProps;

    fn check(props: &TapProps) -> Result<()> {
        source(props).map(drop)
    }

    fn create(props: TapProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        Ok(Arc::new(match source(&props)? {
            Source::Interface => Tap::open(&props)?,
            Source::Descriptors(numbers) => Tap::inherit(&numbers, props.vhost)?,
        }))
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
        let count = props.queues.map_or(1, Int::get);
        let mut name = props.ifname.as_ref().map_or(NEXT, |name| &name.0).to_owned();
        // One that is there and has several queues is opened so, even if the guest gets one of them.
        let several = count > 1 || flags(&name).is_some_and(tun::Flags::several);
        let mut queues: Vec<Arc<Queue>> = Vec::new();
        for index in 0..count {
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
        Ok(Tap::of(name, queues, props.vhost))
    }

    /// Of descriptors that passthru was started with, all of one interface, which is left as it is.
    fn inherit(numbers: &[RawFd], vhost: bool) -> Result<Tap> {
        let host = Host::real();
        let mut interface: Option<String> = None;
        let mut queues = Vec::new();
        for number in numbers.iter().copied() {
            inherited::device_folder(&host, number, WANTED)?;
            let file = inherited::take(number)?;
            let not = |evidence: String| inherited::bad(number, WANTED).evidence(evidence);
            let (name, flags) = tun::interface(&file).map_err(|error| not(explain_io(&error)))?;
            if !flags.framed() {
                return Err(not(format!("{name} has no header before its packets"))
                    .fix(format!("open it with IFF_VNET_HDR and IFF_NO_PI: ip tuntap add {name} mode tap vnet_hdr")));
            }
            if let Some(first) = interface.replace(name.clone()).filter(|first| *first != name) {
                return Err(not(format!("it is of {name}, the one before of {first}")));
            }
            let queue = prepare(file, !queues.is_empty()).map_err(|error| not(explain_io(&error)))?;
            queues.push(Arc::new(queue));
        }
        Ok(Tap::of(interface.unwrap_or_default(), queues, vhost))
    }

    fn of(name: String, queues: Vec<Arc<Queue>>, vhost: bool) -> Tap {
        let pairs = queues.iter().map(|queue| queue.clone() as Arc<dyn NetQueue>).collect();
        Tap { name, queues, pairs, vhost }
    }
}

/// What an interface of the host is, if it is a tap.
fn flags(name: &str) -> Option<tun::Flags> {
    tun::Flags::parse(&std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("tun_flags")).ok()?)
}

/// A descriptor that somebody else has opened, as a queue. `further`: the guest uses the first until it asks for more.
fn prepare(file: File, further: bool) -> io::Result<Queue> {
    let status = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(status | OFlag::O_NONBLOCK))?;
    tun::set_header(&file)?;
    tun::set_offloads(&file, Offloads::empty())?;
    if further {
        tun::set_queue(&file, false)?;
    }
    Queue::new(file)
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

    fn send(&self, packet: &[u8]) -> io::Result<Sent> {
        match (&self.file).write(packet) {
            Ok(_) => Ok(Sent::Taken),
            // EIO: the interface is down. EINVAL: the guest's header contradicts the packet. Either loses the packet.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EINTR | libc::EBADFD | libc::EIO | libc::EINVAL)
                ) =>
            {
                Ok(Sent::Taken)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Props;

    fn props(text: &str) -> Result<TapProps> {
        let mut args = crate::object::Args::parse("--netdev", None, text)?;
        let props = TapProps::parse(&mut args)?;
        args.finish()?;
        Ok(props)
    }

    #[test]
    fn where_queues_come_from() {
        let numbers = |text: &str| source(&props(text).unwrap()).map_err(|error| error.to_string());
        assert_eq!(numbers("ifname=tap0,br=br0,queues=2"), Ok(Source::Interface));
        assert_eq!(numbers("fd=3"), Ok(Source::Descriptors(vec![3])));
        assert_eq!(numbers("fds=3:4:17"), Ok(Source::Descriptors(vec![3, 4, 17])));
        for text in ["fd=3,fds=4", "fd=3,ifname=tap0", "fds=3:4,queues=2", "fd=3,br=br0"] {
            assert!(numbers(text).unwrap_err().contains("exclude"), "{text}");
        }
        for text in ["fd=2", "fds=3:", "fds=", "fds=3,4"] {
            assert!(props(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_descriptor_has_to_be_a_tap() {
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        fcntl(&null, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let error = Tap::inherit(&[std::os::fd::IntoRawFd::into_raw_fd(null)], false).err().unwrap();
        assert_eq!(error.code(), Code::BadDescriptor);
        assert!(error.to_string().contains("tap or macvtap"), "{error}");
    }

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
