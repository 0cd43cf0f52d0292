//! The plan on made-up hosts: an Intel and an AMD one, with the leaves as those processors and KVM give them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use proptest::prelude::*;

use super::*;
use crate::cpu::Switch;
use crate::cpu::features;
use crate::cpu::topology::SmpRequest;

fn plain(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn indexed(function: u32, index: u32, words: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..plain(function, words) }
}

const BRAND: [[u32; 4]; 3] = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]];

/// A server of Intel's with nested virtualisation on: 2 threads in a core, L2 of a core, L3 of 32 ids.
fn intel() -> HostCpu {
    let supported = vec![
        plain(0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        // The host's APIC id 0x2a, 64 ids; VMX and MONITOR on, the timer's bit not listed, OSXSAVE set.
        plain(1, [0x000c_06f2, 0x2a40_0800, 0xfeff_f3af & !(1 << 24), 0xbfeb_fbff]),
        indexed(4, 0, [0x7c00_4121, 0x02c0_003f, 0x3f, 0]),
        indexed(4, 1, [0x7c00_4122, 0x01c0_003f, 0x3f, 0]),
        indexed(4, 2, [0x7c00_4143, 0x03c0_003f, 0x7ff, 0]),
        indexed(4, 3, [0x7c0f_c163, 0x04c0_003f, 0x1_bfff, 4]),
        indexed(4, 4, [0, 0, 0, 0]),
        // SGX in EBX, OSPKE and SGX_LC in ECX.
        indexed(7, 0, [2, 0xf1bf_ffef | 1 << 2, 0x1b41_5f7e | 1 << 4 | 1 << 30, 0xbc11_4410]),
        indexed(0xb, 0, [1, 2, 0x100, 0x2a]),
        indexed(0xb, 1, [6, 0x40, 0x201, 0x2a]),
        indexed(0xd, 0, [7, 0x340, 0x340, 0]),
        indexed(0x12, 0, [1, 0, 0, 0x241f]),
        indexed(0x1f, 0, [1, 2, 0x100, 0x2a]),
        indexed(0x1f, 1, [6, 0x40, 0x201, 0x2a]),
        plain(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        plain(0x4000_0001, [0x0100_7efb, 0, 0, 1]),
        plain(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        plain(0x8000_0001, [0, 0, 0x121, 0x2c10_0800]),
        plain(0x8000_0002, [0; 4]),
        plain(0x8000_0007, [0, 0, 0, 0x100]),
        plain(0x8000_0008, [0x0034_3934, 0x200, 0, 0]),
    ];
    HostCpu { supported, brand: BRAND, tsc_deadline: true }
}

/// A server of AMD's: 2 threads in a core, L3 of 16 ids, SVM and memory encryption there.
fn amd() -> HostCpu {
    let supported = vec![
        plain(0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        plain(1, [0x00a1_0f11, 0x0640_0800, 0x7efa_320b & !(1 << 24), 0x178b_fbff]),
        indexed(7, 0, [1, 0xf1bf_97a9, 0x0041_5fde, 0x1000_0010]),
        indexed(0xb, 0, [1, 2, 0x100, 6]),
        indexed(0xb, 1, [7, 0x40, 0x201, 6]),
        indexed(0xd, 0, [7, 0x340, 0x340, 0]),
        plain(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        plain(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        plain(0x8000_0000, [0x8000_0026, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        // SVM and TOPOEXT offered.
        plain(0x8000_0001, [0x00a1_0f11, 0x4000_0000, 0x0040_0000 | 0x3f5 | 2, 0x2fd3_fbff]),
        plain(0x8000_0007, [0, 0, 0, 0x100]),
        plain(0x8000_0008, [0x0000_3934, 0x1001_d205, 0x703f, 0]),
        plain(0x8000_000a, [1, 8, 0, 0x19b_fcff]),
        indexed(0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
        indexed(0x8000_001d, 1, [0x4122, 0x01c0_003f, 0x3f, 0]),
        indexed(0x8000_001d, 2, [0x4143, 0x01c0_003f, 0x7ff, 2]),
        indexed(0x8000_001d, 3, [0x3_c163, 0x03c0_003f, 0x7fff, 1]),
        plain(0x8000_001e, [6, 0x103, 0, 0]),
        plain(0x8000_001f, [0x3, 0x173, 0x1f0, 1]),
        indexed(0x8000_0026, 0, [1, 2, 0x100, 6]),
    ];
    HostCpu { supported, brand: BRAND, tsc_deadline: true }
}

fn topology(sockets: u32, cores: u32, threads: u32) -> Topology {
    let request = SmpRequest { cpus: None, sockets: Some(sockets), cores: Some(cores), threads: Some(threads) };
    Topology::plan(request).unwrap()
}

/// What `--cpu` makes of a text such as `host,+svm,-avx2`.
fn switches(text: &str) -> Model {
    let switch = |word: &str| Switch::new(&word[1..], word.starts_with('+')).unwrap();
    Model { switches: text.split(',').skip(1).map(switch).collect() }
}

fn plan(host: &HostCpu, model: &str, topology: Topology) -> Result<CpuPlan> {
    CpuPlan::new(host, &switches(model), topology)
}

/// What the guest reads: zeros where there is no answer.
fn read(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> [u32; 4] {
    let leaves = Leaves::new(entries);
    leaves.get(leaf, subleaf).map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

fn has(entries: &[kvm_cpuid_entry2], name: &str) -> bool {
    Leaves::new(entries).has(features::find(name).unwrap())
}

#[test]
fn intel_processors_know_their_place() {
    // 3 cores in a field for 4, 2 threads: socket 1 begins at id 8.
    let plan = plan(&intel(), "host", topology(2, 3, 2)).unwrap();
    assert_eq!(plan.vendor(), Vendor::Intel);
    let leaves = plan.leaves(0xb);
    let [_, ebx, _, edx] = read(&leaves, 1, 0);
    assert_eq!(ebx, 0x0b08_0800, "APIC id, room for 8 ids, CLFLUSH of 64 bytes");
    assert_eq!(edx >> 28 & 1, 1, "HTT");
    for leaf in [0xb, 0x1f] {
        assert_eq!(read(&leaves, leaf, 0), [1, 2, 0x100, 0xb]);
        assert_eq!(read(&leaves, leaf, 1), [3, 6, 0x201, 0xb]);
        assert_eq!(read(&leaves, leaf, 2), [0, 0, 2, 0xb]);
    }
    // Room for 4 cores in the package; L1 and L2 shared by 2 ids, L3 by 8.
    assert_eq!(read(&leaves, 4, 0), [0x0c00_4121, 0x02c0_003f, 0x3f, 0]);
    assert_eq!(read(&leaves, 4, 2), [0x0c00_4143, 0x03c0_003f, 0x7ff, 0]);
    assert_eq!(read(&leaves, 4, 3), [0x0c01_c163, 0x04c0_003f, 0x1_bfff, 4]);
    assert_eq!(read(&leaves, 4, 4), [0; 4]);
    assert_eq!(read(&leaves, 0x8000_0008, 0), [0x0034_3934, 0x200, 0, 0]);
    assert_eq!(read(&leaves, 0x8000_001e, 0), [0; 4]);
}

#[test]
fn amd_processors_know_their_place() {
    let plan = plan(&amd(), "host", topology(2, 3, 2)).unwrap();
    assert_eq!(plan.vendor(), Vendor::Amd);
    let leaves = plan.leaves(0xd);
    let [_, ebx, _, edx] = read(&leaves, 1, 0);
    assert_eq!(ebx, 0x0d06_0800, "APIC id, 6 processors, CLFLUSH of 64 bytes");
    assert_eq!(edx >> 28 & 1, 1, "HTT");
    assert!(has(&leaves, "cmp_legacy"));
    assert_eq!(read(&leaves, 0xb, 0), [1, 2, 0x100, 0xd]);
    assert_eq!(read(&leaves, 0xb, 1), [3, 6, 0x201, 0xd]);
    assert_eq!(read(&leaves, 0x1f, 0), [0; 4]);
    assert_eq!(read(&leaves, 0x8000_0026, 0), [0; 4]);
    assert_eq!(read(&leaves, 0x8000_0008, 0)[2], 0x3005, "6 processors in 3 bits of id");
    assert_eq!(read(&leaves, 0x8000_001d, 1)[0], 0x4122, "L1: 2 ids");
    assert_eq!(read(&leaves, 0x8000_001d, 3)[0], 0x1_c163, "L3: 8 ids");
    // Id 0xd: socket 1, core 2, thread 1.
    assert_eq!(read(&leaves, 0x8000_001e, 0), [0xd, 0x102, 1, 0]);
}

#[test]
fn a_single_processor_has_no_siblings() {
    for host in [intel(), amd()] {
        let leaves = plan(&host, "host", topology(1, 1, 1)).unwrap().leaves(0);
        assert!(!has(&leaves, "ht") && !has(&leaves, "cmp_legacy"));
        assert_eq!(read(&leaves, 1, 0)[1], 0x0001_0800);
        assert_eq!(read(&leaves, 0xb, 0), [0, 1, 0x100, 0]);
        assert_eq!(read(&leaves, 0xb, 1), [0, 1, 0x201, 0]);
    }
}

#[test]
fn counts_that_do_not_fit_are_cut_to_their_fields() {
    let leaves = plan(&intel(), "host", topology(1, 255, 1)).unwrap().leaves(254);
    assert_eq!(read(&leaves, 1, 0)[1], 0xfeff_0800);
    assert_eq!(read(&leaves, 4, 0)[0] >> 26, 63);
    assert_eq!(read(&leaves, 4, 3)[0] >> 14 & 0xfff, 255);
    let leaves = plan(&amd(), "host", topology(1, 255, 1)).unwrap().leaves(254);
    assert_eq!(read(&leaves, 0x8000_0008, 0)[2], 0x80fe);
}

#[test]
fn what_a_guest_must_not_see_is_hidden_and_what_it_needs_is_set() {
    for host in [intel(), amd()] {
        let leaves = plan(&host, "host", topology(1, 2, 1)).unwrap().leaves(0);
        for name in ["x2apic", "hypervisor", "tsc_deadline_timer", "constant_tsc", "kvmclock", "kvm_pv_eoi"] {
            assert!(has(&leaves, name), "{name}");
        }
        for name in ["vmx", "svm", "monitor", "osxsave", "ospke", "sgx", "sgx_lc"] {
            assert!(!has(&leaves, name), "{name}");
        }
        for leaf in [0x12, 0x8000_000a, 0x8000_001f] {
            assert_eq!(read(&leaves, leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(read(&leaves, 0x4000_0000, 0), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(read(&leaves, 0x4000_0001, 0)[3], 0, "no hints");
        assert_eq!(read(&leaves, 0xd, 0), [7, 0x340, 0x340, 0]);
        assert_eq!(read(&leaves, 0x8000_0004, 0), BRAND[2]);
        assert!(leaves.len() <= 80, "old kernels take no more");
    }
    let old = HostCpu { tsc_deadline: false, ..intel() };
    assert!(!has(&plan(&old, "host", topology(1, 1, 1)).unwrap().leaves(0), "tsc_deadline_timer"));
}

#[test]
fn a_name_that_kvm_gives_is_kept() {
    let mut host = amd();
    host.supported.push(plain(0x8000_0003, [7; 4]));
    let leaves = plan(&host, "host", topology(1, 1, 1)).unwrap().leaves(0);
    assert_eq!(read(&leaves, 0x8000_0002, 0), BRAND[0]);
    assert_eq!(read(&leaves, 0x8000_0003, 0), [7; 4]);
}

#[test]
fn features_are_switched_if_the_host_has_them() {
    let leaves = plan(&amd(), "host,+svm,-avx2,-tsc_deadline_timer", topology(1, 1, 1)).unwrap();
    assert!(!leaves.has_vmx());
    let leaves = leaves.leaves(0);
    assert!(has(&leaves, "svm") && has(&leaves, "npt"));
    assert!(!has(&leaves, "avx2") && !has(&leaves, "tsc_deadline_timer"));
    assert!(plan(&intel(), "max,+vmx", topology(1, 1, 1)).unwrap().has_vmx());
    assert!(!plan(&intel(), "max,+vmx,-vmx", topology(1, 1, 1)).unwrap().has_vmx());

    let without_topoext = plan(&amd(), "host,-topoext", topology(1, 2, 1)).unwrap().leaves(1);
    assert_eq!(read(&without_topoext, 0x8000_001e, 0), [0; 4]);
    for (host, model) in
        [(amd(), "host,+vmx"), (intel(), "host,+svm"), (amd(), "host,+monitor"), (amd(), "host,+3dnow")]
    {
        let error = plan(&host, model, topology(1, 1, 1)).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), Code::UnknownCpu, "{model}");
        assert!(error.cause().contains("does not offer"), "{error}");
    }
}

#[test]
fn physical_addresses_end_where_kvm_can_map() {
    let bits = |eax| HostCpu { supported: vec![plain(0x8000_0008, [eax, 0, 0, 0])], ..HostCpu::default() }.phys_bits();
    assert_eq!(bits(0x3027), 39);
    assert_eq!(bits(0x3034), 48, "a kernel that does not tell is trusted with four levels");
    assert_eq!(bits(0x30_3034), 48);
    assert_eq!(bits(0x34_3934), 52);
    assert_eq!(bits(0x34_392e), 46);
    assert_eq!(bits(0xff), 48);
    assert_eq!(HostCpu::default().phys_bits(), 36);
}

#[test]
fn an_empty_offer_makes_no_plan_fail() {
    let leaves = plan(&HostCpu::default(), "host", topology(2, 2, 2)).unwrap().leaves(3);
    assert_eq!(read(&leaves, 0xb, 0), [1, 2, 0x100, 3]);
}

proptest! {
    /// Where Linux looks: the ids that a processor reads name the same thread, core and socket in every leaf.
    #[test]
    fn all_leaves_agree(sockets in 1u32..5, cores in 1u32..12, threads in 1u32..4, amd_host: bool) {
        let host = if amd_host { amd() } else { intel() };
        let topology = topology(sockets, cores, threads);
        let plan = plan(&host, "host", topology).unwrap();
        for apic_id in topology.apic_ids() {
            let leaves = plan.leaves(apic_id);
            prop_assert_eq!(read(&leaves, 1, 0)[1] >> 24, apic_id);
            let [thread_bits, thread_count, _, id] = read(&leaves, 0xb, 0);
            let [core_bits, socket_count, _, _] = read(&leaves, 0xb, 1);
            prop_assert_eq!(id, apic_id);
            prop_assert_eq!((thread_count, socket_count), (threads, cores * threads));
            prop_assert!(apic_id & ((1 << thread_bits) - 1) < threads);
            prop_assert_eq!(apic_id >> core_bits, topology.socket_of(apic_id));
            if amd_host {
                let sizes = read(&leaves, 0x8000_0008, 0)[2];
                prop_assert_eq!((sizes & 0xff, sizes >> 12 & 0xf), (cores * threads - 1, core_bits));
                let [extended_id, core, node, _] = read(&leaves, 0x8000_001e, 0);
                prop_assert_eq!(extended_id, apic_id);
                prop_assert_eq!((core & 0xff, core >> 8), (topology.core_of(apic_id), threads - 1));
                prop_assert_eq!(node, topology.socket_of(apic_id));
            }
        }
    }
}
