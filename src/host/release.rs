//! `passthru release` and `passthru recover`: give devices back to the drivers that they had.

use std::collections::BTreeSet;

use serde::{Serialize, Serializer};

use super::busy::{Holders, busy_error};
use super::change::Change;
use super::journal::{Entry, Journal};
use super::lease::{self, Returned};
use super::names::Name;
use super::{Host, PciDevice, vm};
use crate::bdf::{Bdf, DeviceAddr};
use crate::error::{Error, Result};

/// What became of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has its former driver and override again.
    GivenBack,
    /// passthru had not bound it: it was left alone.
    NotOurs,
    /// It, or the card that was bound, is no longer there: there is nothing to give back.
    Gone,
}

/// What `release` did with one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The device.
    pub bdf: Bdf,
    /// What became of it.
    pub outcome: Outcome,
    /// The driver that it has now.
    pub driver: Option<String>,
    /// Members of its group that were held for it, and are not any more.
    pub held: Vec<Released>,
}

impl Released {
    /// Without a driver, and with nothing that was held for it.
    pub(crate) fn of(bdf: Bdf, outcome: Outcome) -> Released {
        Released { bdf, outcome, driver: None, held: Vec::new() }
    }
}

/// A device that `recover` left on vfio-pci because someone has its group open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The device.
    pub bdf: Bdf,
    /// Who has it.
    pub holders: Holders,
}

/// A file of the journal that `recover` could not deal with.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// The file's name.
    pub name: String,
    /// Why.
    #[serde(serialize_with = "as_text")]
    pub error: Error,
}

fn as_text<S: Serializer>(error: &Error, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(error)
}

/// What `recover` did.
#[derive(Debug, Default, Serialize)]
pub struct Recovered {
    /// Devices that were dealt with.
    pub released: Vec<Released>,
    /// VMs whose user has their nodes no more.
    pub taken_back: Vec<Name>,
    /// Devices that are in use by a living process.
    pub kept: Vec<Kept>,
    /// What guests that are gone had changed of the host.
    pub returned: Vec<Returned>,
    /// What went wrong; the rest went on.
    pub failed: Vec<Failure>,
}

/// Gives a device back. Releasing twice, or a device that passthru did not bind, changes nothing.
///
/// Errors: `Busy` while a process has the device's group open; `BindFailed` if the kernel refuses a step (the journal
/// keeps what was before, so it can be tried again); `JournalUnusable`; `DeviceAbsent` for one that never was there.
pub fn release(host: &Host, bdf: Bdf) -> Result<Released> {
    if host.journal_entry(bdf)?.is_none() {
        let driver = host.device(bdf)?.driver;
        return Ok(Released { driver, ..Released::of(bdf, Outcome::NotOurs) });
    }
    let journal = Journal::open(host)?;
    let Some(entry) = journal.read(bdf)? else {
        // Another process released it while we waited for the lock.
        return Ok(Released { driver: host.driver(bdf), ..Released::of(bdf, Outcome::GivenBack) });
    };
    match settle(host, &journal, entry)? {
        Settled::Done(mut released) => {
            released.held = let_go_of_held(host, &journal, bdf)?;
            Ok(released)
        }
        Settled::Held(device, holders) => Err(busy_error(&device, &holders, None)),
    }
}

/// The functions that an address means: those that there are, and those that were bound and are gone.
///
/// Errors: those of [`Host::functions`] if there is neither.
pub fn noted_functions(host: &Host, addr: DeviceAddr) -> Result<Vec<Bdf>> {
    let noted = host.noted().into_iter().filter(|bdf| addr.contains(*bdf));
    match (host.functions(addr), noted.collect::<BTreeSet<Bdf>>()) {
        (Err(error), noted) if noted.is_empty() => Err(error),
        (found, mut noted) => {
            noted.extend(found.unwrap_or_default());
            Ok(noted.into_iter().collect())
        }
    }
}

/// Gives back every device of the journal that no living process has, at whatever step its change was broken off.
pub fn recover(host: &Host) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    host.sweep_tokens();
    let (returned, failed) = lease::recover(host);
    recovered.returned = returned;
    recovered.failed.extend(failed.into_iter().map(|(name, error)| Failure { name, error }));
    let (taken_back, returned, failed) = vm::recover(host);
    recovered.taken_back = taken_back;
    recovered.returned.extend(returned);
    recovered.failed.extend(failed.into_iter().map(|(name, error)| Failure { name, error }));
    if host.journal_is_empty() {
        return Ok(recovered);
    }
    let journal = Journal::open(host)?;
    for (name, entry) in journal.entries() {
        match entry.and_then(|entry| entry.map(|entry| settle(host, &journal, entry)).transpose()) {
            Ok(Some(Settled::Done(released))) => recovered.released.push(released),
            Ok(Some(Settled::Held(device, holders))) => recovered.kept.push(Kept { bdf: device.bdf, holders }),
            Ok(None) => {}
            Err(error) => recovered.failed.push(Failure { name, error }),
        }
    }
    Ok(recovered)
}

