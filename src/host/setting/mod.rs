//! Settings of the host that `bind` changes besides the driver, and that `release` and `recover` put back: a virtual
//! function's address and rights, the size of a BAR, the reset method, the boot console that holds a display device.
//!
//! A [`Setting`] says what something is to be. [`Setting::now`] gives the same setting as it is, which is what the journal
//! keeps before anything is changed; [`Setting::set`] makes it so and looks whether it is. Undoing is setting what was.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reset::Method;
use super::{Host, PciDevice};
use crate::bdf::Bdf;
use crate::error::Result;

mod bar_size;
mod framebuffer;
pub mod netlink;
mod reset_method;
mod service;
mod sriov;

pub use bar_size::BarSize;
pub use framebuffer::{Console, Framebuffer};
pub use reset_method::ResetMethods;
pub use service::Service;
pub use sriov::{MAX_VLAN, Mac, VfAttribute, VfSetting};

/// A setting and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Setting {
    /// A service that shows the display, and runs or does not.
    Service(Service),
    /// A virtual console that is drawn by a driver, or is not.
    Console(Console),
    /// A boot framebuffer's driver.
    Framebuffer(Framebuffer),
    /// What a physical function lets its virtual function do.
    Vf(VfSetting),
    /// How large a BAR is.
    BarSize(BarSize),
    /// By which methods the kernel resets a function.
    ResetMethods(ResetMethods),
}

/// What the user asks for; what exactly that sets is found out from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Something of a virtual function.
    Vf(VfAttribute),
    /// A BAR's size in bytes.
    BarSize {
        /// 0 to 5.
        bar: u8,
        /// A power of two.
        bytes: u64,
    },
    /// The only method by which the kernel is to reset it.
    ResetMethod(Method),
    /// The services that show the display are to be stopped: the profile single-gpu.
    StopDisplay,
}

impl Setting {
    /// Whether it is set while the device is still on its host driver; else it is between the drivers, when nobody has
    /// the device.
    pub(super) fn comes_first(&self) -> bool {
        matches!(self, Setting::Service(_) | Setting::Console(_) | Setting::Framebuffer(_))
    }

    /// Whether it can only be set while the device has no driver.
    pub(super) fn needs_no_driver(&self) -> bool {
        matches!(self, Setting::BarSize(_))
    }

    /// Whether both are about the same thing.
    pub(super) fn is_about_the_same(&self, other: &Setting) -> bool {
        match (self, other) {
            (Setting::Service(a), Setting::Service(b)) => a.unit == b.unit,
            (Setting::Console(a), Setting::Console(b)) => a.number == b.number,
            (Setting::Framebuffer(a), Setting::Framebuffer(b)) => a.device == b.device,
            (Setting::Vf(a), Setting::Vf(b)) => a.is_about_the_same(b),
            (Setting::BarSize(a), Setting::BarSize(b)) => a.bar == b.bar,
            (Setting::ResetMethods(_), Setting::ResetMethods(_)) => true,
            _ => false,
        }
    }

    /// The setting as it is now.
    pub(super) fn now(&self, host: &Host, bdf: Bdf) -> Result<Setting> {
        Ok(match self {
            Setting::Service(service) => Setting::Service(service.now(host)),
            Setting::Console(console) => Setting::Console(console.now(host)),
            Setting::Framebuffer(framebuffer) => Setting::Framebuffer(framebuffer.now(host)),
            Setting::Vf(vf) => Setting::Vf(vf.now(host)?),
            Setting::BarSize(size) => Setting::BarSize(size.now(host, bdf)?),
            Setting::ResetMethods(_) => Setting::ResetMethods(ResetMethods::now(host, bdf)),
        })
    }

    /// Makes it so, and sees that it is.
    pub(super) fn set(&self, host: &Host, bdf: Bdf) -> Result<()> {
        match self {
            Setting::Service(service) => service.set(host),
            Setting::Console(console) => console.set(host),
            Setting::Framebuffer(framebuffer) => framebuffer.set(host),
            Setting::Vf(vf) => vf.set(host),
            Setting::BarSize(size) => size.set(host, bdf),
            Setting::ResetMethods(methods) => methods.set(host, bdf),
        }
    }

    /// Whether every name and number is one that may be written to the host.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Setting::Service(service) => service.check(),
            Setting::Console(console) => console.check(),
            Setting::Framebuffer(framebuffer) => framebuffer.check(),
            Setting::Vf(_) => Ok(()),
            Setting::BarSize(size) => size.check(),
            Setting::ResetMethods(methods) => methods.check(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Service(service) => service.fmt(f),
            Setting::Console(console) => console.fmt(f),
            Setting::Framebuffer(framebuffer) => framebuffer.fmt(f),
            Setting::Vf(vf) => vf.fmt(f),
            Setting::BarSize(size) => size.fmt(f),
            Setting::ResetMethods(methods) => methods.fmt(f),
        }
    }
}

impl Host {
    /// What must be set for `bind`: what the user asks for, and what keeps the device from being used.
    pub(super) fn settings_for(&self, device: &PciDevice, requests: &[Request]) -> Result<Vec<Setting>> {
        // The services first: what they draw on is then drawn on by the consoles, until these are taken away, too.
        let stop = requests.contains(&Request::StopDisplay) && !device.on_vfio();
        let mut settings = if stop { self.display_services(device)? } else { Vec::new() };
        settings.extend(self.boot_consoles(device));
        for request in requests {
            settings.push(match *request {
                Request::Vf(is) => Setting::Vf(self.vf_setting(device, is)?),
                Request::BarSize { bar, bytes } => Setting::BarSize(self.bar_size(device, bar, bytes)?),
                Request::StopDisplay => continue,
                Request::ResetMethod(method) => Setting::ResetMethods(self.reset_by(device, method)?),
            });
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests;
