//! A picture of L1, one line for each fact: the devices' drivers, the processes, the mounts, VFIO's and KVM's users.
//!
//! It is taken before and after each scenario, so it starts no program: each one takes a tenth of a second in L1.

use std::fs;
use std::path::Path;

/// Whose users are counted.
const MODULES: [&str; 2] = ["vfio_pci", "kvm_amd"];
/// Appears when somebody looks at it.
const LEFT_OUT_MOUNT: &str = "/sys/kernel/tracing";

/// Takes the picture of the system whose root is `root`. What vanishes meanwhile is not in it.
pub fn take(root: &Path) -> Vec<String> {
    let mut lines = drivers(root);
    lines.extend(processes(root));
    let mounts = fs::read_to_string(root.join("proc/mounts")).unwrap_or_default();
    lines.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| *path != LEFT_OUT_MOUNT)
            .map(|path| format!("mount {path}")),
    );
    lines.extend(MODULES.into_iter().filter_map(|module| {
        let users = fs::read_to_string(root.join(format!("sys/module/{module}/refcnt"))).ok()?;
        Some(format!("users of {module}: {}", users.trim()))
    }));
    lines
}

fn drivers(root: &Path) -> Vec<String> {
    let devices = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    devices
        .map(|device| {
            let driver = link_name(&device.path().join("driver")).unwrap_or_else(|| "none".into());
            let set = fs::read_to_string(device.path().join("driver_override")).unwrap_or_default();
            format!("driver {} {driver} override {}", device.file_name().display(), set.trim())
        })
        .collect()
}

/// Kernel threads have no program.
fn processes(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let program = link_name(&entry.path().join("exe"))?;
            Some(format!("process {pid} {program}"))
        })
        .collect()
}

/// The last part of where a symbolic link leads.
fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_line_for_each_fact() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        make("sys/bus/pci/devices/0000:01:00.0/driver_override", "vfio-pci\n");
        make("sys/bus/pci/devices/0000:02:00.0/driver_override", "(null)\n");
        symlink("../../drivers/vfio-pci", root.path().join("sys/bus/pci/devices/0000:01:00.0/driver")).unwrap();
        make("proc/7/comm", "");
        make("proc/8/comm", "");
        symlink("/usr/bin/bash", root.path().join("proc/7/exe")).unwrap();
        make("proc/mounts", "tmpfs /tmp tmpfs rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n");
        make("sys/module/vfio_pci/refcnt", "2\n");
        let mut lines = take(root.path());
        lines.sort();
        assert_eq!(
            lines,
            [
                "driver 0000:01:00.0 vfio-pci override vfio-pci",
                "driver 0000:02:00.0 none override (null)",
                "mount /tmp",
                "process 7 bash",
                "users of vfio_pci: 2"
            ]
        );
    }
}
