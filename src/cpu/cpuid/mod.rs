//! The guest's CPUID: what KVM offers on this host, less what a guest must not see, plus the machine's arrangement.
//!
//! KVM's answer to KVM_GET_SUPPORTED_CPUID is the base (Linux Documentation/virt/kvm/api.rst and x86/cpuid.rst). It has
//! the host's family, model and features, and KVM's own leaves at 0x4000_0000: kvmclock, steal time and the rest are
//! passed on as offered, the hint KVM_HINTS_REALTIME stays off. The invariant TSC bit is passed on where it is offered.

mod leaves;
mod topology;

use kvm_bindings::kvm_cpuid_entry2;

use self::leaves::Leaves;
pub use self::leaves::Register;
use super::features::Bit;
use super::model::Model;
use super::topology::Topology;
use crate::error::{Code, Error, Result};

const fn bit(leaf: u32, register: Register, bit: u32) -> Bit {
    Bit { leaf, subleaf: 0, register, bit }
}

const MONITOR: Bit = bit(1, Register::Ecx, 3);
const VMX: Bit = bit(1, Register::Ecx, 5);
const X2APIC: Bit = bit(1, Register::Ecx, 21);
const TSC_DEADLINE: Bit = bit(1, Register::Ecx, 24);
const OSXSAVE: Bit = bit(1, Register::Ecx, 27);
const HYPERVISOR: Bit = bit(1, Register::Ecx, 31);
const HT: Bit = bit(1, Register::Edx, 28);
const SGX: Bit = bit(7, Register::Ebx, 2);
const OSPKE: Bit = bit(7, Register::Ecx, 4);
const SGX_LC: Bit = bit(7, Register::Ecx, 30);
const CMP_LEGACY: Bit = bit(0x8000_0001, Register::Ecx, 1);
const SVM: Bit = bit(0x8000_0001, Register::Ecx, 2);
const TOPOEXT: Bit = bit(0x8000_0001, Register::Ecx, 22);

/// Physical address bits of a processor that does not tell.
const DEFAULT_PHYS_BITS: u32 = 36;
/// What nested page tables of four levels can map: the safe limit on kernels that do not tell theirs.
const FOUR_LEVEL_BITS: u32 = 48;

/// What the host and its KVM offer.
#[derive(Clone, Debug, Default)]
pub struct HostCpu {
    /// The answer to KVM_GET_SUPPORTED_CPUID.
    pub supported: Vec<kvm_cpuid_entry2>,
    /// The host's leaves 0x8000_0002 to 0x8000_0004, the processor's name: KVM leaves them empty.
    pub brand: [[u32; 4]; 3],
    /// KVM_CAP_TSC_DEADLINE_TIMER: older kernels offer the timer without listing its bit.
    pub tsc_deadline: bool,
}

impl HostCpu {
    /// How many bits a guest's physical addresses can have on this host: those of the processor, as far as KVM can map
    /// them.
    pub fn phys_bits(&self) -> u32 {
        let Some(sizes) = self.supported.iter().find(|entry| entry.function == 0x8000_0008) else {
            return DEFAULT_PHYS_BITS;
        };
        let processor = sizes.eax & 0xff;
        // GuestPhysAddrSize, which KVM sets since Linux 6.10 to what its nested page tables reach.
        let mappable = match sizes.eax >> 16 & 0xff {
            0 => FOUR_LEVEL_BITS,
            bits => bits,
        };
        processor.min(mappable).clamp(32, 52)
    }
}

/// Who made the processor: it decides which leaves tell the arrangement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD and Hygon.
    Amd,
    /// Others, which follow Intel's leaves.
    Other,
}

impl Vendor {
    fn of(leaves: &Leaves) -> Vendor {
        let name = leaves.get(0, 0).map(|zero| {
            let words = [zero.ebx, zero.edx, zero.ecx];
            words.map(u32::to_le_bytes).concat()
        });
        match name.as_deref() {
            Some(b"GenuineIntel") => Vendor::Intel,
            Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

/// The guest's processors: their arrangement and what CPUID says on each.
#[derive(Clone)]
pub struct CpuPlan {
    leaves: Leaves,
    vendor: Vendor,
    topology: Topology,
}

impl CpuPlan {
    /// Plans processors as `model` says, on what `host` offers.
    ///
    /// # Errors
    /// [`Code::UnknownCpu`] if a feature is asked for that the host does not offer.
    pub fn new(host: &HostCpu, model: &Model, topology: Topology) -> Result<CpuPlan> {
        let mut leaves = Leaves::new(&host.supported);
        let vendor = Vendor::of(&leaves);
        // KVM emulates the x2APIC on any host, and sets the OS bits itself when the guest sets CR4.
        leaves.switch(X2APIC, true);
        leaves.switch(HYPERVISOR, true);
        if host.tsc_deadline {
            leaves.switch(TSC_DEADLINE, true);
        }
        leaves.switch(OSXSAVE, false);
        leaves.switch(OSPKE, false);
        leaves.switch(MONITOR, false);
        let offered = leaves.clone();

        for hidden in [VMX, SVM, SGX, SGX_LC] {
            leaves.switch(hidden, false);
        }
        // No enclave page cache and no encrypted memory is given to the guest.
        leaves.remove(0x12);
        leaves.remove(0x8000_001f);
        if let Some(features) = leaves.get_mut(0x4000_0001, 0) {
            features.edx = 0;
        }
        topology::describe(&mut leaves, vendor, &topology);
        for switch in &model.switches {
            if switch.on && !offered.has(switch.bit) {
                let cause = format!("this host does not offer the CPU feature {}", switch.name);
                let mut error = Error::new(Code::UnknownCpu, cause);
                if [VMX, SVM].contains(&switch.bit) {
                    error = error.fix("load kvm_intel or kvm_amd with nested=1");
                }
                return Err(error);
            }
            leaves.switch(switch.bit, switch.on);
        }
        if !leaves.has(SVM) {
            leaves.remove(0x8000_000a);
        }
        brand(&mut leaves, &host.brand);
        leaves.shrink();
        Ok(CpuPlan { leaves, vendor, topology })
    }

    /// The arrangement.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who made the processor, as the guest is told.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether the guest may use VMX.
    pub fn has_vmx(&self) -> bool {
        self.leaves.has(VMX)
    }

    /// What CPUID answers on the processor with this APIC id.
    pub fn leaves(&self, apic_id: u32) -> Vec<kvm_cpuid_entry2> {
        let mut leaves = self.leaves.clone();
        topology::number(&mut leaves, &self.topology, apic_id);
        leaves.into_entries()
    }
}

/// Names the processor as the host's is named, unless KVM does.
fn brand(leaves: &mut Leaves, brand: &[[u32; 4]; 3]) {
    for (leaf, &words) in (0x8000_0002..).zip(brand) {
        let named = leaves.get(leaf, 0).is_some_and(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx] != [0; 4]);
        if !named {
            leaves.set(leaf, None, words);
        }
    }
}

#[cfg(test)]
mod tests;
