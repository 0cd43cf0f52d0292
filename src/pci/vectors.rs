//! The interrupt vectors of one function: made when they are first needed, changed in one batch for each guest action.

use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use crate::error::Result;
use crate::irq::{MsiMessage, MsiVector, Router};

/// A number of vectors of one owner, all masked at first.
pub(super) struct Vectors {
    router: Arc<Router>,
    owner: Arc<str>,
    count: usize,
    made: OnceLock<Vec<MsiVector>>,
}

impl Vectors {
    pub(super) fn new(router: Arc<Router>, owner: Arc<str>, count: usize) -> Vectors {
        Vectors { router, owner, count, made: OnceLock::new() }
    }

    pub(super) fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Makes the vectors, that is one eventfd each, if there are none yet.
    pub(super) fn make(&self) -> Result<()> {
        if self.made.get().is_none() {
            let vectors: Result<Vec<_>> = (0..self.count).map(|_| self.router.vector(self.owner.clone())).collect();
            // Where two threads come here at once, the second one's vectors are dropped unused.
            let _ = self.made.set(vectors?);
        }
        Ok(())
    }

    /// The vectors; none before they were made.
    fn all(&self) -> &[MsiVector] {
        self.made.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn eventfds(&self) -> Vec<&EventFd> {
        self.all().iter().map(MsiVector::eventfd).collect()
    }

    pub(super) fn fire(&self, index: usize) {
        if let Some(vector) = self.all().get(index) {
            vector.fire();
        }
    }

    pub(super) fn is_pending(&self, index: usize) -> bool {
        self.all().get(index).is_some_and(MsiVector::is_pending)
    }

    pub(super) fn clear(&self) {
        self.all().iter().for_each(MsiVector::clear);
    }

    /// Brings the vectors from what they do to what is wanted, `None` being masked, in one batch.
    pub(super) fn change(&self, current: &mut Vec<Option<MsiMessage>>, wanted: Vec<Option<MsiMessage>>) {
        let pairs = self.all().iter().zip(current.iter().zip(&wanted));
        let edits: Vec<_> =
            pairs.filter(|(_, (old, new))| old != new).map(|(vector, (_, new))| (vector, *new)).collect();
        if !edits.is_empty() {
            self.router.batch(&edits);
        }
        *current = wanted;
    }
}
