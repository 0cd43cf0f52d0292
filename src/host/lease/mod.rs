//! What a guest that runs has changed of the host, for as long as it runs: the CPUs of its devices' interrupts, and the
//! huge pages that were added for its memory.
//!
//! Both are given back when the [`Lease`] ends. What was before is written to /run/passthru/leases, one file for each
//! process, before it is changed; `recover` gives back what processes that are gone have left. Processors need nothing of
//! the kind: threads take their affinity with them.
//!
//! A guest whose user may not do so gets its huge pages from root, who prepares the VM: [`reserve_for`] and [`return_of`].

use std::collections::BTreeSet;

use serde::Serialize;

use super::Host;
use super::journal::Journal;
use super::names::Name;
use crate::bdf::Bdf;
use crate::error::{Error, Result};
use crate::host::topology::{CpuSet, Topology};
use crate::placement::NodePages;

mod claims;
mod interrupts;
mod pages;
mod store;
#[cfg(test)]
mod tests;

use claims::Claim;
use interrupts::Moved;
use pages::Added;
use store::Record;

/// What one process has changed. Dropping it gives everything back.
#[derive(Debug)]
pub struct Lease {
    host: Host,
    record: Record,
    /// Devices whose interrupts stay where they are; each is told of once.
    given_up: BTreeSet<Bdf>,
}

/// What was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Returned {
    /// An interrupt has its former CPUs again.
    Interrupt {
        /// Its number.
        number: u32,
        /// Where it goes.
        cpus: CpuSet,
    },
    /// Huge pages are ordinary memory again.
    Pages {
        /// Their node.
        node: u32,
        /// Bytes of one page.
        page: u64,
        /// How many.
        count: u64,
    },
}

impl Lease {
    /// Nothing is changed yet.
    pub fn new(host: &Host) -> Lease {
        Lease { host: host.clone(), record: Record::of_this_process(host), given_up: BTreeSet::new() }
    }

    /// Adds the huge pages that are missing for the guest of this name. Those of a VM that root has prepared are there, and
    /// noted. A user without rights adds none and notes none, and needs none if enough are free.
    ///
    /// # Errors
    /// [`crate::error::Code::HugePages`] if the kernel does not find enough memory in one piece, even after it has moved
    /// things together; [`crate::error::Code::JournalUnusable`].
    pub fn reserve(&mut self, pages: &[NodePages], guest: Option<&str>) -> Result<()> {
        if store::names(&self.host).contains(&Record::name_of_vm(guest.unwrap_or_default())) {
            return Ok(());
        }
        match Journal::open(&self.host) {
            Ok(_lock) => self.add_missing(pages),
            Err(_) if pages.iter().all(|pages| pages.missing() == 0) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// With the lock of the journal held.
    fn add_missing(&mut self, pages: &[NodePages]) -> Result<()> {
        let others = claims::outstanding(&self.host, &self.record.name());
        self.record.claims.extend(pages.iter().map(Claim::from));
        store::write(&self.host, &self.record).inspect_err(|_| self.record.claims.clear())?;
        pages.iter().try_for_each(|pages| pages::add(self, pages, &others))
    }

    /// Lets the interrupts of a device go to these CPUs. One that cannot be moved stays where it is, with a warning.
    pub fn place_interrupts(&mut self, device: Bdf, cpus: &CpuSet) {
        if self.given_up.contains(&device) {
            return;
        }
        if let Err(error) = interrupts::place(self, device, cpus) {
            self.given_up.insert(device);
            crate::log::warn(format_args!("{error}"));
        }
    }

    /// Gives everything back, the last change first. What fails keeps the rest from nothing.
    fn give_back(&mut self) -> Result<Vec<Returned>> {
        // The pool's size is read and written.
        let _lock = Journal::open(&self.host)?;
        give_back(&self.host, &mut self.record)
    }
}

impl Topology {
    /// Takes what other guests than this one are still going to take from the huge pages that are free.
    pub fn leave_claimed(&mut self, host: &Host, guest: Option<&str>) {
        let claims = claims::outstanding(host, &Record::name_of_vm(guest.unwrap_or_default()));
        for node in &mut self.nodes {
            for pool in &mut node.pools {
                pool.free = pool.free.saturating_sub(claims::count(&claims, node.id, pool.page));
            }
        }
    }
}

/// Adds the huge pages that a VM is short of, for as long as it is prepared, with the lock of the journal held; `false`: that
/// was done before.
///
/// # Errors
/// Those of [`Lease::reserve`]; nothing was added then.
pub(super) fn reserve_for(host: &Host, vm: &Name, pages: &[NodePages]) -> Result<bool> {
    let record = Record::of_vm(vm);
    // Once: a guest that runs has taken its pages, and would seem to be short of them again.
    if pages.is_empty() || store::read(host, &record.name())?.is_some() {
        return Ok(false);
    }
    let mut lease = Lease { host: host.clone(), record, given_up: BTreeSet::new() };
    let added = lease.add_missing(pages);
    // They outlive this process, unless it failed.
    let mut record = std::mem::replace(&mut lease.record, Record::of_this_process(host));
    added.map(|()| true).map_err(|error| match give_back(host, &mut record) {
        Ok(_) => error,
        Err(second) => error.evidence(format!("and undoing it failed: {}", second.cause())),
    })
}

/// Gives back what [`reserve_for`] added.
pub(super) fn return_of(host: &Host, vm: &Name) -> Result<Vec<Returned>> {
    match store::read(host, &Record::of_vm(vm).name())? {
        Some(mut record) => give_back(host, &mut record),
        None => Ok(Vec::new()),
    }
}

fn give_back(host: &Host, record: &mut Record) -> Result<Vec<Returned>> {
    let mut returned = Vec::new();
    let mut result = Ok(());
    for moved in std::mem::take(&mut record.interrupts).iter().rev() {
        match moved.undo(host) {
            Ok(done) => returned.extend(done),
            Err(error) => result = result.and(Err(error)),
        }
    }
    for added in std::mem::take(&mut record.pages).iter().rev() {
        match added.undo(host) {
            Ok(done) => returned.extend(done),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result?;
    store::remove(host, record)?;
    Ok(returned)
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.record.is_empty()
            && let Err(error) = self.give_back()
        {
            crate::log::warn(format_args!("{error}"));
        }
    }
}

/// What `recover` made of the leases of processes that are gone: what was given back, and the files that it could not
/// deal with.
pub(super) fn recover(host: &Host) -> (Vec<Returned>, Vec<(String, Error)>) {
    let mut returned = Vec::new();
    let mut failed = Vec::new();
    for name in store::names(host) {
        let done = match store::read(host, &name) {
            Ok(Some(record)) if record.is_alive(host) => continue,
            Ok(Some(mut record)) => give_back(host, &mut record),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match done {
            Ok(done) => returned.extend(done),
            Err(error) => failed.push((name, error)),
        }
    }
    (returned, failed)
}
