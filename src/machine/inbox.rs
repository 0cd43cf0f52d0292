//! What other threads and callbacks of the event loop want the machine to do: it is done when the loop has yielded.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::bdf::Bdf;
use crate::device::{Notice, Word};
use crate::event_loop::{EventLoop, LoopHandle};
use crate::pci::slot::Answer;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// A guest has answered by the registers of the slot of this bus.
    Slot(Arc<str>, Answer),
    /// The host says something of the device with this id.
    Notice(Arc<str>, Notice),
    /// The guest's memory is mapped for devices, or cannot be.
    Mapped,
    /// The device with this id tells something.
    Told(Arc<str>, Word),
    /// VFIO has begun to deliver interrupts of this device of the host.
    Interrupts(Bdf),
    /// The commit of an overlay with this name has ended: the length of the disk, and what went wrong.
    Committed(String, u64, Option<String>),
}

/// Tasks in their order.
pub struct Inbox {
    /// Never held while anything else is called.
    tasks: Mutex<Vec<Task>>,
    wake: LoopHandle,
}

impl Inbox {
    /// Empty; `wake` reaches the loop of the machine.
    pub fn new(wake: LoopHandle) -> Arc<Inbox> {
        Arc::new(Inbox { tasks: Mutex::default(), wake })
    }

    /// Adds a task, unless the same one waits already: a guest that repeats itself fills nothing.
    pub fn post(&self, task: Task) {
        let mut tasks = self.tasks.lock();
        if !tasks.contains(&task) {
            tasks.push(task);
            drop(tasks);
            self.wake.post(EventLoop::yield_now);
        }
    }

    /// Takes all tasks.
    pub fn take(&self) -> Vec<Task> {
        std::mem::take(&mut *self.tasks.lock())
    }
}
