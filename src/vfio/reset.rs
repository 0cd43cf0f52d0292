//! Resetting a function, by the method that the kernel has for it (kernel: `pci_try_reset_function`; PCIe 6.6.2), or
//! together with others that it shares a slot or a bus with, if all of them are this guest's ([`crate::host::reset`]
//! decides).
//!
//! The kernel also resets a device when VFIO opens and closes it, if it can; so a device that was just opened is not reset
//! again, which for an NVMe drive saves a tenth of a second.

use std::thread::sleep;
use std::time::Duration;

use super::seams::{HostPci, RegionIndex};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::host::reset::{ResetFacts, Scope, Verdict, plan};
use crate::pci::regs;

/// A function answers within a second after a reset (PCIe 6.6.1). It is asked after 1, 2, 4 ... ms.
const TRIES: u32 = 10;

/// What became of a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The function is in the state after power-on.
    Reset,
    /// The kernel has no way to reset this function, for this reason: it keeps its state, but for bus mastering.
    Unsupported(String),
}

/// Stops the function's DMA, resets it, and sees that it came back. What could not be reset alone may be by [`hot`].
///
/// # Errors
/// [`Code::NoReset`] if it answers no more, [`Code::DeviceFailed`] if the kernel's reset failed.
pub fn reset(host: &dyn HostPci) -> Result<Outcome> {
    // Off before the reset: where there is none, this at least ends DMA. A device that is gone does none anyway.
    if let Err(error) = host.write(RegionIndex::Config, u64::from(regs::COMMAND), &[0, 0]) {
        guest_error!(host.name(), "its command register cannot be written: {}", explain_io(&error));
    }
    // One that was pulled out is not waited for.
    let answered = check(host).is_ok();
    let done = host.reset().map_err(|error| failed(host, "VFIO_DEVICE_RESET", &error))?;
    if answered {
        back(host)?
    } else {
        check(host)?
    };
    Ok(if done { Outcome::Reset } else { Outcome::Unsupported("the kernel cannot reset it alone".into()) })
}

/// Resets the slot or the bus, if all that it hits is this guest's. Every function of the guest has been quieted by
/// [`reset`] before, and nothing uses them.
///
/// # Errors
/// As for [`reset`].
pub fn hot(host: &dyn HostPci) -> Result<Outcome> {
    hot_if(host, |_| true)
}

/// The same, if it hits nobody but this function: others of the guest's may be in use.
///
/// # Errors
/// As for [`reset`].
pub fn hot_alone(host: &dyn HostPci) -> Result<Outcome> {
    hot_if(host, |others| others.is_empty())
}

/// Resets the slot or the bus, if all that it hits is this guest's and `may` says so of the others.
fn hot_if(host: &dyn HostPci, may: impl FnOnce(&[Bdf]) -> bool) -> Result<Outcome> {
    let Ok(bdf) = host.name().parse::<Bdf>() else {
        return Ok(Outcome::Unsupported("it has no address on the host".into()));
    };
    let affected = match host.hot_reset_reach() {
        Ok(affected) => affected,
        Err(error) => {
            let why = format!("the kernel has no reset for it (hot reset: {})", explain_io(&error));
            return Ok(Outcome::Unsupported(why));
        }
    };
    // The kernel chooses between slot and bus, and has said what that hits.
    let facts = ResetFacts { methods: Some(Vec::new()), distrusted: Vec::new(), scope: Some(Scope::Bus), affected };
    match plan(bdf, &facts) {
        Verdict::Hot { with, .. } if may(&with) => {
            host.hot_reset().map_err(|error| failed(host, "VFIO_DEVICE_PCI_HOT_RESET", &error))?;
            back(host).map(|()| Outcome::Reset)
        }
        verdict => Ok(Outcome::Unsupported(verdict.to_string())),
    }
}

fn failed(host: &dyn HostPci, request: &str, error: &std::io::Error) -> Error {
    Error::new(Code::DeviceFailed, format!("{} could not be reset", host.name()))
        .evidence(format!("{request}: {}", explain_io(error)))
}

/// Waits until the function answers after a reset.
fn back(host: &dyn HostPci) -> Result<()> {
    for tried in 0..TRIES {
        if check(host).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(1 << tried));
    }
    check(host)
}

/// Whether the function answers.
///
/// VFIO answers the vendor and device id from its own memory (it keeps them for virtual functions, which have none), so
/// the class code and revision are looked at: they come from the hardware and are never all ones.
pub fn check(host: &dyn HostPci) -> Result<()> {
    let mut class = [0xff; 4];
    let read = host.read(RegionIndex::Config, u64::from(regs::REVISION), &mut class);
    if read.is_ok() && class != [0xff; 4] {
        return Ok(());
    }
    let evidence = match read {
        Ok(()) => "its class code reads as ones".to_owned(),
        Err(error) => format!("its configuration space: {}", explain_io(&error)),
    };
    Err(Error::new(Code::NoReset, format!("{} does not answer", host.name()))
        .evidence(evidence)
        .fix("power the host off and on; if it happens again, another slot or the card's firmware may help"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Failure, FakePci};
    use super::*;
    use crate::host::reset::{Affected, Alone};

    fn device() -> FakePci {
        FakePci::new(vec![0x11; 256], &[])
    }

    fn affected(address: &str, owned: bool) -> Affected {
        Affected { bdf: address.parse().unwrap(), owned, driver: None }
    }

    #[test]
    fn bus_mastering_ends_before_the_reset() {
        let host = device();
        assert_eq!(reset(&host).unwrap(), Outcome::Reset);
        assert_eq!(host.take(), ["write Config 0x4 [00, 00]", "reset"]);
    }

    #[test]
    fn a_device_without_a_reset_is_no_error() {
        let host = FakePci { alone: Alone::Impossible, ..device() };
        assert!(matches!(reset(&host).unwrap(), Outcome::Unsupported(_)));
        assert!(matches!(hot(&host).unwrap(), Outcome::Unsupported(_)), "nothing is known about a hot reset");
    }

    #[test]
    fn a_hot_reset_hits_nobody_else() {
        let host = FakePci { alone: Alone::Impossible, ..device() };
        *host.reach.lock() = vec![affected("01:00.0", true), affected("01:00.1", false)];
        let Outcome::Unsupported(why) = hot(&host).unwrap() else { panic!("it was reset") };
        assert_eq!(why, "none: a hot reset would also hit 0000:01:00.1 (not bound)");
        assert!(host.take().is_empty());
        *host.reach.lock() = vec![affected("01:00.0", true), affected("01:00.1", true)];
        assert_eq!(hot(&host).unwrap(), Outcome::Reset);
        assert_eq!(host.take(), ["hot reset"]);
    }

    #[test]
    fn a_device_that_does_not_come_back_has_a_code() {
        let host = device();
        *host.failure.lock() = Failure::Gone;
        assert_eq!(reset(&host).unwrap_err().code(), Code::NoReset);
        *host.failure.lock() = Failure::Broken;
        assert_eq!(reset(&host).unwrap_err().code(), Code::DeviceFailed);
        assert_eq!(check(&host).unwrap_err().code(), Code::NoReset);
    }
}
