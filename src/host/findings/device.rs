//! One device, in the order in which a guest would fail with it.

use super::{Finding, Subject};
use crate::bdf::Bdf;
use crate::error::{Code, Error};
use crate::host::bind::refuse_in_use;
use crate::host::busy::busy_error;
use crate::host::check::not_bound_error;
use crate::host::quirks;
use crate::host::reset::Verdict as Reset;
use crate::host::viable::{Verdict, not_viable_error};
use crate::host::{Host, PciDevice};

impl Host {
    /// Everything about a device. `taken`: root takes it, and what else is in its group, before the guest runs
    /// (`passthru bind --vm`).
    pub fn check_device(&self, bdf: Bdf, taken: bool) -> Vec<Finding> {
        let subject = Subject::Device(bdf);
        let fail = |error: &Error| Finding::fail(subject, error);
        let device = match self.device(bdf) {
            Ok(device) => device,
            Err(error) => return vec![fail(&error)],
        };
        let mut findings = vec![Finding::pass(subject, Code::DeviceAbsent, device.name())];
        if let Err(error) = self.refuse_bridge(&device).and_then(|()| self.refuse_quarantined(&device)) {
            findings.push(fail(&error));
            return findings;
        }
        let group = match self.real_group(&device) {
            Ok(group) => group,
            Err(error) => {
                findings.push(fail(&error));
                return findings;
            }
        };
        findings.push(self.check_driver(&device, taken));
        let verdicts = self.verdicts(&group);
        // A device that is not bound blocks its own group: that is said already.
        let others: Vec<_> =
            verdicts.iter().filter(|it| it.member.name != bdf.to_string() || device.on_vfio()).cloned().collect();
        let may_be_taken =
            |it: &Verdict| taken && it.member.pci.as_ref().is_some_and(|device| refuse_in_use(self, device).is_ok());
        let others: Vec<Verdict> = others.into_iter().filter(|it| !(it.blocks && may_be_taken(it))).collect();
        findings.push(match not_viable_error(group.id, &others) {
            Some(error) => fail(&error),
            None => {
                let what = format!("its IOMMU group {} can be handed out", group.id);
                Finding::pass(subject, Code::GroupNotViable, what)
            }
        });
        let holders = self.holders(&device);
        if !holders.processes.is_empty() {
            findings.push(fail(&busy_error(&device, &holders, None)));
        }
        if device.on_vfio()
            && let Err(error) = self.refuse_held_memory(&device)
        {
            findings.push(fail(&error));
        }
        findings.push(self.check_reset(&device));
        findings.extend(self.check_link(&device));
        let base = (device.class >> 16) as u8;
        findings.extend(quirks::of(device.vendor, device.device, base).map(|quirk| {
            let error =
                Error::new(Code::KnownQuirk, format!("devices of its kind: {}", quirk.kind)).evidence(quirk.reason);
            Finding::warn(subject, &error)
        }));
        findings
    }

    fn check_driver(&self, device: &PciDevice, taken: bool) -> Finding {
        let subject = Subject::Device(device.bdf);
        if device.on_vfio() {
            return Finding::pass(subject, Code::DeviceNotBound, format!("it is on {}", device.driver_text()));
        }
        match refuse_in_use(self, device) {
            Err(error) => Finding::fail(subject, &error),
            Ok(()) if taken => {
                let what = format!("it is on {}, and is taken before the guest runs", device.driver_text());
                Finding::pass(subject, Code::DeviceNotBound, what)
            }
            Ok(()) => Finding::fail(subject, &not_bound_error(device)),
        }
    }

    fn check_reset(&self, device: &PciDevice) -> Finding {
        let subject = Subject::Device(device.bdf);
        let plan = self.reset_plan(device).verdict;
        let well = Finding::pass(subject, Code::NoResetMethod, format!("its reset: {plan}"));
        match plan {
            Reset::None { blockers } => {
                let error =
                    Error::new(Code::NoResetMethod, "it cannot be reset between two guests").evidence(well.what);
                let names: Vec<String> = blockers.iter().map(|other| other.bdf.to_string()).collect();
                let error = match names.is_empty() {
                    true => error,
                    false => error.fix(format!("`passthru bind {}`, and give the guest all of them", names.join(" "))),
                };
                Finding::warn(subject, &error)
            }
            _ => well,
        }
    }

    fn check_link(&self, device: &PciDevice) -> Option<Finding> {
        let subject = Subject::Device(device.bdf);
        let link = self.link(device.bdf)?;
        let now = format!("{} x{}", link.speed, link.width);
        if link.is_at_best() {
            return Some(Finding::pass(subject, Code::LinkSlow, format!("its link is as fast as it can be: {now}")));
        }
        let error = Error::new(Code::LinkSlow, "its link is slower than it could be")
            .evidence(format!("{now}, at best {} x{}", link.max_speed, link.max_width))
            .fix("if it stays so while the device works: another slot, or the firmware setup");
        Some(Finding::warn(subject, &error))
    }
}
