//! The control socket: QEMU's machine protocol (QMP; QEMU docs/interop/qmp-spec.rst) for a running machine.
//!
//! | file | what |
//! |---|---|
//! | [`options`] | `--qmp unix:PATH` |
//! | [`message`] | requests out of a stream of bytes, answers and events as JSON (pure) |
//! | [`commands`] | the table of commands; one file for each group |
//! | [`control`] | what the commands need of a machine; a fake in tests |
//! | [`hmp`] | the monitor for people on a character back end |
//! | [`wire`] | a character back end as a client's connection |
//! | [`folder`] | where every guest's own socket is, without being asked for |
//! | [`client`] | a connection with bounded buffers |
//!
//! Everything happens on the main thread. The callbacks of the event loop only move bytes and yield;
//! [`Monitor::serve`] then runs what was asked for, with the whole machine at hand. Up to [`MAX_CLIENTS`] clients are
//! served at a time, of all sockets together; further ones wait in their socket's queue until one leaves.

mod client;
pub mod commands;
pub mod control;
pub mod folder;
pub mod hmp;
pub mod message;
pub mod options;
mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use serde_json::{Value, json};

use crate::backends::chardev::Chardev;
use crate::backends::table::Claim;
use crate::backends::unix_listener::{self, UnixListener};
use crate::error::{Code, Error, Result, explain_io};
use crate::event_loop::{EventLoop, Return, Token};
use client::Client;
use commands::Reply;
pub use control::Control;
use control::Ticket;
use hmp::Hmp;
use message::{Failure, Parsed};
pub use options::QmpOptions;
use wire::Wire;

/// How long the end of the process waits for a client that does not read.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Clients that are served at a time.
pub const MAX_CLIENTS: usize = 16;

/// The control sockets of a machine, or none. Clones are the same sockets.
#[derive(Clone, Default)]
pub struct Monitor(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    /// Each with what waits for its next client; paused while there are too many.
    accepting: Vec<Token>,
    clients: BTreeMap<u64, Connection>,
    /// The monitors for people.
    humans: Vec<Hmp>,
    /// Character back ends with a client at their other end.
    wires: Vec<Wire>,
    /// The number of the last client.
    last: u64,
}

struct Connection {
    client: Client,
    /// Waits for the client's bytes and, while there are any, for room for ours.
    token: Token,
}

impl Monitor {
    /// Makes a socket and lets `event_loop` wait for clients.
    ///
    /// # Errors
    /// [`Code::ControlSocket`] if the socket cannot be made.
    pub fn listen(&self, path: &Path, event_loop: &mut EventLoop) -> Result<()> {
        let listener = UnixListener::new(path).map_err(|error| {
            Error::new(Code::ControlSocket, format!("the control socket {} cannot be made", path.display()))
                .evidence(explain_io(&error))
                .fix(unix_listener::mend(&error))
        })?;
        let listener = Rc::new(listener);
        let (accepts, accepted) = (self.clone(), listener.clone());
        let token = event_loop
            .add(listener, EpollFlags::EPOLLIN, move |event_loop, _| accepts.accept(&accepted, event_loop))
            .map_err(|error| Error::system("wait for clients of the control socket", &error))?;
        self.0.borrow_mut().accepting.push(token);
        Ok(())
    }

    /// Lets people use the monitor by a character back end. `alone`: no console is on the same one.
    pub fn attach(&self, chardev: Claim<dyn Chardev>, alone: bool, event_loop: &EventLoop) {
        self.0.borrow_mut().humans.push(Hmp::new(chardev, alone, event_loop.handle()));
    }

    /// Lets a program control the guest by a character back end.
    pub fn attach_control(&self, chardev: Claim<dyn Chardev>, event_loop: &EventLoop) {
        self.0.borrow_mut().wires.push(Wire::new(chardev, event_loop.handle()));
    }

    /// Runs the loop until a client is there, or until the user ends the process.
    ///
    /// # Errors
    /// The event loop fails.
    pub fn wait_for_client(&self, event_loop: &mut EventLoop) -> Result<Return> {
        loop {
            if !self.0.borrow().clients.is_empty() {
                return Ok(Return::Yielded);
            }
            let returned = event_loop.run().map_err(|error| Error::system("wait for a client", &error))?;
            if returned == Return::Stopped {
                return Ok(returned);
            }
        }
    }

