//! L0: QEMU in pure software, as the PC on which L1 runs. One folder for each run keeps
//! every console; the process ends with the lab, however the lab ends.

pub mod machines;
pub mod qmp;
mod stall;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent;
use crate::scenarios::matrix::rows;
use crate::setup::{Image, name, tools};
use machines::{Init, Iommu, Machine};

/// Console of L1 in the run's folder.
pub const L1_CONSOLE: &str = "l1-console.log";
/// Standard output and error of QEMU in the run's folder.
pub const L0_LOG: &str = "l0-qemu.log";
/// L1's root file system in the run's folder, where it outlives a boot, and its size, MiB; it takes what is written to it.
pub const L1_ROOT: &str = "l1-root.ext4";
const L1_ROOT_MIB: u64 = 4096;
/// Kernel options of a machine with systemd: it has one identity, no question is asked at its first boot, and nobody logs
/// in on its console.
const SYSTEMD_OPTIONS: &str = "lab_systemd systemd.unit=multi-user.target systemd.firstboot=off \
     systemd.machine_id=6c61622d70617373746872752d6c3100 systemd.mask=serial-getty@ttyS0.service \
     systemd.mask=serial-getty@hvc0.service systemd.mask=getty@tty1.service systemd.mask=getty-static.service systemd.mask=apt-daily.timer \
     systemd.mask=apt-daily-upgrade.timer systemd.mask=e2scrub_all.timer systemd.mask=e2scrub_reap.service \
     systemd.mask=fstrim.timer systemd.mask=dpkg-db-backup.timer";
/// How long QEMU may take to make its sockets.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running PC.
pub struct L0 {
    process: Child,
    folder: PathBuf,
}

