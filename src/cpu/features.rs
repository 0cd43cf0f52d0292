//! The names of CPU features and where CPUID has them.
//!
//! The names are those of /proc/cpuinfo (Linux arch/x86/include/asm/cpufeatures.h); bits are as in the Intel SDM, volume
//! 2, CPUID, and the AMD APM, volume 3, appendix E. Bits without a name in Linux have none here.

use super::cpuid::Register::{self, Eax, Ebx, Ecx, Edx};

/// Where a feature's bit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bit {
    /// CPUID function.
    pub leaf: u32,
    /// CPUID index.
    pub subleaf: u32,
    /// Register of the answer.
    pub register: Register,
    /// Bit, 0 to 31.
    pub bit: u32,
}

/// One register full of features: names from bit 0 to bit 31, `-` where there is none.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static str,
}

const fn word(leaf: u32, subleaf: u32, register: Register, names: &'static str) -> Word {
    Word { leaf, subleaf, register, names }
}

/// Four lines of eight bits each, lowest bit first.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    word(1, 0, Edx,
        "fpu vme de pse tsc msr pae mce \
         cx8 apic - sep mtrr pge mca cmov \
         pat pse36 pn clflush - dts acpi mmx \
         fxsr sse sse2 ss ht tm ia64 pbe"),
    word(1, 0, Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est \
         tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
         - pcid dca sse4_1 sse4_2 x2apic movbe popcnt \
         tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"),
    word(6, 0, Eax,
        "dtherm ida arat - pln - pts hwp \
         hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - - \
         - - - hfi - - - - \
         - - - - - - - -"),
    word(7, 0, Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep \
         bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt \
         clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"),
    word(7, 0, Ecx,
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk \
         gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - \
         la57 - - - - - rdpid - \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc -"),
    word(7, 0, Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - \
         avx512_vp2intersect - md_clear rtm_always_abort - - serialize hybrid_cpu \
         tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 \
         amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd"),
    word(7, 1, Eax,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd \
         - - fzrm fsrs fsrc - - - \
         - fred lkgs - - amx_fp16 - avx_ifma \
         - - lam - - - - -"),
    word(7, 1, Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - \
         amx_complex - avx_vnni_int16 - - - prefetchiti - \
         - - - avx10 - - - - \
         - - - - - - - -"),
    word(0xd, 1, Eax,
        "xsaveopt xsavec xgetbv1 xsaves xfd - - - \
         - - - - - - - - \
         - - - - - - - - \
         - - - - - - - -"),
    // The features that AMD repeats from leaf 1 (fpu to fxsr) have their names there.
    word(0x8000_0001, 0, Edx,
        "- - - - - - - - \
         - - - syscall - - - - \
         - - - mp nx - mmxext - \
         - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    word(0x8000_0001, 0, Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse \
         3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core \
         perfctr_nb - bpext ptsc perfctr_llc mwaitx - -"),
    word(0x8000_0007, 0, Edx,
        "- - - - - - - hw_pstate \
         constant_tsc cpb aperfmperf proc_feedback - - - - \
         - - - - - - - - \
         - - - - - - - -"),
    word(0x8000_0008, 0, Ebx,
        "clzero irperf xsaveerptr - rdpru - mba - \
         - wbnoinvd - - ibpb - ibrs stibp \
         - stibp_always_on - - - - - amd_ppin \
         amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd - - brs"),
    word(0x8000_000a, 0, Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists \
         - - pausefilter - pfthreshold avic - v_vmsave_vmload \
         vgif - x2avic - v_spec_ctrl - - - \
         - vnmi - - - - - -"),
    word(0x8000_0021, 0, Eax,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - \
         autoibrs no_smm_ctl_msr - - - prefetch_ctl - - \
         - - - - - - - - \
         - - - sbpb ibpb_brtype srso_no srso_user_kernel_no -"),
    word(0x4000_0001, 0, Eax,
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt \
         - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id \
         kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
         kvmclock_stable - - - - - - -"),
];

/// Every name with its bit.
pub fn all() -> impl Iterator<Item = (&'static str, Bit)> {
    WORDS.iter().flat_map(|word| {
        let named = (0..).zip(word.names.split_whitespace()).filter(|(_, name)| *name != "-");
        named.map(|(bit, name)| (name, Bit { leaf: word.leaf, subleaf: word.subleaf, register: word.register, bit }))
    })
}

/// The bit of a name. QEMU's spellings with `-` or `.` for `_` are understood too.
pub fn find(name: &str) -> Option<Bit> {
    let wanted = normal(name);
    all().find(|(name, _)| *name == wanted).map(|(_, bit)| bit)
}

fn normal(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_32_bits_and_every_name_is_unique() {
        for word in WORDS {
            assert_eq!(word.names.split_whitespace().count(), 32, "{:#x} {:?}", word.leaf, word.register);
        }
        let mut names: Vec<_> = all().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn names_are_where_the_manuals_have_them() {
        let bit = |leaf, subleaf, register, bit| Some(Bit { leaf, subleaf, register, bit });
        assert_eq!(find("ht"), bit(1, 0, Edx, 28));
        assert_eq!(find("vmx"), bit(1, 0, Ecx, 5));
        assert_eq!(find("x2apic"), bit(1, 0, Ecx, 21));
        assert_eq!(find("tsc_deadline_timer"), bit(1, 0, Ecx, 24));
        assert_eq!(find("hypervisor"), bit(1, 0, Ecx, 31));
        assert_eq!(find("avx512f"), bit(7, 0, Ebx, 16));
        assert_eq!(find("la57"), bit(7, 0, Ecx, 16));
        assert_eq!(find("amx_tile"), bit(7, 0, Edx, 24));
        assert_eq!(find("xsaves"), bit(0xd, 1, Eax, 3));
        assert_eq!(find("svm"), bit(0x8000_0001, 0, Ecx, 2));
        assert_eq!(find("topoext"), bit(0x8000_0001, 0, Ecx, 22));
        assert_eq!(find("lm"), bit(0x8000_0001, 0, Edx, 29));
        assert_eq!(find("constant_tsc"), bit(0x8000_0007, 0, Edx, 8));
        assert_eq!(find("kvmclock_stable"), bit(0x4000_0001, 0, Eax, 24));
        assert_eq!(find("SSE4.1"), find("sse4_1"));
        assert_eq!(find("-"), None);
        assert_eq!(find(""), None);
    }
}
