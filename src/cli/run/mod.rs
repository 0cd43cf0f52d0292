//! `passthru run`: QEMU's words for a guest, from the command line to [`RunOptions`].

mod implied;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args as _, Command, FromArgMatches};
use uuid::Uuid;

use super::bind::Profile;
use super::{Platform, output};
use crate::error::{Code, Error, Result};
use crate::machine::options::{RunOptions, action, cpu, drive, memory, mon, numa, placement, serial, smp};
use crate::monitor::options as qmp;
use crate::object::{Args, Catalogue, HelpTopic, Kind, Props, options_help, props};

/// Run a guest that owns devices of this host
///
/// The options are QEMU's and may be written as QEMU takes them, with one dash (-kernel) or two. TYPE,KEY=VALUE lists
/// may also be JSON objects; a comma in a value is written twice.
///
/// `-M help`, `--device help`, `--object help`, `--chardev help`, `--blockdev help` and `--netdev help` list
/// the types, `--device TYPE,help` and so on a type's properties; `-m help`,
/// `--smp help`, `--cpu help` and `--qmp help` list what those options take.
///
/// The guest's console is the terminal: Ctrl-A x ends passthru, Ctrl-A h shows the keys. When the guest powers off, the
/// exit code is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RunArgs {
    /// VM file whose keys are these options: NAME stands for /etc/passthru/NAME.toml, a word with a `/` or `.toml` for
    /// itself. Options on the command line come on top: they replace the file's, or add to those that may be repeated
    #[arg(value_name = "NAME")]
    vm: Option<String>,
    /// Linux kernel: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Memory of the guest; a bare number is MiB
    #[arg(short, long, value_name = "SIZE[,KEY=VALUE...]")]
    memory: Option<String>,
    /// Number of CPUs, and how they form sockets, cores and threads
    #[arg(long, value_name = "CPUS[,KEY=VALUE...]")]
    smp: Option<String>,
    /// CPUs of the host for the guest's: off, the kernel's choice; auto, whole cores near the devices (`passthru plan` shows
    /// them); or a list such as 2-5,10-13, whose rest is for the other threads
    #[arg(long, value_name = "off|auto|LIST", default_value = "off")]
    cpu_placement: String,
    /// CPU model: host or max, then +FEATURE and -FEATURE
    #[arg(long, value_name = "MODEL[,+FEATURE][,-FEATURE...]")]
    cpu: Option<String>,
    /// Type of the machine
    #[arg(short = 'M', long, value_name = "TYPE[,KEY=VALUE...]")]
    machine: Option<String>,
    /// A memory node of the guest's, with its memory and its processors, or how far one is from another; may be given many
    /// times
    #[arg(long, value_name = "node|dist,KEY=VALUE...", action = ArgAction::Append)]
    numa: Vec<String>,
    /// Adds a device; may be given many times
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", action = ArgAction::Append)]
    device: Vec<String>,
    /// Adds an object that devices name; may be given many times
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", action = ArgAction::Append)]
    object: Vec<String>,
    /// Adds a character back end; may be given many times
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", action = ArgAction::Append)]
    chardev: Vec<String>,
    /// Adds a node to the graph of block back ends; may be given many times
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", action = ArgAction::Append)]
    blockdev: Vec<String>,
    /// Adds a disk: a node of --blockdev, with if=virtio its device as well; may be given many times
    #[arg(long, value_name = "KEY=VALUE...", action = ArgAction::Append)]
    drive: Vec<String>,
    /// Adds a network back end; may be given many times
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", action = ArgAction::Append)]
    netdev: Vec<String>,
    /// Where a serial port goes, the first by default to stdio; given up to four times: stdio, pty, file:PATH, unix:PATH, tcp:HOST:PORT, chardev:ID, null (attached to nothing) or
    /// none (no port)
    #[arg(long, value_name = "TO", action = ArgAction::Append)]
    serial: Vec<String>,
    /// Socket by which programs control the running guest (QMP); may be given many times
    #[arg(long, value_name = "unix:PATH[,wait=off]", action = ArgAction::Append)]
    qmp: Vec<String>,
    /// Monitor for people: where --serial can go, too. On a terminal, and with mon: in front of what --serial has, Ctrl-A c
    /// goes from the console to a monitor
    #[arg(long, value_name = "TO", action = ArgAction::Append)]
    monitor: Vec<String>,
    /// Monitor on a character back end: for people, or for programs (QMP)
    #[arg(long, value_name = "ID[,mode=readline|control]", action = ArgAction::Append)]
    mon: Vec<String>,
    /// Let the guest's processors stand still at first: `cont` of a monitor starts them
    #[arg(short = 'S', long)]
    paused: bool,
    /// End when the guest reboots: --action reboot=shutdown
    #[arg(long)]
    no_reboot: bool,
    /// Stay when the guest powers off, until a monitor's system_reset or quit: --action shutdown=pause
    #[arg(long)]
    no_shutdown: bool,
    /// What is done when the guest reboots or powers off, has panicked (pvpanic-pci), or does not write to its watchdog
    /// (i6300esb)
    #[arg(long, value_name = "KEY=WORD...", action = ArgAction::Append)]
    action: Vec<String>,
    /// How long the guest has to power off, in seconds, when SIGTERM asks for its end: its power button is pressed, and
    /// again every 10 seconds. 0 ends it at once. Default: 60 as a service (NOTIFY_SOCKET is set), else 0
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=MAX_SHUTDOWN))]
    shutdown_timeout: Option<u32>,
    /// Writes what the start spends its time on to this file, as JSON
    #[arg(long, value_name = "FILE")]
    boot_trace: Option<PathBuf>,
    /// Writes the process's number to this file while it runs
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// For `passthru bind --vm`, which takes the devices before: single-gpu stops the desktop that is on the card
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Say what was chosen, and why: by which kernel interface each device is opened
    #[arg(long)]
    verbose: bool,
    /// Name of the guest
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Number that the guest is known by; `query-uuid` of a monitor tells it
    #[arg(long, value_name = "UUID")]
    uuid: Option<Uuid>,
    #[command(flatten)]
    _implied: implied::Implied,
}

