//! Standard input of every kind, with real descriptors. (The terminal's part is tested in a process of its own by
//! `a_terminal`, because a process has one terminal.)

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, Stdio as Pipes};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use nix::sys::termios::{LocalFlags, tcgetattr};
use parking_lot::Mutex;

use super::*;
use crate::backends::chardev::Null;
use crate::event_loop::LoopHandle;

/// A port that keeps its input, takes a limited amount at once, and stops the loop at a given number of bytes.
struct Port {
    bytes: Mutex<Vec<u8>>,
    room: AtomicUsize,
    breaks: AtomicUsize,
    stop_at: usize,
    event_loop: LoopHandle,
}

impl CharInput for Port {
    fn room(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }

    fn input(&self, bytes: &[u8]) {
        self.room.fetch_sub(bytes.len().min(self.room()), Ordering::SeqCst);
        let mut seen = self.bytes.lock();
        seen.extend_from_slice(bytes);
        if seen.len() >= self.stop_at {
            self.event_loop.stop();
        }
    }

    fn input_break(&self) {
        self.breaks.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    event_loop: EventLoop,
    port: Arc<Port>,
    room: RoomSignal,
    stdio: Stdio,
}

impl Bench {
    fn new(fd: impl AsFd, room: usize, stop_at: usize) -> Bench {
        let mut event_loop = EventLoop::new(|_, signal| panic!("{signal}")).unwrap();
        let port = Arc::new(Port {
            bytes: Mutex::default(),
            room: room.into(),
            breaks: AtomicUsize::new(0),
            stop_at,
            event_loop: event_loop.handle(),
        });
        let signal = RoomSignal::new().unwrap();
        let input = Arc::clone(&port) as Arc<dyn CharInput>;
        let stdio = Stdio::attach(&mut event_loop, fd, input, signal.clone(), Arc::new(Null), EventLoop::stop).unwrap();
        Bench { event_loop, port, room: signal, stdio }
    }

    fn run(&mut self) {
        self.event_loop.run().unwrap();
    }

    /// Runs the loop for as long as there is something to do.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.event_loop.handle().post(|event_loop| event_loop.handle().stop());
            self.run();
        }
    }

    fn mode(&self) -> Mode {
        self.stdio.reader.borrow().mode
    }

    fn seen(&self) -> Vec<u8> {
        self.port.bytes.lock().clone()
    }
}

#[test]
fn pipe_and_its_end() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut bench = Bench::new(reader, 100, 5);
    let mut writer = File::from(writer);
    writer.write_all(b"h\x01xlo").unwrap();
    bench.run();
    assert_eq!(bench.seen(), b"h\x01xlo", "no escape keys in a pipe");
    drop(writer);
    bench.settle();
    assert_eq!(bench.mode(), Mode::Ended);
}

#[test]
fn pipe_waits_for_room_and_loses_nothing() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut bench = Bench::new(reader, 3, 10);
    File::from(writer).write_all(b"0123456789").unwrap();
    bench.settle();
    assert_eq!(bench.seen(), b"012");
    bench.port.room.store(100, Ordering::SeqCst);
    bench.room.raise();
    bench.run();
    assert_eq!(bench.seen(), b"0123456789");
    bench.settle();
    assert_eq!(bench.mode(), Mode::Ended);
}

#[test]
fn regular_file_is_read_in_steps_as_there_is_room() {
    let bytes: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file.rewind().unwrap();
    let mut bench = Bench::new(&file, 600, usize::MAX);
    assert_eq!(bench.mode(), Mode::Direct);
    bench.settle();
    assert_eq!(bench.seen(), bytes[..600]);
    bench.port.room.store(10_000, Ordering::SeqCst);
    bench.room.raise();
    bench.settle();
    assert_eq!(bench.seen(), bytes);
    assert_eq!(bench.mode(), Mode::Ended);
}

#[test]
fn inputs_without_bytes_end_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let write_only = File::create(folder.path().join("file")).unwrap();
    for file in [File::open("/dev/null").unwrap(), File::open(folder.path()).unwrap(), write_only] {
        let mut bench = Bench::new(file, 100, usize::MAX);
        bench.settle();
        assert_eq!(bench.mode(), Mode::Ended);
        assert!(bench.seen().is_empty());
        bench.room.raise();
        bench.settle();
    }
}

/// Runs one of the ignored tests below in a process of its own, with the given redirection of a shell.
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

#[test]
fn closed_standard_input_ends_quietly() {
    run_alone("closed_input", "<&-");
}

#[test]
#[ignore = "run by closed_standard_input_ends_quietly"]
fn closed_input() {
    let mut bench = Bench::new(std::io::stdin(), 100, usize::MAX);
    bench.settle();
    assert_eq!(bench.mode(), Mode::Ended);
}

#[test]
fn terminal_keys_work_while_the_guest_takes_nothing() {
    run_alone("a_terminal", "");
}

#[test]
#[ignore = "run by terminal_keys_work_while_the_guest_takes_nothing"]
fn a_terminal() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut bench = Bench::new(&pty.slave, 0, 3);
    let mut user = File::from(pty.master);
    user.write_all(b"a\x03\x01\x01").unwrap();
    bench.run();
    assert_eq!(bench.seen(), b"a\x03\x01", "raw: Ctrl-C is the guest's");
    user.write_all(b"\x01b\x01x").unwrap();
    bench.run();
    assert_eq!(bench.port.breaks.load(Ordering::SeqCst), 1);
    assert!(matches!(bench.mode(), Mode::Polled(_)), "Ctrl-A x ends passthru, not the input");
    drop(user);
    bench.settle();
    assert_eq!(bench.mode(), Mode::Ended, "the terminal has hung up");
}

#[test]
fn being_stopped_restores_the_terminal_until_the_process_continues() {
    run_alone("job_control", "");
}

#[test]
#[ignore = "run by being_stopped_restores_the_terminal_until_the_process_continues"]
fn job_control() {
    // A session of its own, whose controlling terminal the first one to be opened becomes.
    nix::unistd::setsid().unwrap();
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let slave = File::options().read(true).write(true).open(nix::pty::ptsname_r(&master).unwrap()).unwrap();
    let is_raw = || !tcgetattr(&slave).unwrap().local_flags.contains(LocalFlags::ICANON);

    let Bench { mut event_loop, stdio, .. } = Bench::new(&slave, 0, 1);
    assert!(is_raw());
    let me = std::process::id();
    let shell = format!("while kill -CONT {me} 2>/dev/null; do sleep 0.05; done");
    let mut waker = Command::new("sh").args(["-c", &shell]).spawn().unwrap();
    stdio.job_control(&mut event_loop, Signal::SIGTSTP).unwrap();
    assert!(!is_raw(), "restored before it stopped, and left alone");
    stdio.job_control(&mut event_loop, Signal::SIGCONT).unwrap();
    assert!(is_raw(), "it is in the foreground");
    drop(stdio);
    assert!(!is_raw(), "although the loop still holds the callbacks");
    waker.kill().unwrap();
    waker.wait().unwrap();
    // Closing it would end this process by SIGHUP before it can report.
    std::mem::forget(master);
}
