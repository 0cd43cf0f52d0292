//! `cargo lab setup`: the lab's image in the user's cache folder.
//!
//! Three folders, each named by a hash of its recipe: `tree-<hash>`, a Debian 13 system; `modules-<hash>`, kernel
//! modules that Debian does not have; and `images-<hash>`, the kernels, initramfs images and the mended QEMU made from both.
//! Each is built under a temporary name and renamed when it is complete; a file lock
//! keeps two runs apart.

mod daemons;
mod host;
mod images;
mod mend;
mod modules;
mod own_modules;
pub mod recipe;
mod sources;
pub mod tools;
mod tree;
mod vmlinux;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::pattern;

/// The finished lab image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Debian system: L1's root, and the home of L0's QEMU.
    pub tree: PathBuf,
    /// Kernels, initramfs images, L0's QEMU binary, the drive's contents.
    pub images: PathBuf,
    /// Daemons of vhost-user devices, in its folder `bin`.
    pub daemons: PathBuf,
}

/// File names inside [`Image::images`]; L1 sees the folder as `/images`.
pub mod name {
    pub const L1_INITRAMFS: &str = "l1-initramfs";
    /// The same with iommufd, and a VFIO that has device nodes.
    pub const L1_IOMMUFD_INITRAMFS: &str = "l1-initramfs-iommufd";
    /// Debian's kernel as the package has it.
    pub const KERNEL: &str = "bzImage";
    /// The same kernel unpacked: an ELF file with a PVH entry, which L1 boots from
    /// because unpacking takes seconds under emulation.
    pub const ELF_KERNEL: &str = "vmlinux";
    pub const L2_INITRAMFS: &str = "initramfs";
    pub const L2_FAT_INITRAMFS: &str = "initramfs-fat";
    /// The lab's driver of QEMU's teaching device.
    pub const EDU_MSI: &str = "edu-msi.ko";
    pub const QEMU: &str = "qemu-system-x86_64";
    pub const NVME: &str = "nvme.raw";
    /// A file system with the programs of [`super::recipe::TOOLS`], for guests.
    pub const TOOLS: &str = "tools.ext4";
    /// Folder of Python packages, for L1.
    pub const PYTHON: &str = "python";
}

/// SHA-256 of the first `mib` MiB of the drive that every run starts with; they must lie in its pattern.
pub fn drive_sum(mib: usize) -> String {
    pattern::sha256(&pattern::bytes(images::DRIVE_SEED, mib << 20))
}

/// Makes whatever is missing; takes no time when nothing is.
pub fn run() -> Result<Image> {
    let cache = cache_folder()?;
    let image = Image {
        tree: cache.join(format!("tree-{}", recipe::tree_key())),
        images: cache.join(format!("images-{}", recipe::images_key())),
        daemons: cache.join(format!("daemons-{}", recipe::daemons_key())),
    };
    if image.tree.is_dir() && image.images.is_dir() && image.daemons.is_dir() {
        return Ok(image);
    }
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let _lock = lock(&cache)?;
    if !image.tree.is_dir() {
        atomically(&image.tree, tree::build)?;
    }
    if !image.daemons.is_dir() {
        atomically(&image.daemons, daemons::build)?;
    }
    if !image.images.is_dir() {
        let modules = cache.join(format!("modules-{}", recipe::own_modules_key()));
        if !modules.is_dir() {
            atomically(&modules, |to| own_modules::build(&image.tree, to))?;
        }
        atomically(&image.images, |to| images::build(&image.tree, &modules, to))?;
    }
    Ok(image)
}

/// Prints one line of progress.
pub fn progress(text: &str) {
    eprintln!("lab: {text}");
}

/// The folder of all that the lab keeps for the user.
pub fn cache_folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("passthru-lab"))
}

/// Waits until no other process builds in `cache`.
fn lock(cache: &Path) -> Result<Flock<File>> {
    let open = || File::create(cache.join("lock"));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            progress("waiting for another `cargo lab setup`");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
        }
        Err((_, e)) => Err(e.into()),
    }
}

/// Builds into a temporary folder beside `to`, then renames it.
fn atomically(to: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let temporary = to.with_extension("partial");
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary)?;
    }
    std::fs::create_dir_all(&temporary)?;
    build(&temporary)?;
    std::fs::rename(&temporary, to)?;
    progress(&format!("made {} in {} s", to.display(), started.elapsed().as_secs()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_folder_is_never_taken_for_a_finished_one() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("tree-1");
        let failed = atomically(&to, |tmp| {
            std::fs::write(tmp.join("half"), "x")?;
            anyhow::bail!("no network")
        });
        assert!(failed.is_err());
        assert!(!to.exists());
        atomically(&to, |tmp| Ok(std::fs::write(tmp.join("whole"), "x")?)).unwrap();
        assert!(to.join("whole").exists());
        assert!(!to.join("half").exists());
    }
}
