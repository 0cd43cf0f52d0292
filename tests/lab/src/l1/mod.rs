//! L1: the host that passthru runs on, seen from the lab: boot it, run commands in
//! it, start guests on it.

mod client;
pub mod guest;
pub mod l2_scripts;
pub mod live;
pub mod session;
mod state;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use client::Stalled;
pub use guest::{Ended, Guest, Vmm};
pub use session::Session;
pub use state::State;

use crate::agent::protocol::{Answer, Command, Op, Output};
use crate::l0::machines::{Clock, Init, Machine};
use crate::l0::{L0, L0_LOG, L1_CONSOLE};
use crate::setup::Image;
use client::Client;

/// Real time from QEMU's start until the agent answers (10 s on an idle machine).
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// The same of a PC that counts instructions.
const COUNTING_BOOT_LIMIT: Duration = Duration::from_secs(300);
/// The same where systemd comes first.
const SYSTEMD_BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long QEMU may take to end after it has closed its sockets.
const EXIT_LIMIT: Duration = Duration::from_secs(2);
/// Real time that an answer may be late after its own limit.
const GRACE: Duration = Duration::from_secs(20);
/// Limit of a command that names none.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Lines of a console that a failure shows: several boots of a quiet guest.
const CONSOLE_LINES: usize = 200;

/// Limit of a guest's whole life.
pub const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// What a VMM that does not end is asked: for each thread its state, its time in user space and in the kernel, and the
/// innermost functions of the kernel that it is in; KVM's counts; at last the latest exits of its vCPUs, with the guest's
/// instruction pointer.
const EVIDENCE: &str = r#"
thread() {
    echo "$(cat $1/comm): $(cut -d ' ' -f 3,14,15 $1/stat) $(sed -n 's/^\[<0>\] \([^+]*\).*/\1/p' $1/stack | head -n 5 | tr '\n' ' ')"
}
for i in 1 2 3; do
    for t in /proc/$pid/task/*; do thread $t; done | grep '^vcpu'
    for t in /proc/$pid/task/*; do thread $t; done | grep -v '^vcpu'
    for n in /sys/kernel/debug/kvm/$pid-*/vcpu0/* /sys/kernel/debug/kvm/*exits /sys/kernel/debug/kvm/irq_*; do
        [ -f $n ] && echo "${n##*/}=$(cat $n)"
    done | tr '\n' ' '
    echo
    grep -e vfio -e kvm /proc/interrupts
    sleep 1
done
t=/sys/kernel/tracing
echo > $t/trace
for event in kvm_exit kvm_userspace_exit; do echo 1 > $t/events/kvm/$event/enable; done
sleep 0.2
for event in kvm_exit kvm_userspace_exit; do echo 0 > $t/events/kvm/$event/enable; done
grep -v '^#' $t/trace | tail -n 16
"#;

/// Programs that L1 gets in `/usr/local/bin`.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The `passthru` to test; without one L1 has none.
    pub passthru: Option<PathBuf>,
}

/// A running L1.
pub struct L1 {
    l0: L0,
    agent: Client,
    machine: &'static Machine,
    image: Image,
    /// Boots of this PC that are over.
    boots: u32,
    jobs: u64,
    scripts: u64,
    /// When the present scenario's time is over.
    deadline: Option<Instant>,
}

/// A background command.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: u64,
    pub pid: u32,
    /// Its console on L0.
    pub console: PathBuf,
}

impl Job {
    /// All that the command has written so far.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl L1 {
    /// Starts the PC and waits for the agent; tries a second time after a stall.
    pub fn boot(image: &Image, machine: &'static Machine, programs: &Programs, folder: &Path) -> Result<Self> {
        match Self::boot_once(image, machine, programs, folder) {
            Err(e) if e.is::<Stalled>() => {
                let again = folder.with_extension("again");
                Self::boot_once(image, machine, programs, &again)
            }
            done => done,
        }
    }

