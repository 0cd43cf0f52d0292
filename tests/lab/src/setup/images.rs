//! What is made from the Debian tree: kernels, initramfs images, the QEMU for L0, a disk of tools for guests and
//! the contents of the lab's drive.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::modules::Modules;
use super::{host, mend, name, progress, recipe, tools, vmlinux};
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
        fat_programs(a, tree)
    })?;
    fs::write(to.join(name::L2_FAT_INITRAMFS), fat)?;
    fs::write(to.join(name::EDU_MSI), edu_msi)?;

    tools_disk(tree, &to.join(name::TOOLS))?;
    python(&to.join(name::PYTHON))?;
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
        _ => Command::new(&busybox).arg("--list").output()?,
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

/// The files of programs of the tree: their own, the loader's, and the libraries that the loader names for them.
fn programs(tree: &Path, programs: &[&str]) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::from(["/usr/lib64/ld-linux-x86-64.so.2".to_owned()]);
    for program in programs {
        let loader = tools::loader(tree);
        let (ld, args) = loader.split_first().context("no loader")?;
        let list =
            Command::new(ld).args(args).arg("--list").arg(tree.join(program.trim_start_matches('/'))).output()?;
        ensure!(list.status.success(), "{program}: {}", String::from_utf8_lossy(&list.stderr));
        files.insert((*program).to_owned());
        let prefix = tree.display().to_string();
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            if let Some(file) = word.strip_prefix(&prefix) {
                files.insert(file.to_owned());
            }
        }
    }
    Ok(files)
}

/// Puts the programs of the fat initramfs into its archive.
fn fat_programs(archive: &mut Archive, tree: &Path) -> Result<()> {
    let mut files = programs(tree, recipe::L2_FAT_PROGRAMS)?;
    files.extend(recipe::L2_FAT_FILES.iter().map(|file| (*file).to_owned()));
    for file in &files {
        archive.file(file, 0o755, &of_tree(tree, file)?);
    }
    archive.link("lib64", "usr/lib64");
    Ok(())
}

/// What the tree's file `path` holds.
fn of_tree(tree: &Path, path: &str) -> Result<Vec<u8>> {
    fs::read(tree.join(path.trim_start_matches('/'))).with_context(|| format!("the tree lacks {path}"))
}

/// The disk of tools, with the paths of the tree.
fn tools_disk(tree: &Path, to: &Path) -> Result<()> {
    let folder = to.with_extension("folder");
    let mut bytes = 0;
    for file in programs(tree, recipe::TOOLS)? {
        let data = of_tree(tree, &file)?;
        let path = folder.join(file.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, &data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        bytes += data.len() as u64;
    }
    // A quarter more for the file system's own; no journal: nobody writes.
    let size = format!("{}k", (bytes + bytes / 4) / 1024 + 4096);
    let made = tools::command(tree, "/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(&folder)
        .arg(to)
        .arg(size)
        .output()?;
    ensure!(made.status.success(), "mke2fs: {}", String::from_utf8_lossy(&made.stderr));
    Ok(fs::remove_dir_all(folder)?)
}

/// Python's packages that scenarios use.
fn python(to: &Path) -> Result<()> {
    host::provide_pip()?;
    let made = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"])
        .arg(to)
        .arg(recipe::QEMU_QMP)
        .output()?;
    ensure!(made.status.success(), "pip: {}", String::from_utf8_lossy(&made.stderr));
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
