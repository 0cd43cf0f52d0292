//! `stdio`: the process's standard input and output, a terminal or not. Only one back end has them.
//!
//! A terminal is raw while the back end lives. The end of the input, or an error, ends the input and not the guest.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use parking_lot::Mutex;

use super::input::Input;
use super::output::Output;
use super::{Attached, Chardev, FrontEnd, Peer};
use crate::backends::BackendCx;
use crate::error::{Code, Error, Result};
use crate::event_loop::EventLoop;
use crate::object::{Create, TypeInfo, props};
use crate::terminal::{self, Terminal};

/// The row of the table of character back ends.
pub static TYPE: TypeInfo<Arc<dyn Chardev>, BackendCx> = TypeInfo::of::<StdioType>();

/// The one back end that has standard input. The lock is never held while anything else is called.
static CONSOLE: Mutex<Weak<Stdio>> = Mutex::new(Weak::new());

props! {
    /// Standard input and output.
    struct StdioProps {
        /// Whether Ctrl-C and Ctrl-Z on the terminal are for passthru; off: for the guest
        signal: bool = "on",
    }
}

struct StdioType;

impl Create<Arc<dyn Chardev>, BackendCx> for StdioType {
    const NAME: &'static str = "stdio";
    const GROUP: &'static str = "Character back ends";
    type Props = StdioProps;

    fn create(props: StdioProps, cx: &BackendCx) -> Result<Arc<dyn Chardev>> {
        let stdio: Arc<dyn Chardev> = Stdio::new(props.signal, cx)?;
        Ok(stdio)
    }
}

/// Standard input and output. Dropping it restores the terminal.
struct Stdio {
    output: Output,
    input: Input,
    front: Arc<Attached>,
    terminal: Option<Terminal>,
}

impl Stdio {
    fn new(signals: bool, cx: &BackendCx) -> Result<Arc<Stdio>> {
        let mut console = CONSOLE.lock();
        if console.strong_count() > 0 {
            return Err(Error::new(Code::ChardevFailed, "standard input and output have a character back end already")
                .fix("let several front ends share it: `--chardev stdio,mux=on,id=...`"));
        }
        let failed = |error: io::Error| Error::system("read standard input", &error);
        let fd = match io::stdin().as_fd().try_clone_to_owned() {
            Ok(fd) => Some(Arc::new(fd)),
            // A closed standard input is one without bytes.
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => None,
            Err(error) => return Err(failed(error)),
        };
        let front = Arc::new(Attached::default());
        let output = Output::stdout(&front)?;
        let terminal = fd.as_ref().map_or(Ok(None), |fd| Terminal::open(fd, signals)).map_err(failed)?;
        let input = Input::new(&cx.event_loop, &front, |_| ());
        if let Some(fd) = fd {
            input.start_soon(fd);
        }
        let stdio = Arc::new(Stdio { output, input, front, terminal });
        *console = Arc::downgrade(&stdio);
        Ok(stdio)
    }
}

impl Chardev for Stdio {
    fn output(&self) -> Option<&Output> {
        Some(&self.output)
    }

    fn attach(&self, front_end: Weak<dyn FrontEnd>) {
        self.front.set(front_end);
        self.input.resume();
    }

    fn resume(&self) {
        self.input.resume();
    }

    fn peer(&self) -> Peer {
        Peer::always("stdio")
    }
}

