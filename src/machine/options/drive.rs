//! `--drive`: QEMU's short form of a disk, which stands for a node of `--blockdev` and, with `if=virtio`, a device.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::backends::block::BLOCKDEVS;
use crate::backends::block::detect_zeroes::DetectZeroes;
use crate::devices::disk::ErrorPolicy;
use crate::error::{Code, Error, Result};
use crate::object::{Args, Id, Kind, Props, options_help, prop_enum, props};

props! {
    /// A disk: a node of --blockdev, and with if=virtio its device.
    struct Drive {
        /// The image, or a disk of the host below /dev
        file: PathBuf,
        /// What the file is. It is not guessed: a guest could make its raw disk look like an image that names the host's files
        format: Format,
        /// What a device names it by; by default drive0, drive1 and so on
        id: Option<Id>,
        /// virtio: with a device virtio-blk-pci; none: a device of --device names it
        #[name = "if"]
        interface: Interface = "none",
        /// What becomes of a write: with none it goes past the host's page cache, with writeback through it; directsync and
        /// writethrough are the same without a write cache of the device's
        cache: Cache = "writeback",
        /// Refuse writes
        readonly: bool = "off",
        /// The same
        read_only: bool = "off",
        /// Whether what the guest discards is given back to the host
        discard: Discard = "ignore",
        /// What becomes of writes of zeros
        detect_zeroes: DetectZeroes = "off",
        /// How requests get to the host
        aio: Option<Aio>,
        /// After a failed read, as rerror= of the device
        rerror: Option<ErrorPolicy>,
        /// After a failed write, as werror= of the device
        werror: Option<ErrorPolicy>,
        /// QEMU's word: which device it is for follows from the device that names it
        media: Option<Media>,
        /// QEMU's word: disks come in the order of the command line
        index: Option<u32>,
        /// Write to a copy that is thrown away; there is none
        snapshot: Off = "off",
    }
}

prop_enum! {
    /// What a file is.
    enum Format {
        /// The disk's bytes.
        Raw = "raw",
        /// QEMU's image format.
        Qcow2 = "qcow2",
    }
}

prop_enum! {
    /// What the guest gets.
    enum Interface {
        /// What a device makes of it.
        None = "none",
        /// A virtio disk.
        Virtio = "virtio",
    }
}

prop_enum! {
    /// QEMU's words for the caches.
    enum Cache {
        /// Through the page cache; the guest flushes.
        Writeback = "writeback",
        /// Past the page cache; the guest flushes.
        None = "none",
        /// Through the page cache, flushed by each write.
        Writethrough = "writethrough",
        /// Past the page cache, flushed by each write.
        Directsync = "directsync",
    }
}

prop_enum! {
    /// What a discard does.
    enum Discard {
        /// Nothing.
        Ignore = "ignore",
        /// Gives the range back.
        Unmap = "unmap",
        /// QEMU's other word for it.
        On = "on",
        /// QEMU's other word for nothing.
        Off = "off",
    }
}

prop_enum! {
    /// How requests get to the host.
    enum Aio {
        /// By the threads of the devices.
        Threads = "threads",
        /// By the kernel past the page cache.
        Native = "native",
        /// By the kernel's io_uring.
        IoUring = "io_uring",
    }
}

prop_enum! {
    /// What a drive is for.
    enum Media {
        /// A disk.
        Disk = "disk",
        /// A CD.
        Cdrom = "cdrom",
    }
}

prop_enum! {
    /// A switch that is off.
    enum Off {
        /// Off.
        Off = "off",
    }
}

/// Where the host's disks are.
const DEVICES: &str = "/dev";
/// What is below it and holds files.
const SHM: &str = "/dev/shm";

/// The nodes that these options stand for, for `--blockdev`. Devices that belong to them are added to `devices`, and those that
/// name them take what they say of errors and caches. `device_key`: the key of a device's type.
///
/// # Errors
/// [`Code::BadProperty`].
pub fn apply(drives: Vec<Args>, device_key: &'static str, devices: &mut Vec<Args>) -> Result<Vec<Args>> {
    let mut nodes = Vec::new();
    for (number, mut args) in drives.into_iter().enumerate() {
        let drive = Drive::parse(&mut args)?;
        args.finish()?;
        let id = drive.id.as_ref().map_or_else(|| format!("drive{number}"), |id| id.as_str().to_owned());
        nodes.push(Args::parse(Kind::Node.option(), Some(BLOCKDEVS.key), &node(&drive, &id)?.to_string())?);
        if drive.interface == Interface::Virtio {
            let device = json!({ device_key: "virtio-blk-pci", "drive": id });
            devices.push(Args::parse("--device", Some(device_key), &device.to_string())?);
        }
        for device in devices.iter_mut().filter(|device| device.peek("drive") == Some(&id)) {
            let through = matches!(drive.cache, Cache::Writethrough | Cache::Directsync);
            let says = [
                ("rerror", drive.rerror.map(|policy| policy.to_string())),
                ("werror", drive.werror.map(|policy| policy.to_string())),
                ("write-cache", through.then(|| "off".to_owned())),
            ];
            for (key, value) in says {
                if let Some(value) = value {
                    *device = device.clone().with_default(key, &value);
                }
            }
        }
    }
    Ok(nodes)
}

