//! USB devices that devices.d claims for guests: their nodes are given to the group passthru, and drivers of the host are kept
//! off their interfaces. udev asks for both (udev/70-passthru.rules).
//!
//! USB has no driver_override. The kernel lets its drivers have a device before any program hears of it, so they are taken off
//! again, whenever one has come. The device stays configured and authorised: whoever has its node can use it by usbfs, which
//! is a driver like the others and is left alone. Hubs are claimed by nobody, and neither is what the host needs.

use super::findings::{Finding, Subject};
use super::names::{Name, UsbClaim};
use super::usb::UsbDevice;
use super::{Host, read};
use crate::error::{Code, Error, Result, explain_io};

/// The driver of what a program uses by the device's node.
const USBFS: &str = "usbfs";
/// How many devices an error tells apart.
const MAX_TOLD: usize = 8;

/// What devices.d says of a USB device that has appeared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Its names.
    pub names: Vec<Name>,
    /// Whether it is kept for guests.
    pub claimed: bool,
    /// The VM that is to be started for it.
    pub start: Option<Name>,
}

/// What a claim means now.
enum Meant<'a> {
    /// No device that is plugged in.
    Nothing,
    /// This one.
    One(&'a UsbDevice),
    /// It is not clear.
    Several(Error),
}

impl Host {
    /// What is said of the USB device that sysfs calls `name`, such as `1-4.2`. A claim that fits several devices claims none.
    /// Errors are told beside.
    pub fn claimed(&self, name: &str) -> (Claimed, Vec<Error>) {
        let (declarations, mut errors) = self.declarations();
        let mut claimed = Claimed::default();
        // Most hosts claim nothing, and then nothing need be read.
        if declarations.usb.is_empty() {
            return (claimed, errors);
        }
        let devices = self.usb_devices_without_uses();
        for claim in &declarations.usb {
            match meant(claim, &devices) {
                Meant::One(device) if device.name == name => {
                    claimed.names.push(claim.name.clone());
                    claimed.start = claimed.start.or_else(|| claim.start.clone());
                }
                Meant::Several(error) if claim.known_by.fits_name(&devices, name) => errors.push(error),
                _ => {}
            }
        }
        if !claimed.names.is_empty() {
            match self.refuse_used(name) {
                Ok(()) => claimed.claimed = true,
                Err(error) => errors.push(error),
            }
        }
        (claimed, errors)
    }

    /// The names that mean each of these devices.
    pub(super) fn usb_claims(&self, devices: &[UsbDevice]) -> Vec<Vec<Name>> {
        let claims = self.declarations().0.usb;
        let means = |claim: &UsbClaim, name: &str| matches!(meant(claim, devices), Meant::One(one) if one.name == name);
        let names = |device: &UsbDevice| {
            let of_it = claims.iter().filter(|claim| means(claim, &device.name));
            of_it.map(|claim| claim.name.clone()).collect()
        };
        devices.iter().map(names).collect()
    }

    /// Takes the driver of the host off an interface, `1-4.2:1.0`, of a device that is claimed.
    ///
    /// # Errors
    /// [`Code::UsbNotClaimed`] if the kernel refuses it, [`Code::Stuck`].
    pub fn detach_claimed(&self, interface: &str) -> Result<()> {
        let Some((device, _)) = interface.split_once(':') else { return Ok(()) };
        let folder = self.sys("bus/usb/devices").join(interface).join("driver");
        let Some(driver) = read::link_name(&folder).filter(|driver| driver != USBFS) else { return Ok(()) };
        if !self.claimed(device).0.claimed {
            return Ok(());
        }
        let step = format_args!("take {interface} from {driver}");
        self.set_attribute(step, &folder.join("unbind"), interface, |error| {
            Error::new(Code::UsbNotClaimed, format!("{driver} keeps the interface {interface} of a claimed USB device"))
                .evidence(explain_io(error))
                .fix("run it as root; `dmesg | tail` may say more")
        })
    }

