//! Snapshots as overlays: a new image takes what is written from now on, and leaves what it stands on as it is; a commit
//! brings it down again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::Format;
use super::copy::{What, copy};
use super::host::{HostFile, Kind, Options};
use super::qcow2::Qcow2;
use super::qcow2::create::{New, create};
use super::switch::{Switch, UNIT};
use super::{BlockNode, Child};
use crate::error::{Code, Error, Result, explain_io};

/// Copying what was changed meanwhile ends when it is at most this much, or after [`MAX_ROUNDS`]: the rest is copied with the
/// guest's requests waiting.
const FEW_UNITS: u64 = 64;
/// See [`FEW_UNITS`]: a guest that writes faster than the commit gets ahead of it for ever.
const MAX_ROUNDS: usize = 8;

/// Makes an empty file for an image; what is there already stays only if it may be used anew.
///
/// # Errors
/// [`Code::FileUnusable`], [`Code::DiskInUse`].
pub fn new_file(path: &Path, reuse: bool) -> Result<Arc<dyn BlockNode>> {
    let unusable = |error: io::Error| {
        Error::new(Code::FileUnusable, format!("{} cannot be made", path.display())).evidence(explain_io(&error))
    };
    let mut options = fs::OpenOptions::new();
    options.write(true);
    // Not truncated here: it may be another's image, which its lock says.
    options.create(reuse).create_new(!reuse).open(path).map_err(unusable)?;
    let file = HostFile::open(Options::plain(path, true), Kind::File)?;
    file.resize(0).map_err(unusable)?;
    Ok(Arc::new(file))
}

/// Makes an image on `file` that stands on another.
///
/// # Errors
/// [`Code::ImageFailed`].
pub fn new_image(file: &Arc<dyn BlockNode>, path: &Path, new: &New) -> Result<()> {
    create(file.clone(), new).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
            Error::new(Code::ImageUnusable, format!("such an image cannot be made: {error}"))
        }
        _ => {
            Error::new(Code::ImageFailed, format!("{} cannot be written", path.display())).evidence(explain_io(&error))
        }
    })
}

/// Puts a new image on top of the node that `switch` leads to: `blockdev-snapshot-sync`. `format` is what the header calls
/// the present one. The overlay's header names the present file by its absolute path.
///
/// # Errors
/// [`Code::FileUnusable`] (the new file is there already), [`Code::ImageFailed`], [`Code::BackingChain`] (the present node is
/// no file). The switch is left as it was, and no new file either.
pub fn snapshot(switch: &Switch, name: &Arc<str>, path: &Path, format: Format) -> Result<()> {
    let present = switch.target();
    let backing = present.filename().and_then(|path| fs::canonicalize(path).ok()).ok_or_else(|| {
        Error::new(Code::BackingChain, format!("`{name}` is no file that an overlay could name"))
            .fix("make overlays of nodes that stand on a file")
    })?;
    let data = fs::metadata(&backing).ok().filter(fs::Metadata::is_file);
    if format == Format::Raw && data.is_some_and(|data| data.len() != switch.info().len) {
        return Err(Error::new(Code::BackingChain, format!("`{name}` is a part of {}", backing.display()))
            .fix("make overlays of nodes that are a whole file"));
    }
    let file = new_file(path, false)?;
    let made = put_on_top(switch, name, &file, path, (&backing, format));
    if made.is_err() {
        // Nobody has seen it.
        let _ = fs::remove_file(path);
    }
    made
}

fn put_on_top(
    switch: &Switch,
    name: &Arc<str>,
    file: &Arc<dyn BlockNode>,
    path: &Path,
    (backing, format): (&Path, Format),
) -> Result<()> {
    let backing = backing.to_str().ok_or_else(|| {
        Error::new(Code::BackingChain, format!("the name {} is not UTF-8", backing.display())).fix("rename the file")
    })?;
    let len = switch.info().len;
    let new = New { backing: Some((backing.to_owned(), format.to_string())), ..New::of(len) };
    new_image(file, path, &new)?;
    let mut refused = None;
    let done = switch.exchange(|present| {
        // What the commit copies and what the guest writes would be two images then.
        if switch.is_watched() {
            refused = Some(busy(name));
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let below = Child::own(present.clone(), backing);
        let top = Qcow2::open(Child::own(file.clone(), path.display().to_string()), Some(below), false, true);
        top.map(|top| Arc::new(top) as Arc<dyn BlockNode>).map_err(|error| {
            refused = Some(error);
            io::ErrorKind::Other.into()
        })
    });
    match (done, refused) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(failed(name, &error)),
    }
}

