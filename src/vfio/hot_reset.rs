//! Hot resets by a machine's descriptors: which functions are its own, and the proof of it that the kernel asks for.
//!
//! They take the context's lock ([`Vfio`]), which comes before all others: whoever resets holds none.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use super::space::Vfio;
use super::uapi::{self, Owner};
use crate::bdf::Bdf;
use crate::host::reset::Affected;

/// What hot resets have hit since each function's own last reset. A leaf lock.
#[derive(Default)]
pub(super) struct HotResets(Mutex<BTreeSet<Bdf>>);

impl HotResets {
    /// The function is reset by itself now, or used again.
    pub(super) fn forget(&self, bdf: Bdf) {
        self.0.lock().remove(&bdf);
    }
}

impl Vfio {
    /// All functions that a hot reset of the device behind `fd` hits, and which of them are this machine's.
    pub(super) fn hot_reset_reach(&self, fd: BorrowedFd<'_>) -> io::Result<Vec<Affected>> {
        let groups: BTreeSet<u32> = self.group_descriptors()?.into_iter().map(|(id, _)| id).collect();
        let dependents = uapi::hot_reset_info(&fd)?.into_iter();
        Ok(dependents
            .map(|dependent| Affected {
                bdf: dependent.bdf,
                // A member of our group that nobody has opened is ours as well: nobody else can open it.
                owned: match dependent.owner {
                    Owner::Group(id) => groups.contains(&id),
                    Owner::Ours(ours) => ours,
                },
                driver: self.host().driver(dependent.bdf),
            })
            .collect())
    }

    /// Hot-resets the device behind `fd`, whose address is `bdf`, unless another device's hot reset has just done it.
    pub(super) fn hot_reset(&self, bdf: Bdf, fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.hot_resets().0.lock().contains(&bdf) {
            return Ok(());
        }
        let dependents = uapi::hot_reset_info(&fd)?;
        let needed: BTreeSet<u32> = dependents
            .iter()
            .filter_map(|dependent| match dependent.owner {
                Owner::Group(id) => Some(id),
                Owner::Ours(_) => None,
            })
            .collect();
        let groups = self.group_descriptors()?.into_iter().filter(|(id, _)| needed.contains(id));
        let groups: Vec<OwnedFd> = groups.map(|(_, fd)| fd).collect();
        uapi::hot_reset(&fd, &groups)?;
        self.hot_resets().0.lock().extend(dependents.iter().map(|dependent| dependent.bdf));
        Ok(())
    }
}
