//! `passthru convert`: what another VMM runs, as a VM file.

mod draft;
mod libvirt;
mod qemu;
#[cfg(test)]
mod real;
mod whole;

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use serde::Serialize;

use super::{Platform, output, vm_file};
use crate::error::{Code, Error, Result, explain_io};
use draft::{Draft, Left};

/// Make a VM file of a QEMU command line or of a libvirt domain
///
/// FILE holds a command line as a shell takes it, or a domain's XML as `virsh dumpxml NAME` prints it. The VM file goes to
/// standard output: `passthru convert router.xml > /etc/passthru/router.toml`. What passthru cannot do is left out and
/// listed, in the file's first lines and on standard error.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// File to convert; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "words", conflicts_with = "words")]
    file: Option<PathBuf>,
    /// QEMU's command line itself, after `--`
    #[arg(value_name = "WORD", last = true)]
    words: Vec<String>,
    /// Print JSON: the VM file and the list of what was left out
    #[arg(long)]
    json: bool,
}

/// Most that is read, bytes.
const MAX_INPUT: u64 = 1 << 20;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Converted<'a> {
    file: String,
    left_out: &'a [Left],
}

pub(super) fn execute(args: &ConvertArgs, syntax: &Command, platform: &dyn Platform) -> Result<()> {
    let mut draft = Draft::new(syntax, platform);
    match &args.file {
        None => qemu::read(&args.words, &mut draft),
        Some(file) => {
            let text = text(file)?;
            if text.trim_start().starts_with('<') {
                libvirt::read(&text, &mut draft).map_err(|error| unreadable(file, &error))?;
            } else {
                let words = qemu::split(&text).ok_or_else(|| unreadable(file, "a quotation mark is not closed"))?;
                qemu::read(&words, &mut draft);
            }
        }
    }
    whole::complete(&mut draft);
    if args.json {
        return output::print_json(&Converted { file: draft.file(), left_out: draft.left() });
    }
    output::print(&draft.file())?;
    for left in draft.left() {
        output::note(&format!("left out: {left}"));
    }
    let netdevs = draft.netdev_types();
    for error in vm_file::too_narrow("NAME", netdevs.iter().map(String::as_str), &[], platform.host()) {
        output::note(&error.to_string());
    }
    Ok(())
}

fn text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MAX_INPUT).read_to_string(&mut text))
    };
    read.map_err(|error| unreadable(file, &explain_io(&error)))?;
    Ok(text)
}

