//! A guest (L2), described once and run by passthru or, as the lab's own proof, by QEMU.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cpio::Archive;
use crate::report;
use crate::setup::{name, recipe};

/// What runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Vmm {
    Passthru,
    Qemu,
}

/// What a guest's kernel does at its start although no scenario asks for it: tests of its own random numbers, certificates,
/// what tracing and BPF need, and the protection of its own text. It is a third of the start, in emulated instructions.
pub const LEFT_OUT: &str = "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace,\
                        bpf_dummy_struct_ops_init,bpf_tcp_ca_kfunc_init rodata=off";

/// How a guest calls a program of its disk of tools.
const TOOL: &str = r#"#!/bin/sh
tools=/run/tools
if [ ! -d $tools/usr ]; then
    modprobe -a virtio_pci virtio_blk crc32c_generic ext4
    mkdir -p $tools
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" != tools ] || mount -t ext4 -o ro /dev/${disk##*/} $tools || exit 1
    done
fi
lib=$tools/usr/lib/x86_64-linux-gnu
exec $tools/usr/lib64/ld-linux-x86-64.so.2 --library-path $lib:$lib/ceph ${tools}PROGRAM "$@"
"#;

/// A guest to be.
#[derive(Debug, Clone)]
pub struct Guest {
    pub vmm: Vmm,
    memory: String,
    cpus: u32,
    whole: bool,
    fat: bool,
    tools: bool,
    quiet: bool,
    reboots: bool,
    append: String,
    devices: Vec<String>,
    options: Vec<String>,
    script: String,
    files: Archive,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// One processor, 256 MiB, no device, ends at its first reboot.
    pub fn new() -> Self {
        Self {
            vmm: Vmm::Passthru,
            memory: "256M".into(),
            cpus: 1,
            whole: false,
            fat: false,
            tools: false,
            quiet: true,
            reboots: false,
            append: String::new(),
            devices: Vec::new(),
            options: Vec::new(),
            script: String::new(),
            files: Archive::new(),
        }
    }

    pub fn vmm(mut self, vmm: Vmm) -> Self {
        self.vmm = vmm;
        self
    }

    /// Memory, as `-m` takes it.
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// The start as users have it: the bzImage, which unpacks itself, and all that the kernel does. The others have the same
    /// kernel as an ELF file with a PVH note, without what is in [`LEFT_OUT`]: twice as fast.
    pub fn whole_start(mut self) -> Self {
        self.whole = true;
        self
    }

    /// The initramfs with lspci, ethtool and more drivers.
    pub fn fat(mut self) -> Self {
        self.fat = true;
        self
    }

    /// A disk of programs that are too large for an initramfs (fio, iperf3), as virtio-blk-pci on the root bus. The guest
    /// calls them by their names; the first call mounts it.
    pub fn tools(mut self) -> Self {
        self.tools = true;
        for program in recipe::TOOLS {
            let name = program.rsplit('/').next().unwrap_or(program);
            self.files.file(&format!("bin/{name}"), 0o755, TOOL.replace("PROGRAM", program).as_bytes());
        }
        self.fat()
    }

    /// The kernel's messages on the console.
    pub fn verbose(mut self) -> Self {
        self.quiet = false;
        self
    }

