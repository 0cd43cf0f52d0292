//! A listening unix socket and its file: made, found stale and replaced, removed at the end.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as Socket, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket and its file.
pub struct UnixListener {
    socket: Socket,
    path: PathBuf,
    /// Device and inode of the file: one that somebody else has put in its place is not removed.
    file: Option<(u64, u64)>,
}

impl UnixListener {
    /// Makes the file `path`. A socket that nobody listens on, which a process that was killed has left, is replaced.
    ///
    /// # Errors
    /// The kernel's; [`mend`] says what helps.
    pub fn new(path: &Path) -> io::Result<UnixListener> {
        let socket = match Socket::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                Socket::bind(path)
            }
            other => other,
        }?;
        socket.set_nonblocking(true)?;
        let file = fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()));
        Ok(UnixListener { socket, path: path.to_owned(), file })
    }

    /// The next client, if one waits.
    pub fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.socket.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    }
}

/// What helps where a socket cannot be made.
pub fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "another process listens there, or it is no socket: choose another path",
        ErrorKind::InvalidInput => "choose a path of at most 107 bytes",
        _ => "choose a path in a folder that you may write to",
    }
}

/// Whether the path is a socket that refuses connections.
fn is_stale(path: &Path) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).ok().map(|file| (file.dev(), file.ino()));
        if self.file.is_some() && self.file == now {
            // It was there a moment ago; whoever removes it meanwhile does the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        drop(Socket::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let live = UnixListener::new(&path).unwrap();
        let error = UnixListener::new(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        fs::write(&path, "data").unwrap();
        assert!(UnixListener::new(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
        fs::remove_file(&path).unwrap();
        let live = UnixListener::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(live);
        assert!(path.exists());
    }
}