/// The longest that a guest may have to power off, in seconds: a systemd service says it in microseconds, in 32 bits.
const MAX_SHUTDOWN: i64 = 3600;

const EXAMPLES: &str = "\
Example:
  passthru bind 01:00.0
  passthru run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 \\
      -m 4G --smp 4 --device vfio-pci,host=01:00.0";

/// Prints the help that was asked for, or else runs the guest.
pub(super) fn execute(args: RunArgs, platform: &dyn Platform) -> Result<()> {
    let given = Given::read(&args, platform)?;
    if let Some(help) = given.help(platform)? {
        return output::print(&help);
    }
    platform.run(given.options(args, platform.devices().key())?)
}

/// Whether `word`, an option with its value, is one that a guest can be started with, as far as the host does not matter.
pub(super) fn check(word: OsString, platform: &dyn Platform) -> Result<()> {
    let is_kernel = word.as_encoded_bytes().starts_with(b"--kernel");
    let kernel = if is_kernel { None } else { Some("--kernel=x".into()) };
    let argv = std::iter::once("run".into()).chain(kernel).chain([word]);
    let matches = RunArgs::augment_args(Command::new("run")).try_get_matches_from(argv);
    let args = matches.and_then(|matches| RunArgs::from_arg_matches(&matches));
    let args = args.map_err(|error| output::usage_error(&error, "passthru run"))?;
    Given::read(&args, platform)?.options(args, platform.devices().key()).map(drop)
}

/// The options that these words, as a VM file has them, describe; a kernel need not be among them.
pub(super) fn of_words(words: impl Iterator<Item = OsString>, platform: &dyn Platform) -> Result<RunOptions> {
    let matches =
        RunArgs::augment_args(Command::new("run")).try_get_matches_from(std::iter::once("run".into()).chain(words));
    let args = matches.and_then(|matches| RunArgs::from_arg_matches(&matches));
    let args = args.map_err(|error| output::usage_error(&error, "passthru run"))?;
    Ok(described(args, platform)?.0)
}