impl L0 {
    /// Starts `machine`. `folder` gets the consoles; `folder/share` is L1's `/share`.
    ///
    /// The calling thread must live as long as the PC: the kernel ends the PC with it.
    pub fn start(image: &Image, machine: &Machine, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("share"))?;
        let log = File::create(folder.join(L0_LOG))?;
        if machine.init == Init::Systemd && !folder.join(L1_ROOT).exists() {
            make_root(image, &folder.join(L1_ROOT))?;
        }
        let mut words = tools::loader(&image.tree);
        words.push(image.images.join(name::QEMU).display().to_string());
        words.extend(arguments(image, machine));
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(&words)
            .env("QEMU_MODULE_DIR", image.tree.join("usr/lib/x86_64-linux-gnu/qemu"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start setpriv (package util-linux)")?;
        fs::write(folder.join("l0-command"), words.join("\n"))?;
        Ok(Self { process, folder: folder.to_owned() })
    }

    /// Connects to one of QEMU's sockets.
    pub fn connect(&mut self, socket: &str) -> Result<UnixStream> {
        // By way of /proc: the path of a socket may have 107 bytes only.
        let path = format!("/proc/{}/cwd/{socket}", self.process.id());
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("L0's QEMU ended at once: {status}");
            }
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(e) if Instant::now() > end => {
                    return Err(e).context("L0's QEMU does not answer");
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A session with QEMU's monitor.
    pub fn monitor(&mut self) -> Result<qmp::Monitor> {
        qmp::Monitor::new(self.connect("qmp.sock")?)
    }

    /// What can be found out about an L1 that does not answer any more, in a line for each processor; the record and L1's
    /// console have the rest. Ends L1.
    pub fn stall(&mut self) -> String {
        stall::record(self).unwrap_or_else(|error| format!("nothing is known of it: {error:#}\n"))
    }

    /// How QEMU ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// As [`L0::ended`], or how it ends within `limit`.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            let status = self.ended();
            if status.is_some() || Instant::now() >= end {
                return status;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the PC as a power cut does.
    pub fn power_off(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Where the consoles are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for L0 {
    fn drop(&mut self) {
        // Fails only if QEMU has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        for socket in ["agent.sock", "qmp.sock", "terminal.sock"] {
            let _ = fs::remove_file(self.folder.join(socket));
        }
    }
}

/// QEMU's command line. Sockets and consoles are relative to the run's folder.
fn arguments(image: &Image, machine: &Machine) -> Vec<String> {
    let tree = image.tree.display();
    let images = image.images.display();
    let mut line = format!(
        "-L {tree}/usr/share/qemu -L {tree}/usr/share/seabios -L {tree}/usr/lib/ipxe/qemu \
         -machine q35 {} -cpu max,+svm -m {} \
         -nodefaults -display none -no-reboot -serial file:{L1_CONSOLE} \
         -qmp unix:qmp.sock,server=on,wait=off \
         -chardev socket,id=agent,path=agent.sock,server=on,wait=off \
         -chardev socket,id=terminal,path=terminal.sock,server=on,wait=off ",
        machine.clock.arguments(),
        machine.memory_mib
    );
    line += match machine.iommu {
        Iommu::Intel => "-device intel-iommu,intremap=on,caching-mode=off ",
        Iommu::IntelWithoutRemapping => "-device intel-iommu,intremap=off,caching-mode=off ",
        Iommu::Amd => "-device amd-iommu,intremap=on ",
        Iommu::None => "",
    };
    line += &format!(
        "-device virtio-serial-pci,addr=1c -device virtserialport,chardev=agent,name={} \
         -device virtconsole,chardev=terminal -kernel {images}/{} -initrd {images}/{} ",
        agent::PORT,
        name::ELF_KERNEL,
        if machine.iommufd { name::L1_IOMMUFD_INITRAMFS } else { name::L1_INITRAMFS }
    );
    for (tag, path, readonly, slot) in [
        ("tree", tree.to_string(), "on", "1d"),
        ("images", images.to_string(), "on", "1e"),
        ("share", "share".to_owned(), "off", "1b"),
    ] {
        line += &format!(
            "-fsdev local,id={tag},path={path},security_model=none,readonly={readonly},multidevs=remap \
             -device virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={slot} "
        );
    }
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    if machine.init == Init::Systemd {
        words.push("-drive".into());
        // What QEMU was told to write is with the host: a power cut loses what L1 has not written yet, as on a real drive.
        words.push(format!("file={L1_ROOT},format=raw,if=none,id=root,discard=unmap"));
        words.extend(["-device".into(), "virtio-blk-pci,drive=root,addr=1a".into()]);
    }
    let drive = format!("{images}/{}", name::NVME);
    let devices = machine.devices.iter().map(|argument| (*argument).to_owned()).chain(rows::arguments(machine.rows));
    for argument in devices {
        words.extend(argument.split_whitespace().map(|w| w.replace("{drive}", &drive)));
    }
    let modules: Vec<&str> =
        machine.modules.iter().copied().chain(machine.rows.iter().flat_map(|row| row.modules.split(' '))).collect();
    words.push("-append".into());
    // iomem=relaxed: the agent looks after the local APICs (agent/waker.rs).
    // no_timer_check: on a busy L0 no timer interrupt may come in the short time of the kernel's check, which is a panic.
    words.push(format!(
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr nmi_watchdog=0 no_timer_check iomem=relaxed {} nvme_core.multipath=N {} {} lab_modules={}",
        stall::KERNEL_OPTIONS,
        machine.iommu.kernel_options(),
        match machine.init {
            Init::Lab => "",
            Init::Systemd => SYSTEMD_OPTIONS,
        },
        modules.join(",")
    ));
    words
}

/// An empty file system for what L1 writes.
fn make_root(image: &Image, file: &Path) -> Result<()> {
    File::create(file)?.set_len(L1_ROOT_MIB << 20)?;
    let output = tools::command(&image.tree, "/usr/sbin/mkfs.ext4").arg("-q").arg(file).output()?;
    ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_iommu_and_its_devices() {
        let image = Image { tree: "/t".into(), images: "/i".into(), daemons: "/d".into() };
        for machine in machines::ALL {
            let words = arguments(&image, machine);
            let has = |text: &str| words.iter().any(|w| w.contains(text));
            assert_eq!(has("-iommu"), machine.iommu != Iommu::None);
            assert!(!has("{drive}"), "{}", machine.name);
            assert!(has("lab_modules=kvm-amd"), "{}", machine.name);
            assert_eq!(has("lab_systemd"), has(L1_ROOT), "{}", machine.name);
        }
    }
}