/// Job control, for the event loop's signal callback: stops on SIGTSTP with the terminal restored, and takes the terminal
/// again on SIGCONT, unless the shell has continued the process in the background.
///
/// # Errors
/// The terminal is gone.
pub fn job_control(event_loop: &mut EventLoop, signal: Signal) -> io::Result<()> {
    let console = CONSOLE.lock().upgrade();
    match (signal, console) {
        (Signal::SIGTSTP, _) => terminal::suspend(),
        (Signal::SIGCONT, Some(stdio)) => {
            let Some(terminal) = &stdio.terminal else { return Ok(()) };
            let foreground = terminal.is_foreground();
            if foreground {
                terminal.enter_raw()?;
            }
            // Reading in the background would stop the process (SIGTTIN).
            stdio.input.set_asleep(!foreground, event_loop);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::process::{Command, Stdio as Pipes};

    use nix::fcntl::OFlag;
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::super::testing::{Port, cx, event_loop, run_until, settle};
    use super::super::{CHARDEVS, mux::Mux};
    use super::*;
    use crate::object::Args;

    /// Runs one of the ignored tests below in a process of its own, with the given redirection of a shell: a process has
    /// one standard input.
    fn run_alone(test: &str, redirection: &str) {
        let exe = std::env::current_exe().unwrap();
        let output = Command::new("sh")
            .args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")])
            .arg(exe)
            .args(["--ignored", "--exact", &format!("backends::chardev::stdio::tests::{test}")])
            .stdin(Pipes::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    /// A terminal that is this process's standard input, and its user's side.
    fn terminal() -> File {
        nix::unistd::setsid().unwrap();
        let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        nix::pty::grantpt(&master).unwrap();
        nix::pty::unlockpt(&master).unwrap();
        let slave = File::options().read(true).write(true).open(nix::pty::ptsname_r(&master).unwrap()).unwrap();
        nix::unistd::dup2_stdin(&slave).unwrap();
        let user = master.as_fd().try_clone_to_owned().unwrap();
        // Closing it would end this process by SIGHUP before it can report.
        std::mem::forget(master);
        user.into()
    }

    #[test]
    fn closed_standard_input_ends_quietly() {
        run_alone("closed_input", "<&-");
    }

    #[test]
    #[ignore = "run by closed_standard_input_ends_quietly"]
    fn closed_input() {
        let mut event_loop = event_loop();
        let stdio = Stdio::new(false, &cx(&event_loop)).unwrap();
        let port = Port::new(100);
        stdio.attach(port.weak());
        settle(&mut event_loop);
        assert!(!stdio.input.is_live());
        let mut args = Args::parse("--chardev", Some("backend"), "stdio").unwrap();
        let second = CHARDEVS.take_type(&mut args).unwrap().create(&mut args, &cx(&event_loop)).map(drop);
        assert_eq!(second.unwrap_err().code(), Code::ChardevFailed);
    }

    #[test]
    fn terminal_keys_work_while_the_guest_takes_nothing() {
        run_alone("a_terminal", "");
    }

    #[test]
    #[ignore = "run by terminal_keys_work_while_the_guest_takes_nothing"]
    fn a_terminal() {
        let mut user = terminal();
        let mut event_loop = event_loop();
        let mux = Mux::around(Stdio::new(false, &cx(&event_loop)).unwrap(), event_loop.handle());
        let port = Port::new(0);
        mux.attach(port.weak());
        user.write_all(b"a\x03\x01\x01\x01b").unwrap();
        run_until(&mut event_loop, || port.breaks.load(std::sync::atomic::Ordering::SeqCst) == 1);
        assert!(port.seen().is_empty());
        port.room.store(100, std::sync::atomic::Ordering::SeqCst);
        mux.resume();
        run_until(&mut event_loop, || port.seen() == b"a\x03\x01");
        user.write_all(b"\x01x").unwrap();
        event_loop.run().unwrap();
    }

    #[test]
    fn being_stopped_restores_the_terminal_until_the_process_continues() {
        run_alone("stopped_and_continued", "");
    }

    #[test]
    #[ignore = "run by being_stopped_restores_the_terminal_until_the_process_continues"]
    fn stopped_and_continued() {
        let _user = terminal();
        let is_raw = || !tcgetattr(io::stdin()).unwrap().local_flags.contains(LocalFlags::ICANON);
        let mut event_loop = event_loop();
        let stdio = Stdio::new(false, &cx(&event_loop)).unwrap();
        assert!(is_raw());
        let me = std::process::id();
        let shell = format!("while kill -CONT {me} 2>/dev/null; do sleep 0.05; done");
        let mut waker = Command::new("sh").args(["-c", &shell]).spawn().unwrap();
        job_control(&mut event_loop, Signal::SIGTSTP).unwrap();
        assert!(!is_raw(), "restored before it stopped, and left alone");
        job_control(&mut event_loop, Signal::SIGCONT).unwrap();
        assert!(is_raw(), "it is in the foreground");
        drop(stdio);
        assert!(!is_raw());
        waker.kill().unwrap();
        waker.wait().unwrap();
    }
}