enum Settled {
    Done(Released),
    Held(Box<PciDevice>, Holders),
}

fn settle(host: &Host, journal: &Journal, entry: Entry) -> Result<Settled> {
    let bdf = entry.device;
    host.wait_for_writer(bdf)?;
    let device = match host.device(bdf) {
        Ok(device) if entry.is_for(&device) => device,
        now => {
            // The consoles are the host's and still there; what was the device's has gone with it.
            let consoles = entry.former_settings.iter().rev().filter(|setting| setting.comes_first());
            consoles.for_each(|setting| drop(setting.set(host, bdf)));
            journal.remove(bdf)?;
            let driver = now.ok().and_then(|device| device.driver);
            return Ok(Settled::Done(Released { driver, ..Released::of(bdf, Outcome::Gone) }));
        }
    };
    if !entry.ours && entry.former_settings.is_empty() {
        journal.remove(bdf)?;
        return Ok(Settled::Done(Released { driver: device.driver, ..Released::of(bdf, Outcome::NotOurs) }));
    }
    // vfio-pci's unbind waits until the last descriptor is closed, and a member of a group that a guest owns must not
    // go back to a driver of the host (old kernels stop with BUG()).
    let holders = host.holders(&device);
    if !holders.processes.is_empty() {
        return Ok(Settled::Held(Box::new(device), holders));
    }
    let outcome = if entry.ours { Outcome::GivenBack } else { Outcome::NotOurs };
    Change::new(host, journal, entry).give_back()?;
    Ok(Settled::Done(Released { driver: host.driver(bdf), ..Released::of(bdf, outcome) }))
}

