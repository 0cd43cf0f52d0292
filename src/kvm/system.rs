//! /dev/kvm itself: version, capabilities, and what the processor offers to guests.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use super::refused;
use crate::cpu::HostCpu;
use crate::error::{Code, Error, Result};
use crate::host::Host;

const PATH: &str = "/dev/kvm";

/// Capabilities without which passthru cannot work, with the kernel option or version that brings them. The many older
/// ones that these imply are not asked for: each question is an ioctl.
const REQUIRED: &[(Cap, &str, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "CONFIG_KVM_IOAPIC"),
    (Cap::Pit2, "KVM_CAP_PIT2", "CONFIG_KVM_IOAPIC"),
    (Cap::IrqfdResample, "KVM_CAP_IRQFD_RESAMPLE", "CONFIG_KVM_IOAPIC"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM", "Linux 5.10 or newer"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "Linux 5.10 or newer"),
];

/// An open /dev/kvm whose capabilities suffice.
pub struct Kvm {
    pub(super) fd: kvm_ioctls::Kvm,
    slots: u32,
}

impl Kvm {
    /// Opens /dev/kvm and checks it.
    ///
    /// # Errors
    /// [`Code::NoKvm`] if it is missing, [`Code::NotPermitted`] if it may not be opened, [`Code::KvmFailed`] if it lacks
    /// something, which is named.
    pub fn open(host: &Host) -> Result<Kvm> {
        let fd = kvm_ioctls::Kvm::new().map_err(|error| host.kvm_error(&error.into()))?;
        let version = fd.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(Error::new(
                Code::KvmFailed,
                format!("{PATH} has API version {version}, not {KVM_API_VERSION}"),
            ));
        }
        for (cap, name, from) in REQUIRED {
            if !fd.check_extension(*cap) {
                return Err(Error::new(Code::KvmFailed, format!("KVM lacks {name}"))
                    .evidence(format!("KVM_CHECK_EXTENSION({name}) is 0"))
                    .fix(format!("use a kernel that has it: {from}")));
            }
        }
        let slots = u32::try_from(fd.get_nr_memslots()).unwrap_or(u32::MAX);
        Ok(Kvm { fd, slots })
    }

    /// How many memory slots a VM can have.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// What the processor and KVM offer to guests.
    pub fn host_cpu(&self) -> Result<HostCpu> {
        let supported = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| refused("to tell the supported CPUID (KVM_GET_SUPPORTED_CPUID)", error))?;
        let tsc_deadline = self.fd.check_extension(Cap::TscDeadlineTimer);
        Ok(HostCpu { supported: supported.as_slice().to_vec(), brand: brand(), tsc_deadline })
    }
}

/// The processor's name as the host's own CPUID tells it.
fn brand() -> [[u32; 4]; 3] {
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        return [[0; 4]; 3];
    }
    [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|leaf| {
        let answer = __cpuid(leaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    })
}
