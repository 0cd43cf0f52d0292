//! Where the control socket of every guest is, without being asked for: [`SOCKET`] in a folder of the guest's name, which
//! only the user who runs it enters.
//!
//! | who runs it | folder |
//! |---|---|
//! | a service whose unit has `RuntimeDirectory=passthru/vm/NAME` | that one |
//! | root | `/run/passthru/vm/NAME` |
//! | another user with a session | `$XDG_RUNTIME_DIR/passthru/vm/NAME` |
//!
//! A lock in the folder says whether the guest lives: what a killed process has left is taken over.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Code, Error, Result, explain_io};
use crate::host::{Host, record};

/// The socket's file.
pub const SOCKET: &str = "qmp.sock";
/// Held by the process that has the folder.
const LOCK: &str = "lock";
/// Below `/run/passthru` and `$XDG_RUNTIME_DIR/passthru`.
const FOLDER: &str = "vm";
/// What an unnamed guest is called, before the number of its process.
const UNNAMED: &str = "guest-";
/// The longest name of a folder in bytes: a socket's path has 107 at most.
const MAX_NAME: usize = 64;
/// How often a folder is taken again that its last owner removes just then.
const TRIES: u32 = 5;

/// Who asks, and where such folders may be.
#[derive(Debug, Clone)]
pub struct Folders {
    /// `/run/passthru/vm`.
    system: PathBuf,
    /// The folder that the service manager has made.
    service: Option<PathBuf>,
    /// That of the user's session.
    session: Option<PathBuf>,
    root: bool,
}

impl Folders {
    /// Of this process.
    pub fn of_process(host: &Host) -> Folders {
        let system = host.run(FOLDER);
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let service = host.service_folder().map(Path::to_owned);
        let session = variable("XDG_RUNTIME_DIR").map(|path| path.join("passthru").join(FOLDER));
        Folders { system, service, session, root: nix::unistd::geteuid().is_root() }
    }

    /// The folder of a guest of this name; `None`: there is no place that the user may write to.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        let base = if self.root { Some(&self.system) } else { self.session.as_ref() };
        self.service.clone().or_else(|| Some(base?.join(name)))
    }

    /// The folders of all guests that this user may know of, each with its name, by names. Some may be left behind.
    pub fn all(&self) -> Vec<(String, PathBuf)> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for base in [Some(&self.system), self.session.as_ref()].into_iter().flatten() {
            let folders = fs::read_dir(base).into_iter().flatten().flatten();
            found.extend(folders.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))));
        }
        found.sort();
        found
    }

    /// Takes the folder of a guest, with `None` of one that has no name. No folder: a warning has said why.
    ///
    /// # Errors
    /// [`Code::NameTaken`] if a guest of this name runs.
    pub fn claim(&self, name: Option<&str>) -> Result<Option<Folder>> {
        let name = match name {
            Some(name) => file_name(name),
            None => format!("{UNNAMED}{}", std::process::id()),
        };
        let Some(folder) = self.folder(&name) else {
            crate::log::warn(format_args!("there is no control socket: XDG_RUNTIME_DIR is not set"));
            return Ok(None);
        };
        if let Some(base) = folder.parent() {
            sweep(base);
        }
        match take(&folder) {
            Ok(lock) => Ok(Some(Folder { folder, _lock: lock })),
            Err(error) if error.raw_os_error() == Some(Errno::EWOULDBLOCK as i32) => {
                Err(Error::new(Code::NameTaken, format!("a guest called {name} runs already"))
                    .evidence(format!("its process has locked {}", folder.join(LOCK).display()))
                    .fix("give this one another name with `--name`, or end the other: `passthru list` shows it"))
            }
            Err(error) => {
                let why = explain_io(&error);
                crate::log::warn(format_args!("there is no control socket: {}: {why}", folder.display()));
                Ok(None)
            }
        }
    }
}

/// A name as one of a file: what could be another path or would not be readable becomes `_`.
fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let name: String = name.chars().take(MAX_NAME).map(|c| if plain(c) { c } else { '_' }).collect();
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if name.is_empty() => "_".to_owned(),
        None => name,
    }
}

