//! `socket`: a unix or TCP socket, as a server for one client at a time or as a client.
//!
//! Clients are accepted and read by the main loop. While nobody is there the guest's bytes are dropped, and a second client
//! waits in the socket's queue until the first has gone. A client whose server has gone connects again from a thread that
//! lives until it has succeeded (`reconnect-ms`), because a host on the network may take seconds to answer.

mod address;
mod lent;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use parking_lot::Mutex;

use super::input::Input;
use super::output::Output;
use super::{Attached, Chardev, FrontEnd, Lent, Peer};
use crate::backends::{BackendCx, unix_listener};
use crate::error::{Code, Error, Result, explain_io};
use crate::event_loop::{EventLoop, LoopHandle, Token};
use crate::object::{Create, TypeInfo, props};
pub use address::Address;
use address::Listener;

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<SocketType>();

props! {
    /// A unix socket (path=) or a TCP socket (host=, port=).
    struct SocketProps {
        /// File of a unix socket
        path: Option<PathBuf>,
        /// Address of a TCP socket: of the server, or for a server the one of this host that it listens at
        host: Option<String>,
        /// Port of a TCP socket
        port: Option<u16>,
        /// Listen for a client instead of connecting to a server
        server: bool = "off",
        /// Start the guest only when the first client is there; on for a server by default
        wait: Option<bool>,
        /// Milliseconds between attempts to connect to a server that is not there; 0: one attempt, at the start
        reconnect_ms: u32 = "0",
    }
}

impl SocketProps {
    fn address(&self) -> Result<Address> {
        let wrong = |cause: &str| {
            Err(Error::new(Code::BadProperty, cause)
                .fix("write path=FILE for a unix socket, host=HOST,port=PORT for TCP"))
        };
        match (&self.path, &self.host, self.port) {
            (Some(path), None, None) => Ok(Address::Unix(path.clone())),
            (None, Some(host), Some(port)) => Ok(Address::Tcp(host.clone(), port)),
            (Some(_), _, _) => wrong("a socket has a path or a port, not both"),
            (None, _, _) => wrong("a socket needs path=, or host= and port="),
        }
    }
}

struct SocketType;

impl Create<Arc<dyn Chardev>, BackendCx> for SocketType {
    const NAME: &'static str = "socket";
    const GROUP: &'static str = "Character back ends";
    type Props = SocketProps;

    fn check(props: &SocketProps) -> Result<()> {
        props.address()?;
        let wrong = |cause: &str| Err(Error::new(Code::BadProperty, cause).fix("write server=on, or leave it out"));
        match (props.server, props.wait, props.reconnect_ms) {
            (false, Some(true), _) => wrong("wait=on is for a server: a client connects before the guest starts"),
            (true, _, 1..) => wrong("reconnect-ms= is for a client: a server takes the next one"),
            _ => Ok(()),
        }
    }

    fn create(props: SocketProps, cx: &BackendCx) -> Result<Arc<dyn Chardev>> {
        let address = props.address()?;
        let reconnect = (props.reconnect_ms > 0).then(|| Duration::from_millis(props.reconnect_ms.into()));
        let role = match props.server {
            true => Role::Server { wait: props.wait.unwrap_or(true) },
            false => Role::Client { reconnect },
        };
        let socket: Arc<dyn Chardev> = Socket::new(address, role, cx)?;
        Ok(socket)
    }
}

/// Which side of the connection it is.
#[derive(Debug, Clone, Copy)]
enum Role {
    Server { wait: bool },
    Client { reconnect: Option<Duration> },
}

/// A socket with a peer or without one.
struct Socket {
    /// Itself, for what outlives a call.
    weak: Weak<Socket>,
    address: Address,
    role: Role,
    event_loop: LoopHandle,
    output: Output,
    input: Input,
    front: Arc<Attached>,
    /// Somebody is at the other end.
    present: AtomicBool,
    /// The guest waits for the first client.
    awaited: AtomicBool,
    /// What waits for the next client, in a server; paused while there is one. Only the main thread takes it.
    accepting: Mutex<Option<Token>>,
    /// What clients connect to, in a server.
    listener: Option<Arc<Listener>>,
    /// A device has it for itself: nothing is read, accepted or connected here.
    lent: AtomicBool,
    /// The connection.
    current: Mutex<Option<Arc<OwnedFd>>>,
}

impl Socket {
    fn new(address: Address, role: Role, cx: &BackendCx) -> Result<Arc<Socket>> {
        let refuse = |what: &str, error: &io::Error| {
            Error::new(Code::ChardevFailed, format!("the socket {address} {what}")).evidence(explain_io(error))
        };
        let listener = match role {
            Role::Server { .. } => Some(Arc::new(address.listen().map_err(|error| {
                let fix = match &address {
                    Address::Unix(_) => unix_listener::mend(&error),
                    Address::Tcp(..) => "choose a port that is free, and an address of this host",
                };
                refuse("cannot be made", &error).fix(fix)
            })?)),
            Role::Client { .. } => None,
        };
        let connected = match role {
            Role::Client { reconnect } => match (address.connect(), reconnect) {
                (Ok(fd), _) => Some(Arc::new(fd)),
                (Err(_), Some(_)) => None,
                (Err(error), None) => {
                    let fix = "start the server before, or let passthru try again with reconnect-ms=1000";
                    return Err(refuse("cannot be connected to", &error).fix(fix));
                }
            },
            Role::Server { .. } => None,
        };
        let front = Arc::new(Attached::default());
        let output = Output::unconnected(&address.to_string(), &front)?;
        let socket = Arc::new_cyclic(|weak: &Weak<Socket>| {
            let ended = weak.clone();
            let input = Input::new(&cx.event_loop, &front, move |event_loop| {
                if let Some(socket) = ended.upgrade() {
                    socket.lost(event_loop);
                }
            });
            Socket {
                weak: weak.clone(),
                address,
                role,
                event_loop: cx.event_loop.clone(),
                output,
                input,
                front: front.clone(),
                present: AtomicBool::new(false),
                awaited: AtomicBool::new(matches!(role, Role::Server { wait: true })),
                accepting: Mutex::new(None),
                listener,
                lent: AtomicBool::new(false),
                current: Mutex::new(connected.clone()),
            }
        });
        match (role, connected) {
            (Role::Server { .. }, _) => socket.listen_soon(),
            (Role::Client { .. }, Some(fd)) => socket.join_soon(fd),
            (Role::Client { reconnect: Some(delay) }, None) => socket.retry(delay)?,
            (Role::Client { reconnect: None }, None) => {}
        }
        Ok(socket)
    }

