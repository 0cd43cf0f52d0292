//! The machine and its kernel.

use std::io;

use super::modules::Module;
use super::{Finding, Subject};
use crate::error::{Code, Error};
use crate::host::check::{no_iommu_at_all, no_remapping_at_all};
use crate::host::limits::size_text;
use crate::host::{Host, read};

/// Linux versions: with KVM's and VFIO's requests that passthru needs; that says how a device is reset; that maps large
/// BARs by large pages (vfio-pci's huge_fault).
const NEEDED: Version = (5, 10);
const RESET_METHODS: Version = (5, 15);
const LARGE_BARS: Version = (6, 12);

type Version = (u32, u32);

impl Host {
    /// Everything about the machine.
    pub fn check_machine(&self) -> Vec<Finding> {
        let mut findings = vec![self.check_kvm(), self.check_iommu()];
        if self.has_iommu() {
            findings.push(self.check_remapping());
        }
        findings.extend([self.check_vfio(), self.check_iommufd(), self.check_kernel(), self.check_acs()]);
        findings.push(self.check_memory());
        findings
    }

    fn check_kvm(&self) -> Finding {
        if self.dev("kvm").exists() {
            return Finding::pass(Subject::Host, Code::NoKvm, "KVM is there");
        }
        Finding::fail(Subject::Host, &self.kvm_error(&io::Error::from_raw_os_error(libc::ENOENT)))
    }

    fn has_iommu(&self) -> bool {
        self.groups().iter().any(|group| !group.noiommu)
    }

    fn check_iommu(&self) -> Finding {
        let groups = self.groups().iter().filter(|group| !group.noiommu).count();
        match groups {
            0 => Finding::fail(Subject::Host, &no_iommu_at_all()),
            _ => Finding::pass(Subject::Host, Code::NoIommu, format!("an IOMMU is active, with {groups} groups")),
        }
    }

    /// Interrupts that go through the IOMMU are listed as such: `IR-IO-APIC`, `IR-PCI-MSI`.
    fn check_remapping(&self) -> Finding {
        let interrupts = read::text(self.proc("interrupts"));
        let remapped = interrupts.as_ref().map(|text| text.split_whitespace().any(|word| word.starts_with("IR-")));
        let allowed = ["vfio_iommu_type1", "iommufd"].into_iter().find(|judge| {
            let parameter = self.sys(format!("module/{judge}/parameters/allow_unsafe_interrupts"));
            read::text(parameter).is_some_and(|value| value == "Y")
        });
        match (remapped, allowed) {
            (Some(true), _) => Finding::pass(Subject::Host, Code::NoInterruptRemapping, "the IOMMU remaps interrupts"),
            (Some(false), None) => Finding::fail(Subject::Host, &no_remapping_at_all()),
            (Some(false), Some(judge)) => Finding::warn(
                Subject::Host,
                &no_remapping_at_all()
                    .evidence(format!("{judge}.allow_unsafe_interrupts lets devices through all the same")),
            ),
            (None, _) => Finding::warn(
                Subject::Host,
                &Error::new(Code::NoInterruptRemapping, "it is not known whether the IOMMU remaps interrupts")
                    .evidence(format!("{} cannot be read", self.proc("interrupts").display())),
            ),
        }
    }

    fn check_vfio(&self) -> Finding {
        let pass = |how: &str| Finding::pass(Subject::Host, Code::NoVfio, format!("vfio-pci {how}"));
        let missing = |what: &str| {
            Error::new(Code::NoVfio, what)
                .evidence(format!("the kernel is {}", self.kernel_release().unwrap_or_else(|| "unknown".to_owned())))
                .fix("install the modules of the running kernel (linux-modules-extra on some systems), or reboot into one that has them")
        };
        if self.sys("bus/pci/drivers/vfio-pci").exists() {
            let built_in = self.module("vfio-pci") == Module::BuiltIn;
            return pass(if built_in { "is built into the kernel" } else { "is loaded" });
        }
        match self.module("vfio-pci") {
            Module::Loaded | Module::BuiltIn => pass("is part of the kernel"),
            Module::File => pass("is a module that `passthru bind` loads"),
            Module::Absent => Finding::fail(Subject::Host, &missing("the kernel has no vfio-pci")),
            Module::Unknown => {
                Finding::warn(Subject::Host, &missing("it is not known whether the kernel has vfio-pci"))
            }
        }
    }

    fn check_iommufd(&self) -> Finding {
        let there = self.dev("iommu").exists() || matches!(self.module("iommufd"), Module::File | Module::BuiltIn);
        let what = if there {
            "the kernel has iommufd"
        } else {
            "devices are opened by their groups: the kernel has no iommufd, which nothing needs"
        };
        Finding::pass(Subject::Host, Code::NoIommufd, what)
    }

