//! The bootstrap processor's registers at the guest's first instruction, for a boot without firmware.
//!
//! The values must satisfy Intel's checks of the guest state (SDM volume 3, section 27.3.1), which AMD is laxer about: a
//! busy TSS in TR, and an LDT that is unusable.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::boot::cpu_state::{CpuState, Segment};

/// Base of the local APIC's registers, enabled (bit 11), on the bootstrap processor (bit 8).
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;

/// For KVM_SET_REGS.
pub(super) fn regs(start: &CpuState) -> kvm_regs {
    let CpuState { rip, rsp, rflags, rsi, rbx, .. } = *start;
    kvm_regs { rip, rsp, rflags: rflags | 1 << 1, rsi, rbx, ..Default::default() }
}

/// For KVM_SET_SREGS. Complete, so that nothing need be read from KVM first.
pub(super) fn sregs(start: &CpuState) -> kvm_sregs {
    let data = segment(&start.data);
    kvm_sregs {
        cs: segment(&start.cs),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(&start.tr),
        // Type 2 is an LDT.
        ldt: kvm_segment { type_: 2, unusable: 1, ..Default::default() },
        gdt: kvm_dtable { base: start.gdt_base, limit: start.gdt_limit, ..Default::default() },
        cr0: start.cr0,
        cr3: start.cr3,
        cr4: start.cr4,
        efer: start.efer,
        apic_base: APIC_BASE,
        ..Default::default()
    }
}

fn segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind & 0xf,
        present: 1,
        db: u8::from(from.big),
        s: u8::from(from.code_or_data),
        l: u8::from(from.long),
        g: u8::from(from.granular),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_intel_checks_is_there() {
        let tr = Segment { selector: 0x20, limit: 0x67, kind: 0xb, ..Segment::default() };
        let cs = Segment { kind: 0xb, code_or_data: true, long: true, granular: true, limit: u32::MAX, ..tr };
        let state = CpuState { tr, cs, rip: 0x100_0200, rsi: 0x7000, cr0: 0x8000_0011, ..CpuState::default() };
        let system = sregs(&state);
        assert_eq!((system.tr.type_, system.tr.present, system.tr.s, system.tr.limit), (0xb, 1, 0, 0x67));
        assert_eq!((system.ldt.unusable, system.ldt.present), (1, 0));
        assert_eq!((system.cs.l, system.cs.db, system.cs.s, system.cs.g), (1, 0, 1, 1));
        assert_eq!(system.apic_base, 0xfee0_0900);
        let general = regs(&state);
        assert_eq!((general.rip, general.rsi, general.rflags), (0x100_0200, 0x7000, 2));
    }
}