    /// Whether every claim means a device, and no driver of the host has it.
    pub(super) fn check_claims(&self, claims: &[UsbClaim]) -> Vec<Finding> {
        let devices = if claims.is_empty() { Vec::new() } else { self.usb_devices() };
        let check = |claim: &UsbClaim| match meant(claim, &devices) {
            Meant::Nothing => {
                let what = format!("the USB device {} is not plugged in", claim.name);
                Finding::pass(Subject::Host, Code::NameUnresolved, what)
            }
            Meant::Several(error) => Finding::warn(Subject::Host, &error),
            Meant::One(device) => match refuse_used(device).and_then(|()| refuse_driven(claim, device)) {
                Err(error) => Finding::warn(Subject::Host, &error),
                Ok(()) => {
                    let what = format!("the name {} means USB device {}", claim.name, device.name);
                    Finding::pass(Subject::Host, Code::NameUnresolved, what)
                }
            },
        };
        claims.iter().map(check).collect()
    }

    /// [`Code::UsbNotClaimed`] if the host needs the device.
    fn refuse_used(&self, name: &str) -> Result<()> {
        self.usb_devices().iter().filter(|device| device.name == name).try_for_each(refuse_used)
    }
}

impl super::names::UsbKnownBy {
    fn fits_name(&self, devices: &[UsbDevice], name: &str) -> bool {
        devices.iter().any(|device| device.name == name && self.fits(device))
    }
}

fn meant<'a>(claim: &UsbClaim, devices: &'a [UsbDevice]) -> Meant<'a> {
    let fit: Vec<&UsbDevice> = devices.iter().filter(|device| !device.hub && claim.known_by.fits(device)).collect();
    match fit.as_slice() {
        [] => Meant::Nothing,
        [one] => Meant::One(one),
        several => {
            let error = Error::new(Code::NameUnresolved, format!("{} USB devices are {}", several.len(), claim.name))
                .evidence(format!("declared in {}", claim.file.display()));
            let error = several.iter().take(MAX_TOLD).fold(error, |error, device| {
                let serial = device.serial.as_deref().unwrap_or("none");
                error
                    .evidence(format!("{}: {:04x}:{:04x}, serial {serial}", device.name, device.vendor, device.product))
            });
            Meant::Several(error.fix("add to the file what tells them apart: serial, port or controller"))
        }
    }
}

fn refuse_used(device: &UsbDevice) -> Result<()> {
    let vital = device.uses.iter().filter(|used| used.is_vital());
    let lines: Vec<String> = vital.map(ToString::to_string).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let error =
        Error::new(Code::UsbNotClaimed, format!("the host itself uses USB device {}, which is claimed", device.name));
    Err(lines.into_iter().fold(error, Error::evidence).fix("stop that use, then plug the device in anew"))
}

