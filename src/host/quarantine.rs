//! Devices that did not come back from a reset: noted with the reason, so that the next `bind` or `run` refuses them by
//! name and does not hand a dead device to another guest.
//!
//! One JSON file for each in /run/passthru/quarantine. A service, whose user may not write there, notes it in its own folder,
//! and `release --vm` takes it over as root. A reboot of the host, which usually brings the device back, empties
//! /run; `passthru recover --clear BDF` forgets one by hand. A note about another card at the address counts for nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names::Name;
use super::record::{self, file_name};
use super::{Host, PciDevice};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

/// The version of the file's form.
const VERSION: u32 = 1;
/// Below /run/passthru, and below the folder of a service.
const FOLDER: &str = "quarantine";
/// A reason is one line.
const MAX_REASON: usize = 300;

/// A quarantined device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    version: u32,
    /// The device.
    pub device: Bdf,
    /// Vendor and device ID: another card at the same address is another device.
    pub ids: (u16, u16),
    /// Why.
    pub reason: String,
}

impl Host {
    /// Notes that a device did not come back.
    ///
    /// # Errors
    /// [`Code::JournalUnusable`] if that cannot be written: the user who runs passthru may not write to /run/passthru.
    pub fn quarantine(&self, bdf: Bdf, reason: &str) -> Result<()> {
        let device = self.device(bdf)?;
        let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
        let note = Quarantined { version: VERSION, device: bdf, ids: (device.vendor, device.device), reason };
        let folder = self.quarantine_folder();
        let noted = write(&folder, &note).or_else(|error| match self.service_folder() {
            Some(own) => write(&own.join(FOLDER), &note),
            None => Err(error),
        });
        noted.map_err(|error| {
            Error::new(Code::JournalUnusable, format!("that {bdf} is quarantined cannot be noted"))
                .evidence(format!("{}: {}", folder.display(), explain_io(&error)))
                .fix("do not start another guest with it before the host was powered off and on")
        })
    }

    /// Takes over what the service of a VM has noted of these devices, which are its own: its user may write nowhere else. Root
    /// believes it no more than that; gives the devices.
    pub(super) fn adopt_quarantine(&self, vm: &Name, user: u32, devices: &[Bdf]) -> Vec<Bdf> {
        let folder = self.run("vm").join(vm.to_string()).join(FOLDER);
        let adopt = |&bdf: &Bdf| {
            let text = record::read_of(&folder.join(file_name(bdf)), user).ok().flatten()?;
            let note: Quarantined = serde_json::from_str(&text).ok()?;
            let device = self.device(bdf).ok()?;
            if (note.version, note.device, note.ids) != (VERSION, bdf, (device.vendor, device.device)) {
                return None;
            }
            match self.quarantine(bdf, &note.reason) {
                Ok(()) => Some(bdf),
                Err(error) => {
                    crate::log::warn(format_args!("{error}"));
                    None
                }
            }
        };
        devices.iter().filter_map(adopt).collect()
    }

    /// The note about a device, if it is one about this card.
    ///
    /// # Errors
    /// [`Code::JournalUnusable`] for a note that is damaged or that anybody could have written.
    pub fn quarantined(&self, device: &PciDevice) -> Result<Option<Quarantined>> {
        let note = self.read_note(device.bdf)?;
        Ok(note.filter(|note| note.ids == (device.vendor, device.device)))
    }

    /// [`Code::Quarantined`] if the device is.
    pub fn refuse_quarantined(&self, device: &PciDevice) -> Result<()> {
        let Some(note) = self.quarantined(device)? else { return Ok(()) };
        let bdf = device.bdf;
        Err(Error::new(Code::Quarantined, format!("{bdf} ({}) is quarantined", device.name()))
            .evidence(note.reason)
            .evidence(format!("noted in {}", self.quarantine_folder().join(file_name(bdf)).display()))
            .fix(format!(
                "power the host off and on; if you know that the device works again: `passthru recover --clear {bdf}`"
            )))
    }

    /// Forgets the note about a device; `false`: there was none.
    ///
    /// # Errors
    /// [`Code::JournalUnusable`] if it cannot be removed.
    pub fn clear_quarantine(&self, bdf: Bdf) -> Result<bool> {
        let folder = self.quarantine_folder();
        if !folder.join(file_name(bdf)).exists() {
            return Ok(false);
        }
        record::remove(&folder, &file_name(bdf)).map(|()| true).map_err(|error| {
            Error::new(Code::JournalUnusable, format!("the note about {bdf} cannot be removed"))
                .evidence(format!("{}: {}", folder.display(), explain_io(&error)))
                .fix("run it as root")
        })
    }

    /// The addresses that there are notes about.
    pub fn quarantine_list(&self) -> Vec<Bdf> {
        record::devices(&self.quarantine_folder())
    }

