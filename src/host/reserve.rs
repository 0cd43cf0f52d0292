//! Devices that devices.d reserves: kept for vfio-pci from the moment at which the kernel announces them, before a driver
//! of the host has had them. udev asks for it (udev/70-passthru.rules).
//!
//! Only `driver_override` is set, so nothing is taken from anyone: a device that a driver has already stays where it is,
//! and `passthru check` says so. To `bind` a reserved device is one that was on vfio-pci before, hence `release` leaves it
//! there. A reservation ends with the next boot without it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::busy::busy_error;
use super::change::VFIO_PCI;
use super::names::{Declared, Identity, Name, resolve};
use super::{Host, read};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

/// What devices.d says of a device that has appeared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Its names.
    pub names: Vec<Name>,
    /// Whether it is kept for vfio-pci.
    pub reserved: bool,
    /// The VM that is to be started for it.
    pub start: Option<Name>,
}

impl Host {
    /// Reserves every device that devices.d wants reserved and that has no driver. A name that means several devices, or none
    /// yet, reserves nothing; neither does what is wrong with a declaration, which `check` tells.
    pub(super) fn reserve_declared(&self) {
        let (declared, _) = self.declared();
        if declared.iter().any(|one| one.reserve) {
            let identities = self.identities();
            declared.iter().for_each(|one| drop(self.reserve_one(one, &meant(one, &identities))));
        }
    }

    /// The same, and what is known of `bdf`. Errors are told beside: they keep no other device from being reserved.
    pub fn announce(&self, bdf: Bdf) -> (Announced, Vec<Error>) {
        let (declared, mut errors) = self.declared();
        let mut announced = Announced::default();
        if declared.is_empty() {
            return (announced, errors);
        }
        let identities = self.identities();
        for one in &declared {
            let functions = meant(one, &identities);
            errors.extend(self.reserve_one(one, &functions));
            if functions.contains(&bdf) {
                announced.names.push(one.name.clone());
                announced.reserved |= one.reserve && self.driver_override(bdf).as_deref() == Some(VFIO_PCI);
                announced.start = announced.start.or_else(|| one.start.clone());
            }
        }
        (announced, errors)
    }

    /// Reserves the functions of one declaration, if it is to.
    fn reserve_one(&self, declared: &Declared, functions: &[Bdf]) -> Vec<Error> {
        let functions = functions.iter().filter(|_| declared.reserve);
        functions.filter_map(|&function| self.reserve(function).err()).collect()
    }

    fn reserve(&self, bdf: Bdf) -> Result<()> {
        if self.driver(bdf).is_some() || self.driver_override(bdf).is_some() {
            return Ok(());
        }
        let file = self.device_path(bdf).join("driver_override");
        self.set_attribute(format_args!("reserve {bdf}"), &file, &format!("{VFIO_PCI}\n"), |error| failed(bdf, error))
    }

    /// Lets vfio-pci have a device that is reserved for it.
    ///
    /// # Errors
    /// `NoVfio` if the driver cannot be loaded, `BindFailed`, `Stuck`.
    pub fn probe_reserved(&self, bdf: Bdf) -> Result<()> {
        if self.driver(bdf).is_some() || self.driver_override(bdf).as_deref() != Some(VFIO_PCI) {
            return Ok(());
        }
        super::bind::load_vfio_pci(self)?;
        // Loading the driver may have been enough.
        if self.driver(bdf).is_some() {
            return Ok(());
        }
        let file = self.sys("bus/pci/drivers_probe");
        self.set_attribute(format_args!("bind {bdf} to {VFIO_PCI}"), &file, &bdf.to_string(), |error| {
            failed(bdf, error)
        })
    }

