//! Character back ends: where the bytes of a serial port, a console or a monitor go to and come from.
//!
//! | file | what |
//! |---|---|
//! | [`null`], [`stdio`], [`file`], [`pty`], [`socket`], [`ringbuf`] | the types of `--chardev` |
//! | [`mux`], [`log`] | what `mux=on` and `logfile=` put around one |
//! | [`output`], [`input`] | a descriptor that is written by a thread, and one that the main loop reads |
//! | [`shorthand`] | `--serial unix:PATH` and its like, as `--chardev` has them |
//!
//! **Who runs what.** A vCPU only puts bytes into a bounded queue; a thread of the back end's own writes them, because a
//! terminal, a pipe and a file can block whatever flags they have. Input comes by the main loop and needs no thread: it is
//! taken only as far as the front end has room. The main loop may be away for a while (a device is plugged); then input
//! waits in the kernel, and the guest's output goes on.
//!
//! **Locks**, outermost first: a reader's ([`input`]) -> a mux's -> the front end's -> the queue's ([`output`]). A front end
//! may call [`Chardev::write`] and [`Chardev::ready`] with its own lock held; [`Chardev::resume`] only posts.

pub mod file;
pub mod input;
pub mod log;
pub mod mux;
pub mod null;
pub mod output;
pub mod pty;
pub mod ringbuf;
pub mod shorthand;
pub mod socket;
pub mod stdio;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{BackendCx, Backends};
use crate::error::Result;
use crate::event_loop::LoopHandle;
use crate::object::{Args, Id, PropValue, Props, Registry, props};

use output::Output;
pub use ringbuf::Ring;

/// The guest's side of a character back end: a serial port, a console, a monitor. Called on the main thread, but for
/// [`FrontEnd::output_ready`].
pub trait FrontEnd: Send + Sync {
    /// How many bytes of input it takes now. After an answer of 0 it calls [`Chardev::resume`] when there is room again.
    fn room(&self) -> usize;

    /// Takes bytes; drops those beyond `room`.
    fn input(&self, bytes: &[u8]);

    /// Takes a break.
    fn input_break(&self) {}

    /// The back end, which was not ready, takes bytes again. Called from any thread, with no lock of the back end's held.
    fn output_ready(&self) {}

    /// It has the focus of a mux from now on.
    fn focused(&self) {}

    /// Somebody is at the other end now, or nobody any more.
    fn peer_changed(&self, _present: bool) {}
}

/// The host's side of a character device. Nothing here may block: the callers are vCPUs.
pub trait Chardev: Send + Sync {
    /// What it writes to, if that is one descriptor with a thread of its own: most back ends then need no more.
    fn output(&self) -> Option<&Output> {
        None
    }

    /// Takes bytes of the guest's. They may be dropped while it is not ready, or nobody is at the other end.
    fn write(&self, data: &[u8]) {
        if let Some(output) = self.output() {
            output.write(data);
        }
    }

    /// Whether it can take bytes. After an answer of `false` [`FrontEnd::output_ready`] announces the change.
    fn ready(&self) -> bool {
        self.output().is_none_or(Output::ready)
    }

    /// Waits until every byte has left, for at most `limit`; says whether that succeeded. For the end of the guest.
    fn flush(&self, limit: Duration) -> bool {
        self.output().is_none_or(|output| output.flush(limit))
    }

    /// Gives it its front end, in the place of one that has gone; a mux gets one more. Input flows from now on.
    fn attach(&self, front_end: Weak<dyn FrontEnd>);

    /// The front end has room again. Never calls it back; for any thread.
    fn resume(&self) {}

    /// Who is at the other end.
    fn peer(&self) -> Peer;

    /// Whether the guest must not start before somebody is at the other end (`wait=on`).
    fn is_awaited(&self) -> bool {
        false
    }

    /// Gives its socket to one device that speaks a protocol of its own on it (vhost-user), until what is returned is
    /// dropped; `None`: it has none that descriptors can be sent over.
    fn lend(&self) -> Option<Box<dyn Lent>> {
        None
    }

