//! The files and nodes of the host that a guest's options name. Pure.

use std::path::Path;

use super::RunOptions;
use crate::backends::block::{self, BLOCKDEVS};
use crate::backends::chardev::CHARDEVS;
use crate::backends::chardev::shorthand::Target;
use crate::backends::net::NETDEVS;
use crate::host::files::FileUse;
use crate::object::{Args, Catalogue, Kind, PropValue};

/// The node by which threads of the kernel move packets (`vhost=on`).
const VHOST_NET: &str = "/dev/vhost-net";

impl RunOptions {
    /// All of them but what is the machine's own (KVM, VFIO) or the network's (`/dev/net/tun`, sockets): kernel, initial RAM
    /// disk, ROMs, disks, character back ends, objects, and what passthru writes of itself.
    pub fn files(&self) -> Vec<FileUse> {
        let kernel = [Some(&self.kernel).filter(|path| !path.as_os_str().is_empty()), self.initrd.as_ref()];
        let own = [&self.boot_trace, &self.pid_file];
        let mut all: Vec<FileUse> = kernel.into_iter().flatten().map(read).collect();
        all.extend(self.devices.iter().filter_map(rom));
        // What is nested wrongly is said when the nodes are made.
        let nodes = block::expand(self.back_ends(Kind::Node)).unwrap_or_default();
        all.extend(nodes.iter().filter_map(disk));
        let targets = self.monitors.people.iter().chain([&self.serial]).filter_map(|target| match target {
            Target::New(new) => Some(&new.args),
            Target::None | Target::Named(_) => None,
        });
        all.extend(self.back_ends(Kind::Chardev).iter().chain(targets).flat_map(chardev));
        all.extend(self.back_ends(Kind::Object).iter().filter_map(object));
        all.extend(self.back_ends(Kind::Netdev).iter().filter(|line| is_on(line, "vhost")).filter_map(netdev));
        all.extend(own.into_iter().flatten().map(made));
        all
    }
}

fn read(path: impl AsRef<Path>) -> FileUse {
    FileUse { path: path.as_ref().to_owned(), write: false, made: false }
}

fn made(path: impl AsRef<Path>) -> FileUse {
    FileUse { path: path.as_ref().to_owned(), write: true, made: true }
}

fn is_on(line: &Args, key: &str) -> bool {
    line.peek(key).is_some_and(|value| bool::parse(value) == Ok(true))
}

fn rom(device: &Args) -> Option<FileUse> {
    let rom = match device.peek("rom") {
        Some(rom) => rom.strip_prefix("file:"),
        None => device.peek("romfile"),
    };
    rom.map(read)
}

fn disk(node: &Args) -> Option<FileUse> {
    let of_host = matches!(node.peek(BLOCKDEVS.key()), Some("file" | "host_device"));
    let path = node.peek("filename").filter(|_| of_host)?;
    Some(FileUse { write: !is_on(node, "read-only"), ..read(path) })
}

fn chardev(line: &Args) -> Vec<FileUse> {
    let to_file = line.peek(CHARDEVS.key()) == Some("file");
    let output = line.peek("path").filter(|_| to_file).map(made);
    let input = line.peek("input-path").filter(|_| to_file).map(read);
    output.into_iter().chain(input).chain(line.peek("logfile").map(made)).collect()
}

fn object(line: &Args) -> Option<FileUse> {
    // Either has its own.
    line.peek("filename").map(read).or_else(|| line.peek("mem-path").map(made))
}

fn netdev(line: &Args) -> Option<FileUse> {
    let tap = line.peek(NETDEVS.key()) == Some("tap");
    tap.then(|| FileUse { write: true, ..read(VHOST_NET) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(option: &'static str, key: &'static str, text: &str) -> Args {
        Args::parse(option, Some(key), text).unwrap()
    }

    fn written(uses: impl IntoIterator<Item = FileUse>) -> Vec<String> {
        let text = |used: FileUse| {
            let how = match (used.write, used.made) {
                (false, _) => "r",
                (true, false) => "w",
                (true, true) => "made",
            };
            format!("{} {how}", used.path.display())
        };
        uses.into_iter().map(text).collect()
    }

    #[test]
    fn each_option_names_its_files() {
        let node = |text| written(disk(&line("--blockdev", "driver", text)));
        assert_eq!(node("host_device,node-name=a,filename=/dev/sdb"), ["/dev/sdb w"]);
        assert_eq!(node("file,node-name=a,filename=/a.img,read-only=on"), ["/a.img r"]);
        assert_eq!(node("raw,node-name=a,file=b"), [""; 0]);
        let chardev = |text| written(chardev(&line("--chardev", "backend", text)));
        assert_eq!(chardev("file,id=a,path=/log,input-path=/in,logfile=/copy"), ["/log made", "/in r", "/copy made"]);
        assert_eq!(chardev("socket,id=a,path=/run/a.sock"), [""; 0]);
        let object = |text| written(object(&line("--object", "qom-type", text)));
        assert_eq!(object("rng-random,id=a,filename=/dev/hwrng"), ["/dev/hwrng r"]);
        assert_eq!(object("memory-backend-file,id=a,mem-path=/dev/shm/a,size=1G"), ["/dev/shm/a made"]);
        let net = |text| {
            written(Some(line("--netdev", "type", text)).filter(|line| is_on(line, "vhost")).as_ref().and_then(netdev))
        };
        assert_eq!(net("tap,id=a,vhost=on"), ["/dev/vhost-net w"]);
        assert_eq!(net("tap,id=a"), [""; 0]);
        let rom = |text| written(rom(&line("--device", "driver", text)));
        assert_eq!(rom("vfio-pci,host=01:00.0,rom=file:/a.rom"), ["/a.rom r"]);
        assert_eq!(rom("vfio-pci,host=01:00.0,rom=none"), [""; 0]);
    }
}