    /// Runs every request that has arrived in full and sends the answers.
    pub fn serve(&self, control: &mut dyn Control) {
        let numbers: Vec<u64> = self.0.borrow().clients.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.serve_client(number, control));
        // Out of the cell while their commands run, which tell of events and settle others'.
        let mut humans = std::mem::take(&mut self.0.borrow_mut().humans);
        humans.iter_mut().for_each(|human| human.serve(control));
        self.0.borrow_mut().humans.append(&mut humans);
    }

    fn serve_client(&self, number: u64, control: &mut dyn Control) {
        while let Some((request, negotiated)) = self.next_request(number) {
            let (id, answer) = match request {
                Ok(request) => {
                    let id = request.id.clone();
                    let answer = commands::execute(request, negotiated, control);
                    if let (Ok(_), false) = (&answer, negotiated) {
                        // The only command that succeeds before the negotiation is the one that ends it.
                        self.with_client(number, Client::negotiated);
                    }
                    (id, answer)
                }
                Err((id, failure)) => (id, Err(failure)),
            };
            let answer = match answer {
                Ok(Reply::Later(later)) => {
                    self.with_client(number, |client| client.owe(id, later));
                    continue;
                }
                Ok(Reply::Now(value)) => Ok(value),
                Err(failure) => Err(failure),
            };
            let answer = message::answer(id, answer);
            self.with_client(number, |client| client.send(&answer));
        }
    }

    /// A command that was under way is done: its client is told, if that is still there.
    pub fn answer(&self, ticket: Ticket, done: &Result<(), Failure>) {
        self.each_client(|client| client.settle(ticket, done));
        self.0.borrow_mut().humans.iter_mut().for_each(|human| human.settle(ticket, done));
    }

    /// Tells all clients of an event that have finished the negotiation.
    pub fn event(&self, name: &str, data: Option<Value>) {
        let message = message::event(name, data, message::now());
        self.each_client(|client| {
            if client.is_negotiated() {
                client.send(&message);
            }
        });
    }

    /// Brings the event loop to what the sockets wait for. Called before the loop runs again.
    pub fn settle(&self, event_loop: &mut EventLoop) {
        // Out of the cell, where new clients come.
        let mut wires = std::mem::take(&mut self.0.borrow_mut().wires);
        for wire in &mut wires {
            wire.step(event_loop, |stream, event_loop| self.adopt(stream, event_loop));
        }
        self.0.borrow_mut().wires.append(&mut wires);
        let mut inner = self.0.borrow_mut();
        let was_full = inner.clients.len() >= MAX_CLIENTS;
        inner.clients.retain(|_, Connection { client, token }| {
            client.flush();
            match client.is_over() {
                true => event_loop.remove(*token),
                false => wait(event_loop, *token, client.interest()),
            }
            !client.is_over()
        });
        if was_full && inner.clients.len() < MAX_CLIENTS {
            inner.accepting.iter().for_each(|token| wait(event_loop, *token, EpollFlags::EPOLLIN));
        }
    }

    fn accept(&self, listener: &UnixListener, event_loop: &mut EventLoop) {
        if self.0.borrow().clients.len() >= MAX_CLIENTS {
            return;
        }
        if let Some(stream) = listener.accept() {
            self.adopt(stream, event_loop);
        }
    }

    /// Takes a connection for a new client's.
    fn adopt(&self, stream: UnixStream, event_loop: &mut EventLoop) {
        let mut client = Client::new(stream);
        client.send(&message::greeting());
        let mut inner = self.0.borrow_mut();
        inner.last += 1;
        let (number, fd, moves) = (inner.last, client.descriptor(), self.clone());
        let added = event_loop.add(fd, EpollFlags::EPOLLIN, move |event_loop, _| {
            moves.with_client(number, Client::receive);
            event_loop.yield_now();
        });
        let Ok(token) = added else { return };
        inner.clients.insert(number, Connection { client, token });
        if inner.clients.len() >= MAX_CLIENTS {
            inner.accepting.iter().for_each(|token| wait(event_loop, *token, EpollFlags::empty()));
        }
        event_loop.yield_now();
    }

    fn next_request(&self, number: u64) -> Option<(Parsed, bool)> {
        let mut inner = self.0.borrow_mut();
        let client = &mut inner.clients.get_mut(&number)?.client;
        let negotiated = client.is_negotiated();
        client.next_request().map(|request| (request, negotiated))
    }

    fn with_client(&self, number: u64, f: impl FnOnce(&mut Client)) {
        if let Some(connection) = self.0.borrow_mut().clients.get_mut(&number) {
            f(&mut connection.client);
        }
    }

    fn each_client(&self, mut f: impl FnMut(&mut Client)) {
        self.0.borrow_mut().clients.values_mut().for_each(|connection| f(&mut connection.client));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.clients.values_mut().for_each(|connection| connection.client.finish(FLUSH_LIMIT));
        self.wires.iter().for_each(|wire| wire.finish(FLUSH_LIMIT));
    }
}

fn wait(event_loop: &mut EventLoop, token: Token, interest: EpollFlags) {
    if let Err(error) = event_loop.set_interest(token, interest) {
        crate::log::warn(format_args!("the control socket is not waited for any more: {error}"));
    }
}

/// The name of a device in events: its id, where the user gave one, and its path in QEMU's tree of objects.
pub fn device_data(id: &str) -> Value {
    // An id that was made has a character that no user's id can have.
    match id.contains('#') {
        false => json!({ "device": id, "path": format!("/machine/peripheral/{id}") }),
        true => json!({ "path": format!("/machine/peripheral-anon/{id}") }),
    }
}

#[cfg(test)]
mod tests;
