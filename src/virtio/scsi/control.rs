//! The worker of the control queue and the event queue (virtio 5.6.6.2 and 5.6.6.3).

use std::sync::Arc;

use super::config::Sizes;
use super::event::Events;
use super::request::{address, serve};
use crate::scsi::ScsiBus;
use crate::virtio::queue::Drained;
use crate::virtio::{Chain, Serve, Served, VirtQueue};

/// Requests of the control queue.
const TASK_MANAGEMENT: u32 = 0;
const ASYNC_QUERY: u32 = 1;
const ASYNC_SUBSCRIBE: u32 = 2;

/// Task management functions.
mod task {
    pub const ABORT_TASK: u32 = 0;
    pub const ABORT_TASK_SET: u32 = 1;
    pub const CLEAR_ACA: u32 = 2;
    pub const CLEAR_TASK_SET: u32 = 3;
    pub const I_T_NEXUS_RESET: u32 = 4;
    pub const LOGICAL_UNIT_RESET: u32 = 5;
    pub const QUERY_TASK: u32 = 6;
    pub const QUERY_TASK_SET: u32 = 7;
}

/// What is said of them.
mod response {
    pub const FUNCTION_COMPLETE: u8 = 0;
    pub const BAD_TARGET: u8 = 3;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

/// Sources of the worker, as [`super::Scsi`] names them.
const CONTROL: usize = 0;

/// What the worker does.
pub struct Control {
    pub bus: Arc<ScsiBus>,
    pub sizes: Sizes,
    /// The queues of commands.
    pub requests: Vec<Arc<VirtQueue>>,
    pub control: Option<Arc<VirtQueue>>,
    pub event: Option<Arc<VirtQueue>>,
    pub events: Arc<Events>,
}

impl Serve for Control {
    fn ready(&mut self, source: usize) {
        match (source, &self.control) {
            (CONTROL, Some(control)) => {
                control.drain(|chain| self.answer(chain));
            }
            (CONTROL, None) => {}
            _ => self.event.iter().for_each(|queue| self.events.give(queue)),
        }
    }
}

impl Control {
    fn answer(&self, mut chain: Chain<'_>) -> Served {
        let Some(kind) = chain.readable.read_array::<4>().map(u32::from_le_bytes) else {
            return Served::Malformed("a control request has no type");
        };
        let said = match kind {
            TASK_MANAGEMENT => {
                let Some([a, b, c, d, lun @ ..]) = chain.readable.read_array::<12>() else {
                    return Served::Malformed("a task management request is too short");
                };
                match self.manage(u32::from_le_bytes([a, b, c, d]), &lun) {
                    Some(response) => vec![response],
                    None => return Served::Later,
                }
            }
            // No event of a medium is told without being asked for.
            ASYNC_QUERY | ASYNC_SUBSCRIBE => vec![0; 5],
            _ => return Served::Malformed("an unknown control request"),
        };
        match chain.writable.write(&said) == said.len() {
            true => Served::Done(said.len() as u32),
            false => Served::Malformed("a control request has no room for its response"),
        }
    }

    /// Does what is asked of the commands that wait; `None`: one of them cannot be done before the machine goes on.
    fn manage(&self, function: u32, lun: &[u8; 8]) -> Option<u8> {
        let at = address(lun).filter(|at| self.bus.has_target(at.target));
        let Some(at) = at else { return Some(response::BAD_TARGET) };
        Some(match function {
            task::ABORT_TASK | task::ABORT_TASK_SET | task::CLEAR_TASK_SET => {
                // Done is as good as aborted: the driver must only not find a command at work afterwards.
                self.finish()?;
                response::FUNCTION_COMPLETE
            }
            task::I_T_NEXUS_RESET | task::LOGICAL_UNIT_RESET => {
                self.finish()?;
                let unit = (function == task::LOGICAL_UNIT_RESET).then_some(at.lun);
                match self.bus.reset(at.target, unit) {
                    true => response::FUNCTION_COMPLETE,
                    false => response::INCORRECT_LUN,
                }
            }
            // None waits: it is done by the time that this is answered.
            task::QUERY_TASK | task::QUERY_TASK_SET => {
                self.finish()?;
                response::FUNCTION_COMPLETE
            }
            task::CLEAR_ACA => response::FUNCTION_COMPLETE,
            _ => response::FUNCTION_REJECTED,
        })
    }

    /// Has all commands done that the driver has made available.
    fn finish(&self) -> Option<()> {
        for queue in &self.requests {
            // Waits for the worker of the queue if that is at it. Once round is enough: what comes later came after.
            if queue.drain(|chain| serve(&self.bus, self.sizes, chain)) == Drained::Waiting {
                return None;
            }
        }
        Some(())
    }
}
