//! The end that a service manager asks for: the guest's power button, a deadline, and what is told meanwhile.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::l1::{Guest, Job};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("sigterm-power-button", power_button),
    Scenario::new("sigterm-deadline", deadline),
    Scenario::new("sd-notify", sd_notify),
];

/// Starts the button's driver, and ends when the button is pressed.
const LISTEN: &str = "modprobe button; modprobe evdev; echo LAB listens=1\n\
    head -c 24 /dev/input/event0 > /dev/null; echo LAB button=1";

/// Stands in for a service manager: writes each message as lines, with `END` after it.
const MANAGER: &str = "perl -MSocket -e '\
    socket(S, AF_UNIX, SOCK_DGRAM, 0) or die; bind(S, sockaddr_un(\"/tmp/notify\")) or die; $| = 1; print \"BOUND\\n\";\
    while (defined recv(S, $m, 4096, 0)) { print \"${m}END\\n\" }'";

const BOOT: Duration = Duration::from_secs(120);

fn start(lab: &mut Lab, environment: &str, guest: &Guest) -> Result<Job> {
    let command = lab.l1.prepare(guest)?;
    lab.l1.start(&format!("{environment} {command}"))
}

/// The guest has no driver for the button when it is pressed first: it is pressed again, and the guest shuts down.
fn power_button(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new().fat().option("--shutdown-timeout 120").script("echo LAB up=1; sleep 4").script(LISTEN);
    let job = start(lab, "", &guest)?;
    lab.l1.expect(&job, "LAB up=1", BOOT)?;
    lab.l1.kill(&job, Signal::SIGTERM)?;
    let ended = lab.l1.ended(&job)?.success()?;
    ended.expect("LAB button=1")?.lacks("is ended")?;
    Ok(())
}

/// A guest that does not listen is ended when its time is over, one that is not asked at once.
fn deadline(lab: &mut Lab) -> Result<()> {
    for (seconds, told) in [(3, true), (0, false)] {
        let option = format!("--shutdown-timeout {seconds}");
        let job = start(lab, "", &Guest::new().option(&option).script("echo LAB up=1; sleep 1000"))?;
        lab.l1.expect(&job, "LAB up=1", BOOT)?;
        lab.l1.kill(&job, Signal::SIGTERM)?;
        let ended = lab.l1.ended_within(&job, Duration::from_secs(60))?.success()?;
        let says = ended.text.contains("the guest did not power off within 3 s and is ended");
        ensure!(says == told, "{option}: {}", crate::report::tail(&ended.text, 10));
    }
    Ok(())
}

/// A service says that it is ready when its guest runs, feeds the watchdog, and says that it stops.
fn sd_notify(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("rm -f /tmp/notify")?;
    let manager = lab.l1.start(MANAGER)?;
    lab.l1.expect(&manager, "BOUND", BOOT)?;
    let environment = "NOTIFY_SOCKET=/tmp/notify WATCHDOG_USEC=1000000";
    let job = start(lab, environment, &Guest::new().fat().script(LISTEN))?;
    lab.l1.expect(&manager, "READY=1\nEND", BOOT)?;
    lab.l1.expect(&job, "LAB listens=1", BOOT)?;
    lab.l1.expect_times(&manager, "WATCHDOG=1\nEND", 4, BOOT)?;
    // As systemd does: to the main process alone.
    lab.l1.ok(&format!("kill -TERM {}", job.pid))?;
    lab.l1.ended(&job)?.success()?.expect("LAB button=1")?;
    let told = manager.text();
    for message in ["STATUS=Running; devices of the host: 0", "STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000"] {
        ensure!(told.contains(message), "`{message}` was not told:\n{told}");
    }
    ensure!(told.matches("READY=1").count() == 1, "ready more than once:\n{told}");
    lab.l1.kill(&manager, Signal::SIGTERM)
}
