//! What a device's driver was before passthru changed it, kept in /run/passthru so that a crash loses nothing.
//!
//! One JSON file for each device, replaced as a whole (temporary file, fsync, rename, fsync of the folder) before the
//! first change and before every later step. /run is empty after a reboot, and so are the kernel's driver overrides:
//! the two never disagree. One lock (flock) is held for as long as a `Journal` lives, hence two passthru processes
//! never change drivers at the same time; a process that dies lets go of it.
//!
//! An entry decides what root writes to sysfs. It is therefore believed only if root (or the user who runs passthru)
//! owns it, nobody else can write it, and every name in it is one that a driver can have.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::record::{self, Unreadable, file_name};
use super::{Host, read};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

mod entry;

pub use entry::{Entry, Step};

/// How long another passthru process may hold the lock before it is reported.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often the lock is tried.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The journal, locked for this process.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Host {
    fn journal_folder(&self) -> PathBuf {
        self.run("devices")
    }

    /// What the journal says about a device, without the lock: for lists, not for decisions.
    pub fn journal_entry(&self, bdf: Bdf) -> Result<Option<Entry>> {
        read_entry(&self.journal_folder(), bdf)
    }

    /// The devices that there are entries about, without the lock.
    pub(super) fn noted(&self) -> Vec<Bdf> {
        record::devices(&self.journal_folder())
    }

    /// Whether nothing was ever noted: then there is nothing to undo, and no right to write is needed.
    pub(super) fn journal_is_empty(&self) -> bool {
        read::names(self.journal_folder()).is_empty()
    }
}

impl Journal {
    /// Opens the journal and takes its lock, waiting for another process up to 10 s.
    pub(super) fn open(host: &Host) -> Result<Journal> {
        Journal::open_within(host, LOCK_WAIT)
    }

    fn open_within(host: &Host, wait: Duration) -> Result<Journal> {
        let folder = host.journal_folder();
        record::make_folder(&folder).map_err(|error| unusable(&folder, &error).fix("run it as root"))?;
        for each in [&host.run, &folder] {
            record::check_folder(each).map_err(|error| unreadable(each, &error))?;
        }
        let path = host.run("lock");
        let file = record::open_lock(&path).map_err(|error| unusable(&path, &error).fix("run it as root"))?;
        Ok(Journal { folder, _lock: lock(host, file, &path, wait)? })
    }

    /// The entry of a device, if there is one.
    pub(super) fn read(&self, bdf: Bdf) -> Result<Option<Entry>> {
        read_entry(&self.folder, bdf)
    }

    /// Every file of the journal: its name, and the entry or why it is none.
    pub(super) fn entries(&self) -> Vec<(String, Result<Option<Entry>>)> {
        let names = read::names(&self.folder).into_iter().filter(|name| !name.starts_with('.'));
        names
            .map(|name| {
                let bdf = name.strip_suffix(".json").and_then(|stem| stem.parse::<Bdf>().ok());
                let entry = match bdf.filter(|&bdf| file_name(bdf) == name) {
                    Some(bdf) => self.read(bdf),
                    None => Err(distrusted(&self.folder.join(&name), "it is not named after a device")),
                };
                (name, entry)
            })
            .collect()
    }

    /// Writes an entry; on return it is on disk, whole.
    pub(super) fn write(&self, entry: &Entry) -> Result<()> {
        let path = self.folder.join(file_name(entry.device));
        // What would not be believed when it is read back is refused now, before anything has changed.
        entry.check().map_err(|why| {
            Error::new(Code::JournalUnusable, format!("what {} has now cannot be noted", entry.device))
                .evidence(why)
                .fix("look at its driver and driver_override (`lspci -nnk`, /sys/bus/pci/devices)")
        })?;
        let text = serde_json::to_string_pretty(entry).map_err(io::Error::from);
        text.and_then(|text| record::replace(&self.folder, &file_name(entry.device), &text))
            .map_err(|error| unusable(&path, &error))
    }

    /// Removes an entry, if there is one.
    pub(super) fn remove(&self, bdf: Bdf) -> Result<()> {
        record::remove(&self.folder, &file_name(bdf)).map_err(|error| unusable(&self.folder, &error))
    }
}

