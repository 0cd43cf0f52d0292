//! The bootstrap processor's registers at the guest's first instruction, for a boot without firmware.
//!
//! The values must satisfy Intel's checks of the guest state (SDM volume 3, section 27.3.1), which AMD is laxer about: a
//! busy TSS in TR, and an LDT that is unusable.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Base of the local APIC's registers, enabled (bit 11), on the bootstrap processor (bit 8).
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;

/// A segment register with its hidden part. Every segment is present with privilege level 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte, in bytes whatever the granularity.
    pub limit: u32,
    /// The four type bits of the descriptor.
    pub kind: u8,
    /// The S bit: true for code and data, false for system segments.
    pub code_or_data: bool,
    /// The L bit: 64-bit code.
    pub long: bool,
    /// The D/B bit: 32-bit default operand size.
    pub big: bool,
    /// The G bit: the descriptor's limit counts pages.
    pub granular: bool,
}

/// Where and how the bootstrap processor begins. What is not named is as after a reset, other general registers are 0, and
/// the IDT is empty: a fault before the guest has made its own is a triple fault, and not a jump to nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StartState {
    /// First instruction, as an offset in `cs`.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags; bit 1 always reads 1.
    pub rflags: u64,
    /// Linux's 64-bit entry: address of the zero page.
    pub rsi: u64,
    /// PVH: address of `hvm_start_info`.
    pub rbx: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register. In protected mode it must be a busy TSS (type 11).
    pub tr: Segment,
    /// Linear address of the GDT.
    pub gdt_base: u64,
    /// Offset of the GDT's last byte.
    pub gdt_limit: u16,
}

impl StartState {
    /// For KVM_SET_REGS.
    pub(super) fn regs(&self) -> kvm_regs {
        let StartState { rip, rsp, rflags, rsi, rbx, .. } = *self;
        kvm_regs { rip, rsp, rflags: rflags | 1 << 1, rsi, rbx, ..Default::default() }
    }

    /// For KVM_SET_SREGS. Complete, so that nothing need be read from KVM first.
    pub(super) fn sregs(&self) -> kvm_sregs {
        let data = segment(&self.data);
        kvm_sregs {
            cs: segment(&self.cs),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: segment(&self.tr),
            // Type 2 is an LDT.
            ldt: kvm_segment { type_: 2, unusable: 1, ..Default::default() },
            gdt: kvm_dtable { base: self.gdt_base, limit: self.gdt_limit, ..Default::default() },
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            apic_base: APIC_BASE,
            ..Default::default()
        }
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
        let state = StartState { tr, cs, rip: 0x100_0200, rsi: 0x7000, cr0: 0x8000_0011, ..StartState::default() };
        let sregs = state.sregs();
        assert_eq!((sregs.tr.type_, sregs.tr.present, sregs.tr.s, sregs.tr.limit), (0xb, 1, 0, 0x67));
        assert_eq!((sregs.ldt.unusable, sregs.ldt.present), (1, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.s, sregs.cs.g), (1, 0, 1, 1));
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        let regs = state.regs();
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, 0x7000, 2));
    }
}
