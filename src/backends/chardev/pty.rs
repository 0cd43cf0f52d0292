//! `pty`: a pseudo-terminal of its own; programs such as `screen` open its other side.
//!
//! passthru holds the other side open, too: so nothing has to be done, and nothing is lost, when a program comes or goes.
//! What nobody reads is kept up to the bounds of the queue and the terminal, then it is dropped.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::input::Input;
use super::output::Output;
use super::{Attached, Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result, explain_io};
use crate::object::{Create, TypeInfo, props};

/// How long the end of the process waits for a program that may not be there.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<PtyType>();

props! {
    /// A pseudo-terminal, whose name is printed.
    struct PtyProps {
        /// Symbolic link to it that is made; one that is there is replaced
        path: Option<PathBuf>,
    }
}

struct PtyType;

impl Create<Arc<dyn Chardev>, BackendCx> for PtyType {
    const NAME: &'static str = "pty";
    const GROUP: &'static str = "Character back ends";
    type Props = PtyProps;

    fn create(props: PtyProps, cx: &BackendCx) -> Result<Arc<dyn Chardev>> {
        let refuse = |error: io::Error| {
            Error::new(Code::ChardevFailed, "a pseudo-terminal cannot be made").evidence(explain_io(&error))
        };
        let (master, slave, name) = open().map_err(refuse)?;
        let link = props.path.map(|path| Link::new(path, &name)).transpose()?;
        let front = Arc::new(Attached::default());
        let output = Output::to(&name, master.clone(), &front)?;
        let input = Input::new(&cx.event_loop, &front, |_| ());
        input.start_soon(master);
        // QEMU's words, which scripts look for.
        crate::log::note(format_args!("char device redirected to {name} (label {})", cx.name));
        Ok(Arc::new(Pty { output, input, front, name, _slave: slave, _link: link }))
    }
}

/// Both sides of a new pseudo-terminal, in raw mode, and the name of its other side.
fn open() -> io::Result<(Arc<OwnedFd>, File, String)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let slave = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&name)?;
    let mut modes = tcgetattr(&slave)?;
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes)?;
    Ok((Arc::new(master.as_fd().try_clone_to_owned()?), slave, name))
}

struct Pty {
    output: Output,
    input: Input,
    front: Arc<Attached>,
    name: String,
    _slave: File,
    _link: Option<Link>,
}

impl Chardev for Pty {
    fn output(&self) -> Option<&Output> {
        Some(&self.output)
    }

    /// Whether a program reads cannot be known: what none reads is no loss.
    fn flush(&self, limit: Duration) -> bool {
        self.output.flush(limit.min(FLUSH_LIMIT));
        true
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end);
        self.input.resume();
    }

    fn resume(&self) {
        self.input.resume();
    }

    fn peer(&self) -> Peer {
        Peer::always(format!("pty:{}", self.name))
    }
}

/// A symbolic link that goes when its owner does.
struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    fn new(path: PathBuf, target: &str) -> Result<Link> {
        let refuse = |error: io::Error| {
            let cause = format!("the link {} to a pseudo-terminal cannot be made", path.display());
            Error::new(Code::ChardevFailed, cause).evidence(explain_io(&error)).fix("choose another path=")
        };
        // One that a process which was killed has left; any other file stays.
        if is_link(&path) {
            fs::remove_file(&path).map_err(refuse)?;
        }
        symlink(target, &path).map_err(refuse)?;
        Ok(Link { target: target.into(), path })
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_symlink())
}

impl Drop for Link {
    fn drop(&mut self) {
        // Another process may have put its own in the place of it.
        if fs::read_link(&self.path).is_ok_and(|target| target == self.target) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::testing::{Port, cx, event_loop, run_until};
    use super::*;
    use crate::object::Args;

    #[test]
    fn a_program_opens_the_other_side_by_a_link_and_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        symlink("/dev/pts/nobody", &path).unwrap();
        let mut event_loop = event_loop();
        let mut args = Args::parse("--chardev", None, &format!("path={}", path.display())).unwrap();
        let pty = TYPE.create(&mut args, &cx(&event_loop)).unwrap();
        let port = Port::new(100);
        pty.attach(port.weak());
        assert!(pty.peer().place.starts_with("pty:/dev/pts/"));
        for turn in 1..3 {
            let mut program = File::options().read(true).write(true).open(&path).unwrap();
            program.write_all(b"ls\r").unwrap();
            run_until(&mut event_loop, || port.seen() == b"ls\r".repeat(turn));
            pty.write(b"a\nb");
            let mut seen = [0; 3];
            program.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"a\nb", "raw: no echo, no other line ends");
        }
        drop(pty);
        assert!(!is_link(&path));
        fs::write(&path, "a file").unwrap();
        let error = Link::new(path.clone(), "/dev/pts/0").map(drop).unwrap_err();
        assert_eq!(error.code(), Code::ChardevFailed);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }
}
