//! The file that holds the process's number while it runs (`--pidfile`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Code, Error, Result, explain_io};

/// The file. Dropping it removes it.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Held while the process runs: whoever finds the file without this lock finds what a process that was killed left.
    _lock: Flock<File>,
}

impl PidFile {
    /// Writes the file.
    ///
    /// # Errors
    /// [`Code::FileUnusable`]: it cannot be written, or another process that runs has it.
    pub fn write(path: &Path) -> Result<PidFile> {
        let unusable = |why: String| {
            Error::new(Code::FileUnusable, format!("the PID file {} cannot be written", path.display())).evidence(why)
        };
        // Not truncated before it is ours.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| unusable(explain_io(&error)))?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| unusable("another process that runs has it".into()))?;
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(|error| unusable(explain_io(&error)))?;
        Ok(PidFile { path: path.to_owned(), _lock: lock })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_number_while_the_process_runs_and_nobody_else_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.pid");
        fs::write(&path, "a longer text that a killed process left\n").unwrap();
        let held = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(PidFile::write(&path).unwrap_err().code(), Code::FileUnusable);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()), "it is untouched");
        drop(held);
        assert!(!path.exists());
        assert_eq!(PidFile::write(&dir.path().join("no/folder")).unwrap_err().code(), Code::FileUnusable);
    }
}