    /// What it keeps for the monitor, if it is a `ringbuf`.
    fn ring(&self) -> Option<&Ring> {
        None
    }
}

/// A unix socket that one device alone uses.
pub trait Lent: Send + Sync {
    /// A connection, which blocks; the one that there is, or the next. A server waits for a client for at most `limit`.
    ///
    /// # Errors
    /// Nobody is at the other end.
    fn connect(&self, limit: Duration) -> io::Result<UnixStream>;

    /// The connection is over.
    fn lost(&self);

    /// How long to wait before it is connected again; `None`: it is not.
    fn again(&self) -> Option<Duration>;

    /// Where it is, for people.
    fn place(&self) -> String;
}

/// The other end of a character back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it is, as QEMU's `query-chardev` names it: `pty:/dev/pts/3`.
    pub place: String,
    /// Whether somebody is there.
    pub present: bool,
}

impl Peer {
    /// A place where somebody always is.
    pub fn always(place: impl Into<String>) -> Peer {
        Peer { place: place.into(), present: true }
    }
}

/// The types of `--chardev`.
pub static CHARDEVS: Registry<Arc<dyn Chardev>, BackendCx> = Registry {
    what: "character back end",
    option: "--chardev",
    key: "backend",
    common: Common::TABLE,
    on_bus: &[],
    aliases: &[],
    types: &[&null::TYPE, &stdio::TYPE, &file::TYPE, &pty::TYPE, &socket::TYPE, &ringbuf::TYPE],
};

props! {
    /// What every character back end has.
    pub struct Common {
        /// Unique name of the back end
        id: Id,
        /// Whether several front ends, such as a serial port and a monitor, share it: Ctrl-A c goes from one to the next
        mux: bool = "off",
        /// File that gets a copy of what the guest sends
        logfile: Option<PathBuf>,
        /// Add to that file instead of emptying it
        logappend: bool = "off",
    }
}

/// A back end that was made.
pub struct Made {
    /// Its name.
    pub name: Arc<str>,
    /// The name of its type.
    pub of_type: &'static str,
    /// The back end, with what its common properties put around it.
    pub back: Arc<dyn Chardev>,
    /// Whether several front ends may share it.
    pub shared: bool,
}

/// Makes the back end that `args` describe: its type, its common properties and its own.
///
/// # Errors
/// [`crate::error::Code::UnknownType`], [`crate::error::Code::BadProperty`], and what keeps it from being made.
pub fn create(mut args: Args, event_loop: &LoopHandle, backends: &Arc<Backends>) -> Result<Made> {
    let of_type = CHARDEVS.take_type(&mut args)?;
    let Common { id, mux, logfile, logappend } = Common::parse(&mut args)?;
    let name: Arc<str> = id.as_str().into();
    let cx = BackendCx { name: name.clone(), event_loop: event_loop.clone(), backends: backends.clone() };
    let back = of_type.create(&mut args, &cx)?;
    let back = match logfile {
        Some(path) => log::Logged::around(back, &path, logappend)?,
        None => back,
    };
    let back = if mux { mux::Mux::around(back, cx.event_loop) } else { back };
    Ok(Made { name, of_type: of_type.name(), back, shared: mux })
}

/// Whether the back end that `args` describe may have several front ends.
pub fn is_shared(args: &Args) -> bool {
    args.peek("mux").and_then(|mux| bool::parse(mux).ok()).unwrap_or(false)
}

/// The front end that a back end has, if there is one. The lock is not held while it is called.
#[derive(Default)]
pub struct Attached(Mutex<Option<Weak<dyn FrontEnd>>>);

impl Attached {
    /// It has this one from now on.
    pub fn set(&self, front_end: Weak<dyn FrontEnd>) {
        *self.0.lock() = Some(front_end);
    }

    /// The one that it has.
    pub fn get(&self) -> Option<Arc<dyn FrontEnd>> {
        self.0.lock().as_ref().and_then(Weak::upgrade)
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_registry;

    #[test]
    fn the_table_is_sound() {
        check_registry(&CHARDEVS);
    }
}
