//! QEMU's locks on images: two programs that would damage each other's work do not get to open the same file.
//!
//! A user of a file says what it does by shared locks of single bytes (open file description locks, fcntl(2)): byte 100+n
//! for everything that it does, byte 200+n for everything that it cannot bear others to do. Then it looks whether others
//! have the opposite byte. So QEMU, qemu-img and passthru see each other (QEMU: docs/system/images, `locking=`).

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

/// First of the bytes that say what is done.
const DOES: i64 = 100;
/// First of the bytes that say what others must not do.
const FORBIDS: i64 = 200;

/// What can be done with a file, by QEMU's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Read what is consistent.
    Read = 0,
    /// Write.
    Write = 1,
    /// Change the length.
    Resize = 3,
}

/// What others must not do while we have a file: what we read must not change under us.
const FORBIDDEN: &[Deed] = &[Deed::Write, Deed::Resize];

/// What we do.
const fn deeds(writable: bool) -> &'static [Deed] {
    if writable { &[Deed::Read, Deed::Write, Deed::Resize] } else { &[Deed::Read] }
}

/// Why a file is not locked.
#[derive(Debug)]
pub enum Refused {
    /// Somebody else writes it, or reads it and bears no writer; in words.
    InUse(&'static str),
    /// The file system or the kernel has no such locks.
    Failed(io::Error),
}

/// Locks `file` for as long as its description is open.
pub fn take(file: &File, writable: bool) -> Result<(), Refused> {
    let taken = try_take(file, writable);
    if taken.is_err() {
        release(file);
    }
    taken
}

fn try_take(file: &File, writable: bool) -> Result<(), Refused> {
    // First the locks, then the look at those of others: of two that come at once, one sees the other at least.
    for deed in deeds(writable) {
        set(file, libc::F_RDLCK, DOES + *deed as i64, 1)?;
    }
    for deed in FORBIDDEN {
        set(file, libc::F_RDLCK, FORBIDS + *deed as i64, 1)?;
    }
    for deed in deeds(writable) {
        if is_locked(file, FORBIDS + *deed as i64)? {
            return Err(Refused::InUse(match deed {
                Deed::Read => "somebody else has it for itself alone",
                Deed::Write | Deed::Resize => "somebody else has it open and bears no change of it",
            }));
        }
    }
    for deed in FORBIDDEN {
        if is_locked(file, DOES + *deed as i64)? {
            return Err(Refused::InUse("somebody else has it open for writing"));
        }
    }
    Ok(())
}

/// Gives the locks back. Closing the descriptor does it, too.
pub fn release(file: &File) {
    // What cannot be unlocked goes with the descriptor.
    let _ = set(file, libc::F_UNLCK, DOES, FORBIDS + 100 - DOES);
}

fn set(file: &File, kind: i32, start: i64, len: i64) -> Result<(), Refused> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))) {
        Ok(_) => Ok(()),
        // Only an exclusive lock can be in the way, which QEMU takes while it looks, and nobody else.
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(Refused::InUse("somebody else has it locked"))
        }
        Err(errno) => Err(Refused::Failed(errno.into())),
    }
}

/// Whether another description has a lock on the byte.
fn is_locked(file: &File, byte: i64) -> Result<bool, Refused> {
    let mut found = range(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|errno| Refused::Failed(errno.into()))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    // The numbers of both fit: F_*LCK and SEEK_SET are 0 to 2. OFD locks want no process.
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second, third) = (open(), open(), open());
        take(&first, false).unwrap();
        take(&second, false).unwrap();
        assert!(matches!(take(&third, true), Err(Refused::InUse(_))));
        // The refused one left nothing behind that would be in a reader's way.
        take(&third, false).unwrap();
        for file in [&first, &second, &third] {
            release(file);
        }
        take(&third, true).unwrap();
        assert!(matches!(take(&first, false), Err(Refused::InUse("somebody else has it open for writing"))));
        assert!(matches!(take(&first, true), Err(Refused::InUse(_))));
        drop(third);
        take(&first, true).unwrap();
    }
}