    fn boot_once(image: &Image, machine: &'static Machine, programs: &Programs, folder: &Path) -> Result<Self> {
        let bin = folder.join("share/bin");
        std::fs::create_dir_all(&bin)?;
        std::fs::copy(std::env::current_exe()?, bin.join("lab"))?;
        if let Some(passthru) = &programs.passthru {
            std::fs::copy(passthru, bin.join("passthru"))
                .with_context(|| format!("cannot copy {}", passthru.display()))?;
        }
        for daemon in std::fs::read_dir(image.daemons.join("bin")).context("there are no daemons")? {
            let daemon = daemon?;
            std::fs::copy(daemon.path(), bin.join(daemon.file_name()))?;
        }
        let (l0, agent) = switch_on(image, machine, folder)?;
        let image = image.clone();
        Ok(Self { l0, agent, machine, image, boots: 0, jobs: 0, scripts: 0, deadline: None })
    }

    /// Reboots L1, as its user does: its system goes down in order first, within `limit`. Only for machines with systemd.
    pub fn reboot(&mut self, limit: Duration) -> Result<()> {
        let limit = self.within(limit)?;
        // Later than the agent's answer, since the agent goes down first.
        self.start("sleep 1; exec systemctl --no-block reboot")?;
        let Some(status) = self.l0.ended_within(limit) else {
            bail!("L1 has not gone down within {} s", limit.as_secs());
        };
        ensure!(status.success(), "L0's QEMU ended with {status}");
        self.boot_again()
    }

    /// Takes L1's power away in the midst of what it does, and gives it back: what it has not written to its root is lost.
    /// Only for machines with systemd.
    pub fn power_cut(&mut self) -> Result<()> {
        self.l0.power_off()?;
        self.boot_again()
    }

    /// Switches the same PC on again. Background commands and guests are gone.
    fn boot_again(&mut self) -> Result<()> {
        ensure!(self.machine.init == Init::Systemd, "{} keeps nothing over a boot", self.machine.name);
        self.boots += 1;
        let folder = self.folder().to_owned();
        for console in [L1_CONSOLE, L0_LOG] {
            let (name, extension) = console.rsplit_once('.').unwrap_or((console, "log"));
            std::fs::rename(folder.join(console), folder.join(format!("{name}-boot{}.{extension}", self.boots)))?;
        }
        (self.l0, self.agent) = switch_on(&self.image, self.machine, &folder)?;
        Ok(())
    }

    /// The PC under this L1.
    pub fn l0(&mut self) -> &mut L0 {
        &mut self.l0
    }

    /// Gives everything from now on `limit` of real time; `None` takes the limit away.
    pub fn limit(&mut self, limit: Option<Duration>) {
        self.deadline = limit.map(|l| Instant::now() + l);
    }

