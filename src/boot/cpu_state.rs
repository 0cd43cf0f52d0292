//! The first vCPU's registers at the kernel's entry point, as plain data: the KVM code turns it into `kvm_sregs` and
//! `kvm_regs`.
//!
//! The 64-bit entry follows the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), the
//! 32-bit one the PVH ABI (Xen's docs/misc/pvh.pandoc, "x86/HVM direct boot ABI").

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{GDT, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};

/// Selector of the code segment: `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment. In long mode its descriptor has 16 bytes: two entries.
const TASK_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: usize = 6;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads 1. Interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// By which protocol the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux boot protocol, 64-bit entry: long mode, identity map, RSI = zero page.
    Linux64,
    /// PVH: 32-bit protected mode without paging, EBX = `hvm_start_info`.
    Pvh32,
}

/// Where the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Decides the mode and the register that has the address of the machine's description.
    pub protocol: Protocol,
    /// The first instruction's guest-physical address.
    pub address: u64,
}

/// A segment register with its hidden part, field by field as in `kvm_segment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte (in bytes, whatever the granularity).
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

impl Segment {
    /// The descriptor that loads this segment (present, privilege level 0; Intel SDM volume 3, section 3.4.5).
    fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.granular { self.limit >> 12 } else { self.limit });
        let access = u64::from(self.kind) | u64::from(self.code_or_data) << 4 | 1 << 7;
        let flags = u64::from(self.long) << 1 | u64::from(self.big) << 2 | u64::from(self.granular) << 3;
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

/// The registers that matter at the entry point; all others are as after a reset, all general registers that are not
/// named here are 0. Every segment is present with privilege level 0, the LDT is unusable, the IDT is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuState {
    /// First instruction.
    pub rip: u64,
    /// No stack is promised by either protocol: 0.
    pub rsp: u64,
    /// Interrupts off.
    pub rflags: u64,
    /// Linux64: the zero page.
    pub rsi: u64,
    /// Pvh32: `hvm_start_info`.
    pub rbx: u64,
    /// Protected mode, and paging for Linux64.
    pub cr0: u64,
    /// Linux64: the PML4 of the identity map.
    pub cr3: u64,
    /// Linux64: PAE.
    pub cr4: u64,
    /// Linux64: long mode enabled and active.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register: KVM on Intel refuses to enter a guest without a busy TSS.
    pub tr: Segment,
    /// Address of the GDT.
    pub gdt_base: u64,
    /// Offset of the GDT's last byte.
    pub gdt_limit: u16,
}

impl CpuState {
    /// The registers for `entry`.
    pub fn at(entry: Entry) -> CpuState {
        let long = entry.protocol == Protocol::Linux64;
        let flat = Segment {
            selector: DATA_SELECTOR,
            base: 0,
            limit: u32::MAX,
            kind: 0x3, // data, writable, accessed
            code_or_data: true,
            long: false,
            big: true,
            granular: true,
        };
        let mut state = CpuState {
            rip: entry.address,
            rsp: 0,
            rflags: RFLAGS,
            rsi: 0,
            rbx: 0,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: Segment { selector: CODE_SELECTOR, kind: 0xb, long, big: !long, ..flat }, // code, readable, accessed
            data: flat,
            tr: Segment {
                selector: TASK_SELECTOR,
                limit: 0x67,
                kind: 0xb, // busy TSS
                code_or_data: false,
                big: false,
                granular: false,
                ..flat
            },
            gdt_base: GDT,
            gdt_limit: (GDT_ENTRIES * 8 - 1) as u16,
        };
        match entry.protocol {
            Protocol::Linux64 => {
                state.rsi = ZERO_PAGE;
                state.cr0 |= CR0_PG;
                state.cr3 = PAGE_TABLES;
                state.cr4 = CR4_PAE;
                state.efer = EFER_LME | EFER_LMA;
            }
            Protocol::Pvh32 => state.rbx = PVH_START_INFO,
        }
        state
    }

    /// The GDT that the segment registers come from, for a kernel that reloads one before it has its own.
    fn gdt(&self) -> [u64; GDT_ENTRIES] {
        [0, 0, self.cs.descriptor(), self.data.descriptor(), self.tr.descriptor(), self.tr.base >> 32]
    }

    /// Writes the GDT to guest memory.
    pub fn write_gdt(&self, mem: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        let bytes: Vec<u8> = self.gdt().iter().flat_map(|entry| entry.to_le_bytes()).collect();
        mem.write_slice(&bytes, GuestAddress(self.gdt_base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_entered_in_long_mode_with_the_zero_page() {
        let state = CpuState::at(Entry { protocol: Protocol::Linux64, address: 0x100_0200 });
        assert_eq!((state.rip, state.rsi, state.rbx), (0x100_0200, ZERO_PAGE, 0));
        assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!(state.cr3, PAGE_TABLES);
        assert_eq!(
            state.gdt(),
            [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0],
            "64-bit code, flat data, busy TSS"
        );
    }

    #[test]
    fn pvh_is_entered_in_protected_mode_without_paging() {
        let state = CpuState::at(Entry { protocol: Protocol::Pvh32, address: 0x100_0000 });
        assert_eq!((state.rip, state.rsi, state.rbx), (0x100_0000, 0, PVH_START_INFO));
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x11, 0, 0, 0));
        assert_eq!(state.gdt()[2], 0x00cf_9b00_0000_ffff, "32-bit code");
    }

    #[test]
    fn gdt_is_long_enough_for_its_selectors() {
        let state = CpuState::at(Entry { protocol: Protocol::Linux64, address: 0 });
        assert!(state.gdt_limit >= state.tr.selector + 15);
    }

    #[test]
    fn descriptors_scatter_base_and_limit() {
        let state = CpuState::at(Entry { protocol: Protocol::Pvh32, address: 0 });
        let odd = Segment { base: 0x1234_5678, limit: 0xa_bcde, granular: false, ..state.data };
        assert_eq!(odd.descriptor(), 0x124a_9334_5678_bcde);
    }
}