    fn listen_soon(&self) {
        let Some(listener) = self.listener.clone() else { return };
        let weak = self.weak.clone();
        self.event_loop.post(move |event_loop| {
            if weak.upgrade().is_none_or(|socket| socket.lent.load(Ordering::SeqCst)) {
                return;
            }
            let (accepts, fd) = (weak.clone(), listener.clone());
            let added = event_loop.add(fd, EpollFlags::EPOLLIN, move |event_loop, _| {
                if let (Some(socket), Some(fd)) = (accepts.upgrade(), listener.accept()) {
                    socket.joined(Arc::new(fd), event_loop);
                }
            });
            match (added, weak.upgrade()) {
                (Ok(token), Some(socket)) => *socket.accepting.lock() = Some(token),
                (Ok(token), None) => event_loop.remove(token),
                (Err(error), _) => crate::log::warn(format_args!("a socket cannot be waited for: {error}")),
            }
        });
    }

    fn join_soon(&self, fd: Arc<OwnedFd>) {
        let weak = self.weak.clone();
        self.event_loop.post(move |event_loop| {
            if let Some(socket) = weak.upgrade() {
                socket.joined(fd, event_loop);
            }
        });
    }

    /// There is a peer.
    fn joined(&self, fd: Arc<OwnedFd>, event_loop: &mut EventLoop) {
        if self.lent.load(Ordering::SeqCst) {
            return;
        }
        *self.current.lock() = Some(fd.clone());
        self.accept_next(false, event_loop);
        self.present.store(true, Ordering::SeqCst);
        // Heard of before its first byte is.
        if let Some(front) = self.front.get() {
            front.peer_changed(true);
        }
        let joined = self.output.connect(fd.clone()).map_err(|error| error.to_string());
        let joined = joined.and_then(|()| self.input.start(fd, event_loop).map_err(|error| error.to_string()));
        if let Err(error) = joined {
            crate::log::warn(format_args!("{}: the connection is closed: {error}", self.address));
            self.lost(event_loop);
            return;
        }
        if self.awaited.swap(false, Ordering::SeqCst) {
            event_loop.yield_now();
        }
    }

    /// The peer has gone.
    fn lost(&self, event_loop: &mut EventLoop) {
        if self.lent.load(Ordering::SeqCst) {
            return;
        }
        self.output.disconnect();
        *self.current.lock() = None;
        self.present.store(false, Ordering::SeqCst);
        if let Some(front) = self.front.get() {
            front.peer_changed(false);
        }
        self.accept_next(true, event_loop);
        if let Role::Client { reconnect: Some(delay) } = self.role
            && let Err(error) = self.retry(delay)
        {
            crate::log::warn(format_args!("{}: it is not connected to again: {error}", self.address));
        }
    }

    fn accept_next(&self, accept: bool, event_loop: &mut EventLoop) {
        if let Some(token) = *self.accepting.lock() {
            let interest = if accept { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
            if let Err(error) = event_loop.set_interest(token, interest) {
                crate::log::warn(format_args!("{}: the next client is not waited for: {error}", self.address));
            }
        }
    }

    /// Connects again, as often as it takes, from a thread that ends when it has succeeded or the socket is removed.
    fn retry(&self, delay: Duration) -> Result<()> {
        let (weak, address, event_loop) = (self.weak.clone(), self.address.clone(), self.event_loop.clone());
        let attempts = move || {
            loop {
                thread::sleep(delay);
                if weak.upgrade().is_none_or(|socket: Arc<Socket>| socket.lent.load(Ordering::SeqCst)) {
                    return;
                }
                if let Ok(fd) = address.connect() {
                    event_loop.post(move |event_loop| {
                        if let Some(socket) = weak.upgrade() {
                            socket.joined(Arc::new(fd), event_loop);
                        }
                    });
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("chardev-connect".to_owned()).spawn(attempts);
        thread.map(drop).map_err(|error| Error::system("start the thread that connects to a socket", &error))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(token) = self.accepting.lock().take() {
            self.event_loop.post(move |event_loop| event_loop.remove(token));
        }
    }
}

impl Chardev for Socket {
    fn output(&self) -> Option<&Output> {
        Some(&self.output)
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end);
        if self.present.load(Ordering::SeqCst)
            && let Some(front) = self.front.get()
        {
            front.peer_changed(true);
        }
        self.input.resume();
    }

    fn resume(&self) {
        self.input.resume();
    }

    fn peer(&self) -> Peer {
        let present = self.present.load(Ordering::SeqCst);
        let absent = if present { "" } else { "disconnected:" };
        let server = if matches!(self.role, Role::Server { .. }) { ",server=on" } else { "" };
        Peer { place: format!("{absent}{}{server}", self.address), present }
    }

    fn lend(&self) -> Option<Box<dyn Lent>> {
        lent::lend(self.weak.upgrade()?)
    }

    fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