    /// `limit`, cut down to what the scenario has left.
    fn within(&self, limit: Duration) -> Result<Duration> {
        let Some(deadline) = self.deadline else {
            return Ok(limit);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the scenario's time limit is over");
        Ok(limit.min(left))
    }

    /// How long an answer may take on L0 that takes `limit` in L1, whose time may be slower.
    fn patience(&self, limit: Duration) -> Duration {
        match self.machine.clock {
            Clock::Host => limit + GRACE,
            Clock::Instructions => 4 * limit + GRACE,
        }
    }

    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// Folder of this L1's consoles on L0; `share` in it is L1's `/share`.
    pub fn folder(&self) -> &Path {
        self.l0.folder()
    }

    /// Runs shell text and returns how it ended, whatever that is.
    pub fn sh(&mut self, text: &str) -> Result<Output> {
        self.sh_within(text, COMMAND_LIMIT)
    }

    /// As [`L1::sh`], with a limit of its own.
    pub fn sh_within(&mut self, text: &str, limit: Duration) -> Result<Output> {
        let limit = self.within(limit)?;
        let op = Op::Run { command: shell(text), timeout_ms: u64::try_from(limit.as_millis())? };
        match self.agent.ask(op, self.patience(limit))? {
            Answer::Ran(output) => Ok(output),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Runs shell text that must succeed; returns its standard output.
    pub fn ok(&mut self, text: &str) -> Result<String> {
        let output = self.sh(text)?;
        ensure!(output.code == 0, "`{text}` in L1 {}", describe(&output));
        Ok(output.stdout)
    }

    /// Runs shell text that must end with `code`; returns both outputs.
    pub fn fails(&mut self, text: &str, code: i32) -> Result<String> {
        let output = self.sh(text)?;
        ensure!(output.code == code, "`{text}` in L1 should end with exit code {code}, but {}", describe(&output));
        Ok(output.stdout + &output.stderr)
    }

    /// Starts shell text in the background.
    pub fn start(&mut self, text: &str) -> Result<Job> {
        self.jobs += 1;
        let name = format!("job{}", self.jobs);
        let op = Op::Start { command: shell(text), name: name.clone() };
        match self.agent.ask(op, COMMAND_LIMIT)? {
            Answer::Started { job, pid } => {
                Ok(Job { id: job, pid, console: self.folder().join(format!("share/jobs/{name}.out")) })
            }
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// The background command's exit code, or `None` if it still runs after `limit`.
    pub fn wait(&mut self, job: &Job, limit: Duration) -> Result<Option<i32>> {
        let limit = self.within(limit)?;
        let op = Op::Wait { job: job.id, timeout_ms: u64::try_from(limit.as_millis())? };
        match self.agent.ask(op, self.patience(limit))? {
            Answer::Waited { code } => Ok(code),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Waits until `text` stands on the background command's console.
    pub fn expect(&mut self, job: &Job, text: &str, limit: Duration) -> Result<()> {
        self.expect_times(job, text, 1, limit)
    }

    /// Waits until `text` stands on the background command's console `times` times.
    pub fn expect_times(&mut self, job: &Job, text: &str, times: usize, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let end = started + limit;
        loop {
            let code = self.wait(job, Duration::from_millis(200))?;
            let console = job.text();
            if console.matches(text).count() >= times {
                client::trace(started, text);
                return Ok(());
            }
            if let Some(code) = code {
                bail!(
                    "it ended with {code} before it said `{text}`:\n{}",
                    crate::report::tail(&console, CONSOLE_LINES)
                );
            }
            ensure!(Instant::now() < end, "`{text}` did not come within {} s", limit.as_secs());
        }
    }

    /// Starts a guest in the background.
    pub fn start_guest(&mut self, guest: &Guest) -> Result<Job> {
        let command = self.prepare(guest)?;
        self.start(&command)
    }

    /// Runs a guest to its end, which must come within the scenario's limit or `GUEST_LIMIT`.
    pub fn guest(&mut self, guest: &Guest) -> Result<Ended> {
        let job = self.start_guest(guest)?;
        self.ended(&job)
    }

    /// Waits until a guest that was started has ended.
    pub fn ended(&mut self, job: &Job) -> Result<Ended> {
        self.ended_within(job, GUEST_LIMIT)
    }

    /// As [`L1::ended`], with a limit of its own. An error says where the VMM's threads are.
    pub fn ended_within(&mut self, job: &Job, limit: Duration) -> Result<Ended> {
        let Some(code) = self.wait(job, limit)? else {
            let evidence = self.what_it_does(job)?;
            let said = crate::report::tail(&job.text(), 30);
            bail!("the guest has not ended within {} s:\n{evidence}\n{said}", limit.as_secs());
        };
        Ok(Ended { code, text: job.text() })
    }

    /// Where the threads of a VMM are, and KVM's counts, three times, the threads of the vCPUs first; and where its vCPUs exit.
    fn what_it_does(&mut self, job: &Job) -> Result<String> {
        Ok(self.sh(&format!("pid={}\n{EVIDENCE}", job.pid))?.stdout)
    }

    /// Puts the guest's script into L1 and returns the command that runs the guest.
    pub fn prepare(&mut self, guest: &Guest) -> Result<String> {
        Ok(guest.command(&self.initrd(guest)?))
    }

    /// Makes the guest's initramfs, with its script, in L1; its file there.
    pub fn initrd(&mut self, guest: &Guest) -> Result<String> {
        self.scripts += 1;
        let name = format!("script{}.cpio", self.scripts);
        std::fs::write(self.folder().join("share").join(&name), guest.archive())?;
        let initrd = format!("/tmp/initrd{}", self.scripts);
        self.ok(&format!("cat {} /share/{name} > {initrd}", guest.base_initramfs()))?;
        Ok(initrd)
    }

    /// Asks the agent for something that takes `limit` at most.
    fn ask(&mut self, op: Op, limit: Duration) -> Result<Answer> {
        let limit = self.within(limit)?;
        self.agent.ask(op, self.patience(limit))
    }

    /// Hands new output of a background command on, line by line, until it has ended; returns
    /// its exit code.
    pub fn follow(&mut self, job: &Job, limit: Duration, mut show: impl FnMut(&str)) -> Result<i32> {
        let end = Instant::now() + limit;
        let mut shown = 0;
        loop {
            let code = self.wait(job, Duration::from_millis(300))?;
            let text = job.text();
            let fresh = text.get(shown..).unwrap_or_default();
            let whole = match code {
                Some(_) => fresh.len(),
                None => fresh.rfind('\n').map_or(0, |at| at + 1),
            };
            show(&fresh[..whole]);
            shown += whole;
            if let Some(code) = code {
                return Ok(code);
            }
            ensure!(Instant::now() < end, "it has not ended within {} s", limit.as_secs());
        }
    }

    /// Sends a signal to a background command and its children.
    pub fn kill(&mut self, job: &Job, signal: nix::sys::signal::Signal) -> Result<()> {
        let op = Op::Kill { job: job.id, signal: signal as i32 };
        self.agent.ask(op, COMMAND_LIMIT).map(drop)
    }

    /// What there is in L1, a line for each fact.
    fn picture(&mut self) -> Result<Vec<String>> {
        match self.agent.ask(Op::Picture, COMMAND_LIMIT)? {
            Answer::Picture(lines) => Ok(lines),
            other => bail!("the agent answered {other:?}"),
        }
    }

    /// Ends every background command.
    pub fn kill_all(&mut self) -> Result<()> {
        self.agent.ask(Op::KillAll, COMMAND_LIMIT).map(drop)
    }
}

/// Starts a PC and waits for the agent of its L1.
fn switch_on(image: &Image, machine: &Machine, folder: &Path) -> Result<(L0, Client)> {
    let mut l0 = L0::start(image, machine, folder)?;
    let limit = match (machine.clock, machine.init) {
        (Clock::Instructions, _) => COUNTING_BOOT_LIMIT,
        (Clock::Host, Init::Systemd) => SYSTEMD_BOOT_LIMIT,
        (Clock::Host, Init::Lab) => BOOT_LIMIT,
    };
    let mut agent = Client::new(l0.connect("agent.sock")?);
    if let Err(e) = agent.ask(Op::Ping, limit) {
        // A PC that has ended will do so again: no stall.
        match l0.ended_within(EXIT_LIMIT) {
            Some(status) => bail!("L0's QEMU ended before L1 was up: {status}"),
            None => {
                eprint!("{}", l0.stall());
                return Err(e);
            }
        }
    }
    Ok((l0, agent))
}

fn shell(text: &str) -> Command {
    Command { argv: vec!["bash".into(), "-c".into(), text.into()], stdin: None }
}

/// "ended with 3:" and what the command wrote, for an error message.
pub fn describe(output: &Output) -> String {
    let how =
        if output.timed_out { "ran into its time limit".to_owned() } else { format!("ended with {}", output.code) };
    let text = format!("{}{}", output.stdout, output.stderr);
    format!("{how}:\n{}", crate::report::tail(&text, 30))
}
