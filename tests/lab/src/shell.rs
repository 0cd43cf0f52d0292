//! `cargo lab shell`: a prompt in L1, or commands in it.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use nix::sys::termios::{self, SetArg, Termios};

use crate::l1::L1;

/// Runs shell text in L1, passes its output on and returns its exit code.
pub fn command(l1: &mut L1, text: &str, limit: Duration) -> Result<i32> {
    let output = l1.sh_within(text, limit)?;
    std::io::stdout().write_all(output.stdout.as_bytes())?;
    std::io::stderr().write_all(output.stderr.as_bytes())?;
    if output.timed_out {
        eprintln!("lab: ended after {} s (--timeout)", limit.as_secs());
    }
    Ok(output.code)
}

/// Joins this terminal and a shell on L1's console `hvc0` until the shell ends.
pub fn interactive(l1: &mut L1) -> Result<i32> {
    let terminal = l1.l0().connect("terminal.sock")?;
    let (rows, columns) = window().filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((24, 80));
    let job = l1.start(&format!(
        "exec setsid --ctty --wait sh -c 'stty sane rows {rows} cols {columns}; cd /root; \
         echo \"L1: passthru is on the PATH, kernels and initramfs images are in /images. Ctrl-D ends L1.\"; \
         TERM=${{TERM:-linux}} PS1=\"L1# \" bash --norc -i' <>/dev/hvc0 >&0 2>&1"
    ))?;
    let _raw = Raw::enter();
    let mut from_l1 = terminal.try_clone()?;
    std::thread::spawn(move || {
        let mut out = std::io::stdout();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from_l1.read(&mut buffer) {
            if out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    let to_l1 = terminal.try_clone()?;
    std::thread::spawn(move || forward_input(to_l1));
    loop {
        if let Some(code) = l1.wait(&job, Duration::from_millis(500))? {
            return Ok(code);
        }
    }
}

/// Sends what is typed; the end of the input becomes Ctrl-D.
fn forward_input(mut to_l1: UnixStream) {
    let mut input = std::io::stdin();
    let mut buffer = [0; 4096];
    loop {
        match input.read(&mut buffer) {
            Ok(n @ 1..) => {
                if to_l1.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            _ => {
                // L1's shell is gone if this fails.
                let _ = to_l1.write_all(b"\x04");
                return;
            }
        }
    }
}

/// Size of the terminal, from the shell's variables or stty(1).
fn window() -> Option<(u16, u16)> {
    let output = std::process::Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The terminal without line editing; put back when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may have gone away; nothing is left to put back then.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}
