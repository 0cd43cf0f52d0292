//! Small files of passthru's own under /run/passthru: written whole or not at all, and believed only if nobody but root
//! (or the user who runs passthru) can have written them.

use std::fmt::{self, Display};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::read::names;
use crate::bdf::Bdf;
use crate::error::explain_io;

/// A record is a few hundred bytes, some kilobytes at most; a larger file is none.
const MAX_BYTES: u64 = 16 << 10;

/// Why a record cannot be used.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The system's answer.
    Io(io::Error),
    /// It may be anybody's.
    Distrusted(&'static str),
}

impl Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Io(error) => f.write_str(&explain_io(error)),
            Unreadable::Distrusted(why) => f.write_str(why),
        }
    }
}

/// Makes a folder of records, if it is not there, and those above it.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

/// Whether what is in a folder can be believed: nobody else may put a file there, or take one away.
pub(super) fn check_folder(folder: &Path) -> Result<(), Unreadable> {
    let meta = fs::symlink_metadata(folder).map_err(Unreadable::Io)?;
    match meta.is_dir() && is_trusted(&meta) {
        true => Ok(()),
        false => Err(Unreadable::Distrusted("it is not a folder of root that nobody else can write")),
    }
}

/// Opens a file that is there to be locked, and makes it if it is not there. Its owner alone can open it.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// The name of the record about a device.
pub(super) fn file_name(bdf: Bdf) -> String {
    format!("{bdf}.json")
}

/// The devices that `folder` has records about.
pub(super) fn devices(folder: &Path) -> Vec<Bdf> {
    names(folder).iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect()
}

/// Replaces `folder/name` by a file with this text: temporary file, fsync, rename, fsync of the folder. On return it is
/// on disk, whole.
pub(super) fn replace(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// The text of a record; `None`: there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, Unreadable> {
    read_if(path, is_trusted, "it is not a small file of root that nobody else can write")
}

/// The text of a record that a user has written who is not trusted with more than it says.
pub(super) fn read_of(path: &Path, user: u32) -> Result<Option<String>, Unreadable> {
    read_if(path, |meta| meta.uid() == user, "it is not a small file of the user who ran the guest")
}

fn read_if(
    path: &Path,
    trusted: impl Fn(&fs::Metadata) -> bool,
    why: &'static str,
) -> Result<Option<String>, Unreadable> {
    // Neither a link nor a FIFO may lead us elsewhere or make us wait.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unreadable::Io(error)),
    };
    let meta = file.metadata().map_err(Unreadable::Io)?;
    if !meta.is_file() || !trusted(&meta) || meta.len() > MAX_BYTES {
        return Err(Unreadable::Distrusted(why));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(Unreadable::Io)?;
    Ok(Some(text))
}

/// Removes a record and what a broken-off [`replace`] left of it, if they are there.
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    for name in [&format!(".{name}.new"), name] {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(folder)?.sync_all()
}

/// Whether only root or the user who runs passthru can have written it.
pub(super) fn is_trusted(meta: &fs::Metadata) -> bool {
    let owner = meta.uid();
    (owner == 0 || owner == nix::unistd::geteuid().as_raw()) && meta.mode() & 0o022 == 0
}