    /// Ends every reservation: devices that are on vfio-pci for one go to the host's drivers, as when the package is removed.
    /// Gives them.
    ///
    /// # Errors
    /// `Busy` if a process has one open, and none is touched: unbind would wait for it; `DeviceAbsent`, `BindFailed`, `Stuck`.
    pub fn end_reservations(&self) -> Result<Vec<Bdf>> {
        let identities = self.identities();
        let (declared, _) = self.declared();
        let named = declared.iter().filter(|one| one.reserve).flat_map(|one| meant(one, &identities));
        let reserved: BTreeSet<Bdf> =
            named.filter(|bdf| self.driver_override(*bdf).as_deref() == Some(VFIO_PCI)).collect();
        for &bdf in &reserved {
            let device = self.device(bdf)?;
            let holders = self.holders(&device);
            if !holders.processes.is_empty() {
                return Err(busy_error(&device, &holders, None));
            }
        }
        for &bdf in &reserved {
            let write = |file: PathBuf, value: &str| {
                let refused = |error: &std::io::Error| {
                    Error::new(Code::BindFailed, format!("{bdf} could not be given to the host's drivers"))
                        .evidence(format!("{}: {}", file.display(), explain_io(error)))
                        .fix("run it as root; `dmesg | tail` may say more")
                };
                self.set_attribute(format_args!("end the reservation of {bdf}"), &file, value, refused)
            };
            write(self.device_path(bdf).join("driver_override"), "\n")?;
            if self.driver(bdf).as_deref() == Some(VFIO_PCI) {
                write(self.device_path(bdf).join("driver/unbind"), &bdf.to_string())?;
            }
            // Its driver was kept from being loaded for it; it may have none.
            if let Some(alias) = read::text(self.device_path(bdf).join("modalias")) {
                let _ = self.effects().load_module(&alias);
            }
            write(self.sys("bus/pci/drivers_probe"), &bdf.to_string())?;
        }
        Ok(reserved.into_iter().collect())
    }

    /// Reserved devices that a driver of the host has all the same.
    pub(super) fn check_reserved(&self, declared: &[Declared], identities: &[Identity]) -> Vec<Error> {
        let reserved = declared.iter().filter(|one| one.reserve);
        let lost = |one: &Declared, bdf: Bdf| {
            let driver = self.driver(bdf).filter(|driver| !super::pci::is_vfio_driver(driver))?;
            Some(
                Error::new(Code::NotReserved, format!("{bdf} is reserved as {}, and {driver} has it", one.name))
                    .evidence(format!("declared in {}", one.file.display()))
                    .evidence(match read::text(self.sys("module").join(&driver).join("initstate")) {
                        Some(_) => format!("{driver} is a module: it was loaded before udev saw the device"),
                        None => format!("{driver} is built into the kernel, or is no module of this name"),
                    })
                    .fix(format!(
                        "`passthru bind {}` takes it now; for the next boot `update-initramfs -u`, or whatever makes the \
                         initramfs of this system with the rules of passthru",
                        one.name
                    )),
            )
        };
        reserved.flat_map(|one| meant(one, identities).into_iter().filter_map(|bdf| lost(one, bdf))).collect()
    }
}

/// The functions that a declaration means; none if it is not clear.
fn meant(declared: &Declared, identities: &[Identity]) -> Vec<Bdf> {
    let Ok(addr) = resolve::resolve(declared, identities) else { return Vec::new() };
    identities.iter().map(|identity| identity.bdf).filter(|bdf| addr.contains(*bdf)).collect()
}