/// Makes the folder if it is not there, and takes its lock.
fn take(folder: &Path) -> io::Result<Flock<File>> {
    for _ in 0..TRIES {
        if let Some(base) = folder.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(base)?;
        }
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let meta = fs::symlink_metadata(folder)?;
        if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other("it is no folder of this user"));
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        let path = folder.join(LOCK);
        let file = match record::open_lock(&path) {
            // The last owner has removed the folder meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let opened = file.metadata()?.ino();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
        // Locked, but removed by the last owner before that: nobody else would find it.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.ino() == opened) {
            return Ok(lock);
        }
    }
    Err(Errno::EWOULDBLOCK.into())
}

/// Removes what unnamed guests have left that were killed: their processes are not there any more.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(UNNAMED)?.parse::<u32>().ok());
        if number.is_some_and(|number| !Path::new("/proc").join(number.to_string()).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes the folder with what is known to be in it, and nothing else. It may be another's, or the service manager's.
fn remove(folder: &Path) {
    let _ = fs::remove_file(folder.join(SOCKET));
    let _ = fs::remove_file(folder.join(LOCK));
    let _ = fs::remove_dir(folder);
}

/// The folder of a guest that runs. Dropping it removes it.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Folder {
    /// Where the socket is to be.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    /// The name by which the guest is found.
    pub fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(root: &Path) -> Folders {
        Folders { system: root.join("run/vm"), service: None, session: Some(root.join("session/vm")), root: false }
    }

    #[test]
    fn a_name_is_taken_once_and_free_when_its_guest_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let folders = folders(folder.path());
        let first = folders.claim(Some("router")).unwrap().unwrap();
        assert_eq!(first.socket(), folder.path().join("session/vm/router/qmp.sock"));
        let mode = fs::metadata(first.socket().parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "only its user enters it");
        assert_eq!(folders.claim(Some("router")).unwrap_err().code(), Code::NameTaken);
        let other = folders.claim(None).unwrap().unwrap();
        assert_eq!(other.name(), format!("guest-{}", std::process::id()));
        let names: Vec<String> = folders.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [other.name(), "router"]);
        drop(first);
        assert!(!folder.path().join("session/vm/router").exists());
        folders.claim(Some("router")).unwrap().unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over_or_swept() {
        let folder = tempfile::tempdir().unwrap();
        let folders = folders(folder.path());
        let base = folder.path().join("session/vm");
        // No process has this number: the kernel's highest is 2^22.
        for name in ["router", "guest-4194305", "guest-1"] {
            fs::create_dir_all(base.join(name)).unwrap();
            fs::write(base.join(name).join(LOCK), "").unwrap();
        }
        fs::set_permissions(base.join("router"), fs::Permissions::from_mode(0o755)).unwrap();
        let router = folders.claim(Some("router")).unwrap().unwrap();
        let names: Vec<String> = folders.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["guest-1", "router"]);
        let mode = fs::metadata(base.join("router")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "the service manager's folder may have been open");
        drop(router);
    }

    #[test]
    fn who_runs_it_decides_on_the_folder() {
        let (system, session) = (PathBuf::from("/run/passthru/vm"), PathBuf::from("/run/user/7/passthru/vm"));
        let user = Folders { system: system.clone(), service: None, session: Some(session.clone()), root: false };
        assert_eq!(user.folder("a"), Some(session.join("a")));
        assert_eq!(Folders { root: true, ..user.clone() }.folder("a"), Some(system.join("a")));
        let service = Some(system.join("b"));
        assert_eq!(Folders { service: service.clone(), ..user.clone() }.folder("a"), service);
        let nowhere = Folders { session: None, ..user };
        assert!(nowhere.folder("a").is_none() && nowhere.claim(None).unwrap().is_none());
    }

    #[test]
    fn a_folder_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("session/vm");
        fs::create_dir_all(&base).unwrap();
        std::os::unix::fs::symlink(folder.path(), base.join("link")).unwrap();
        assert!(folders(folder.path()).claim(Some("link")).unwrap().is_none());
        assert!(base.join("link").is_symlink());
    }

    #[test]
    fn names_become_names_of_files() {
        for (name, file) in [
            ("router", "router"),
            ("my vm", "my_vm"),
            ("../../etc", "_._.._etc"),
            (".", "_"),
            ("", "_"),
            ("a@b.c-d", "a@b.c-d"),
            ("grüße", "gr__e"),
        ] {
            assert_eq!(file_name(name), file, "{name}");
        }
        assert_eq!(file_name(&"x".repeat(500)).len(), MAX_NAME);
    }
}