/// Whether passthru does by itself what the option called `long` says.
pub(super) fn is_implied(long: &str) -> bool {
    implied::has(long)
}

/// Whether the option called `long` says how QEMU's process runs, not what the guest is.
pub(super) fn is_of_process(long: &str) -> bool {
    long == "pidfile" || implied::is_of_process(long)
}

/// The options of a guest that is only looked at: it may be described in part. Whether a kernel is among them.
pub(super) fn described(mut args: RunArgs, platform: &dyn Platform) -> Result<(RunOptions, bool)> {
    let kernel = args.kernel.is_some();
    args.kernel.get_or_insert_default();
    Ok((Given::read(&args, platform)?.options(args, platform.devices().key())?, kernel))
}

/// The error for a guest that is described without a kernel.
pub(super) fn no_kernel() -> Error {
    Error::new(Code::Usage, "`passthru run` needs the guest's kernel").fix("give it with `--kernel FILE`")
}

impl RunArgs {
    /// The positional argument, which can be a device's address where it is no VM file's name.
    pub(super) fn vm(&self) -> Option<&str> {
        self.vm.as_deref()
    }
}

/// The options that have properties of their own, split into these.
struct Given {
    memory: Args,
    smp: Args,
    cpu: Args,
    machine: Args,
    devices: Vec<Args>,
    drives: Vec<Args>,
    qmp: Vec<Args>,
    mon: Vec<Args>,
    numa: Vec<Args>,
    back_ends: BTreeMap<Kind, Vec<Args>>,
    action: Args,
    name: Args,
}

props! {
    /// The guest's name.
    struct Name {
        /// Name of the guest
        guest: Option<String>,
        /// QEMU's word: threads have names anyway
        debug_threads: bool = "on",
    }
}

impl Given {
    fn read(args: &RunArgs, platform: &dyn Platform) -> Result<Given> {
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let device = |text: &String| Args::parse("--device", Some(platform.devices().key()), text);
        let back_ends = |kind: Kind| {
            let parse = |text: &String| Args::parse(kind.option(), Some(platform.back_ends(kind).key()), text);
            let lines = match kind {
                Kind::Object => &args.object,
                Kind::Chardev => &args.chardev,
                Kind::Node => &args.blockdev,
                Kind::Netdev => &args.netdev,
            };
            Ok((kind, lines.iter().map(parse).collect::<Result<Vec<Args>>>()?))
        };
        let machine = platform.machines().key();
        let qmp = |text: &String| Args::parse("--qmp", Some(qmp::IMPLIED), text);
        let mon = |text: &String| Args::parse("--mon", Some(mon::IMPLIED), text);
        let numa = |text: &String| Args::parse("--numa", Some(numa::IMPLIED), text);
        Ok(Given {
            memory: Args::parse("-m", Some("size"), &text(&args.memory))?,
            smp: Args::parse("--smp", Some("cpus"), &text(&args.smp))?,
            cpu: Args::parse("--cpu", Some("model"), &text(&args.cpu))?,
            machine: Args::parse("-M", Some(machine), &text(&args.machine))?.with_default(machine, "q35"),
            devices: args.device.iter().map(device).collect::<Result<_>>()?,
            drives: args.drive.iter().map(|text| Args::parse("--drive", None, text)).collect::<Result<_>>()?,
            qmp: args.qmp.iter().map(qmp).collect::<Result<_>>()?,
            mon: args.mon.iter().map(mon).collect::<Result<_>>()?,
            numa: args.numa.iter().map(numa).collect::<Result<_>>()?,
            back_ends: Kind::ALL.into_iter().map(back_ends).collect::<Result<_>>()?,
            action: Args::parse("--action", None, &args.action.join(","))?,
            name: Args::parse("--name", Some("guest"), &text(&args.name))?,
        })
    }

