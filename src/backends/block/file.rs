//! `file` and `host_device`: what the host has.

use std::path::PathBuf;
use std::sync::Arc;

use super::BlockNode;
use super::host::{HostFile, Kind, Options};
use super::types::made;
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::object::{Create, OnOffAuto, TypeInfo, prop_enum, props};

prop_enum! {
    /// How requests get to the host.
    pub enum Aio {
        /// By the device's own threads.
        Threads = "threads",
        /// QEMU's others, which there are not.
        Native = "native",
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
                /// How requests get to the host: by the threads of the devices; there is no other way
                aio: Aio = "threads",
                /// Lock it against other programs that write it, as QEMU does; auto: where that is possible
                locking: OnOffAuto = "auto",
                /// Whether what the guest discards is given back to the host
                discard: Discard = "ignore",
            }
        }

        impl $Name {
            fn check(&self) -> Result<()> {
                check_aio(self.aio)
            }

            fn options(self) -> Options {
                Options {
                    path: self.filename,
                    read_only: self.read_only,
                    direct: self.direct,
                    locking: forced(self.locking),
                    unmap: self.discard == Discard::Unmap,
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

/// Requests are done by the thread that serves the queue they come from: the kernel's own queues need memory that is handed
/// over to it by address, and code for that which is not checked by the compiler.
fn check_aio(aio: Aio) -> Result<()> {
    match aio {
        Aio::Threads => Ok(()),
        Aio::Native | Aio::IoUring => Err(Error::new(Code::BadProperty, "there is no way to the host but aio=threads")
            .evidence("each queue of a disk has a thread, which does its requests by itself")
            .fix("leave aio= out, and give the disk more queues for more requests at a time")),
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
