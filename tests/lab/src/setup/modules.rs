//! Kernel modules of the tree: their dependencies (`modules.dep`, depmod(8)) and the
//! decompressed copies that go into an initramfs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tools;
use crate::cpio::Archive;

/// The modules of one kernel.
pub struct Modules {
    folder: PathBuf,
    /// Below the folder of the kernel, here instead of in the tree; not compressed.
    own: Option<PathBuf>,
    /// `modules.dep`.
    dep: String,
}

impl Modules {
    /// The tree's modules of the kernel `release`. `own` replaces those of VFIO and adds iommufd.
    pub fn of(tree: &Path, release: &str, own: Option<&Path>) -> Result<Modules> {
        let folder = PathBuf::from(format!("usr/lib/modules/{release}"));
        let dep =
            std::fs::read_to_string(tree.join(&folder).join("modules.dep")).context("the tree has no modules.dep")?;
        let dep = if own.is_some() { with_iommufd(&dep) } else { dep };
        Ok(Modules { folder, own: own.map(Path::to_owned), dep })
    }

    /// Adds `names` and all they need to `archive`, decompressed, with a `modules.dep` that busybox's modprobe
    /// understands.
    pub fn add(&self, archive: &mut Archive, tree: &Path, names: &[&str]) -> Result<()> {
        let files = closure(&self.dep, names);
        let folder = self.folder.strip_prefix("usr").unwrap_or(&self.folder).display();
        for path in &files {
            archive.file(&format!("{folder}/{}", unpacked(path)), 0o644, &self.read(tree, path)?);
        }
        let dep: String = self
            .dep
            .lines()
            .filter(|line| line.split(':').next().is_some_and(|f| files.contains(f)))
            .map(|line| line.split(' ').map(unpacked).collect::<Vec<_>>().join(" ") + "\n")
            .collect();
        archive.file(&format!("{folder}/modules.dep"), 0o644, dep.as_bytes());
        Ok(())
    }

    /// A module, decompressed.
    fn read(&self, tree: &Path, path: &str) -> Result<Vec<u8>> {
        if let Some(own) = self.own.as_ref().map(|own| own.join(unpacked(path))).filter(|own| own.exists()) {
            return Ok(std::fs::read(own)?);
        }
        let packed = std::fs::read(tree.join(&self.folder).join(path))?;
        match path.rsplit_once('.').map(|(_, e)| e) {
            Some("xz") => tools::filter(tree, &["/usr/bin/xz", "-dc"], &packed, false),
            Some("zst") => tools::filter(tree, &["/usr/bin/zstd", "-dcq"], &packed, false),
            _ => Ok(packed),
        }
    }
}

/// `modules.dep` of a kernel whose vfio.ko uses iommufd.ko: so does all that uses vfio.ko.
fn with_iommufd(dep: &str) -> String {
    const IOMMUFD: &str = "kernel/drivers/iommu/iommufd/iommufd.ko";
    let uses = |line: &str| line.split([' ', ':']).any(|path| name(path) == "vfio");
    let lines = dep.lines().map(|line| if uses(line) { format!("{line} {IOMMUFD}\n") } else { format!("{line}\n") });
    lines.chain([format!("{IOMMUFD}:\n")]).collect()
}

/// Drops the compression suffix, also before the colon that ends a module's own name.
fn unpacked(path: &str) -> String {
    path.replace(".ko.xz", ".ko").replace(".ko.zst", ".ko")
}

/// Name by which a module is asked for: `nvme_core` and `nvme-core` are the same.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Files of the modules `names` and of everything they depend on. A name that has no file is
/// built into the kernel.
fn closure(dep: &str, names: &[&str]) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for line in dep.lines() {
        let Some((file, needs)) = line.split_once(':') else {
            continue;
        };
        // modules.dep lists the whole closure of each module on its line.
        if names.iter().any(|n| n.replace('-', "_") == name(file)) {
            files.insert(file.to_owned());
            files.extend(needs.split_whitespace().map(str::to_owned));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/nvme/host/nvme-core.ko.xz: kernel/a/nvme-auth.ko.xz\n\
        kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz kernel/a/nvme-auth.ko.xz\n\
        kernel/net/e1000e.ko.xz:\n";

    #[test]
    fn closure_holds_the_dependencies() {
        let files: Vec<String> = closure(DEP, &["nvme"]).into_iter().collect();
        assert_eq!(
            files,
            [
                "kernel/a/nvme-auth.ko.xz",
                "kernel/drivers/nvme/host/nvme-core.ko.xz",
                "kernel/drivers/nvme/host/nvme.ko.xz"
            ]
        );
        assert_eq!(closure(DEP, &["nvme_core", "virtio_pci"]).len(), 2);
    }

    #[test]
    fn what_uses_vfio_uses_iommufd() {
        let dep = with_iommufd(
            "k/vfio/vfio.ko.xz:\nk/vfio/pci/vfio-pci.ko.xz: k/vfio/vfio.ko.xz k/irqbypass.ko\nk/kvm.ko:\n",
        );
        assert_eq!(closure(&dep, &["vfio-pci"]).len(), 4);
        assert!(closure(&dep, &["vfio"]).contains("kernel/drivers/iommu/iommufd/iommufd.ko"));
        assert_eq!(closure(&dep, &["kvm"]).len(), 1);
        assert!(dep.ends_with("iommufd.ko:\n"));
    }

    #[test]
    fn names_lose_folder_and_suffix() {
        assert_eq!(name("kernel/x/snd-hda-intel.ko.zst"), "snd_hda_intel");
        assert_eq!(unpacked("a/b.ko.xz:"), "a/b.ko:");
    }
}