fn refuse_driven(claim: &UsbClaim, device: &UsbDevice) -> Result<()> {
    let drivers: Vec<&str> = device.drivers.iter().map(String::as_str).filter(|driver| *driver != USBFS).collect();
    if drivers.is_empty() {
        return Ok(());
    }
    let what = format!("USB device {} is claimed as {}, and {} has it", device.name, claim.name, drivers.join(" and "));
    Err(Error::new(Code::UsbNotClaimed, what)
        .evidence(format!("declared in {}", claim.file.display()))
        .fix("plug it in anew, or `udevadm trigger --action=add --subsystem-match=usb`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::findings::Level;
    use crate::host::testtree::TestTree;

    const FILE: &str = "etc/passthru/devices.d/usb.toml";
    const CONTROLLER: &str = "0000:00:14.0";

    /// Two sticks of one kind, a keyboard, and the hubs that they hang on.
    fn tree(claims: &str) -> TestTree {
        let tree = TestTree::new();
        tree.pci(CONTROLLER).class(0x0c0330).driver("xhci_hcd").add();
        let hub = [("idVendor", "05e3"), ("idProduct", "0610"), ("bDeviceClass", "09")];
        tree.usb(CONTROLLER, "usb1", &hub);
        tree.usb(CONTROLLER, "usb1/1-4", &hub);
        for (path, serial) in [("usb1/1-2", "A"), ("usb1/1-4/1-4.2", "B")] {
            tree.usb(CONTROLLER, path, &[("idVendor", "0781"), ("idProduct", "5581"), ("serial", serial)]);
        }
        tree.usb(CONTROLLER, "usb1/1-4/1-4.1", &[("idVendor", "046d"), ("idProduct", "c31c")]);
        tree.file(FILE, claims);
        tree
    }

    /// The devices that are claimed if this is what is said of one.
    fn claimed(what: &str) -> Vec<&'static str> {
        let tree = tree(&format!("[[usb]]\nname = \"stick\"\n{what}\n"));
        let all = ["1-2", "1-4", "1-4.1", "1-4.2", "usb1", "1-9"];
        all.into_iter().filter(|name| tree.host().claimed(name).0.claimed).collect()
    }

    #[test]
    fn a_device_is_claimed_by_all_that_is_given() {
        for (what, names) in [
            ("id = \"046d:c31c\"", &["1-4.1"][..]),
            ("serial = \"B\"", &["1-4.2"]),
            ("port = \"1-4.2\"", &["1-4.2"]),
            ("port = \"4.2\"\ncontroller = \"00:14.0\"", &["1-4.2"]),
            ("id = \"0781:5581\"\nport = \"2\"", &["1-2"]),
            ("id = \"0781:5581\"", &[]),
            ("port = \"2-4.2\"", &[]),
            ("port = \"4.2\"\ncontroller = \"00:15.0\"", &[]),
            ("id = \"0781:5581\"\nserial = \"C\"", &[]),
            ("port = \"1-4\"", &[]),
        ] {
            assert_eq!(claimed(what), names, "{what}");
        }
    }

    #[test]
    fn of_twins_none_is_claimed_and_each_says_so() {
        let tree = tree("[[usb]]\nname = \"stick\"\nid = \"0781:5581\"\nstart = \"kiosk\"\n");
        let (twin, errors) = tree.host().claimed("1-2");
        assert_eq!((twin, errors.len()), (Claimed::default(), 1));
        assert!(errors[0].to_string().contains("1-4.2: 0781:5581, serial B"), "{}", errors[0]);
        assert!(tree.host().claimed("1-4.1").1.is_empty(), "it has no part in it");
        tree.file(FILE, "[[usb]]\nname = \"stick\"\nserial = \"A\"\nstart = \"kiosk\"\n");
        let (stick, _) = tree.host().claimed("1-2");
        assert!(stick.claimed && stick.names.len() == 1 && stick.start.is_some(), "{stick:?}");
    }

    #[test]
    fn what_the_host_uses_is_not_claimed() {
        let tree = tree("[[usb]]\nname = \"stick\"\nserial = \"A\"\n");
        tree.disk(CONTROLLER, "usb1/1-2/1-2:1.0/host2/target2:0:0/2:0:0:0/block/sdb", 1, 0);
        tree.mount(1, "/media", "ext4", "/dev/sdb1");
        let (stick, errors) = tree.host().claimed("1-2");
        assert!(!stick.claimed && stick.names.len() == 1);
        assert_eq!(errors[0].code(), Code::UsbNotClaimed);
        let findings = tree.host().check_names();
        assert_eq!((findings[0].level, findings[0].code), (Level::Warn, Code::UsbNotClaimed));
    }

    #[test]
    fn drivers_are_taken_off_claimed_devices_alone() {
        let tree = tree("[[usb]]\nname = \"stick\"\nserial = \"A\"\n");
        for (interface, device, driver) in [
            ("1-2:1.0", "usb1/1-2", "usb-storage"),
            ("1-2:1.1", "usb1/1-2", USBFS),
            ("1-4.2:1.0", "usb1/1-4/1-4.2", "usb-storage"),
        ] {
            let folder = format!("sys/bus/usb/drivers/{driver}");
            tree.file(format!("{folder}/unbind"), "");
            let at = tree.pci_path(CONTROLLER).join(device).join(interface);
            std::fs::create_dir_all(&at).unwrap();
            std::os::unix::fs::symlink(tree.root().join(&folder), at.join("driver")).unwrap();
            tree.link(format!("sys/bus/usb/devices/{interface}"), &at);
        }
        let findings = tree.host().check_names();
        assert!(findings[0].what.contains("usb-storage has it"), "{findings:?}");
        for interface in ["1-2:1.0", "1-2:1.1", "1-4.2:1.0", "1-9:1.0", "../x", ""] {
            tree.host().detach_claimed(interface).unwrap();
        }
        let writes = tree.kernel().writes();
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert!(writes[0].0.ends_with("1-2:1.0/driver/unbind") && writes[0].1 == "1-2:1.0", "{writes:?}");
    }

    #[test]
    fn what_is_not_plugged_in_is_well() {
        let tree = tree("[[usb]]\nname = \"camera\"\nid = \"1234:5678\"\n");
        let findings = tree.host().check_names();
        assert_eq!((findings.len(), findings[0].level), (1, Level::Pass));
        assert!(findings[0].what.contains("not plugged in"));
    }
}
