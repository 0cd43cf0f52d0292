//! One vCPU before it runs: its descriptor and the state that differs from KVM's own after a reset.
//!
//! Application processors need no state at all: with the in-kernel interrupt chips they wait for INIT and SIPI.

use kvm_bindings::{CpuId, Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{Vm, refused, start};
use crate::boot::cpu_state::CpuState;
use crate::cpu::{CpuPlan, Vendor};
use crate::error::{Code, Error, Result};

const IA32_FEATURE_CONTROL: u32 = 0x3a;
/// Locked, VMX allowed outside SMX: what firmware does where VMX is there.
const FEATURE_CONTROL_VMX: u64 = 1 | 1 << 2;

const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast strings on, without which Linux does not use `rep movsb`; branch trace and precise sampling are not there, as in
/// KVM's own value.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default. KVM's own value, off, makes all memory uncached on Intel when a device has DMA that
/// does not snoop, and makes Linux do without PAT.
const MTRR_DEF_TYPE: u64 = 1 << 11 | 6;

/// Offsets of registers in the local APIC's page (Intel SDM volume 3, table 12-1) and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;

/// Makes the vCPU with this APIC id. `begin` is given for the bootstrap processor of a boot without firmware.
pub(super) fn create(vm: &Vm, plan: &CpuPlan, apic_id: u32, begin: Option<&CpuState>) -> Result<VcpuFd> {
    let fd = vm
        .fd
        .create_vcpu(u64::from(apic_id))
        .map_err(|error| refused(&format!("a vCPU with APIC id {apic_id} (KVM_CREATE_VCPU)"), error))?;
    // First: KVM judges registers and MSRs by what CPUID has.
    let leaves = CpuId::from_entries(&plan.leaves(apic_id))
        .map_err(|_| Error::new(Code::KvmFailed, "the host's CPUID has more leaves than KVM takes"))?;
    fd.set_cpuid2(&leaves).map_err(|error| refused("the CPUID leaves (KVM_SET_CPUID2)", error))?;
    set_msrs(&fd, &msrs(plan))?;
    if apic_id == 0 {
        wire_local_interrupts(&fd)?;
    }
    if let Some(begin) = begin {
        fd.set_sregs(&start::sregs(begin))
            .map_err(|error| refused("the start's system registers (KVM_SET_SREGS)", error))?;
        fd.set_regs(&start::regs(begin)).map_err(|error| refused("the start's registers (KVM_SET_REGS)", error))?;
    }
    Ok(fd)
}

/// What firmware leaves in the MSRs of every processor.
fn msrs(plan: &CpuPlan) -> Vec<(u32, u64)> {
    let mut msrs = vec![(IA32_MTRR_DEF_TYPE, MTRR_DEF_TYPE)];
    if plan.vendor() == Vendor::Intel {
        msrs.push((IA32_MISC_ENABLE, MISC_ENABLE));
    }
    if plan.has_vmx() {
        msrs.push((IA32_FEATURE_CONTROL, FEATURE_CONTROL_VMX));
    }
    msrs
}

fn set_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<()> {
    let entries: Vec<_> =
        msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let list = Msrs::from_entries(&entries).map_err(|_| Error::new(Code::KvmFailed, "too many MSRs"))?;
    let done = fd.set_msrs(&list).map_err(|error| refused("the MSRs (KVM_SET_MSRS)", error))?;
    // KVM stops at the first that it does not take.
    match entries.get(done) {
        None => Ok(()),
        Some(kvm_msr_entry { index, data, .. }) => {
            Err(Error::new(Code::KvmFailed, format!("KVM refused the MSR {index:#x} (KVM_SET_MSRS)"))
                .evidence(format!("value {data:#x}")))
        }
    }
}

/// Virtual wire mode (MultiProcessor Specification 1.4, section 3.6.2.2): the 8259s on LINT0, NMI on LINT1.
fn wire_local_interrupts(fd: &VcpuFd) -> Result<()> {
    let mut lapic = fd.get_lapic().map_err(|error| refused("to tell the local APIC's state (KVM_GET_LAPIC)", error))?;
    set_register(&mut lapic, LVT_LINT0, DELIVER_EXTINT);
    set_register(&mut lapic, LVT_LINT1, DELIVER_NMI);
    fd.set_lapic(&lapic).map_err(|error| refused("the local APIC's state (KVM_SET_LAPIC)", error))
}

fn set_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (to, from) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *to = from.cast_signed();
    }
}
