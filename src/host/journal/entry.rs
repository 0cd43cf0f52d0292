//! What is remembered of one device, and what of a file is believed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::host::PciDevice;
use crate::host::names::Noted;
use crate::host::pci::is_vfio_driver;
use crate::host::setting::Setting;

/// The version of the file's form.
const VERSION: u32 = 2;
/// The oldest form that is still understood: it knows no settings and nothing that is held.
const OLDEST: u32 = 1;
/// Longer names of drivers do not exist (a kernel module's name has 55 characters at most).
const MAX_DRIVER_NAME: usize = 64;

/// What is about to be done, or has been reached, when an entry is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Reserve the device for vfio-pci.
    SetOverride,
    /// Unbind the former driver.
    Unbind,
    /// Let vfio-pci bind.
    Probe,
    /// The device is on vfio-pci.
    Bound,
    /// Unbind vfio-pci.
    LetGo,
    /// Reserve the device for its former driver.
    SetFormer,
    /// Let the former driver bind.
    ProbeFormer,
    /// Put the former override back.
    RestoreOverride,
    /// Change a setting of the host.
    ChangeSetting,
    /// Put a setting back.
    RestoreSetting,
}

impl Step {
    /// Whether the step undoes: then the entry on disk already says all that is needed.
    pub(in crate::host) fn undoes(self) -> bool {
        matches!(self, Step::LetGo | Step::SetFormer | Step::ProbeFormer | Step::RestoreOverride | Step::RestoreSetting)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::SetOverride => "reserve the device for vfio-pci",
            Step::Unbind => "unbind its host driver",
            Step::Probe => "bind it to vfio-pci",
            Step::Bound => "note that it is on vfio-pci",
            Step::LetGo => "unbind it from vfio-pci",
            Step::SetFormer => "reserve the device for its former driver",
            Step::ProbeFormer => "bind it to its former driver",
            Step::RestoreOverride => "put the former driver override back",
            Step::ChangeSetting => "change a setting",
            Step::RestoreSetting => "put a setting back",
        })
    }
}

/// What is remembered of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    /// The device.
    pub device: Bdf,
    /// Vendor and device ID: another card at the same address is another device.
    pub ids: (u16, u16),
    /// Whether passthru bound it. A device that was on vfio-pci before is left there.
    pub ours: bool,
    /// The driver that it had.
    pub former_driver: Option<String>,
    /// The override that it had.
    pub former_override: Option<String>,
    /// The device that it is only held for: it went to vfio-pci as a member of that one's group.
    #[serde(default)]
    pub held_for: Option<Bdf>,
    /// Settings that were changed, as they were before, in the order of the changes.
    #[serde(default)]
    pub former_settings: Vec<Setting>,
    /// By what else it is known, as long as a host driver has it.
    #[serde(default)]
    pub(in crate::host) noted: Noted,
    /// How far the change has come.
    pub step: Step,
}

impl Entry {
    /// The entry for a device as it is now.
    pub(in crate::host) fn new(device: &PciDevice) -> Entry {
        Entry {
            version: VERSION,
            device: device.bdf,
            ids: (device.vendor, device.device),
            ours: !device.on_vfio(),
            former_driver: device.driver.clone(),
            former_override: device.driver_override.clone(),
            held_for: None,
            former_settings: Vec::new(),
            noted: Noted::default(),
            step: Step::SetOverride,
        }
    }

    /// Whether it is about this device and not about another card at its address.
    pub(in crate::host) fn is_for(&self, device: &PciDevice) -> bool {
        self.device == device.bdf && self.ids == (device.vendor, device.device)
    }

    /// Reads an entry, believing nothing.
    pub(super) fn parse(text: &str, bdf: Bdf) -> Result<Entry, String> {
        let entry: Entry = serde_json::from_str(text).map_err(|error| format!("it is damaged: {error}"))?;
        if !(OLDEST..=VERSION).contains(&entry.version) {
            return Err(format!("it has version {}, this passthru writes version {VERSION}", entry.version));
        }
        if entry.device != bdf {
            return Err(format!("it is about {} and not about {bdf}", entry.device));
        }
        entry.check()?;
        Ok(entry)
    }

    /// Whether every name is one that may be written to sysfs: asked before an entry is written, and after it is read.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(name) = self.former_driver.iter().chain(&self.former_override).find(|name| !is_driver_name(name)) {
            return Err(format!("{name:?} cannot be a driver's name"));
        }
        self.former_settings.iter().try_for_each(Setting::check)?;
        match &self.former_driver {
            Some(name) if self.ours && is_vfio_driver(name) => Err(format!("it takes {name} for a host driver")),
            _ => Ok(()),
        }
    }
}

/// Whether a text can be a driver's name: part of a path in sysfs, and one line.
fn is_driver_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'/');
    plain && (1..=MAX_DRIVER_NAME).contains(&name.len()) && !matches!(name, "." | ".." | "(null)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::bdf;
    use proptest::prelude::*;
    use std::path::Path;

    proptest! {
        #[test]
        fn names_that_pass_are_one_part_of_a_path(name in "\\PC{0,70}") {
            if is_driver_name(&name) {
                let path = Path::new("/a").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("/a")));
                prop_assert!(!name.contains('\n'));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = Entry::parse(&text, bdf("01:00.0"));
        }
    }
}