    fn quarantine_folder(&self) -> PathBuf {
        self.run(FOLDER)
    }

    fn read_note(&self, bdf: Bdf) -> Result<Option<Quarantined>> {
        let path = self.quarantine_folder().join(file_name(bdf));
        let bad = |why: String| {
            Error::new(Code::JournalUnusable, format!("the note about {bdf} cannot be used"))
                .evidence(format!("{}: {why}", path.display()))
                .fix(format!("as root, `passthru recover --clear {bdf}` removes it"))
        };
        let text = record::read(&path).map_err(|error| bad(error.to_string()))?;
        let Some(text) = text else { return Ok(None) };
        let note: Quarantined = serde_json::from_str(&text).map_err(|error| bad(format!("it is damaged: {error}")))?;
        if note.version != VERSION || note.device != bdf {
            return Err(bad(format!("it is of version {} and about {}", note.version, note.device)));
        }
        Ok(Some(note))
    }
}

fn write(folder: &Path, note: &Quarantined) -> io::Result<()> {
    record::make_folder(folder)?;
    record::replace(folder, &file_name(note.device), &serde_json::to_string_pretty(note)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bind;
    use crate::host::bind::BindOptions;
    use crate::host::testtree::{TestTree, bdf};

    const NIC: &str = "0000:01:00.0";

    fn tree() -> TestTree {
        let tree = TestTree::new();
        tree.pci(NIC).driver("e1000e").group(2).add();
        tree
    }

    #[test]
    fn a_quarantined_device_is_refused_by_name_until_it_is_cleared() {
        let tree = tree();
        let host = tree.host();
        host.quarantine(bdf(NIC), "after the reset its class code\nreads as ones").unwrap();
        assert_eq!(host.quarantine_list(), [bdf(NIC)]);
        let error = bind(&host, bdf(NIC), &BindOptions::default()).unwrap_err();
        assert_eq!((error.code(), error.code().entry().class.exit_code()), (Code::Quarantined, 4));
        assert_eq!(error.evidence_lines()[0], "after the reset its class code reads as ones");
        assert!(error.to_string().contains("`passthru recover --clear 0000:01:00.0`"), "{error}");
        assert!(tree.kernel().writes().is_empty());
        assert!(host.clear_quarantine(bdf(NIC)).unwrap());
        assert!(!host.clear_quarantine(bdf(NIC)).unwrap());
        assert!(bind(&host, bdf(NIC), &BindOptions::default()).unwrap().changed);
        host.quarantine(bdf(NIC), "again").unwrap();
        assert_eq!(host.ready(bdf(NIC)).unwrap_err().code(), Code::Quarantined);
    }

    #[test]
    fn what_a_service_notes_is_taken_over() {
        let tree = tree();
        let own = tree.root().join("run/passthru/vm/router");
        tree.file("run/passthru/vm/router/lock", "");
        // Nobody makes a folder where a file is.
        tree.file("run/passthru/quarantine", "");
        let service = tree.host().in_service(&own);
        service.quarantine(bdf(NIC), "dead").unwrap();
        std::fs::remove_file(tree.root().join("run/passthru/quarantine")).unwrap();
        assert!(tree.host().quarantine_list().is_empty());
        let (vm, user) = ("router".to_owned().try_into().unwrap(), nix::unistd::geteuid().as_raw());
        assert!(tree.host().adopt_quarantine(&vm, user, &[]).is_empty(), "it is not the VM's");
        assert!(tree.host().adopt_quarantine(&vm, user + 1, &[bdf(NIC)]).is_empty(), "another user has written it");
        assert_eq!(tree.host().adopt_quarantine(&vm, user, &[bdf(NIC)]), [bdf(NIC)]);
        assert_eq!(tree.host().ready(bdf(NIC)).unwrap_err().code(), Code::Quarantined);
        tree.attribute(NIC, "device", "0x1533\n");
        assert!(tree.host().adopt_quarantine(&vm, user, &[bdf(NIC)]).is_empty(), "another card");
    }

    #[test]
    fn another_card_at_the_address_is_not_meant() {
        let tree = tree();
        tree.host().quarantine(bdf(NIC), "dead").unwrap();
        tree.attribute(NIC, "device", "0x1533\n");
        assert!(bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap().changed);
    }

    #[test]
    fn a_damaged_note_is_an_error_and_can_be_cleared() {
        let tree = tree();
        tree.file(format!("run/passthru/quarantine/{NIC}.json"), "{}");
        assert_eq!(bind(&tree.host(), bdf(NIC), &BindOptions::default()).unwrap_err().code(), Code::JournalUnusable);
        assert!(tree.host().clear_quarantine(bdf(NIC)).unwrap());
        assert!(tree.host().refuse_quarantined(&tree.host().device(bdf(NIC)).unwrap()).is_ok());
    }
}
