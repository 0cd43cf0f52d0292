//! A device in D3cold has no power: it is woken before VFIO opens it, with a bounded number of tries.
//!
//! The kernel wakes a device by itself when it is opened, and reports one that does not come back as a broken one. Reading
//! its configuration space through sysfs wakes it as well, and shows whether it answers; where that does not suffice,
//! runtime power management is held off for the time of the opening. (Kernel: Documentation/power/pci.rst,
//! Documentation/ABI/testing/sysfs-devices-power.)

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::{Host, read};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

/// How often, and how far apart, a device is asked whether it is awake. A link that comes up from nothing takes up to 1 s
/// (PCIe 6.6.1).
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// What `power_state` says of a device without power.
const ASLEEP: &str = "D3cold";

/// Runtime power management of a device as it was; dropping this brings it back.
#[derive(Debug)]
pub struct Awake {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    host: Host,
    control: PathBuf,
    former: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.host.effects().write(&self.control, &self.former) {
            crate::log::warn(format_args!(
                "{} could not be set to {} again: {}",
                self.control.display(),
                self.former,
                explain_io(&error)
            ));
        }
    }
}

impl Host {
    /// Sees to it that the device has power, at once if it has. It stays so at least as long as the result lives.
    ///
    /// # Errors
    /// [`Code::Asleep`] if it does not wake.
    pub fn wake(&self, bdf: Bdf) -> Result<Awake> {
        self.wake_within(bdf, TRIES, PAUSE)
    }

    fn wake_within(&self, bdf: Bdf, tries: u32, pause: Duration) -> Result<Awake> {
        let folder = self.device_path(bdf);
        let state = || read::text(folder.join("power_state")).unwrap_or_default();
        if state() != ASLEEP || self.answers(bdf) {
            return Ok(Awake { held: None });
        }
        let control = folder.join("power/control");
        let former = read::text(&control).unwrap_or_default();
        let asked = self.effects().write(&control, "on");
        let awake =
            Awake { held: asked.is_ok().then(|| Held { host: self.clone(), control: control.clone(), former }) };
        for _ in 0..tries {
            if self.answers(bdf) {
                return Ok(awake);
            }
            sleep(pause);
        }
        let mut error = Error::new(Code::Asleep, format!("{bdf} is in D3cold and does not wake"));
        for name in ["power_state", "d3cold_allowed", "power/runtime_status"] {
            if let Some(text) = read::text(folder.join(name)) {
                error = error.evidence(format!("{}: {text}", folder.join(name).display()));
            }
        }
        if let Err(refused) = asked {
            error = error.evidence(format!("{}: {}", control.display(), explain_io(&refused)));
        }
        let d3cold = folder.join("d3cold_allowed");
        Err(error.fix(format!(
            "`echo on > {}`, `echo 0 > {}` before it falls asleep",
            control.display(),
            d3cold.display()
        )))
    }

    /// Whether the device's configuration space is there: its vendor's id is no ones.
    fn answers(&self, bdf: Bdf) -> bool {
        let mut vendor = [0xff; 2];
        let read = File::open(self.device_path(bdf).join("config")).and_then(|mut file| file.read_exact(&mut vendor));
        read.is_ok() && vendor != [0xff; 2]
    }
}

impl Awake {
    /// Whether runtime power management is held off.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testtree::{TestTree, bdf};
    use super::*;

    const AT: &str = "sys/bus/pci/devices/0000:01:00.0";

    fn tree(state: &str, config: &str) -> TestTree {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("vfio-pci").group(1).add();
        tree.file(format!("{AT}/power_state"), state);
        tree.file(format!("{AT}/d3cold_allowed"), "1\n");
        tree.file(format!("{AT}/power/control"), "auto\n");
        std::fs::write(tree.sys("bus/pci/devices/0000:01:00.0/config"), config.as_bytes()).unwrap();
        tree
    }

    fn wake(tree: &TestTree) -> Result<Awake> {
        tree.host().wake_within(bdf("01:00.0"), 3, Duration::ZERO)
    }

    #[test]
    fn a_device_with_power_is_left_alone() {
        for state in ["D0", "D3hot", "unknown"] {
            let tree = tree(state, "");
            assert!(!wake(&tree).unwrap().is_held(), "{state}");
            assert!(tree.kernel().writes().is_empty());
        }
    }

    #[test]
    fn reading_its_registers_may_suffice() {
        let tree = tree("D3cold\n", "\u{6}\u{0}");
        assert!(!wake(&tree).unwrap().is_held());
        assert!(tree.kernel().writes().is_empty());
    }

    #[test]
    fn one_that_does_not_wake_has_a_code_and_is_as_before() {
        let tree = tree("D3cold\n", "");
        let error = wake(&tree).unwrap_err();
        assert_eq!(error.code(), Code::Asleep);
        assert!(error.to_string().contains("d3cold_allowed: 1"), "{error}");
        assert_eq!(
            std::fs::read_to_string(tree.sys("bus/pci/devices/0000:01:00.0/power/control")).unwrap().trim(),
            "auto"
        );
        let values: Vec<_> = tree.kernel().writes().into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["on", "auto"]);
    }
}
