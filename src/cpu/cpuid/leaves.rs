//! A list of CPUID answers that can be edited by leaf and subleaf.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::cpu::features::Bit;

/// A register of a CPUID answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

/// The answers. What is not in the list reads as zeros in the guest.
#[derive(Clone, Default)]
pub(super) struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    pub(super) fn new(entries: &[kvm_cpuid_entry2]) -> Leaves {
        Leaves(entries.to_vec())
    }

    pub(super) fn into_entries(self) -> Vec<kvm_cpuid_entry2> {
        self.0
    }

    /// The answer for a subleaf; an answer without index stands for all of them.
    pub(super) fn get(&self, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.iter().find(|entry| answers(entry, leaf, subleaf))
    }

    pub(super) fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0.iter_mut().find(|entry| answers(entry, leaf, subleaf))
    }

    /// All subleaves of a leaf.
    pub(super) fn all_mut(&mut self, leaf: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |entry| entry.function == leaf)
    }

    /// Sets an answer, in place of the one that there is. `subleaf` is for leaves that look at the index.
    pub(super) fn set(&mut self, leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) {
        let index = subleaf.unwrap_or(0);
        let flags = if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        self.0.retain(|entry| !answers(entry, leaf, index));
        self.0.push(kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, ..Default::default() });
    }

    /// Takes a leaf away with all its subleaves.
    pub(super) fn remove(&mut self, leaf: u32) {
        self.0.retain(|entry| entry.function != leaf);
    }

    /// Takes away what reads as zeros anyway: old kernels accept no more than 80 answers.
    pub(super) fn shrink(&mut self) {
        self.0.retain(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx] != [0; 4]);
    }

    /// Whether a feature's bit is set.
    pub(super) fn has(&self, bit: Bit) -> bool {
        self.get(bit.leaf, bit.subleaf).is_some_and(|entry| register(entry, bit.register) >> bit.bit & 1 == 1)
    }

    /// Sets or clears a feature's bit. A leaf that is absent has no bit to clear and gets none set.
    pub(super) fn switch(&mut self, bit: Bit, on: bool) {
        let Some(entry) = self.get_mut(bit.leaf, bit.subleaf) else { return };
        let register = match bit.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        };
        *register = *register & !(1 << bit.bit) | u32::from(on) << bit.bit;
    }
}

fn answers(entry: &kvm_cpuid_entry2, leaf: u32, subleaf: u32) -> bool {
    let any_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0;
    entry.function == leaf && (any_index || entry.index == subleaf)
}

fn register(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}
