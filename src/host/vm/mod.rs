//! What root does for one VM before and after it runs without any right of its own: its devices go to vfio-pci, its user
//! gets exactly the nodes that the VM needs, and huge pages that are missing are added; all is taken back.

mod access;
mod note;

use std::time::Duration;

pub use note::{Granted, Prepared};

use super::bind::{BindOptions, Bound};
use super::busy::busy_error;
use super::files::FileUse;
use super::journal::Journal;
use super::lease::{self, Returned};
use super::names::Name;
use super::release::{Outcome, Released};
use super::setting::Request;
use super::{Host, bind, release};
use crate::bdf::Bdf;
use crate::error::{Error, Result};
use crate::placement::NodePages;

/// How long udev may take for the devices that were bound.
const EVENT_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take for all devices of a machine that boots: `udevadm settle` gives it as long by itself.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What is to be prepared.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The VM.
    pub vm: Name,
    /// Its devices.
    pub devices: Vec<Bdf>,
    /// The files that it uses besides; its user gets those that are nodes.
    pub files: Vec<FileUse>,
    /// Who gets their nodes.
    pub user: Option<u32>,
    /// Whether devices are taken that the host itself uses.
    pub force: bool,
    /// Whether the services that show a display on one of them are stopped.
    pub single_gpu: bool,
    /// The huge pages that its memory is made of, if those that are missing are to be added.
    pub pages: Vec<NodePages>,
}

/// Adds the huge pages that a VM is short of, binds all its devices, with what must be held in their groups, and gives the
/// user their nodes. Doing it twice changes nothing. After an error all that this call did is undone.
///
/// # Errors
/// Those of [`bind`], `HugePages`, `GrantFailed`, `JournalUnusable`.
pub fn prepare(host: &Host, wish: &Wish) -> Result<(Vec<Bound>, Prepared)> {
    let known = host.prepared(&wish.vm)?;
    let mut note = known.clone().unwrap_or_else(|| Prepared::new(wish.vm.clone()));
    note.devices.extend(wish.devices.iter().filter(|bdf| !note.devices.contains(bdf)).copied().collect::<Vec<_>>());
    locked(host, || host.note_vm(&note))?;
    let mut done = Vec::new();
    let mut added = false;
    let result = locked(host, || lease::reserve_for(host, &wish.vm, &wish.pages)).and_then(|is| {
        added = is;
        bind_all(host, wish, &mut done)?;
        locked(host, || host.grant(&mut note, wish))
    });
    match result {
        Ok(()) => Ok((done, note)),
        Err(error) => Err(undo(host, &note, known.as_ref(), &done, added, error)),
    }
}

fn bind_all(host: &Host, wish: &Wish, done: &mut Vec<Bound>) -> Result<()> {
    for &bdf in &wish.devices {
        let stop = wish.single_gpu && host.device(bdf).is_ok_and(|device| device.is_display());
        let requests = stop.then_some(Request::StopDisplay).into_iter().collect();
        let options = BindOptions { force: wish.force, group: true, named: wish.devices.clone(), requests };
        done.push(bind(host, bdf, &options)?);
    }
    if wish.user.is_some() {
        // Rules of udev set a node's mode, and with it what its list may give at most; of /dev/kvm they take all users out of
        // the list (TAG+="uaccess"), at the boot as late as when the guests start.
        host.effects().settle(BOOT_LIMIT);
    } else if done.iter().any(|bound| bound.changed) {
        host.effects().settle(EVENT_LIMIT);
    }
    Ok(())
}

/// Undoes what a [`prepare`] did that failed with `error`: what was there before it stays.
fn undo(host: &Host, note: &Prepared, known: Option<&Prepared>, done: &[Bound], added: bool, error: Error) -> Error {
    let mut failed = Vec::new();
    if added {
        failed.extend(locked(host, || lease::return_of(host, &note.vm)).err());
    }
    if known.is_none() {
        failed.extend(locked(host, || host.revoke(note)).err());
    }
    for bound in done.iter().rev().filter(|bound| bound.changed) {
        failed.extend(release(host, bound.device.bdf).err());
    }
    if failed.is_empty() {
        let as_before = known.map_or_else(|| host.forget_vm(&note.vm), |known| host.note_vm(known));
        failed.extend(locked(host, || as_before).err());
    }
    failed.iter().fold(error, |error, second| error.evidence(format!("and undoing it failed: {}", second.cause())))
}

/// What became of a VM's devices and nodes.
#[derive(Debug, serde::Serialize)]
pub struct TakenBack {
    /// The devices.
    pub released: Vec<Released>,
    /// The nodes that its user has no more.
    pub nodes: Vec<std::path::PathBuf>,
    /// The huge pages that were added for it.
    pub pages: Vec<Returned>,
}

/// Takes a VM's nodes back from its user and gives its devices back: those that were noted, or `devices` if nothing was.
///
/// # Errors
/// `Busy` while a process has one of them open; those of [`release`]. All devices are tried.
pub fn take_back(host: &Host, vm: &Name, devices: &[Bdf]) -> Result<TakenBack> {
    let note = host.prepared(vm)?;
    let devices = note.as_ref().map_or(devices, |note| &note.devices);
    for device in devices.iter().filter_map(|&bdf| host.device(bdf).ok()).filter(|device| device.on_vfio()) {
        let holders = host.holders(&device);
        if !holders.processes.is_empty() {
            return Err(busy_error(&device, &holders, None));
        }
    }
    if let Some(note) = &note
        && let Some(user) = note.user
    {
        host.adopt_quarantine(vm, user, devices);
    }
    let nodes = match &note {
        Some(note) => locked(host, || host.revoke(note))?,
        None => Vec::new(),
    };
    let mut released = Vec::new();
    let mut failure = Ok(());
    for &bdf in devices.iter().rev() {
        let result = match host.journal_entry(bdf) {
            Ok(None) if host.device(bdf).is_err() => Ok(Released::of(bdf, Outcome::Gone)),
            _ => release(host, bdf),
        };
        match result {
            Ok(done) => released.push(done),
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    failure?;
    let pages = locked(host, || lease::return_of(host, vm))?;
    if note.is_some() {
        locked(host, || host.forget_vm(vm))?;
    }
    Ok(TakenBack { released, nodes, pages })
}

/// Takes the nodes and huge pages of every VM back of whose devices no process has one open; what could not be dealt with is
/// told.
pub(super) fn recover(host: &Host) -> (Vec<Name>, Vec<Returned>, Vec<(String, Error)>) {
    let (mut done, mut returned, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for vm in host.prepared_vms() {
        let recovered = host.prepared(&vm).and_then(|note| {
            let Some(note) = note else { return Ok(false) };
            let devices = note.devices.iter().filter_map(|&bdf| host.device(bdf).ok());
            if devices.into_iter().any(|device| !host.holders(&device).processes.is_empty()) {
                return Ok(false);
            }
            locked(host, || {
                host.revoke(&note)?;
                returned.extend(lease::return_of(host, &vm)?);
                host.forget_vm(&vm)
            })?;
            Ok(true)
        });
        match recovered {
            Ok(true) => done.push(vm),
            Ok(false) => {}
            Err(error) => failed.push((vm.to_string(), error)),
        }
    }
    (done, returned, failed)
}

/// Does something with the lock of the journal held, which [`bind`] and [`release`] take themselves.
fn locked<T>(host: &Host, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let _lock = Journal::open(host)?;
    act()
}

#[cfg(test)]
mod tests;
