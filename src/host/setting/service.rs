//! The service that shows the display: a display manager and the session below it have the graphics card open for as long
//! as they run. systemd stops and starts it; what runs is seen in the control groups, which need no bus.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Setting;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::{Host, PciDevice, Use, read};

/// The alias by which every distribution's display manager is known (systemd.special(7)).
const ALIAS: &str = "systemd/system/display-manager.service";
/// Longer names of units do not exist (UNIT_NAME_MAX).
const MAX_NAME: usize = 255;
/// How often, and after which time, it is looked whether the last program has let go of the card.
const LOOKS: u32 = if cfg!(test) { 2 } else { 100 };
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A service of the host's systemd, and whether it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The unit: `gdm.service`.
    pub unit: String,
    /// Whether it runs.
    pub active: bool,
}

impl Service {
    pub(super) fn now(&self, host: &Host) -> Service {
        Service { unit: self.unit.clone(), active: host.service_runs(&self.unit) }
    }

    pub(super) fn set(&self, host: &Host) -> Result<()> {
        if self.now(host) == *self {
            return Ok(());
        }
        let verb = if self.active { "start" } else { "stop" };
        let refused = |why: String| {
            Error::new(Code::DisplayService, format!("could not {verb} {}", self.unit))
                .evidence(why)
                .fix(format!("`systemctl status {}` and `journalctl -u {}` say why", self.unit, self.unit))
        };
        host.effects()
            .service(&self.unit, self.active)
            .map_err(|error| refused(format!("systemctl {verb} {}: {}", self.unit, explain_io(&error))))?;
        let so = self.now(host) == *self;
        if so { Ok(()) } else { Err(refused("systemctl says that it is done, and its processes say otherwise".into())) }
    }

    /// Whether it is a name that may be given to systemctl.
    pub(super) fn check(&self) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b':');
        let stem = self.unit.strip_suffix(".service").filter(|stem| !stem.is_empty() && !stem.starts_with(['.', '-']));
        let good = stem.is_some() && self.unit.len() <= MAX_NAME && self.unit.bytes().all(plain);
        good.then_some(()).ok_or_else(|| format!("{:?} is no service", self.unit))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.unit, if self.active { "runs" } else { "is stopped" })
    }
}

impl Host {
    /// What the profile single-gpu stops before a display device is taken: the display manager, and every other service
    /// that has the device open.
    ///
    /// # Errors
    /// [`Code::NotADisplay`].
    pub(super) fn display_services(&self, device: &PciDevice) -> Result<Vec<Setting>> {
        if !device.is_display() {
            return Err(Error::new(Code::NotADisplay, format!("{} is no display device", device.bdf))
                .evidence(device.name())
                .fix("name the graphics card; the other functions of its group are taken with it"));
        }
        let manager = self.etc("").parent().and_then(|etc| read::link_name(etc.join(ALIAS)));
        let mut units: Vec<String> = manager.into_iter().collect();
        for used in self.uses(device.bdf) {
            let Use::Opened { processes, .. } = used else { continue };
            units.extend(processes.iter().filter_map(|process| self.service_of(process.pid)));
        }
        let mut stopped: Vec<Setting> = Vec::new();
        for unit in units {
            let service = Setting::Service(Service { unit, active: false });
            if service.check().is_ok() && !stopped.contains(&service) {
                stopped.push(service);
            }
        }
        stopped.retain(|setting| !matches!(setting, Setting::Service(service) if !service.now(self).active));
        Ok(stopped)
    }

    /// The service of the system that a process belongs to; a user's session is none, and ends with its display manager.
    fn service_of(&self, pid: u32) -> Option<String> {
        read::lines(self.proc(format!("{pid}/cgroup"))).iter().find_map(|line| {
            let below = line.split_once("/system.slice/")?.1;
            below.split('/').find(|part| part.ends_with(".service")).map(str::to_owned)
        })
    }

    /// Whether a service has processes: by the unified hierarchy of control groups, or by systemd's own of version 1.
    fn service_runs(&self, unit: &str) -> bool {
        let unified = self.sys("fs/cgroup/system.slice").join(unit).join("cgroup.events");
        let own = self.sys("fs/cgroup/systemd/system.slice").join(unit).join("cgroup.procs");
        read::lines(unified).iter().any(|line| line == "populated 1") || !read::text(own).unwrap_or_default().is_empty()
    }

    /// Waits until no program has the device open any more: those of a session end a moment after their display manager.
    /// What is left then is for whoever asks next to tell.
    pub(in crate::host) fn wait_until_closed(&self, device: &PciDevice) {
        let is_open = || self.uses(device.bdf).iter().any(|used| matches!(used, Use::Opened { .. }) && used.is_vital());
        for _ in 0..LOOKS {
            if !is_open() {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_are_believed() {
        let check = |unit: &str| Service { unit: unit.to_owned(), active: false }.check();
        for unit in ["gdm.service", "getty@tty1.service", "display-manager.service"] {
            assert!(check(unit).is_ok(), "{unit}");
        }
        for unit in ["", ".service", "-x.service", "a.target", "../x.service", "a b.service", "a\n.service"] {
            assert!(check(unit).is_err(), "{unit}");
        }
    }
}
