//! The thread that serves the requests of a memory device.

use std::sync::Arc;

use super::{Answer, Condition, Shared};
use crate::virtio::{Chain, Serve, Served, VirtQueue};

/// A request: type, then address and number of blocks, each with padding (virtio 5.15.6).
const REQUEST_LEN: usize = 24;
/// An answer: type, then what the blocks are.
const ANSWER_LEN: usize = 10;

/// The types of requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// What the worker does.
pub(super) struct Server {
    shared: Arc<Shared>,
    queue: Arc<VirtQueue>,
}

impl Server {
    /// For the queue of a driver that runs.
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<VirtQueue>) -> Server {
        Server { shared, queue }
    }
}

impl Shared {
    fn serve(&self, mut chain: Chain<'_>) -> Served {
        let Some(request) = chain.readable.read_array::<REQUEST_LEN>() else {
            return Served::Malformed("a request is too short");
        };
        if chain.writable.len() < ANSWER_LEN as u64 {
            return Served::Malformed("there is no room for an answer");
        }
        let half = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let mut addr = [0; 8];
        addr.copy_from_slice(&request[8..16]);
        let (addr, count) = (u64::from_le_bytes(addr), half(16));
        let mut condition = 0;
        let answer = match half(0) {
            PLUG => self.plug(addr, count),
            UNPLUG => self.unplug(addr, count),
            UNPLUG_ALL => {
                self.unplug_all();
                Answer::Ack
            }
            STATE => match self.condition(addr, count) {
                Some(found) => {
                    condition = match found {
                        Condition::Plugged => 0,
                        Condition::Unplugged => 1,
                        Condition::Mixed => 2,
                    };
                    Answer::Ack
                }
                None => Answer::Error,
            },
            _ => Answer::Error,
        };
        let mut bytes = [0; ANSWER_LEN];
        bytes[..2].copy_from_slice(&(answer as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&u16::to_le_bytes(condition));
        Served::Done(chain.writable.write(&bytes) as u32)
    }
}

impl Serve for Server {
    fn ready(&mut self, _: usize) {
        self.queue.drain(|chain| self.shared.serve(chain));
    }
}
