//! `file` and `host_device`: what the host has.

use std::path::PathBuf;
use std::sync::Arc;

use super::BlockNode;
use super::host::{HostFile, Kind, Options};
use super::types::made;
use crate::backends::BackendCx;
use crate::error::Result;
use crate::object::{Create, OnOffAuto, TypeInfo, prop_enum, props};

prop_enum! {
    /// How requests get to the host.
    pub enum Aio {
        /// By the device's own threads.
        Threads = "threads",
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

props! {
    /// A regular file of the host.
    pub struct FileProps {
        /// Its name
        filename: PathBuf,
        /// Refuse writes
        read_only: bool = "off",
        /// Go past the host's page cache (O_DIRECT)
        #[name = "cache.direct"]
        direct: bool = "off",
        /// How requests get to the host
        aio: Aio = "threads",
        /// Lock the file against other programs that write it, as QEMU does; auto: where the file system can
        locking: OnOffAuto = "auto",
        /// Whether what the guest discards is given back to the host
        discard: Discard = "ignore",
    }
}

props! {
    /// A disk or partition of the host, which nothing else may use meanwhile.
    pub struct DeviceProps {
        /// Its node: /dev/disk/by-id/NAME
        filename: PathBuf,
        /// Refuse writes
        read_only: bool = "off",
        /// Go past the host's page cache (O_DIRECT)
        #[name = "cache.direct"]
        direct: bool = "off",
        /// How requests get to the host
        aio: Aio = "threads",
        /// Lock the disk against other programs that write it, as QEMU does; auto: where it can be
        locking: OnOffAuto = "auto",
        /// Whether what the guest discards is given back to the disk
        discard: Discard = "ignore",
    }
}

impl From<FileProps> for Options {
    fn from(props: FileProps) -> Options {
        Options {
            path: props.filename,
            read_only: props.read_only,
            direct: props.direct,
            locking: forced(props.locking),
            unmap: props.discard == Discard::Unmap,
        }
    }
}

impl From<DeviceProps> for Options {
    fn from(props: DeviceProps) -> Options {
        Options {
            path: props.filename,
            read_only: props.read_only,
            direct: props.direct,
            locking: forced(props.locking),
            unmap: props.discard == Discard::Unmap,
        }
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

    fn create(props: FileProps, _cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        Ok(made(HostFile::open(props.into(), Kind::File)?))
    }
}

struct DeviceType;

impl Create<Arc<dyn BlockNode>, BackendCx> for DeviceType {
    const NAME: &'static str = "host_device";
    const GROUP: &'static str = "What the host has";
    type Props = DeviceProps;

    fn create(props: DeviceProps, _cx: &BackendCx) -> Result<Arc<dyn BlockNode>> {
        Ok(made(HostFile::open(props.into(), Kind::Device)?))
    }
}
