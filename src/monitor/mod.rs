//! The control socket: QEMU's machine protocol (QMP; QEMU docs/interop/qmp-spec.rst) for a running machine.
//!
//! | file | what |
//! |---|---|
//! | [`options`] | `--qmp unix:PATH` |
//! | [`message`] | requests out of a stream of bytes, answers and events as JSON (pure) |
//! | [`commands`] | the table of commands; one file for each group |
//! | [`control`] | what the commands need of a machine; a fake in tests |
//! | [`listener`], [`client`] | the socket's file, and the one connection with bounded buffers |
//!
//! Everything happens on the main thread. The callbacks of the event loop only move bytes and yield;
//! [`Monitor::serve`] then runs what was asked for, with the whole machine at hand. One client is served at a time:
//! further ones wait in the socket's queue until it leaves, as with QEMU.

mod client;
pub mod commands;
pub mod control;
mod listener;
pub mod message;
pub mod options;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::event_loop::{EventLoop, Return, Token};
use client::Client;
use commands::Reply;
pub use control::Control;
use control::Ticket;
use listener::Listener;
use message::{Failure, Parsed};
pub use options::QmpOptions;

/// How long the end of the process waits for a client that does not read.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The control socket of a machine, or none. Clones are the same socket.
#[derive(Clone, Default)]
pub struct Monitor(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    listener: Option<Rc<Listener>>,
    /// Waits for the next client; paused while there is one.
    accepting: Option<Token>,
    client: Option<Client>,
    /// Waits for the client's bytes and, while there are any, for room for ours.
    connection: Option<Token>,
}

impl Monitor {
    /// Makes the socket and lets `event_loop` wait for clients.
    ///
    /// # Errors
    /// [`crate::error::Code::ControlSocket`] if the socket cannot be made.
    pub fn listen(options: &QmpOptions, event_loop: &mut EventLoop) -> Result<Monitor> {
        let monitor = Monitor::default();
        let listener = Rc::new(Listener::new(&options.path)?);
        let accepts = monitor.clone();
        let token = event_loop
            .add(listener.clone(), EpollFlags::EPOLLIN, move |event_loop, _| accepts.accept(event_loop))
            .map_err(|error| Error::system("wait for clients of the control socket", &error))?;
        let mut inner = monitor.0.borrow_mut();
        inner.accepting = Some(token);
        inner.listener = Some(listener);
        drop(inner);
        Ok(monitor)
    }

    /// Runs the loop until a client is there, or until the user ends the process.
    ///
    /// # Errors
    /// The event loop fails.
    pub fn wait_for_client(&self, event_loop: &mut EventLoop) -> Result<Return> {
        loop {
            if self.0.borrow().client.is_some() {
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
        while let Some((request, negotiated)) = self.next_request() {
            let (id, answer) = match request {
                Ok(request) => {
                    let id = request.id.clone();
                    let answer = commands::execute(request, negotiated, control);
                    if let (Ok(_), false) = (&answer, negotiated) {
                        // The only command that succeeds before the negotiation is the one that ends it.
                        self.with_client(Client::negotiated);
                    }
                    (id, answer)
                }
                Err((id, failure)) => (id, Err(failure)),
            };
            let answer = match answer {
                Ok(Reply::Later(later)) => {
                    self.with_client(|client| client.owe(id, later));
                    continue;
                }
                Ok(Reply::Now(value)) => Ok(value),
                Err(failure) => Err(failure),
            };
            self.with_client(|client| client.send(&message::answer(id, answer)));
        }
    }

    /// A command that was under way is done: its client is told, if that is still there.
    pub fn answer(&self, ticket: Ticket, done: Result<(), Failure>) {
        self.with_client(|client| client.settle(ticket, done));
    }

    /// Tells the client of an event, if there is one that has finished the negotiation.
    pub fn event(&self, name: &str, data: Option<Value>) {
        self.with_client(|client| {
            if client.is_negotiated() {
                client.send(&message::event(name, data, message::now()));
            }
        });
    }

    /// Brings the event loop to what the socket waits for. Called before the loop runs again.
    pub fn settle(&self, event_loop: &mut EventLoop) {
        let mut inner = self.0.borrow_mut();
        let Some(client) = &mut inner.client else { return };
        client.flush();
        if client.is_over() {
            inner.client = None;
            let (connection, accepting) = (inner.connection.take(), inner.accepting);
            drop(inner);
            connection.into_iter().for_each(|token| event_loop.remove(token));
            accepting.into_iter().for_each(|token| wait(event_loop, token, EpollFlags::EPOLLIN));
            return;
        }
        let interest = client.interest();
        if let Some(token) = inner.connection {
            wait(event_loop, token, interest);
        }
    }

    fn accept(&self, event_loop: &mut EventLoop) {
        let Some(listener) = self.0.borrow().listener.clone() else { return };
        let Some(stream) = listener.accept() else { return };
        let mut client = Client::new(stream);
        client.send(&message::greeting());
        let fd = client.descriptor();
        let moves = self.clone();
        let added = event_loop.add(fd, EpollFlags::EPOLLIN, move |event_loop, _| {
            moves.with_client(Client::receive);
            event_loop.yield_now();
        });
        let Ok(token) = added else { return };
        let mut inner = self.0.borrow_mut();
        inner.client = Some(client);
        inner.connection = Some(token);
        if let Some(accepting) = inner.accepting {
            wait(event_loop, accepting, EpollFlags::empty());
        }
        event_loop.yield_now();
    }

    fn next_request(&self) -> Option<(Parsed, bool)> {
        let mut inner = self.0.borrow_mut();
        let client = inner.client.as_mut()?;
        let negotiated = client.is_negotiated();
        client.next_request().map(|request| (request, negotiated))
    }

    fn with_client(&self, f: impl FnOnce(&mut Client)) {
        if let Some(client) = &mut self.0.borrow_mut().client {
            f(client);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(client) = &mut self.client {
            client.finish(FLUSH_LIMIT);
        }
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
