//! A file that the guest is started from: opened once, read at every start, so that nothing of it is kept in memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result, explain_io};

/// A file that stays open.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
}

impl Source {
    /// Opens a regular file that is not empty.
    pub fn open(path: &Path) -> Result<Source> {
        // Without O_NONBLOCK the open of a named pipe waits for its writer, perhaps for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let source = Source { path: path.into(), file: file.map_err(|e| unusable(path, &e))? };
        let metadata = source.file.metadata().map_err(|e| unusable(path, &e))?;
        if !metadata.is_file() || metadata.len() == 0 {
            let what = if metadata.is_file() { "is empty" } else { "is not a regular file" };
            return Err(Error::new(Code::FileUnusable, format!("{} {what}", path.display())));
        }
        Ok(source)
    }

    /// How long the file is now.
    pub fn len(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|e| unusable(&self.path, &e))
    }

    /// The file, whose position is nobody's to rely on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `bytes` from this offset of the file.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|e| unusable(&self.path, &e))
    }

    /// The first bytes, fewer than `len` if the file is shorter.
    pub fn head(&self, len: usize) -> Result<Vec<u8>> {
        let mut head = vec![0; len.min(usize::try_from(self.len()?).unwrap_or(usize::MAX))];
        self.read_at(&mut head, 0)?;
        Ok(head)
    }

    /// The error for a file that no kernel can be found in; `evidence` is what was found where.
    pub fn not_a_kernel(&self, evidence: impl Into<String>) -> Error {
        Error::new(Code::NotAKernel, format!("{} is not a kernel that can be booted", self.path.display()))
            .evidence(evidence)
    }

    /// The error for contents that need the addresses `needs` where the guest has only `room`.
    pub fn too_large(&self, what: &str, needs: &Range<u64>, room: &Range<u64>) -> Error {
        Error::new(Code::NoMemory, format!("{what} {} does not fit in the guest's memory", self.path.display()))
            .evidence(format!(
                "it needs {} KiB at {:#x}, the guest has memory from {:#x} to {:#x} for it",
                (needs.end - needs.start).div_ceil(1024),
                needs.start,
                room.start,
                room.end
            ))
            .fix("give the guest more memory with -m")
    }
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::FileUnusable, format!("{} cannot be read", path.display())).evidence(explain_io(error))
}
