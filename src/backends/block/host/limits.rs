//! What requests a file or a disk likes: sizes of blocks.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Blocks of a file or a disk, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Offsets, lengths and memory of direct I/O are multiples of it; 1 where the page cache is between.
    pub block_size: u32,
    /// What the medium writes at once.
    pub physical_block_size: u32,
}

/// Where nothing is known: no disk has larger logical blocks.
const WORST: u32 = 4096;
/// Where the page cache is between, and no disk says anything: as QEMU.
const USUAL: u32 = 512;

/// The limits of an open file or disk.
pub fn read(file: &File, direct: bool) -> Limits {
    let queue = file.metadata().ok().and_then(|data| {
        let device = if data.file_type().is_block_device() { data.rdev() } else { data.dev() };
        queue_of(Path::new("/sys"), libc::major(device), libc::minor(device))
    });
    plan(direct, queue.as_deref().and_then(|queue| number(&queue.join("logical_block_size"))), || {
        queue.as_deref().and_then(|queue| number(&queue.join("physical_block_size")))
    })
}

/// The limits, with what sysfs says of the disk below.
fn plan(direct: bool, logical: Option<u32>, physical: impl Fn() -> Option<u32>) -> Limits {
    let sound = |size: &u32| size.is_power_of_two() && (USUAL..=65536).contains(size);
    let logical = logical.filter(sound).unwrap_or(if direct { WORST } else { USUAL });
    let physical_block_size = physical().filter(sound).unwrap_or(logical).max(logical);
    Limits { block_size: if direct { logical } else { 1 }, physical_block_size }
}

/// The folder of sysfs that describes the requests of a disk: a partition's is that of its disk.
fn queue_of(sys: &Path, major: u32, minor: u32) -> Option<PathBuf> {
    let folder = sys.join(format!("dev/block/{major}:{minor}")).canonicalize().ok()?;
    [folder.join("queue"), folder.parent()?.join("queue")].into_iter().find(|queue| queue.is_dir())
}

fn number(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks() {
        for (direct, logical, physical, expected) in [
            (false, None, None, (1, 512)),
            (true, None, None, (4096, 4096)),
            (false, Some(512), Some(4096), (1, 4096)),
            (true, Some(512), Some(4096), (512, 4096)),
            (true, Some(4096), Some(512), (4096, 4096)),
            (true, Some(0), Some(3), (4096, 4096)),
        ] {
            let limits = plan(direct, logical, || physical);
            assert_eq!((limits.block_size, limits.physical_block_size), expected, "{direct} {logical:?} {physical:?}");
        }
    }

    #[test]
    fn a_partition_has_the_queue_of_its_disk() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(sys.join("devices/vda/queue")).unwrap();
        std::fs::create_dir_all(sys.join("devices/vda/vda1")).unwrap();
        std::fs::create_dir_all(sys.join("dev/block")).unwrap();
        for (number, target) in [("254:0", "vda"), ("254:1", "vda/vda1")] {
            std::os::unix::fs::symlink(sys.join("devices").join(target), sys.join("dev/block").join(number)).unwrap();
        }
        let queue = Some(sys.join("devices/vda/queue"));
        assert_eq!(queue_of(&sys, 254, 0), queue);
        assert_eq!(queue_of(&sys, 254, 1), queue);
        assert_eq!(queue_of(&sys, 254, 2), None);
    }
}
