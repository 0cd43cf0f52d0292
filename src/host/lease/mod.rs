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
use super::names::Name;
use crate::bdf::Bdf;
use crate::error::{Error, Result};
use crate::host::topology::CpuSet;
use crate::placement::NodePages;

mod interrupts;
mod pages;
mod store;
#[cfg(test)]
mod tests;

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

    /// Adds the huge pages that are missing.
    ///
    /// # Errors
    /// [`crate::error::Code::HugePages`] if the kernel does not find enough memory in one piece, even after it has moved
    /// things together; [`crate::error::Code::JournalUnusable`].
    pub fn reserve(&mut self, pages: &[NodePages]) -> Result<()> {
        pages.iter().filter(|pages| pages.missing() > 0).try_for_each(|pages| pages::add(self, pages))
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
        give_back(&self.host, &mut self.record)
    }
}

/// Adds the huge pages that a VM is short of, for as long as it is prepared; `false`: nothing was added now.
///
/// # Errors
/// Those of [`Lease::reserve`]; nothing was added then.
pub(super) fn reserve_for(host: &Host, vm: &Name, pages: &[NodePages]) -> Result<bool> {
    let record = Record::of_vm(vm);
    // Once: a guest that runs has taken its pages, and would seem to be short of them again.
    if pages.iter().all(|pages| pages.missing() == 0) || store::read(host, &record.name())?.is_some() {
        return Ok(false);
    }
    let mut lease = Lease { host: host.clone(), record, given_up: BTreeSet::new() };
    lease.reserve(pages)?;
    // They outlive this process.
    lease.record = Record::of_this_process(host);
    Ok(true)
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