    /// The help text that any of the options asks for.
    fn help(&self, platform: &dyn Platform) -> Result<Option<String>> {
        let of_type = |args: &Args, catalogue: &dyn Catalogue| match args.help_topic(catalogue.key()) {
            None => Ok(None),
            Some(HelpTopic::List) => Ok(Some(catalogue.help())),
            Some(HelpTopic::Type(name)) => catalogue.help_for(name).map(Some),
        };
        for device in &self.devices {
            if let Some(help) = of_type(device, platform.devices())? {
                return Ok(Some(help));
            }
        }
        for (kind, lines) in &self.back_ends {
            for line in lines {
                if let Some(help) = of_type(line, platform.back_ends(*kind))? {
                    return Ok(Some(help));
                }
            }
        }
        if let Some(help) = of_type(&self.machine, platform.machines())? {
            return Ok(Some(help));
        }
        let asks = |args: &Args, implied| args.help_topic(implied).is_some();
        Ok(if asks(&self.memory, "size") {
            Some(memory::help())
        } else if asks(&self.smp, "cpus") {
            Some(smp::help())
        } else if asks(&self.cpu, "model") {
            Some(cpu::help())
        } else if self.drives.iter().any(|args| asks(args, "file")) {
            Some(drive::help())
        } else if self.qmp.iter().any(|args| asks(args, qmp::IMPLIED)) {
            Some(qmp::help())
        } else if self.mon.iter().any(|args| asks(args, mon::IMPLIED)) {
            Some(mon::help())
        } else if self.numa.iter().any(|args| asks(args, numa::IMPLIED)) {
            Some(numa::help())
        } else if asks(&self.action, "panic") {
            Some(action::help())
        } else if asks(&self.name, "guest") {
            Some(options_help("--name options", &[Name::TABLE]))
        } else {
            None
        })
    }

    fn options(mut self, args: RunArgs, device_key: &'static str) -> Result<RunOptions> {
        let nodes = drive::apply(std::mem::take(&mut self.drives), device_key, &mut self.devices)?;
        self.back_ends.entry(Kind::Node).or_default().extend(nodes);
        let (chardevs, devices) = serial::more(&args.serial, device_key)?;
        self.back_ends.entry(Kind::Chardev).or_default().extend(chardevs);
        self.devices.extend(devices);
        let kernel = args.kernel.ok_or_else(no_kernel)?;
        Ok(RunOptions {
            kernel,
            initrd: args.initrd,
            append: args.append.unwrap_or_default(),
            memory: memory::parse(self.memory)?,
            smp: smp::parse(self.smp)?,
            placement: placement::parse(&args.cpu_placement)?,
            cpu: cpu::parse(self.cpu)?,
            machine: self.machine,
            numa: numa::parse(self.numa)?,
            devices: self.devices,
            back_ends: self.back_ends,
            serial: serial::parse(args.serial.first().map_or("stdio", String::as_str))?,
            qmp: self.qmp.into_iter().map(qmp::parse).collect::<Result<_>>()?,
            monitors: mon::parse(&args.monitor, self.mon)?,
            paused: args.paused,
            uuid: args.uuid,
            actions: actions(self.action, args.no_reboot, args.no_shutdown)?,
            shutdown_timeout: args.shutdown_timeout.map(|seconds| Duration::from_secs(u64::from(seconds))),
            boot_trace: args.boot_trace,
            pid_file: args.pidfile,
            single_gpu: args.profile == Some(Profile::SingleGpu),
            verbose: args.verbose,
            name: name(self.name)?,
        })
    }
}

/// `--action`, and the options that QEMU has for two of its words.
fn actions(given: Args, no_reboot: bool, no_shutdown: bool) -> Result<action::Actions> {
    let mut actions = action::parse(given)?;
    if no_reboot {
        actions.reboot = action::OnReboot::Shutdown;
    }
    if no_shutdown {
        actions.shutdown = action::OnShutdown::Pause;
    }
    Ok(actions)
}

/// `--name guest=NAME` or `--name NAME`.
fn name(mut args: Args) -> Result<Option<String>> {
    let name = Name::parse(&mut args)?;
    args.finish().map(|()| name.guest)
}
