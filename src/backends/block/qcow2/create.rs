//! New images.

use std::io;
use std::sync::Arc;

use imago::FormatCreateBuilder;
use imago::format::PreallocateMode;

use super::NodeStorage;
use crate::backends::block::BlockNode;
use crate::object::prop_enum;

prop_enum! {
    /// What is taken of the host's file system before anything is written.
    pub enum Preallocation {
        /// Nothing.
        Off = "off",
        /// The tables.
        Metadata = "metadata",
        /// Room for all data.
        Falloc = "falloc",
        /// All data, written as zeros.
        Full = "full",
    }
}

/// What a new image is.
#[derive(Debug, Clone)]
pub struct New {
    /// Length of the disk, bytes.
    pub size: u64,
    /// Bytes of a cluster: a power of two, 512 to 2 MiB.
    pub cluster_size: u64,
    /// What is taken at once.
    pub preallocation: Preallocation,
    /// The backing file, as the header names it, and its format.
    pub backing: Option<(String, String)>,
}

impl New {
    /// An image of `size` bytes as QEMU makes it if nothing else is said.
    pub fn of(size: u64) -> New {
        New { size, cluster_size: 65536, preallocation: Preallocation::Off, backing: None }
    }
}

/// Makes an image on `file`, which is empty and can be written.
pub fn create(file: Arc<dyn BlockNode>, new: &New) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    if !new.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&new.cluster_size) {
        return Err(invalid("a cluster has 512 bytes to 2 MiB, and is a power of two"));
    }
    let needed = u128::from(new.size).div_ceil(u128::from(new.cluster_size) * u128::from(new.cluster_size / 8));
    if needed * 8 > u128::from(super::header::MAX_L1) || new.size > i64::MAX as u64 {
        return Err(invalid("an image of that length needs larger clusters"));
    }
    let mut builder = imago::qcow2::Qcow2::<NodeStorage>::create_builder(NodeStorage::new(file.clone()))
        .size(new.size)
        .cluster_size(new.cluster_size as usize)
        .preallocate(match new.preallocation {
            Preallocation::Off => PreallocateMode::None,
            Preallocation::Metadata => PreallocateMode::FormatAllocate,
            Preallocation::Falloc => PreallocateMode::FullAllocate,
            Preallocation::Full => PreallocateMode::WriteData,
        });
    if let Some((name, format)) = &new.backing {
        builder = builder.backing(name.clone(), format.clone());
    }
    builder.create()?;
    file.flush()
}