    /// The guest may reboot in the same process.
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Words for the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(' ');
        self.append.push_str(words);
        self
    }

    /// Words of the command line as they are.
    pub fn option(mut self, words: &str) -> Self {
        self.options.push(words.to_owned());
        self
    }

    /// A `--device` argument.
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// Passes the host's device through, behind a root port of its own as on the host.
    pub fn passes(self, bdf: &str) -> Self {
        self.passes_with(bdf, "")
    }

    /// As [`Guest::passes`], with more properties, each after a comma.
    pub fn passes_with(self, bdf: &str, more: &str) -> Self {
        let port = self.devices.len() / 2 + 1;
        let device = format!("vfio-pci,host={bdf},bus=port{port}{more}");
        self.device(&format!("pcie-root-port,id=port{port}")).device(&device)
    }

    /// Shell text that the guest runs once it is up; further calls add to it.
    pub fn script(mut self, text: &str) -> Self {
        self.script.push_str(text);
        self.script.push('\n');
        self
    }

    /// A file that the guest finds.
    pub fn file(mut self, path: &str, data: &[u8]) -> Self {
        self.files.file(path, 0o755, data);
        self
    }

    /// The archive that carries the script and other files into the guest.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = self.files.clone();
        archive.file("script", 0o755, self.script.as_bytes());
        archive.finish()
    }

    /// Initramfs that the script is appended to, in L1.
    pub fn base_initramfs(&self) -> String {
        let file = if self.fat { name::L2_FAT_INITRAMFS } else { name::L2_INITRAMFS };
        format!("/images/{file}")
    }

    /// The command that runs the guest in L1 with `initrd`.
    pub fn command(&self, initrd: &str) -> String {
        let (kernel, left_out) =
            if self.whole { (name::KERNEL, String::new()) } else { (name::ELF_KERNEL, format!(" {LEFT_OUT}")) };
        let quiet = if self.quiet { " quiet" } else { "" };
        let mut words: Vec<String> = Vec::new();
        let dashes = match self.vmm {
            Vmm::Passthru => {
                words.push("exec passthru run".into());
                "--"
            }
            Vmm::Qemu => {
                words.push(
                    "exec qemu-system-x86_64 -M q35 -accel kvm -cpu host -nodefaults -display none -serial stdio"
                        .into(),
                );
                "-"
            }
        };
        words.push(format!("-m {}", self.memory));
        words.push(format!("{dashes}smp {}", self.cpus));
        words.push(format!("{dashes}kernel /images/{kernel}"));
        words.push(format!("{dashes}initrd {initrd}"));
        words.push(format!("{dashes}append 'console=ttyS0 panic=-1 rdinit=/init{quiet}{left_out}{}'", self.append));
        if !self.reboots {
            words.push(format!("{dashes}no-reboot"));
        }
        words.extend(self.options.iter().cloned());
        if self.tools {
            // No lock: 9p has none.
            let file = format!("filename=/images/{},read-only=on,locking=off", name::TOOLS);
            words.push(format!("{dashes}blockdev driver=file,node-name=tools,{file}"));
            words.push(format!("{dashes}device virtio-blk-pci,drive=tools,serial=tools"));
        }
        for (i, device) in self.devices.iter().enumerate() {
            let more = match (self.vmm, device.split(',').next()) {
                // SeaBIOS would run the card's network boot ROM.
                (Vmm::Qemu, Some("vfio-pci")) => ",rombar=0".to_owned(),
                // QEMU wants to be told that two root ports are not the same.
                (Vmm::Qemu, Some("pcie-root-port")) => format!(",chassis={}", i + 1),
                _ => String::new(),
            };
            words.push(format!("{dashes}device {device}{more}"));
        }
        words.join(" ")
    }
}

/// A guest that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code of the VMM.
    pub code: i32,
    /// All that came out of it.
    pub text: String,
}

impl Ended {
    /// The VMM must have ended with 0.
    pub fn success(self) -> Result<Self> {
        ensure!(self.code == 0, "the VMM ended with {}:\n{}", self.code, report::tail(&self.text, 30));
        Ok(self)
    }

    /// `text` must stand on the console.
    pub fn expect(self, text: &str) -> Result<Self> {
        ensure!(self.text.contains(text), "the guest did not say `{text}`:\n{}", report::tail(&self.text, 30));
        Ok(self)
    }

    /// `text` must not stand on the console.
    pub fn lacks(self, text: &str) -> Result<Self> {
        match self.text.lines().find(|l| l.contains(text)) {
            Some(line) => anyhow::bail!("the guest said `{}`", line.trim()),
            None => Ok(self),
        }
    }

    /// Value of the last line `LAB key=value` on the console.
    pub fn value(&self, key: &str) -> Result<&str> {
        value(&self.text, key)
            .with_context(|| format!("the guest did not report `{key}`:\n{}", report::tail(&self.text, 30)))
    }
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().rev().find_map(|line| {
        let (_, report) = line.split_once("LAB ")?;
        let (name, value) = report.split_once('=')?;
        (name == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_description_serves_both_vmms() {
        let guest = Guest::new().memory("1G").cpus(4).passes("01:00.0").passes("02:00.0");
        let ours = guest.command("/i");
        assert!(ours.starts_with("exec passthru run -m 1G --smp 4 --kernel /images/vmlinux --initrd /i"));
        assert!(ours.ends_with(
            "--no-reboot --device pcie-root-port,id=port1 --device vfio-pci,host=01:00.0,bus=port1 \
             --device pcie-root-port,id=port2 --device vfio-pci,host=02:00.0,bus=port2"
        ));
        let qemu = guest.vmm(Vmm::Qemu).command("/i");
        assert!(qemu.contains("-device vfio-pci,host=02:00.0,bus=port2,rombar=0"));
        assert!(!qemu.contains("--"));
    }

    #[test]
    fn the_last_report_counts() {
        let text = "L2 UP\r\nLAB sum=1\r\n[ 1.0] noise LAB sum=2 \r\nLAB other=3\r\n";
        assert_eq!(value(text, "sum"), Some("2"));
        assert_eq!(value(text, "su"), None);
    }
}