    fn check_kernel(&self) -> Finding {
        let release = self.kernel_release().unwrap_or_default();
        let Some(version) = version(&release) else {
            let unknown = Error::new(Code::KernelOld, "the kernel's version is not known")
                .evidence(format!("{} cannot be read", self.proc("sys/kernel/osrelease").display()));
            return Finding::warn(Subject::Host, &unknown);
        };
        let lacks = |what: &str, since: Version| {
            Error::new(Code::KernelOld, what)
                .evidence(format!("it is Linux {release}"))
                .fix(format!("a kernel from Linux {}.{} on", since.0, since.1))
        };
        if version < NEEDED {
            return Finding::fail(Subject::Host, &lacks("the kernel is too old", NEEDED));
        }
        if version < RESET_METHODS {
            let text = "the kernel does not say how devices are reset, and maps large BARs slowly";
            return Finding::warn(Subject::Host, &lacks(text, RESET_METHODS));
        }
        if version < LARGE_BARS {
            let text = "the kernel maps BARs of many GiB slowly, by pages of 4 KiB";
            return Finding::warn(Subject::Host, &lacks(text, LARGE_BARS));
        }
        Finding::pass(Subject::Host, Code::KernelOld, "the kernel has all that passthru can use")
            .evidence(format!("it is Linux {release}"))
    }

    fn check_acs(&self) -> Finding {
        match self.acs_overridden() {
            Some(warning) => Finding::warn(Subject::Host, &warning),
            None => Finding::pass(Subject::Host, Code::AcsOverridden, "the IOMMU groups are those of the hardware"),
        }
    }

    /// What there is; whether it suffices depends on the guest.
    fn check_memory(&self) -> Finding {
        let free = self.free_memory();
        let what = format!("{} of memory are available", size_text(free.available));
        self.huge_pages_by_node()
            .into_iter()
            .fold(Finding::pass(Subject::Host, Code::NoMemory, what), Finding::evidence)
    }

    /// `node 0: 12 of 16 huge pages of 2 MiB free`, for each pool that has pages.
    fn huge_pages_by_node(&self) -> Vec<String> {
        let nodes = self.sys("devices/system/node");
        let mut numbers: Vec<u32> =
            read::names(&nodes).iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
        numbers.sort_unstable();
        let pools = |node: u32| {
            let at = nodes.join(format!("node{node}/hugepages"));
            read::names(&at).into_iter().filter_map(move |pool| {
                let count = |file: &str| read::number::<u64>(at.join(&pool).join(file)).unwrap_or(0);
                let page: u64 = pool.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                let (free, all) = (count("free_hugepages"), count("nr_hugepages"));
                let page = size_text(page.checked_mul(1 << 10)?);
                (all > 0).then(|| format!("node {node}: {free} of {all} huge pages of {page} free"))
            })
        };
        numbers.into_iter().flat_map(pools).collect()
    }
}

/// `6.12.57-amd64` -> 6.12.
fn version(release: &str) -> Option<Version> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::findings::Level;
    use crate::host::testtree::TestTree;

    #[test]
    fn versions_are_compared_as_numbers() {
        let table = [("6.12.57-amd64", Some((6, 12))), ("5.4", Some((5, 4))), ("6.9-rc1+", Some((6, 9))), ("x", None)];
        for (release, wanted) in table {
            assert_eq!(version(release), wanted);
        }
        let level = |release: &str| {
            let tree = TestTree::new();
            tree.file("proc/sys/kernel/osrelease", release);
            tree.host().check_kernel().level
        };
        let levels = ["5.4.0", "5.10.1", "6.1.0", "6.12.0", "10.1.0", ""].map(level);
        use Level::{Fail, Pass, Warn};
        assert_eq!(levels, [Fail, Warn, Warn, Pass, Pass, Warn]);
    }

    #[test]
    fn vfio_pci_is_built_in_loaded_a_file_or_nowhere() {
        use Level::{Fail, Pass, Warn};
        let (built_in, file) = ("kernel/drivers/vfio/pci/vfio-pci.ko\n", "kernel/drivers/vfio/pci/vfio-pci.ko.xz:\n");
        // The driver is there; modules.builtin; modules.dep.
        for (driver, in_kernel, files, level, what) in [
            (true, "", file, Pass, "vfio-pci is loaded"),
            (true, built_in, "", Pass, "vfio-pci is built into the kernel"),
            (false, built_in, "", Pass, "vfio-pci is part of the kernel"),
            (false, "", file, Pass, "vfio-pci is a module that `passthru bind` loads"),
            (false, "", "kernel/fs/xfs/xfs.ko:\n", Fail, "the kernel has no vfio-pci"),
            (false, "", "", Warn, "it is not known whether the kernel has vfio-pci"),
        ] {
            let tree = TestTree::new();
            if !driver {
                std::fs::remove_dir_all(tree.sys("bus/pci/drivers/vfio-pci")).unwrap();
            }
            tree.file("proc/sys/kernel/osrelease", "6.12.0\n");
            tree.file("lib/modules/6.12.0/modules.builtin", in_kernel);
            tree.file("lib/modules/6.12.0/modules.dep", files);
            let finding = tree.host().check_vfio();
            assert_eq!((finding.level, finding.what.as_str()), (level, what));
            assert_eq!(finding.fix.is_some(), level != Pass);
        }
    }

    #[test]
    fn interrupt_remapping_is_seen_in_the_list_of_interrupts() {
        let tree = TestTree::new();
        assert_eq!(tree.host().check_remapping().level, Level::Warn);
        tree.file("proc/interrupts", "  8:  0  IO-APIC  8-edge  rtc0\n 24: 0 PCI-MSI-0000:00:1f.2 0-edge ahci\n");
        assert_eq!(tree.host().check_remapping().level, Level::Fail);
        tree.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
        assert_eq!(tree.host().check_remapping().level, Level::Warn);
        tree.file("proc/interrupts", "  8:  0  IR-IO-APIC  8-edge  rtc0\n");
        assert_eq!(tree.host().check_remapping().level, Level::Pass);
    }
}