/// The properties of the node.
fn node(drive: &Drive, id: &str) -> Result<Value> {
    let file = drive
        .file
        .to_str()
        .ok_or_else(|| Error::new(Code::BadProperty, format!("the name {} is not UTF-8", drive.file.display())))?;
    let on_host = is_disk(&drive.file);
    let mut host = json!({
        "driver": if on_host { "host_device" } else { "file" },
        "filename": file,
        "cache.direct": matches!(drive.cache, Cache::None | Cache::Directsync),
        "discard": if matches!(drive.discard, Discard::Unmap | Discard::On) { "unmap" } else { "ignore" },
    });
    if let Some(aio) = drive.aio {
        host["aio"] = aio.to_string().into();
    }
    let read_only = drive.readonly || drive.read_only || drive.media == Some(Media::Cdrom);
    let mut top = match drive.format {
        Format::Raw => host,
        Format::Qcow2 => {
            host["read-only"] = read_only.into();
            json!({ "driver": "qcow2", "discard": host["discard"].clone(), "file": host })
        }
    };
    top["node-name"] = id.into();
    top["read-only"] = read_only.into();
    top["detect-zeroes"] = drive.detect_zeroes.to_string().into();
    Ok(top)
}

/// Whether a file is one of the host's disks, by its name: the host is not asked here.
fn is_disk(file: &Path) -> bool {
    file.starts_with(DEVICES) && !file.starts_with(SHM)
}

/// What the option takes.
pub fn help() -> String {
    options_help("--drive options", &[Drive::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    fn drive(text: &str) -> Args {
        Args::parse("--drive", None, text).unwrap()
    }

    fn device(text: &str) -> Args {
        Args::parse("--device", Some("driver"), text).unwrap()
    }

    fn entries(args: &Args) -> Vec<String> {
        let mut entries: Vec<String> = args.entries().map(|(key, value)| format!("{key}={value}")).collect();
        entries.sort();
        entries
    }

    #[test]
    fn a_drive_is_a_node_and_may_be_a_device() {
        check_props("--drive", Drive::TABLE);
        let mut devices = vec![device("virtio-blk-pci,drive=d0,werror=report")];
        let drives = vec![
            drive("file=/a.raw,format=raw,if=none,id=d0,cache=directsync,rerror=stop,werror=stop"),
            drive(
                "file=/b.qcow2,if=virtio,format=qcow2,discard=unmap,detect-zeroes=unmap,index=1,media=disk,aio=native",
            ),
            drive("file=/dev/sda,format=raw,readonly=on,cache=none,aio=threads"),
        ];
        let nodes = apply(drives, "driver", &mut devices).unwrap();
        assert_eq!(
            entries(&nodes[0]),
            [
                "cache.direct=on",
                "detect-zeroes=off",
                "discard=ignore",
                "driver=file",
                "filename=/a.raw",
                "node-name=d0",
                "read-only=off"
            ]
        );
        assert_eq!(
            entries(&nodes[1]),
            [
                "detect-zeroes=unmap",
                "discard=unmap",
                "driver=qcow2",
                "file.aio=native",
                "file.cache.direct=off",
                "file.discard=unmap",
                "file.driver=file",
                "file.filename=/b.qcow2",
                "file.read-only=off",
                "node-name=drive1",
                "read-only=off"
            ]
        );
        assert_eq!(nodes[2].peek("driver"), Some("host_device"));
        assert_eq!((nodes[2].peek("node-name"), nodes[2].peek("read-only")), (Some("drive2"), Some("on")));
        assert_eq!(
            entries(&devices[0]),
            ["drive=d0", "driver=virtio-blk-pci", "rerror=stop", "werror=report", "write-cache=off"],
            "what the device says itself counts"
        );
        assert_eq!(entries(&devices[1]), ["drive=drive1", "driver=virtio-blk-pci"]);
        assert_eq!(devices.len(), 2);
    }

    #[test]
    fn what_is_not_said_is_not_guessed() {
        for text in [
            "file=/a.raw",
            "format=raw",
            "file=/a,format=raw,if=ide",
            "file=/a,format=vmdk",
            "file=/a,format=raw,bus=1",
            "file=/a,format=raw,snapshot=on",
            "file=/a,format=raw,cache=unsafe",
        ] {
            let refused = apply(vec![drive(text)], "driver", &mut Vec::new());
            assert_eq!(refused.unwrap_err().code(), Code::BadProperty, "{text}");
        }
    }
}
