//! What is made from the Debian tree: kernels, initramfs images, the QEMU for L0 and
//! the contents of the lab's drive.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::modules::Modules;
use super::{mend, name, progress, recipe, tools, vmlinux};
use crate::cpio::Archive;
use crate::pattern;

/// Size of the lab's NVMe drive, MiB.
const DRIVE_MIB: u64 = 256;
/// How much of it is filled with numbers that no two blocks share, MiB.
const FILLED_MIB: usize = 64;
pub const DRIVE_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Builds all images in the empty folder `to`; `own` has the modules that Debian does not have.
pub fn build(tree: &Path, own: &Path, to: &Path) -> Result<()> {
    progress("making kernels and initramfs images");
    let version = kernel_version(tree)?;
    let kernel = fs::read(tree.join(format!("boot/vmlinuz-{version}")))?;
    fs::write(to.join(name::KERNEL), &kernel)?;
    fs::write(to.join(name::ELF_KERNEL), vmlinux::extract(tree, &kernel)?)?;

    for (file, iommufd) in [(name::L1_INITRAMFS, None), (name::L1_IOMMUFD_INITRAMFS, Some(own))] {
        let modules = Modules::of(tree, &version, iommufd)?;
        let l1 = initramfs(tree, &modules, recipe::L1_INIT, recipe::L1_MODULES, |a| {
            a.link("sbin", "bin");
            a.file("pid1", 0o755, recipe::L1_PID1.as_bytes());
            a.file("lab-agent.service", 0o644, recipe::L1_AGENT_UNIT.as_bytes());
            Ok(())
        })?;
        fs::write(to.join(file), l1)?;
    }
    let modules = Modules::of(tree, &version, None)?;
    // No /sbin/modprobe for guests: the kernel would start it 25 times before init, and a benchmark count its exits.
    let plain = initramfs(tree, &modules, recipe::L2_INIT, recipe::L2_MODULES, |_| Ok(()))?;
    fs::write(to.join(name::L2_INITRAMFS), plain)?;
    let fat_modules = [recipe::L2_MODULES, recipe::L2_FAT_MODULES].concat();
    let edu_msi = fs::read(own.join(name::EDU_MSI))?;
    let fat = initramfs(tree, &modules, recipe::L2_INIT, &fat_modules, |a| {
        a.file(&format!("images/{}", name::EDU_MSI), 0o644, &edu_msi);
        programs(a, tree)
    })?;
    fs::write(to.join(name::L2_FAT_INITRAMFS), fat)?;
    fs::write(to.join(name::EDU_MSI), edu_msi)?;

    qemu(tree, to)?;
    drive(&to.join(name::NVME))
}

/// The release of the tree's kernel.
pub fn kernel_version(tree: &Path) -> Result<String> {
    let entry = fs::read_dir(tree.join("usr/lib/modules"))?.next().context("the tree has no kernel")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// A busybox initramfs with `modules` and `init`.
fn initramfs(
    tree: &Path,
    modules: &Modules,
    init: &str,
    names: &[&str],
    more: impl FnOnce(&mut Archive) -> Result<()>,
) -> Result<Vec<u8>> {
    let busybox = tree.join("usr/bin/busybox");
    let applets = tools::command(tree, "/usr/bin/busybox").arg("--list").output();
    // busybox-static needs no loader, and some versions of ld.so refuse static programs.
    let applets = match applets {
        Ok(output) if output.status.success() => output,
        _ => std::process::Command::new(&busybox).arg("--list").output()?,
    };
    ensure!(applets.status.success(), "busybox cannot list its applets");

    let mut archive = Archive::new();
    for dir in ["proc", "sys", "dev", "tmp", "run", "mnt"] {
        archive.dir(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.char_device("dev/null", 1, 3);
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        if applet != "busybox" {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
    }
    archive.file("init", 0o755, init.as_bytes());
    modules.add(&mut archive, tree, names)?;
    more(&mut archive)?;
    Ok(archive.finish())
}

/// Programs of the tree with the libraries that the loader names for them.
fn programs(archive: &mut Archive, tree: &Path) -> Result<()> {
    let mut files = BTreeSet::from(["/usr/lib64/ld-linux-x86-64.so.2".to_owned()]);
    for program in recipe::L2_FAT_PROGRAMS {
        let loader = tools::loader(tree);
        let (ld, args) = loader.split_first().context("no loader")?;
        let list = std::process::Command::new(ld)
            .args(args)
            .arg("--list")
            .arg(tree.join(program.trim_start_matches('/')))
            .output()?;
        files.insert((*program).to_owned());
        let prefix = tree.display().to_string();
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            if let Some(file) = word.strip_prefix(&prefix) {
                files.insert(file.to_owned());
            }
        }
    }
    files.extend(recipe::L2_FAT_FILES.iter().map(|file| (*file).to_owned()));
    for file in &files {
        let data =
            fs::read(tree.join(file.trim_start_matches('/'))).with_context(|| format!("the tree lacks {file}"))?;
        archive.file(file, 0o755, &data);
    }
    archive.link("lib64", "usr/lib64");
    Ok(())
}

/// L0's QEMU: a copy, mended where the mend fits.
fn qemu(tree: &Path, to: &Path) -> Result<()> {
    let mut binary = fs::read(tree.join("usr/bin/qemu-system-x86_64"))?;
    if let Err(e) = mend::apply(&mut binary) {
        progress(&format!("QEMU stays as it is ({e}); firmware in L2 may make it abort"));
    }
    fs::write(to.join(name::QEMU), binary)?;
    Ok(())
}

/// The drive: a pattern, then nothing.
fn drive(to: &Path) -> Result<()> {
    fs::write(to, pattern::bytes(DRIVE_SEED, FILLED_MIB << 20))?;
    fs::OpenOptions::new().write(true).open(to)?.set_len(DRIVE_MIB << 20)?;
    Ok(())
}