/// Copies what the overlay `top` has into the image that it stands on, which is as long afterwards. Nobody may write to
/// `top` meanwhile. The base is left writable.
///
/// # Errors
/// [`Code::BackingChain`] if it stands on nothing, [`Code::DiskInUse`] or [`Code::ImageFailed`]: then the overlay still has
/// everything, and can be committed again.
pub fn commit(top: &dyn BlockNode, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let base = base_of(top, name)?;
    let all = open_base(&*base, top.info().len)
        .and_then(|()| copy(top, &*base, 0..top.info().len, What::Own, false, progress))
        .and_then(|()| base.flush());
    all.map_err(|error| failed(name, &error))
}

/// Copies what the overlay that `switch` leads to has into its base, with the guest running, and leads to the base then:
/// `block-commit` of the active image. `cancelled` is asked between the copies.
///
/// # Errors
/// As [`commit`]. The switch is left as it was.
pub fn commit_live(switch: &Switch, name: &str, cancelled: &dyn Fn() -> bool) -> Result<Option<PathBuf>> {
    let top = switch.watch().ok_or_else(|| busy(name))?;
    let committed = commit_watched(switch, &*top, name, cancelled);
    switch.end_watch();
    committed.map(|()| top.filename())
}

/// [`commit_live`] from the beginning of the watch on, which its caller ends.
fn commit_watched(switch: &Switch, top: &dyn BlockNode, name: &str, cancelled: &dyn Fn() -> bool) -> Result<()> {
    let base = base_of(top, name)?;
    let len = top.info().len;
    let copied = (|| {
        open_base(&*base, len)?;
        copy_own(top, &*base, 0, len, cancelled)?;
        for _ in 0..MAX_ROUNDS {
            let changed = switch.take_changed();
            for range in changed.ranges(len) {
                copy_own(top, &*base, range.start, range.end, cancelled)?;
            }
            if changed.count() <= FEW_UNITS {
                break;
            }
        }
        base.flush()?;
        switch.exchange(|top| {
            for range in switch.last_changed().ranges(len) {
                copy_own(&**top, &*base, range.start, range.end, cancelled)?;
            }
            base.flush()?;
            Ok(base.clone())
        })
    })();
    copied.map_err(|error: io::Error| failed(name, &error))
}

fn busy(name: &str) -> Error {
    Error::new(Code::DiskInUse, format!("the overlay of `{name}` is being committed"))
        .fix("wait for the event BLOCK_JOB_COMPLETED")
}

