//! Kernel modules of the tree: their dependencies (`modules.dep`, depmod(8)) and the
//! decompressed copies that go into an initramfs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::tools;
use crate::cpio::Archive;

/// Adds `names` and all they need to `archive`, decompressed, with a `modules.dep`
/// that busybox's modprobe understands.
pub fn add(archive: &mut Archive, tree: &Path, version: &str, names: &[&str]) -> Result<()> {
    let folder = format!("usr/lib/modules/{version}");
    let dep = std::fs::read_to_string(tree.join(&folder).join("modules.dep")).context("the tree has no modules.dep")?;
    let files = closure(&dep, names);
    for path in &files {
        let packed = std::fs::read(tree.join(&folder).join(path))?;
        let plain = match path.rsplit_once('.').map(|(_, e)| e) {
            Some("xz") => tools::filter(tree, &["/usr/bin/xz", "-dc"], &packed, false)?,
            Some("zst") => tools::filter(tree, &["/usr/bin/zstd", "-dcq"], &packed, false)?,
            _ => packed,
        };
        archive.file(&format!("lib/modules/{version}/{}", unpacked(path)), 0o644, &plain);
    }
    let dep: String = dep
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|f| files.contains(f)))
        .map(|line| line.split(' ').map(unpacked).collect::<Vec<_>>().join(" ") + "\n")
        .collect();
    archive.file(&format!("lib/modules/{version}/modules.dep"), 0o644, dep.as_bytes());
    Ok(())
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
    fn names_lose_folder_and_suffix() {
        assert_eq!(name("kernel/x/snd-hda-intel.ko.zst"), "snd_hda_intel");
        assert_eq!(unpacked("a/b.ko.xz:"), "a/b.ko:");
    }
}