fn lock(host: &Host, mut file: File, path: &Path, wait: Duration) -> Result<Flock<File>> {
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < wait => file = back,
            Err((_, Errno::EWOULDBLOCK)) => {
                let error = Error::new(Code::JournalUnusable, "another passthru process is changing drivers");
                let others = host.holders_of(&[path.to_owned()]).processes;
                let others = others.iter().filter(|process| process.pid != std::process::id());
                return Err(others
                    .fold(error, |error, process| error.evidence(format!("{process} has {} open", path.display())))
                    .fix("wait for it; if it hangs, `dmesg` says which driver does not let go of its device"));
            }
            Err((_, errno)) => return Err(unusable(path, &errno.into())),
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn read_entry(folder: &Path, bdf: Bdf) -> Result<Option<Entry>> {
    let path = folder.join(file_name(bdf));
    let text = record::read(&path).map_err(|error| unreadable(&path, &error))?;
    text.map(|text| Entry::parse(&text, bdf).map_err(|why| distrusted(&path, &why))).transpose()
}

fn unreadable(path: &Path, error: &Unreadable) -> Error {
    match error {
        Unreadable::Io(error) => unusable(path, error),
        Unreadable::Distrusted(why) => distrusted(path, why),
    }
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::JournalUnusable, "the journal of driver changes cannot be used").evidence(format!(
        "{}: {}",
        path.display(),
        explain_io(error)
    ))
}

fn distrusted(path: &Path, why: &str) -> Error {
    Error::new(Code::JournalUnusable, "an entry of the journal of driver changes is not to be trusted")
        .evidence(format!("{}: {why}", path.display()))
        .fix("look at that file and at the device's driver (`lspci -nnk`), set the driver right, then remove the file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const FILE: &str = "run/passthru/devices/0000:01:00.0.json";

    fn tree() -> (TestTree, Entry) {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        let entry = Entry::new(&tree.host().device(bdf("01:00.0")).unwrap());
        (tree, entry)
    }

    #[test]
    fn an_entry_is_written_read_and_removed() {
        let (tree, mut entry) = tree();
        let journal = Journal::open(&tree.host()).unwrap();
        assert_eq!(journal.read(entry.device).unwrap(), None);
        journal.write(&entry).unwrap();
        entry.step = Step::Bound;
        journal.write(&entry).unwrap();
        assert_eq!(tree.host().journal_entry(entry.device).unwrap(), Some(entry.clone()));
        assert_eq!(read::names(tree.host().journal_folder()), ["0000:01:00.0.json"]);
        journal.remove(entry.device).unwrap();
        journal.remove(entry.device).unwrap();
        assert!(tree.host().journal_is_empty());
    }

    #[test]
    fn what_cannot_be_trusted_is_reported() {
        let good = r#"{"version":1,"device":"0000:01:00.0","ids":[32902,4307],"ours":true,"former_driver":"e1000e","former_override":null,"step":"bound"}"#;
        let table = [
            ("", "damaged"),
            ("{}", "damaged"),
            (&good[..60], "damaged"),
            (&good.replace("\"version\":1", "\"version\":9"), "version 9"),
            (&good.replace("0000:01", "0000:02"), "it is about 0000:02:00.0"),
            (&good.replace("\"e1000e\"", "\"../../../../etc\""), "cannot be a driver's name"),
            (&good.replace("\"e1000e\"", "\"a\\nb\""), "cannot be a driver's name"),
            (&good.replace("\"e1000e\"", "\"\""), "cannot be a driver's name"),
            (&good.replace("null", "\"..\""), "cannot be a driver's name"),
            (&good.replace("e1000e", &"x".repeat(65)), "cannot be a driver's name"),
            (&good.replace("e1000e", "vfio-pci"), "takes vfio-pci for a host driver"),
            (&good.replace("\"bound\"", "\"format_disk\""), "damaged"),
        ];
        let (tree, entry) = tree();
        let journal = Journal::open(&tree.host()).unwrap();
        for (text, wanted) in table {
            tree.file(FILE, text);
            let error = journal.read(entry.device).unwrap_err();
            assert_eq!(error.code(), Code::JournalUnusable);
            assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        }
        tree.file(FILE, good);
        assert!(journal.read(entry.device).unwrap().is_some());
    }

    #[test]
    fn files_of_others_links_and_strange_names_are_not_read() {
        let (tree, entry) = tree();
        let journal = Journal::open(&tree.host()).unwrap();
        journal.write(&entry).unwrap();
        let path = tree.host().journal_folder().join("0000:01:00.0.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(journal.read(entry.device).unwrap_err().to_string().contains("nobody else can write"));
        fs::remove_file(&path).unwrap();
        tree.file("elsewhere", "{}");
        tree.link(FILE, tree.root().join("elsewhere"));
        assert_eq!(journal.read(entry.device).unwrap_err().code(), Code::JournalUnusable);
        fs::remove_file(&path).unwrap();
        tree.file("run/passthru/devices/01:00.0.json", "{}");
        let entries = journal.entries();
        assert_eq!(entries.len(), 1);
        assert!(entries[0].1.as_ref().unwrap_err().to_string().contains("not named after a device"));
    }

    #[test]
    fn one_process_at_a_time() {
        let (tree, _) = tree();
        let host = tree.host();
        let first = Journal::open(&host).unwrap();
        tree.process(77, "passthru", &[&host.run("lock")]);
        let error = Journal::open_within(&host, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("process 77 (passthru)"), "{error}");
        drop(first);
        Journal::open_within(&host, Duration::ZERO).unwrap();
    }
}
