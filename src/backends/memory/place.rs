//! Where a back end's memory comes from: which of the host's memory nodes, and when.

use std::ops::Range;
use std::sync::Arc;
use std::{io, thread};

use crate::error::{Code, Error, Result, explain_io};
use crate::memory::HostMem;
use crate::memory::host::NodePolicy;
use crate::object::{Int, Invalid, PropValue, prop_enum};

/// The most threads that take memory from the host, as many as are worth starting.
const MAX_THREADS: u64 = 64;
/// The number of a memory node that Linux can have (CONFIG_NODES_SHIFT of 10).
const MAX_NODE: u32 = 1023;
/// Parts that threads take are multiples of the largest page, bytes.
const PART: u64 = 1 << 30;

/// How many threads take memory from the host.
pub type Threads = Int<1, MAX_THREADS>;

prop_enum! {
    /// Which memory node a page comes from (set_mempolicy(2)).
    pub enum Policy {
        /// That of the processor which touches it first.
        Default = "default",
        /// The first of host-nodes, as long as it has memory.
        Preferred = "preferred",
        /// One of host-nodes and no other.
        Bind = "bind",
        /// All of host-nodes in turn.
        Interleave = "interleave",
    }
}

/// Numbers of memory nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNodes(Range<u32>);

impl PropValue for HostNodes {
    const KIND: &'static str = "nodes";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last <= MAX_NODE => Ok(HostNodes(first..last + 1)),
            _ => Err(Invalid::expected("the number of a memory node or FIRST-LAST")),
        }
    }
}

/// What the user says of it.
pub struct Place {
    pub prealloc: bool,
    pub threads: Threads,
    pub nodes: Option<HostNodes>,
    pub policy: Policy,
}

impl Place {
    /// A policy other than the kernel's own is about nodes, and nodes need one.
    ///
    /// # Errors
    /// [`Code::BadProperty`].
    pub fn check(&self) -> Result<()> {
        match (&self.policy, &self.nodes) {
            (Policy::Default, None) => Ok(()),
            (Policy::Default, Some(_)) => Err(Error::new(Code::BadProperty, "host-nodes= needs a policy=")
                .fix("add policy=bind, preferred or interleave")),
            (_, None) => Err(Error::new(Code::BadProperty, "policy= needs host-nodes=")
                .fix("say which: host-nodes=0 or host-nodes=0-1")),
            (_, Some(_)) => Ok(()),
        }
    }

    /// Tells the kernel where the pages come from, and takes them now where that is asked for.
    ///
    /// # Errors
    /// [`Code::BadProperty`]: the host has no such node. [`Code::NoMemory`].
    pub fn put(&self, memory: &Arc<HostMem>) -> Result<()> {
        let policy = match self.policy {
            Policy::Default => None,
            Policy::Preferred => Some(NodePolicy::Preferred),
            Policy::Bind => Some(NodePolicy::Bind),
            Policy::Interleave => Some(NodePolicy::Interleave),
        };
        if let (Some(policy), Some(HostNodes(nodes))) = (policy, &self.nodes) {
            memory.place(policy, nodes.clone()).map_err(|error| {
                Error::new(Code::BadProperty, format!("the host's memory nodes {nodes:?} cannot be used"))
                    .evidence(format!("mbind: {}", explain_io(&error)))
                    .fix("`ls -d /sys/devices/system/node/node*` lists those that there are")
            })?;
        }
        if self.prealloc {
            populate(memory, self.threads.get()).map_err(|error| no_memory(memory.len(), &error))
        } else {
            Ok(())
        }
    }
}

/// That so much memory is not to be had.
pub fn no_memory(len: u64, error: &io::Error) -> Error {
    Error::new(Code::NoMemory, format!("{} KiB of memory cannot be had", len >> 10)).evidence(explain_io(error))
}

/// Takes all of it from the host, by so many threads.
fn populate(memory: &Arc<HostMem>, threads: u64) -> io::Result<()> {
    let share = memory.len().div_ceil(threads).next_multiple_of(PART);
    thread::scope(|scope| {
        let parts = (0..memory.len()).step_by(usize::try_from(share).unwrap_or(usize::MAX));
        // All are started before the first is waited for.
        let takers: Vec<_> = parts.map(|at| scope.spawn(move || memory.slice().cut(at, share).populate())).collect();
        takers.into_iter().try_for_each(|taker| taker.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::host::PageSize;

    #[test]
    fn nodes_are_a_number_or_a_range() {
        assert_eq!(HostNodes::parse("3").unwrap().0, 3..4);
        assert_eq!(HostNodes::parse("0-1").unwrap().0, 0..2);
        for text in ["", "1-0", "a", "0-1024", "-1"] {
            assert!(HostNodes::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_of_it_is_taken_by_several() {
        let memory = Arc::new(HostMem::anonymous(3 << 20, PageSize::Small).unwrap());
        populate(&memory, 2).unwrap();
        assert_eq!(memory.resident().unwrap(), 3 << 20);
    }

    /// Every Linux has node 0, and none has node 1023.
    #[test]
    fn memory_comes_from_the_nodes_that_are_said() {
        let memory = Arc::new(HostMem::anonymous(1 << 20, PageSize::Small).unwrap());
        let one = || Threads::parse("1").unwrap();
        let place = |nodes, policy| Place { prealloc: true, threads: one(), nodes: Some(HostNodes(nodes)), policy };
        for policy in [Policy::Bind, Policy::Preferred, Policy::Interleave] {
            match place(0..1, policy).put(&memory) {
                // A container that may not, or a kernel without NUMA.
                Err(error) if error.to_string().contains("ENOSYS") || error.to_string().contains("EPERM") => return,
                done => done.unwrap(),
            }
        }
        let error = place(MAX_NODE..MAX_NODE + 1, Policy::Bind).put(&memory).unwrap_err();
        assert_eq!(error.code(), Code::BadProperty, "{error}");
    }
}
