//! By which methods the kernel resets a function, in their order (sysfs: `reset_method`, Linux 5.15,
//! Documentation/ABI/testing/sysfs-bus-pci). VFIO resets a device by it when it opens and closes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::reset::Method;
use crate::host::{Host, PciDevice, read};

/// The kernel knows of no more (PCI_NUM_RESET_METHODS).
const MAX_METHODS: usize = 8;
/// The longest name is `device_specific`.
const MAX_NAME: usize = 32;

/// The methods that are switched on, by their names; what this kernel calls them, known here or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetMethods {
    /// In the order in which they are tried.
    pub methods: Vec<String>,
}

impl ResetMethods {
    pub(super) fn now(host: &Host, bdf: Bdf) -> ResetMethods {
        let text = read::text(host.reset_method_file(bdf)).unwrap_or_default();
        ResetMethods { methods: text.split_whitespace().map(str::to_owned).collect() }
    }

    pub(super) fn set(&self, host: &Host, bdf: Bdf) -> Result<()> {
        let now = ResetMethods::now(host, bdf);
        if now == *self {
            return Ok(());
        }
        let file = host.reset_method_file(bdf);
        let refused = |why: String| {
            let error = Error::new(Code::ResetMethod, format!("{bdf} cannot be {self}")).evidence(why);
            offered(error, &now)
        };
        let text = self.methods.join(" ");
        host.set_attribute(self, &file, &format!("{text}\n"), |error| {
            refused(format!("writing `{text}` to {}: {}", file.display(), explain_io(error)))
        })?;
        match ResetMethods::now(host, bdf) {
            after if after == *self => Ok(()),
            after => Err(refused(format!("afterwards it is {after}"))),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let is_name = |name: &String| {
            (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
        };
        let known = self.methods.len() <= MAX_METHODS && self.methods.iter().all(is_name);
        known.then_some(()).ok_or_else(|| "a list of reset methods has a name that cannot be".to_owned())
    }
}

impl fmt::Display for ResetMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.methods.as_slice() {
            [] => f.write_str("reset by no method"),
            methods => write!(f, "reset by {}", methods.join(", then ")),
        }
    }
}

/// Adds what there is to choose from.
fn offered(error: Error, now: &ResetMethods) -> Error {
    match now.methods.as_slice() {
        [] => error.evidence("the kernel has no method that is switched on for this function alone"),
        methods => error.evidence(format!("the kernel offers {}", methods.join(", "))),
    }
    .fix("`passthru inspect` shows the reset plan; without --reset-method the kernel takes the first method that works")
}

impl Host {
    /// The setting that lets the kernel reset the device by this method alone.
    pub(super) fn reset_by(&self, device: &PciDevice, method: Method) -> Result<ResetMethods> {
        let file = self.reset_method_file(device.bdf);
        if !file.exists() {
            let error = Error::new(Code::ResetMethod, format!("the reset method of {} cannot be chosen", device.bdf))
                .evidence(format!("{} is not there", file.display()));
            return Err(error.fix(
                "the kernel must be Linux 5.15 or newer, and have a reset for this function alone; `passthru inspect` shows \
                 the reset plan",
            ));
        }
        Ok(ResetMethods { methods: vec![method.to_string()] })
    }

    fn reset_method_file(&self, bdf: Bdf) -> std::path::PathBuf {
        self.device_path(bdf).join("reset_method")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_methods_are_written() {
        let methods = |names: &[&str]| ResetMethods { methods: names.iter().map(|&name| name.to_owned()).collect() };
        assert!(methods(&[]).check().is_ok());
        assert!(methods(&["device_specific", "flr", "cxl_bus"]).check().is_ok());
        for bad in [&["flr\npm"][..], &[""], &["Flr"], &["x"; 9], &["a-method-whose-name-is-longer-than-all-others"]] {
            assert!(methods(bad).check().is_err(), "{bad:?}");
        }
        assert_eq!(methods(&["flr", "pm"]).to_string(), "reset by flr, then pm");
        assert_eq!(methods(&[]).to_string(), "reset by no method");
    }
}