/// Gives back the members of a group that were held for a device that has been released. As long as another member of the
/// group is bound by name, they are held for that one.
fn let_go_of_held(host: &Host, journal: &Journal, bdf: Bdf) -> Result<Vec<Released>> {
    let entries: Vec<Entry> = journal.entries().into_iter().filter_map(|(_, entry)| entry.ok().flatten()).collect();
    let group = |bdf: Bdf| host.device(bdf).ok().and_then(|device| device.iommu_group);
    let mut released = Vec::new();
    for mut entry in entries.iter().filter(|entry| entry.held_for == Some(bdf)).cloned() {
        let id = group(entry.device);
        let another = entries
            .iter()
            .find(|other| other.held_for.is_none() && other.device != bdf && id.is_some() && group(other.device) == id);
        if let Some(another) = another {
            entry.held_for = Some(another.device);
            journal.write(&entry)?;
            continue;
        }
        match settle(host, journal, entry)? {
            Settled::Done(done) => released.push(done),
            Settled::Held(device, holders) => return Err(busy_error(&device, &holders, None)),
        }
    }
    Ok(released)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::error::Code;
    use crate::host::bind;
    use crate::host::bind::BindOptions;
    use crate::host::testtree::{Fault, Killed, TestTree, bdf};

    const NIC: &str = "0000:01:00.0";

    /// A NIC and its twin; the NIC is made by `build` from the tree.
    fn tree(driver: Option<&str>, override_: &str) -> TestTree {
        let tree = TestTree::new();
        let nic = tree.pci(NIC).group(2);
        driver.into_iter().fold(nic, |nic, driver| nic.driver(driver)).add();
        tree.attribute(NIC, "driver_override", &format!("{override_}\n"));
        tree.pci("0000:02:00.0").driver("e1000e").group(3).add();
        tree
    }

    /// Hosts before `bind`: the usual one; no driver; an override for the driver; one for vfio-pci that never acted.
    fn trees() -> [TestTree; 4] {
        [
            tree(Some("e1000e"), "(null)"),
            tree(None, "(null)"),
            tree(Some("e1000e"), "e1000e"),
            tree(Some("e1000e"), "vfio-pci"),
        ]
    }

    /// Runs `action` and says whether it was killed.
    fn killed(action: impl FnOnce()) -> bool {
        match catch_unwind(AssertUnwindSafe(action)) {
            Ok(()) => false,
            Err(panic) if panic.is::<Killed>() => true,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Kills `action` before and after each of its changes; after each, `recover` restores the tree as it was.
    fn killed_anywhere(prepare: impl Fn(&Host), action: impl Fn(&Host)) {
        let mut kills = 0;
        for number in 0.. {
            let mut reached = false;
            for fault in [Fault::KillBefore(number), Fault::KillAfter(number)] {
                for tree in trees() {
                    let before = tree.snapshot();
                    prepare(&tree.host());
                    tree.kernel().set_fault(Some(fault));
                    let was_killed = killed(|| action(&tree.host()));
                    tree.kernel().set_fault(None);
                    reached |= was_killed;
                    kills += usize::from(was_killed);
                    let recovered = recover(&tree.host()).unwrap();
                    assert!(recovered.failed.is_empty() && recovered.kept.is_empty(), "{fault:?} {recovered:?}");
                    assert_eq!(tree.snapshot(), before, "{fault:?}");
                }
            }
            if !reached {
                break;
            }
        }
        assert!(kills >= 16, "only {kills} places to be killed at");
    }

    /// Lets the kernel be stuck from each of the changes of `action` on; what `action` says then, and what `recover` makes of
    /// it when the kernel goes on.
    fn stuck_anywhere(prepare: impl Fn(&Host), action: impl Fn(&Host) -> Result<()>) {
        let mut steps = 0;
        for number in 0.. {
            let mut reached = false;
            for tree in trees() {
                let before = tree.snapshot();
                prepare(&tree.host());
                let asked = tree.kernel().writes().len();
                tree.kernel().set_fault(Some(Fault::Stuck(number)));
                let result = action(&tree.host());
                tree.kernel().set_fault(None);
                if let Err(error) = result {
                    assert_eq!(error.code(), Code::Stuck, "{error}");
                    assert!(error.cause().contains(NIC), "{error}");
                    let noted = tree.host().journal_entry(bdf(NIC)).unwrap().expect("the journal keeps the step");
                    assert!(error.cause().contains(&noted.step.to_string()), "the step has no name: {error}");
                    assert_eq!(tree.kernel().writes().len(), asked + number, "nothing more was asked of it");
                    (reached, steps) = (true, steps + 1);
                }
                let recovered = recover(&tree.host()).unwrap();
                assert!(recovered.failed.is_empty(), "{recovered:?}");
                assert_eq!(tree.snapshot(), before);
            }
            if !reached {
                break;
            }
        }
        assert!(steps >= 8, "only {steps} places to be stuck at");
    }

    #[test]
    fn recover_after_bind_was_stuck_at_any_step() {
        stuck_anywhere(|_| {}, |host| bind(host, bdf(NIC), &BindOptions::default()).map(drop));
    }

    #[test]
    fn recover_after_release_was_stuck_at_any_step() {
        stuck_anywhere(bind_nic, |host| release(host, bdf(NIC)).map(drop));
    }

    fn bind_nic(host: &Host) {
        bind(host, bdf(NIC), &BindOptions::default()).unwrap();
    }

    #[test]
    fn recover_after_bind_was_killed_at_any_step() {
        killed_anywhere(|_| {}, bind_nic);
    }

    #[test]
    fn recover_after_release_was_killed_at_any_step() {
        killed_anywhere(bind_nic, |host| {
            release(host, bdf(NIC)).unwrap();
        });
    }

    #[test]
    fn recover_after_recover_was_killed_at_any_step() {
        killed_anywhere(bind_nic, |host| {
            recover(host).unwrap();
        });
    }

    #[test]
    fn bind_after_bind_was_killed_keeps_what_was_before() {
        for number in 0..3 {
            for fault in [Fault::KillBefore(number), Fault::KillAfter(number)] {
                let tree = tree(Some("e1000e"), "(null)");
                let before = tree.snapshot();
                tree.kernel().set_fault(Some(fault));
                assert!(killed(|| bind_nic(&tree.host())));
                tree.kernel().set_fault(None);
                let bound = bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap();
                assert_eq!((bound.ours, bound.former_driver.as_deref()), (true, Some("e1000e")));
                release(&tree.host(), bdf(NIC)).unwrap();
                assert_eq!(tree.snapshot(), before);
            }
        }
    }

    #[test]
    fn released_twice() {
        for tree in trees() {
            let before = tree.snapshot();
            let driver = tree.host().driver(bdf(NIC));
            bind_nic(&tree.host());
            assert_ne!(tree.snapshot(), before);
            let first = release(&tree.host(), bdf(NIC)).unwrap();
            assert_eq!((first.outcome, &first.driver), (Outcome::GivenBack, &driver));
            let second = release(&tree.host(), bdf(NIC)).unwrap();
            assert_eq!((second.outcome, &second.driver), (Outcome::NotOurs, &driver));
            assert_eq!(tree.snapshot(), before);
        }
    }

    #[test]
    fn a_device_that_someone_else_bound_stays() {
        let tree = TestTree::new();
        tree.pci(NIC).driver("vfio-pci").group(2).add();
        let before = tree.snapshot();
        bind_nic(&tree.host());
        assert_eq!(release(&tree.host(), bdf(NIC)).unwrap().outcome, Outcome::NotOurs);
        assert_eq!(tree.snapshot(), before);
    }

    #[test]
    fn a_device_that_someone_moved_on_stays_there() {
        let tree = tree(Some("e1000e"), "(null)");
        bind_nic(&tree.host());
        std::fs::remove_file(tree.pci_path(NIC).join("driver")).unwrap();
        tree.add_driver("igb");
        tree.kernel().attach(NIC, "igb");
        assert_eq!(release(&tree.host(), bdf(NIC)).unwrap().driver.as_deref(), Some("igb"));
        assert_eq!(tree.host().driver_override(bdf(NIC)), None);
        assert!(tree.host().journal_is_empty());
    }

    #[test]
    fn a_device_in_use_is_left_alone_until_its_owner_ends() {
        let tree = tree(Some("e1000e"), "(null)");
        let before = tree.snapshot();
        bind_nic(&tree.host());
        tree.process(42, "passthru", &[&tree.host().group_node(2)]);
        let held = tree.snapshot();
        let error = release(&tree.host(), bdf(NIC)).unwrap_err();
        assert_eq!(error.code(), Code::Busy);
        let recovered = recover(&tree.host()).unwrap();
        assert_eq!(recovered.kept[0].holders.processes[0].pid, 42);
        assert!(recovered.released.is_empty());
        assert_eq!(tree.snapshot(), held);
        tree.end(42);
        assert_eq!(recover(&tree.host()).unwrap().released.len(), 1);
        assert_eq!(tree.snapshot(), before);
    }

    #[test]
    fn a_former_driver_that_fails_can_be_tried_again() {
        let tree = tree(Some("e1000e"), "(null)");
        bind_nic(&tree.host());
        std::fs::remove_dir_all(tree.sys("bus/pci/drivers/e1000e")).unwrap();
        let error = release(&tree.host(), bdf(NIC)).unwrap_err();
        assert_eq!(error.code(), Code::BindFailed);
        assert!(error.to_string().contains("e1000e did not take the device"), "{error}");
        assert_eq!(tree.host().driver_override(bdf(NIC)), None);
        tree.kernel().add_module("e1000e");
        assert_eq!(release(&tree.host(), bdf(NIC)).unwrap().driver.as_deref(), Some("e1000e"));
        assert!(tree.host().journal_entry(bdf(NIC)).unwrap().is_none());
    }

    #[test]
    fn a_device_that_is_gone_or_another_is_forgotten() {
        let tree = tree(Some("e1000e"), "(null)");
        bind_nic(&tree.host());
        tree.attribute(NIC, "device", "0x1533\n");
        assert_eq!(recover(&tree.host()).unwrap().released[0].outcome, Outcome::Gone);
        assert_eq!(tree.host().driver(bdf(NIC)).as_deref(), Some("vfio-pci"));
        assert!(tree.host().journal_is_empty());
        assert_eq!(release(&tree.host(), bdf("09:00.0")).unwrap_err().code(), Code::DeviceAbsent);
    }

    #[test]
    fn one_damaged_entry_does_not_keep_the_others() {
        let tree = tree(Some("e1000e"), "(null)");
        bind_nic(&tree.host());
        tree.file("run/passthru/devices/0000:02:00.0.json", "not json");
        let recovered = recover(&tree.host()).unwrap();
        assert_eq!(recovered.released.len(), 1);
        assert_eq!(recovered.failed[0].error.code(), Code::JournalUnusable);
        assert_eq!(tree.host().driver(bdf(NIC)).as_deref(), Some("e1000e"));
        assert!(serde_json::to_string(&recovered).unwrap().contains("PT031"));
    }

    #[test]
    fn nothing_to_recover_needs_no_journal() {
        let tree = tree(Some("e1000e"), "(null)");
        assert!(recover(&tree.host()).unwrap().released.is_empty());
        assert!(!tree.host().run("").exists());
    }
}
