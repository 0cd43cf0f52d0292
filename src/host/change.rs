//! The change of a device's driver, step by step: onto vfio-pci and back.
//!
//! Only `driver_override`, `unbind` and `drivers_probe` are written, never `new_id`: an ID would also match the
//! device's twins, and stay behind. The way back looks at what is there rather than at how far the way out came,
//! so it undoes a change that was broken off at any step, and doing it twice changes nothing.

use std::path::PathBuf;

use super::journal::{Entry, Journal, Step};
use super::pci::is_vfio_driver;
use super::setting::Setting;
use super::{Host, read};
use crate::error::{Code, Error, Result, explain_io};

/// The driver that hands a device to user space.
pub(super) const VFIO_PCI: &str = "vfio-pci";

/// A change in progress; it exists only while the journal is locked.
pub(super) struct Change<'a> {
    host: &'a Host,
    journal: &'a Journal,
    entry: Entry,
}

impl<'a> Change<'a> {
    /// A change of the device that `entry` is about.
    pub(super) fn new(host: &'a Host, journal: &'a Journal, entry: Entry) -> Self {
        Change { host, journal, entry }
    }

    /// Brings the device to vfio-pci, and the settings to what they are to be. On an error everything is somewhere
    /// between: call [`Change::give_back`]. `unused` is asked when all is done that comes before the driver's end.
    pub(super) fn take(&mut self, settings: &[Setting], unused: impl Fn() -> Result<()>) -> Result<()> {
        for setting in settings.iter().filter(|setting| setting.comes_first()) {
            self.change(setting)?;
        }
        unused()?;
        // The override comes first: with it set, nothing else can bind the device once it has lost its driver.
        self.set_override(Step::SetOverride, Some(VFIO_PCI))?;
        self.unbind(Step::Unbind)?;
        self.change_between(settings)?;
        self.probe(Step::Probe, VFIO_PCI)?;
        self.entry.step = Step::Bound;
        self.journal.write(&self.entry)
    }

    /// Changes settings of a device that has no host driver.
    pub(super) fn change_between(&mut self, settings: &[Setting]) -> Result<()> {
        settings.iter().filter(|setting| !setting.comes_first()).try_for_each(|setting| self.change(setting))
    }

    /// Brings back the former settings, driver and override, and forgets them when all are verified.
    pub(super) fn give_back(&mut self) -> Result<()> {
        if self.path("").exists() && !self.entry.ours {
            self.restore(|_| true)?;
        } else if self.path("").exists() {
            if self.driver().is_some_and(|driver| is_vfio_driver(&driver)) {
                self.unbind(Step::LetGo)?;
            }
            // In the reverse order. What fails keeps the rest from nothing: a host without its console is worse.
            let between = self.restore(|setting| !setting.comes_first());
            let probed = self.probe_former();
            let first = self.restore(Setting::comes_first);
            if let Err(error) = &probed
                && error.code() == Code::Stuck
            {
                // The kernel holds the device: whatever else is written to it would be stuck, too.
                return probed;
            }
            // The override goes back even if the driver would not: the device must not stay reserved.
            let former = self.entry.former_override.clone();
            self.set_override(Step::RestoreOverride, former.as_deref())?;
            probed.and(between).and(first)?;
        }
        self.journal.remove(self.entry.device)
    }

    /// Notes how a setting is, then changes it.
    fn change(&mut self, setting: &Setting) -> Result<()> {
        let (host, bdf) = (self.host, self.entry.device);
        let now = setting.now(host, bdf)?;
        if now == *setting {
            return Ok(());
        }
        // Of what was changed before, the oldest state is the one to go back to.
        if !self.entry.former_settings.iter().any(|former| former.is_about_the_same(setting)) {
            self.entry.former_settings.push(now);
        }
        self.entry.step = Step::ChangeSetting;
        self.journal.write(&self.entry)?;
        setting.set(host, bdf)
    }

    /// Puts back the settings that `which` picks, the last change first. All are tried; the first failure is told.
    fn restore(&mut self, which: impl Fn(&Setting) -> bool) -> Result<()> {
        let (host, bdf) = (self.host, self.entry.device);
        let mut result = Ok(());
        for setting in self.entry.former_settings.clone().iter().rev().filter(|setting| which(setting)) {
            self.entry.step = Step::RestoreSetting;
            // As in `write`: the entry on disk says all that is needed.
            let _ = self.journal.write(&self.entry);
            result = result.and(setting.set(host, bdf));
        }
        result
    }

    fn probe_former(&mut self) -> Result<()> {
        let Some(former) = self.entry.former_driver.clone() else { return Ok(()) };
        if self.driver().is_some() {
            return Ok(());
        }
        self.load(&former);
        // Named by the override the former driver binds, and no other that also knows the device's ID.
        self.set_override(Step::SetFormer, Some(&former))?;
        self.probe(Step::ProbeFormer, &former)
    }

    /// Loads the former driver's module if it was removed meanwhile. Not every driver is named after its module, so
    /// a failure says nothing: the probe that follows tells.
    fn load(&self, driver: &str) {
        if !self.host.sys("bus/pci/drivers").join(driver).exists() {
            let _ = self.host.effects().load_module(driver);
        }
    }

    fn set_override(&mut self, step: Step, driver: Option<&str>) -> Result<()> {
        if self.host.driver_override(self.entry.device).as_deref() == driver {
            return Ok(());
        }
        // A lone newline clears it; an empty write would not reach the kernel.
        self.write(step, self.path("driver_override"), &format!("{}\n", driver.unwrap_or_default()))
    }

    fn unbind(&mut self, step: Step) -> Result<()> {
        let Some(driver) = self.driver() else { return Ok(()) };
        let address = self.entry.device.to_string();
        self.write(step, self.path("driver/unbind"), &address)?;
        match self.driver() {
            None => Ok(()),
            Some(now) => Err(self.failed(step).evidence(format!("{driver} was unbound, yet the device is on {now}"))),
        }
    }

    fn probe(&mut self, step: Step, wanted: &str) -> Result<()> {
        let address = self.entry.device.to_string();
        self.write(step, self.host.sys("bus/pci/drivers_probe"), &address)?;
        // The write succeeds even if no driver took the device: only the link tells.
        match self.driver() {
            Some(now) if now == wanted => Ok(()),
            now => Err(self.failed(step).evidence(format!(
                "{wanted} did not take the device: {} after drivers_probe",
                now.map_or("it has no driver".to_owned(), |now| format!("it is on {now}"))
            ))),
        }
    }

    /// Notes the step, then does it.
    fn write(&mut self, step: Step, file: PathBuf, value: &str) -> Result<()> {
        self.entry.step = step;
        let noted = self.journal.write(&self.entry);
        // On the way back a journal that can no longer be written must not keep the device from its driver.
        if !step.undoes() {
            noted?;
        }
        let device = self.entry.device;
        self.host.set_attribute(format_args!("{step}: {device}"), &file, value, |error| {
            self.failed(step).evidence(format!(
                "writing {:?} to {}: {}",
                value.trim_end(),
                file.display(),
                explain_io(error)
            ))
        })
    }

    fn failed(&self, step: Step) -> Error {
        Error::new(Code::BindFailed, format!("could not {step}: {}", self.entry.device))
            .fix("`dmesg | tail` says what the driver objects to; as root, `passthru recover` tries to undo it again")
    }

    fn driver(&self) -> Option<String> {
        read::link_name(self.path("driver"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.device_path(self.entry.device).join(name)
    }
}
