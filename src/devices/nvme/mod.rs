//! `nvme`: an NVM Express controller (NVMe 1.4) with namespaces on block nodes.
//!
//! | file | what |
//! |---|---|
//! | `registers` | the registers as a state machine; which says what is to be done |
//! | `queue` | submission and completion queues in guest memory, and the thread that serves one |
//! | `shared` | what the controller's threads have in common: queues, namespaces, interrupts |
//! | `admin`, `identify`, `features` | the commands of queue 0 |
//! | `io`, `prp` | reading and writing; where a command's data are |
//! | `namespace`, `status` | what a namespace is; how a command says what was wrong |
//! | `function`, `front_end` | the PCI function; the device types `nvme` and `nvme-ns` |
//!
//! Each submission queue has a thread. A command that a disk cannot do now stays at the head of its queue.
//!
//! **Locks**, outermost first: the function's registers, held while the controller starts and stops, which waits for all
//! threads; a submission queue's, which is its thread's for the length of a batch; the tables of queues; a completion queue's;
//! the interrupts'. No thread of the controller takes the registers'.

mod admin;
mod features;
mod front_end;
mod function;
mod identify;
mod io;
mod namespace;
mod prp;
mod queue;
mod registers;
mod shared;
mod status;
#[cfg(test)]
mod tests;

pub use front_end::{NAMESPACE, TYPE};
pub use namespace::NvmeBus;