fn unreadable(file: &Path, why: &str) -> Error {
    Error::new(Code::Unconvertible, "the guest's description cannot be read")
        .evidence(format!("{}: {why}", file.display()))
        .fix("give a file with a QEMU command line or with what `virsh dumpxml NAME` prints")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::{Cli, ThisHost};
    use crate::host::Host;

    /// The VM file and what was left out.
    fn converted(read: impl FnOnce(&mut Draft)) -> (String, Vec<String>) {
        let mut syntax = Cli::command();
        syntax.build();
        let types = ThisHost { host: Host::real() };
        let mut draft = Draft::new(&syntax, &types);
        read(&mut draft);
        let file: Vec<_> = draft.file().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        (file.join("\n").trim().to_owned(), draft.left().iter().map(ToString::to_string).collect())
    }

    fn of_qemu(text: &str) -> (String, Vec<String>) {
        let words = qemu::split(text).unwrap();
        converted(|draft| qemu::read(&words, draft))
    }

    #[test]
    fn a_command_line_of_qemu() {
        let (file, left) = of_qemu(
            "qemu-system-x86_64 -nodefaults -no-user-config -nographic -daemonize -pidfile /p -D log -k de -machine pc-q35-9.2,accel=kvm -enable-kvm -m 4G \
             -smp 4,cores=2,threads=2 -cpu host,-avx512f -kernel /boot/vmlinuz -append 'console=ttyS0 a=\"b c\"' -no-reboot \
             -device pcie-root-port,id=rp1 -device vfio-pci,host=01:00.0,bus=rp1 -object iommufd,id=i",
        );
        assert_eq!(left, [""; 0]);
        assert_eq!(
            file,
            r#"machine = "q35"
memory = "4G"
smp = "4,cores=2,threads=2"
cpu = "host,-avx512f"
kernel = "/boot/vmlinuz"
append = 'console=ttyS0 a="b c"'
no-reboot = true

[[device]]
driver = "pcie-root-port"
id = "rp1"

[[device]]
driver = "vfio-pci"
host = "01:00.0"
bus = "rp1"

[[object]]
qom-type = "iommufd"
id = "i""#
        );
    }

    #[test]
    fn what_passthru_has_not_is_listed() {
        let (file, left) = of_qemu(
            "-cpu host,kvm=off -device virtio-nothing,x=1 -device vfio-pci,host=01:00.0,x-no-such=1 -spice port=1 \
             -serial vc -vga std disk.img",
        );
        assert_eq!(file, "[[device]]\ndriver = \"vfio-pci\"\nhost = \"01:00.0\"");
        let begins =
            ["-cpu host,kvm=off: ", "-device virtio-nothing,x=1: ", "x-no-such=1 of -device ", "-spice port=1: "];
        let more = ["-serial vc: ", "-vga std: ", "disk.img: "];
        assert_eq!(left.len(), begins.len() + more.len(), "{left:#?}");
        for (line, begin) in left.iter().zip(begins.iter().chain(&more)) {
            assert!(line.starts_with(begin), "{line}");
        }
    }

    #[test]
    fn a_domain_of_libvirt() {
        let xml = r#"<domain type='kvm'>
          <name>router</name><title>a router</title><memory unit='KiB'>4194304</memory>
          <memoryBacking><hugepages/><source type='memfd'/></memoryBacking><vcpu>4</vcpu>
          <os><type machine='pc-q35-9.2'>hvm</type><kernel>/k</kernel><cmdline>quiet</cmdline><loader>x</loader></os>
          <cpu mode='host-passthrough'><topology sockets='1' cores='2' threads='2'/><feature policy='disable' name='avx512f'/></cpu>
          <on_reboot>destroy</on_reboot>
          <devices><disk type='file'/>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' error_policy='enospace'/>
              <source file='/root.qcow2'/><target dev='vda' bus='virtio'/></disk>
            <disk type='block' device='disk'><source dev='/dev/vg/data'/><target dev='vdb' bus='virtio'/><readonly/></disk>
            <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/><model type='virtio'/></interface>
            <hostdev type='pci'><source><address domain='0x0000' bus='0x0a' slot='0x00' function='0x1'/></source><rom bar='off'/></hostdev>
            <interface type='hostdev'><mac address='52:54:00:00:00:01'/><source><address bus='2' slot='0x10' function='0'/></source></interface>
            <serial type='file'><source path='/log'/></serial></devices></domain>"#;
        let (file, left) = converted(|draft| libvirt::read(xml, draft).unwrap());
        assert_eq!(
            file,
            r#"name = "router"
memory = "4G,hugepages=2M"
smp = "4,sockets=1,cores=2,threads=2"
kernel = "/k"
append = "quiet"
cpu = "host,-avx512f"
no-reboot = true
drive = ["file=/root.qcow2,format=qcow2,if=virtio,cache=none,werror=enospc", "file=/dev/vg/data,format=raw,if=virtio,readonly=on"]
serial = "file:/log"

[[netdev]]
type = "tap"
id = "net0"
br = "br0"

[[device]]
driver = "virtio-net-pci"
netdev = "net0"
mac = "52:54:00:00:00:02"

[[device]]
driver = "vfio-pci"
host = "0000:0a:00.1"
rom = "off"

[[device]]
driver = "vfio-pci"
host = "0000:02:10.0""#
        );
        let whats: Vec<&str> = left.iter().filter_map(|line| line.split_once(": ")).map(|(what, _)| what).collect();
        assert_eq!(whats, ["<memoryBacking><source>", "<loader>", "<disk> file", "<mac address='52:54:00:00:00:01'>"]);
    }

    #[test]
    fn other_texts_are_refused() {
        for (xml, why) in [("<network/>", "<network>"), ("<domain>", ""), ("<!DOCTYPE a []><domain/>", "DTD")] {
            let types = ThisHost { host: Host::real() };
            let syntax = Cli::command();
            let error = libvirt::read(xml, &mut Draft::new(&syntax, &types)).unwrap_err();
            assert!(error.contains(why), "{xml}: {error}");
        }
        assert_eq!(qemu::split("a 'b"), None);
    }
}