fn failed(bdf: Bdf, error: &std::io::Error) -> Error {
    Error::new(Code::BindFailed, format!("{bdf} could not be reserved for {VFIO_PCI}"))
        .evidence(explain_io(error))
        .fix("run it as root; `dmesg | tail` may say more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bind::{BindOptions, bind};
    use crate::host::findings::Level;
    use crate::host::release::release;
    use crate::host::testtree::{TestTree, bdf};

    /// Twins without a driver, as they are when the kernel has just announced them, and a card with two functions.
    fn tree(names: &str) -> TestTree {
        let tree = TestTree::new();
        for (address, group) in [("0000:01:00.0", 1), ("0000:02:00.0", 2), ("0000:03:00.0", 3), ("0000:03:00.1", 3)] {
            tree.pci(address).group(group).add();
        }
        tree.file("etc/passthru/devices.d/a.toml", names);
        tree
    }

    const LAN: &str = "[[device]]\nname = \"lan\"\npath = \"0000:01:00.0\"\nreserve = true\nstart = \"router\"\n";

    #[test]
    fn reservations_end_where_nobody_has_the_device_open() {
        let tree = tree(LAN);
        tree.file("dev/vfio/1", "");
        tree.host().announce(bdf("01:00.0"));
        tree.host().probe_reserved(bdf("01:00.0")).unwrap();
        tree.process(42, "passthru", &[&tree.host().group_node(1)]);
        assert_eq!(tree.host().end_reservations().unwrap_err().code(), Code::Busy);
        assert_eq!(tree.host().driver(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
        tree.end(42);
        assert_eq!(tree.host().end_reservations().unwrap(), [bdf("01:00.0")]);
        assert_ne!(tree.host().driver(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
        assert_eq!(tree.host().driver_override(bdf("01:00.0")), None);
        assert!(tree.host().end_reservations().unwrap().is_empty());
    }

    #[test]
    fn a_device_is_reserved_by_the_first_event_of_any() {
        let tree = tree(LAN);
        let (twin, errors) = tree.host().announce(bdf("02:00.0"));
        assert_eq!((twin, errors.len()), (Announced::default(), 0));
        assert_eq!(tree.host().driver_override(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
        assert_eq!(tree.host().driver_override(bdf("02:00.0")), None);
        let (lan, _) = tree.host().announce(bdf("01:00.0"));
        assert!(lan.reserved && lan.names.len() == 1 && lan.start.is_some(), "{lan:?}");
        assert_eq!(tree.kernel().writes().len(), 1, "once");
        tree.host().probe_reserved(bdf("02:00.0")).unwrap();
        assert_eq!(tree.host().driver(bdf("02:00.0")), None);
        for _ in 0..2 {
            tree.host().probe_reserved(bdf("01:00.0")).unwrap();
            assert_eq!(tree.host().driver(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
        }
        assert_eq!(tree.kernel().writes().len(), 2);
    }

    /// A service that starts at boot may be faster than udev.
    #[test]
    fn bind_before_udev_has_come_to_it_leaves_it_on_vfio_pci() {
        let tree = tree(LAN);
        assert_eq!(tree.host().driver(bdf("01:00.0")), None);
        assert_eq!(tree.host().driver_override(bdf("01:00.0")), None);
        let bound = bind(&tree.host(), bdf("01:00.0"), &BindOptions::default()).unwrap();
        assert_eq!((bound.changed, bound.ours), (false, false));
        release(&tree.host(), bdf("01:00.0")).unwrap();
        assert_eq!(tree.host().driver(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
        assert_eq!(tree.host().driver_override(bdf("01:00.0")).as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn nothing_is_taken_from_anyone() {
        let tree = tree(LAN);
        tree.add_driver("e1000e");
        tree.kernel().attach("0000:01:00.0", "e1000e");
        assert!(!tree.host().announce(bdf("01:00.0")).0.reserved);
        assert!(tree.kernel().writes().is_empty());
        let findings = tree.host().check_names();
        assert_eq!(
            findings.iter().map(|it| (it.level, it.code)).collect::<Vec<_>>(),
            [(Level::Pass, Code::NameUnresolved), (Level::Warn, Code::NotReserved)]
        );
    }

    #[test]
    fn what_is_not_clear_is_not_reserved() {
        let tree = tree("[[device]]\nname = \"nic\"\nid = \"8086:10d3\"\nreserve = true\n");
        tree.file("etc/passthru/devices.d/b.toml", "nonsense");
        let (seen, errors) = tree.host().announce(bdf("01:00.0"));
        assert_eq!((seen, errors.len()), (Announced::default(), 1));
        assert!(tree.kernel().writes().is_empty());
    }

    #[test]
    fn all_functions_of_a_card() {
        let tree = tree("[[device]]\nname = \"gpu\"\naddress = \"03:00\"\nreserve = true\n");
        assert!(tree.host().announce(bdf("03:00.1")).0.reserved);
        assert_eq!(tree.kernel().writes().len(), 2);
    }
}
