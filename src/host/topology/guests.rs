//! CPUs that other virtual machines hold: those to which their virtual CPUs' threads are pinned. What a thread may run on
//! is in /proc for everybody to read, so that no VMM has to announce anything, and none that was killed leaves a trace.

use super::CpuSet;
use crate::host::{Host, read};

/// How the names of VMMs begin (passthru, QEMU, cloud-hypervisor, crosvm, Firecracker, OpenVMM). Only their threads are
/// looked at: a host has thousands.
const VMMS: [&str; 7] = ["passthru", "qemu", "kvm", "cloud-hyperviso", "crosvm", "firecracker", "openvmm"];

impl Host {
    /// CPUs to which other processes have pinned virtual CPUs. A thread that may run on all of `free` is not pinned.
    pub(super) fn pinned_by_guests(&self, free: &CpuSet) -> CpuSet {
        let own = std::process::id().to_string();
        let mut pinned = CpuSet::default();
        for pid in read::names(self.proc("")) {
            if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let comm = read::text(self.proc(format!("{pid}/comm"))).unwrap_or_default();
            if !VMMS.iter().any(|vmm| comm.starts_with(vmm)) {
                continue;
            }
            let tasks = self.proc(format!("{pid}/task"));
            for task in read::names(&tasks) {
                if !read::text(tasks.join(&task).join("comm")).is_some_and(|name| is_virtual_cpu(&name)) {
                    continue;
                }
                let status = read::lines(tasks.join(&task).join("status"));
                let runs = status.iter().find_map(|line| CpuSet::parse(line.strip_prefix("Cpus_allowed_list:")?));
                pinned = pinned.with(&runs.filter(|runs| !free.is_subset(runs)).unwrap_or_default());
            }
        }
        pinned
    }
}

/// How the VMMs call their threads: `vcpu0`, `CPU 0/KVM`, `fc_vcpu 0`, `crosvm_vcpu0`.
fn is_virtual_cpu(name: &str) -> bool {
    name.contains("vcpu") || name.starts_with("CPU ") && name.ends_with("/KVM")
}

#[cfg(test)]
mod tests {
    use crate::host::testtree::cpus;

    #[test]
    fn pinned_threads_of_virtual_machines_hold_their_cpus() {
        let tree = cpus::core_9700k();
        let thread = |pid: u32, vmm: &str, task: u32, name: &str, runs: &str| {
            tree.file(format!("proc/{pid}/comm"), &format!("{vmm}\n"));
            tree.file(format!("proc/{pid}/task/{task}/comm"), &format!("{name}\n"));
            tree.file(format!("proc/{pid}/task/{task}/status"), &format!("Name:\tx\nCpus_allowed_list:\t{runs}\n"));
        };
        thread(10, "qemu-system-x86", 11, "CPU 0/KVM", "2");
        thread(10, "qemu-system-x86", 12, "worker", "3");
        thread(20, "passthru", 21, "vcpu0", "4");
        thread(20, "passthru", 22, "vcpu1", "0-7");
        thread(30, "bash", 31, "vcpu0", "5");
        assert_eq!(tree.host().topology().taken.to_string(), "2,4");
    }
}
