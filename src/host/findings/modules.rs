//! Whether the running kernel has a module, loaded, built in, or as a file (kernel: Documentation/kbuild/kbuild.rst,
//! modules.builtin; depmod(8), modules.dep).

use crate::host::{Host, read};

/// Where a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    /// In the running kernel.
    Loaded,
    /// Part of the kernel's image: options for it stand on the kernel's command line.
    BuiltIn,
    /// A file that `modprobe` finds.
    File,
    /// Nowhere.
    Absent,
    /// The kernel's modules cannot be read.
    Unknown,
}

impl Host {
    /// The release of the running kernel: `6.12.57-amd64`.
    pub(super) fn kernel_release(&self) -> Option<String> {
        read::text(self.proc("sys/kernel/osrelease"))
    }

    /// Where the module of this name (with hyphens) is.
    pub(super) fn module(&self, name: &str) -> Module {
        let folder = self.kernel_release().map(|release| self.modules(release));
        let lists = folder.map(|at| (read::lines(at.join("modules.builtin")), read::lines(at.join("modules.dep"))));
        let has = |lines: &[String]| lines.iter().any(|line| file_is(line, name));
        match lists {
            Some((built_in, _)) if has(&built_in) => Module::BuiltIn,
            _ if self.sys("module").join(name.replace('-', "_")).exists() => Module::Loaded,
            Some((_, files)) if has(&files) => Module::File,
            Some((_, files)) if !files.is_empty() => Module::Absent,
            _ => Module::Unknown,
        }
    }
}

/// Whether a line of either list begins with the module's file: `kernel/drivers/vfio/pci/vfio-pci.ko.xz: ...`.
fn file_is(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('_', "-") == name.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn modules_are_found_wherever_they_are() {
        let tree = TestTree::new();
        assert_eq!(tree.host().module("vfio-pci"), Module::Unknown);
        tree.file("proc/sys/kernel/osrelease", "6.1.0\n");
        tree.file("lib/modules/6.1.0/modules.builtin", "kernel/drivers/iommu/iommufd/iommufd.ko\n");
        tree.file(
            "lib/modules/6.1.0/modules.dep",
            "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n",
        );
        tree.file("sys/module/kvm_amd/refcnt", "0\n");
        let table = [
            ("vfio-pci", Module::File),
            ("vfio_pci", Module::File),
            ("iommufd", Module::BuiltIn),
            ("kvm-amd", Module::Loaded),
            ("vfio", Module::Absent),
        ];
        for (name, wanted) in table {
            assert_eq!(tree.host().module(name), wanted, "{name}");
        }
    }
}