fn copy_own(
    top: &dyn BlockNode,
    base: &dyn BlockNode,
    start: u64,
    end: u64,
    cancelled: &dyn Fn() -> bool,
) -> io::Result<()> {
    // In parts, to be asked now and then.
    let part = UNIT * 256;
    let mut at = start;
    while at < end {
        if cancelled() {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let to = end.min(at + part);
        copy(top, base, at..to, What::Own, false, &mut |_| {})?;
        at = to;
    }
    Ok(())
}

fn base_of(top: &dyn BlockNode, name: &str) -> Result<Arc<dyn BlockNode>> {
    top.backing().ok_or_else(|| {
        Error::new(Code::BackingChain, format!("`{name}` stands on no other image"))
            .fix("only an overlay can be committed; `passthru img info FILE` shows what it is")
    })
}

/// Makes the base one that can be written, and at least `len` bytes long.
fn open_base(base: &dyn BlockNode, len: u64) -> io::Result<()> {
    base.set_writable(true)?;
    if base.info().len < len { base.resize(len) } else { Ok(()) }
}

fn failed(name: &str, error: &io::Error) -> Error {
    Error::new(Code::ImageFailed, format!("the overlay of `{name}` is not done")).evidence(explain_io(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::chain::{self, How};
    use super::super::io::{read_into, write_from};
    use super::*;

    fn byte(node: &dyn BlockNode, at: u64) -> u8 {
        let mut byte = [0];
        read_into(node, at, &mut byte).unwrap();
        byte[0]
    }

    fn disk(folder: &Path) -> Switch {
        let path = folder.join("base.raw");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = HostFile::open(Options::plain(&path, true), Kind::File).unwrap();
        Switch::new(Arc::new(file))
    }

    #[test]
    fn a_snapshot_keeps_what_was_and_a_commit_brings_it_down() {
        let folder = tempfile::tempdir().unwrap();
        let (base, first, second) =
            (folder.path().join("base.raw"), folder.path().join("first.qcow2"), folder.path().join("second.qcow2"));
        let switch = disk(folder.path());
        let name: Arc<str> = "disk0".into();
        write_from(&switch, 0, &mut [2]).unwrap();
        snapshot(&switch, &name, &first, Format::Raw).unwrap();
        write_from(&switch, 0, &mut [3]).unwrap();
        snapshot(&switch, &name, &second, Format::Qcow2).unwrap();
        write_from(&switch, 0, &mut [4]).unwrap();
        switch.write_zeroes(65536..131_072, true).unwrap();
        switch.flush().unwrap();
        assert_eq!((byte(&switch, 0), byte(&switch, 1), byte(&switch, 70_000)), (4, 1, 0));
        assert_eq!(fs::read(&base).unwrap()[..2], [2, 1]);
        let error = snapshot(&switch, &name, &first, Format::Qcow2).unwrap_err();
        assert_eq!(error.code(), Code::FileUnusable, "it is there already");
        assert_eq!(commit_live(&switch, &name, &|| false).unwrap(), Some(second.clone()));
        assert_eq!(switch.filename(), Some(first.clone()));
        assert_eq!(byte(&switch, 0), 4);
        assert!(commit_live(&switch, &name, &|| true).is_err(), "cancelled");
        assert_eq!(commit_live(&switch, &name, &|| false).unwrap(), Some(first));
        assert_eq!(commit_live(&switch, &name, &|| false).unwrap_err().code(), Code::BackingChain);
        write_from(&switch, 9, &mut [5]).unwrap();
        drop(switch);
        let content = fs::read(&base).unwrap();
        assert_eq!((content[0], content[1], content[9], content[70_000], content[131_072]), (4, 1, 5, 0, 1));
    }

    #[test]
    fn a_node_has_one_commit_and_no_snapshot_during_it() {
        let folder = tempfile::tempdir().unwrap();
        let switch = disk(folder.path());
        let name: Arc<str> = "disk0".into();
        snapshot(&switch, &name, &folder.path().join("top.qcow2"), Format::Raw).unwrap();
        let other = folder.path().join("other.qcow2");
        let asked = std::cell::Cell::new(false);
        let meanwhile = || {
            if !asked.replace(true) {
                assert_eq!(commit_live(&switch, &name, &|| false).unwrap_err().code(), Code::DiskInUse);
                assert_eq!(snapshot(&switch, &name, &other, Format::Qcow2).unwrap_err().code(), Code::DiskInUse);
            }
            false
        };
        commit_live(&switch, &name, &meanwhile).unwrap();
        assert!(asked.get() && !other.exists());
        snapshot(&switch, &name, &other, Format::Raw).unwrap();
    }

    #[test]
    fn a_guest_that_writes_meanwhile_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let switch = disk(folder.path());
        snapshot(&switch, &"disk0".into(), &folder.path().join("top.qcow2"), Format::Raw).unwrap();
        let stop = AtomicBool::new(false);
        let model = std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                let mut model = vec![1; 1 << 20];
                let mut at = 0usize;
                while !stop.load(Ordering::Relaxed) || at < 100 {
                    at += 1;
                    let place = at * 7919 * 13 % (1 << 20);
                    model[place] = (at % 251) as u8;
                    write_from(&switch, place as u64, &mut [(at % 251) as u8]).unwrap();
                }
                model
            });
            let done = commit_live(&switch, "disk0", &|| false);
            stop.store(true, Ordering::Relaxed);
            done.unwrap();
            guest.join().unwrap()
        });
        switch.flush().unwrap();
        assert!(fs::read(folder.path().join("base.raw")).unwrap() == model);
    }

    #[test]
    fn a_commit_of_files_makes_the_base_as_long() {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
        fs::write(&base, vec![1; 1000]).unwrap();
        let file = new_file(&top, false).unwrap();
        let backing = Some(("base.raw".to_owned(), "raw".to_owned()));
        new_image(&file, &top, &New { backing, ..New::of(5000) }).unwrap();
        drop(file);
        let chain = chain::open(&top, None, &How { writable: true, ..How::default() }).unwrap();
        write_from(&*chain[0].node, 4000, &mut [7]).unwrap();
        commit(&*chain[0].node, "top", &mut |_| {}).unwrap();
        let content = fs::read(&base).unwrap();
        assert_eq!((content.len(), content[999], content[1000], content[4000]), (5000, 1, 0, 7));
    }
}
