//! `file` and `host_device`: what the host has.

use std::path::PathBuf;
use std::sync::Arc;

use super::BlockNode;
use super::host::{HostFile, Kind, Options, Together};
use super::types::made;
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::object::{Create, OnOffAuto, TypeInfo, prop_enum, props};

prop_enum! {
    /// How requests get to the host.
    pub enum Aio {
        /// By the device's own threads, each of which waits for its request.
        Threads = "threads",
        /// By the kernel past the page cache, as io_uring does it: one thread has many requests under way.
        Native = "native",
        /// By the kernel's io_uring: one thread has many requests under way.
        IoUring = "io_uring",
    }
}

prop_enum! {
    /// What happens to what a guest discards.
    pub enum Discard {
        /// It stays where it is.
        Ignore = "ignore",
        /// Its memory goes back to the host.
        Unmap = "unmap",
    }
}

/// Declares what a file or a disk of the host has, and makes the options to open one of it.
macro_rules! host_props {
    ($(#[doc = $summary:literal])+ $vis:vis struct $Name:ident { #[doc = $name:literal] filename }) => {
        props! {
            $(#[doc = $summary])+
            $vis struct $Name {
                #[doc = $name]
                filename: PathBuf,
                /// Refuse writes
                read_only: bool = "off",
                /// Go past the host's page cache (O_DIRECT)
                #[name = "cache.direct"]
                direct: bool = "off",
                /// How requests of virtio-blk-pci get to the host: one by one, or many at once by io_uring; native, for
                /// cache.direct=on, is the same as io_uring. Left out: io_uring where the host's kernel gives it
                aio: Option<Aio>,
                /// Lock it against other programs that write it, as QEMU does; auto: where that is possible
                locking: OnOffAuto = "auto",
                /// Whether what the guest discards is given back to the host
                discard: Discard = "ignore",
            }
        }

        impl $Name {
            fn check(&self) -> Result<()> {
                check_aio(self.aio, self.direct)
            }

            fn options(self) -> Options {
                Options {
                    path: self.filename,
                    read_only: self.read_only,
                    direct: self.direct,
                    locking: forced(self.locking),
                    unmap: self.discard == Discard::Unmap,
                    together: match self.aio {
                        None => Together::IfPossible,
                        Some(Aio::Threads) => Together::No,
                        Some(Aio::Native | Aio::IoUring) => Together::Yes,
                    },
                }
            }
        }
    };
}

host_props! {
    /// A regular file of the host.
    pub struct FileProps {
        /// Its name
        filename
    }
}

host_props! {
    /// A disk or partition of the host, which nothing else may use meanwhile.
    pub struct DeviceProps {
        /// Its node: /dev/disk/by-id/NAME
        filename
    }
}

/// As QEMU has it: Linux' older interface, of which `native` is the name, waits where the page cache is between.
fn check_aio(aio: Option<Aio>, direct: bool) -> Result<()> {
    match aio {
        Some(Aio::Native) if !direct => Err(Error::new(Code::BadProperty, "aio=native needs cache.direct=on")
            .fix("add cache.direct=on, or write aio=io_uring, which does without")),
        _ => Ok(()),
    }
}

fn forced(switch: OnOffAuto) -> Option<bool> {
    match switch {
        OnOffAuto::On => Some(true),
        OnOffAuto::Off => Some(false),
        OnOffAuto::Auto => None,
    }
}

/// The row of files.
pub static FILE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<FileType>();
/// The row of disks.
pub static HOST_DEVICE: TypeInfo<Arc<dyn BlockNode>, BackendCx> = TypeInfo::of::<DeviceType>();

struct FileType;

impl Create<Arc<dyn BlockNode>, BackendCx> for FileType {
    const NAME: &'static str = "file";
    const GROUP: &'static str = "What the host has";
    type Props = FileProps;

    fn check(props: &FileProps) -> Result<()> {
        props.check()
    }

    fn create(props: FileProps, _cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        Ok(made(HostFile::open(props.options(), Kind::File)?))
    }
}

struct DeviceType;

impl Create<Arc<dyn BlockNode>, BackendCx> for DeviceType {
    const NAME: &'static str = "host_device";
    const GROUP: &'static str = "What the host has";
    type Props = DeviceProps;

    fn check(props: &DeviceProps) -> Result<()> {
        props.check()
    }

    fn create(props: DeviceProps, _cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        Ok(made(HostFile::open(props.options(), Kind::Device)?))
    }
}
