//! The network back end `user`: the host's network without any privilege. The program passt translates between the
//! guest's packets and sockets of the host's; passthru starts it, and it ends with the socket between them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::frames::Framed;
use super::stream::Stream;
use super::{BackendCx, NetQueue, Netdev, Offloads};
use crate::error::{Code, Error, Result, explain_io};
use crate::object::{Create, Invalid, PropValue, TypeInfo, props};

/// The row of the table of network back ends.
pub static TYPE: TypeInfo<Arc<dyn Netdev>, BackendCx> = TypeInfo::of::<UserType>();

/// The program, found by PATH.
const PASST: &str = "passt";

props! {
    /// The host's network without any privilege, by the program passt.
    struct UserProps {
        /// Port of the host that leads into the guest: tcp::2222-:22 or udp:ADDRESS:5000-:5000
        hostfwd: Option<Forward>,
        /// Whether the guest may use IPv4
        ipv4: bool = "on",
        /// Whether the guest may use IPv6
        ipv6: bool = "on",
    }
}

/// A port of the host that leads into the guest, in QEMU's words: `PROTOCOL:[HOST]:PORT-[GUEST]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Forward {
    udp: bool,
    host: Option<std::net::IpAddr>,
    from: u16,
    to: u16,
}

impl PropValue for Forward {
    const KIND: &'static str = "str";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (protocol, rest) = text.split_once(':')?;
            let udp = match protocol {
                "tcp" | "" => false,
                "udp" => true,
                _ => return None,
            };
            let (host, guest) = rest.split_once('-')?;
            let (address, from) = host.rsplit_once(':')?;
            // The guest has one address, which passt gives it: there is nothing to choose.
            let to = guest.strip_prefix(':')?;
            let host = match address {
                "" => None,
                address => Some(address.trim_matches(['[', ']']).parse().ok()?),
            };
            Some(Forward { udp, host, from: from.parse().ok()?, to: to.parse().ok()? })
        };
        read().ok_or_else(|| Invalid::expected("tcp:[ADDRESS]:PORT-:PORT or udp:[ADDRESS]:PORT-:PORT"))
    }
}

/// What passt is started with, besides the socket.
fn words(props: &UserProps) -> Vec<String> {
    let mut words = vec!["--foreground".to_owned(), "--quiet".to_owned()];
    if !props.ipv6 {
        words.push("--ipv4-only".to_owned());
    }
    if !props.ipv4 {
        words.push("--ipv6-only".to_owned());
    }
    if let Some(Forward { udp, host, from, to }) = &props.hostfwd {
        let address = host.map(|host| format!("{host}/")).unwrap_or_default();
        words.push(if *udp { "--udp-ports" } else { "--tcp-ports" }.to_owned());
        words.push(format!("{address}{from}:{to}"));
    }
    words
}

struct UserType;

impl Create<Arc<dyn Netdev>, BackendCx> for UserType {
    const NAME: &'static str = "user";
    const GROUP: &'static str = "Network back ends";
    type Props = UserProps;

    fn check(props: &UserProps) -> Result<()> {
        if !props.ipv4 && !props.ipv6 {
            return Err(Error::new(Code::BadProperty, "a network without IPv4 and IPv6 is none"));
        }
        Ok(())
    }

    fn create(props: UserProps, _: &BackendCx) -> Result<Arc<dyn Netdev>> {
        let (queue, child) = start(&words(&props)).map_err(|error| {
            let failed = Error::new(
                Code::NetdevFailed,
                format!("the program {PASST} cannot be started: {}", explain_io(&error)),
            );
            match error.kind() {
                io::ErrorKind::NotFound => failed.fix("apt install passt"),
                _ => failed,
            }
        })?;
        let place = format!("{PASST}, process {}", child.id());
        Ok(Arc::new(User { stream: Stream::new(queue, place), child }))
    }
}

fn start(words: &[String]) -> io::Result<(Framed, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    // A program that another thread starts in this moment gets it, too, and keeps passt alive for as long as it runs: a
    // program that passthru starts is either short or a back end of the same guest's.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let child = Command::new(PASST)
        .args(words)
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok((Framed::new(ours.into())?, child))
}

/// passt with its socket.
struct User {
    stream: Stream,
    child: Child,
}

impl Drop for User {
    fn drop(&mut self) {
        // It would end by itself when the socket closes, which comes after this: nothing of it is lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Netdev for User {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        self.stream.pairs()
    }

    fn offloads(&self) -> Offloads {
        self.stream.offloads()
    }

    fn set_offloads(&self, on: Offloads) -> io::Result<()> {
        self.stream.set_offloads(on)
    }

    fn set_pairs(&self, count: usize) -> io::Result<()> {
        self.stream.set_pairs(count)
    }

    fn place(&self) -> String {
        self.stream.place()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Args, Props};

    #[test]
    fn forwards_are_passts_words() {
        for (text, expected) in [
            ("hostfwd=tcp::2222-:22", "--tcp-ports 2222:22"),
            ("hostfwd=udp:127.0.0.1:53-:5353", "--udp-ports 127.0.0.1/53:5353"),
            ("hostfwd=tcp:[::1]:80-:8080,ipv6=off", "--ipv4-only --tcp-ports ::1/80:8080"),
        ] {
            let props = UserProps::parse(&mut Args::parse("--netdev", None, text).unwrap()).unwrap();
            assert_eq!(words(&props)[2..].join(" "), expected);
        }
        for text in ["tcp:2222:22", "icmp::1-:1", "tcp::x-:22", "tcp::1-10.0.2.15:22", ""] {
            assert!(Forward::parse(text).is_err(), "{text}");
        }
    }
}
