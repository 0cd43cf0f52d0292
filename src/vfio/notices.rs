//! What the host's kernel says of a device by itself: that it wants it back (VFIO_PCI_REQ_IRQ_INDEX), and that an
//! uncorrectable error was found (VFIO_PCI_ERR_IRQ_INDEX); and the registers that tell more of an error.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::seams::{HostPci, IrqKind, RegionIndex};
use crate::device::{ErrorReport, Notice};
use crate::error::explain_io;
use crate::pci::{ConfigSpace, regs};

/// Advanced Error Reporting (PCIe 7.8.4).
const EXT_CAP_AER: u16 = 1;
/// The registers of a report: name, offset in the AER capability.
const AER: [(&str, u16); 8] = [
    ("uncorrectable-status", 0x04),
    ("uncorrectable-mask", 0x08),
    ("uncorrectable-severity", 0x0c),
    ("correctable-status", 0x10),
    ("header-log-0", 0x1c),
    ("header-log-1", 0x20),
    ("header-log-2", 0x24),
    ("header-log-3", 0x28),
];
/// Device status in the PCI Express capability (PCIe 7.5.3.5).
const DEVICE_STATUS: u16 = 0x0a;

/// The eventfds of one device.
pub struct Notices {
    armed: Vec<(Notice, Arc<EventFd>)>,
    aer: Option<u16>,
    express: Option<u16>,
}

impl Notices {
    /// Asks the kernel to tell of both where it can. A refusal is a warning: the device works without.
    pub fn arm(host: &dyn HostPci, config: &ConfigSpace) -> Notices {
        let kinds = [(Notice::Request, IrqKind::Request), (Notice::Error, IrqKind::Error)];
        let armed = kinds.into_iter().filter(|(_, kind)| host.irq(*kind).count > 0).filter_map(|(notice, kind)| {
            let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).and_then(|fd| {
                host.arm(kind, 0, &[Some(&fd)])?;
                Ok(Arc::new(fd))
            });
            if let Err(error) = &fd {
                let name = host.name();
                crate::log::warn(format_args!(
                    "{name}: the kernel will not tell of a {notice:?}: {}",
                    explain_io(error)
                ));
            }
            fd.ok().map(|fd| (notice, fd))
        });
        let aer = config.ext_capabilities().into_iter().find(|(id, _)| *id == EXT_CAP_AER).map(|(_, at)| at);
        Notices { armed: armed.collect(), aer, express: config.find(regs::CAP_EXPRESS) }
    }

    /// The eventfds, each with what it says.
    pub fn fds(&self) -> Vec<(Notice, Arc<EventFd>)> {
        self.armed.clone()
    }

    /// The kernel says nothing any more.
    pub fn off(&self, host: &dyn HostPci) {
        for (notice, _) in &self.armed {
            let kind = match notice {
                Notice::Request => IrqKind::Request,
                Notice::Error => IrqKind::Error,
            };
            // A device that is gone has forgotten them.
            let _ = host.disarm(kind);
        }
    }

    /// The error registers as the hardware has them now. Where they read as ones the device does not answer.
    pub fn report(&self, host: &dyn HostPci) -> ErrorReport {
        let dword = |at: u16| {
            let mut data = [0xff; 4];
            let read = host.read(RegionIndex::Config, u64::from(at), &mut data);
            read.ok().map(|()| u32::from_le_bytes(data)).filter(|value| *value != u32::MAX)
        };
        let aer = |at: u16| AER.map(|(name, off)| (name, dword(at + off)));
        let mut registers: Vec<_> = self.aer.map(aer).into_iter().flatten().collect();
        if let Some(at) = self.express {
            registers.push(("device-status", dword(at + DEVICE_STATUS - 2).map(|value| value >> 16)));
        }
        ErrorReport { host: host.name().to_owned(), registers }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Failure, FakePci, sample};
    use super::*;

    #[test]
    fn a_report_has_the_registers_or_says_that_they_cannot_be_read() {
        let mut config = sample();
        config[0x104..0x108].copy_from_slice(&0x0010_0000u32.to_le_bytes());
        let host = FakePci::new(config, &[]);
        let notices = Notices::arm(&host, &super::super::config::image(&sample()));
        assert_eq!(notices.fds().len(), 0, "this host's kernel tells nothing");
        let report = notices.report(&host);
        assert_eq!(report.registers[0], ("uncorrectable-status", Some(0x0010_0000)));
        assert_eq!(report.registers.last(), Some(&("device-status", Some(0))));
        *host.failure.lock() = Failure::Gone;
        assert!(notices.report(&host).registers.iter().all(|(_, value)| value.is_none()));
    }

    #[test]
    fn both_are_armed_where_the_kernel_has_them() {
        let mut host = FakePci::new(sample(), &[]);
        host.irqs.extend([(IrqKind::Request, 1), (IrqKind::Error, 1)]);
        let notices = Notices::arm(&host, &super::super::config::image(&sample()));
        assert_eq!(notices.fds().len(), 2);
        notices.off(&host);
        assert_eq!(host.take(), ["arm Request 0 1", "arm Error 0 1", "disarm Request", "disarm Error"]);
    }
}
