//! Resetting a function, by the method that the kernel has for it (kernel: `pci_try_reset_function`; PCIe 6.6.2).
//!
//! The kernel also resets a device when VFIO opens and closes it, if it can; so a device that was just opened is not reset
//! again, which for an NVMe drive saves a tenth of a second.

use super::seams::{HostPci, RegionIndex};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::pci::regs;

/// Whether the kernel could do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The function is in the state after power-on.
    Reset,
    /// The kernel has no way to reset this function alone: it keeps its state, but for bus mastering.
    Unsupported,
}

/// Stops the function's DMA, resets it, and sees that it came back.
///
/// # Errors
/// [`Code::NoReset`] if it answers no more, [`Code::DeviceFailed`] if the kernel's reset failed.
pub fn reset(host: &dyn HostPci) -> Result<Outcome> {
    // Off before the reset: where there is none, this at least ends DMA. A device that is gone does none anyway.
    if let Err(error) = host.write(RegionIndex::Config, u64::from(regs::COMMAND), &[0, 0]) {
        guest_error!(host.name(), "its command register cannot be written: {}", explain_io(&error));
    }
    let done = host.reset().map_err(|error| {
        Error::new(Code::DeviceFailed, format!("{} could not be reset", host.name()))
            .evidence(format!("VFIO_DEVICE_RESET: {}", explain_io(&error)))
    })?;
    check(host)?;
    Ok(if done { Outcome::Reset } else { Outcome::Unsupported })
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

    fn device() -> FakePci {
        FakePci::new(vec![0x11; 256], &[])
    }

    #[test]
    fn bus_mastering_ends_before_the_reset() {
        let host = device();
        assert_eq!(reset(&host).unwrap(), Outcome::Reset);
        assert_eq!(host.take(), ["write Config 0x4 [00, 00]", "reset"]);
    }

    #[test]
    fn a_device_without_a_reset_is_no_error() {
        let host = FakePci { resettable: false, ..device() };
        assert_eq!(reset(&host).unwrap(), Outcome::Unsupported);
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
