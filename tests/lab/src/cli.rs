//! The command line of `cargo lab`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::l0::machines::{self, Machine};
use crate::l1::{L1, Programs, Vmm};
use crate::runner::{self, Tally};
use crate::{agent, bench, build, demo, edu, fuzz, package, report, scenarios, setup, shell};

/// passthru's laboratory: a PC with an IOMMU, in software.
///
/// Needs no special hardware: QEMU emulates a PC that has an IOMMU and AMD-V (L0), on which a
/// stock Debian kernel (L1) has a real /dev/kvm and /dev/vfio; passthru's guests are L2.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the lab image in the user's cache folder (4 minutes at most, once)
    Setup,
    /// Open a prompt in L1, or run commands in it (ready in about 10 s)
    ///
    /// In L1, passthru is on the PATH; /images has the kernels and initramfs images for guests
    /// (bzImage, vmlinux, initramfs, initramfs-fat), /share is a folder of this run on L0.
    Shell(ShellArgs),
    /// Show the main job step by step, in the lab or on this host
    ///
    /// In the lab nothing of this machine is touched. With --host, a device of this machine goes
    /// to a guest and back: a group that holds a mounted file system, swap or the default route
    /// is refused, drives are only read.
    Demo(DemoArgs),
    /// Run unit and integration tests, then the fuzz targets, then every scenario
    Test(TestArgs),
    /// Let the fuzz targets look for crashes
    ///
    /// Each starts from seeds made by code and from what earlier runs found, which is kept in cargo's output folder.
    Fuzz(FuzzArgs),
    /// Compare passthru with QEMU: exits, ioctls, memory, time
    ///
    /// Counts are exact in the lab. Times are not: only their ratio means something.
    Bench(BenchArgs),
    /// Make the Debian package and the RPM, in cargo's output folder
    ///
    /// The tools for that are built at the first time. Where lintian is installed it looks at the Debian package.
    Package {
        /// Cargo profile to build passthru with
        #[arg(long, value_name = "NAME", default_value = "release")]
        profile: String,
    },
    /// L1's side of `bench`
    #[command(hide = true)]
    Measure(MeasureArgs),
    /// L1's side of the lab
    #[command(hide = true)]
    Agent,
    /// What the matrix asks of QEMU's edu device, in L1 and in L2
    #[command(hide = true)]
    Edu(EduArgs),
}

#[derive(Args)]
struct EduArgs {
    /// Folder of the device in sysfs
    device: PathBuf,
    /// Its node of uio_pci_generic
    uio: PathBuf,
    /// Leave DMA out: an IOMMU keeps the device off this process's memory
    #[arg(long)]
    no_dma: bool,
}

#[derive(Args)]
struct ShellArgs {
    /// The PC to boot; `help` lists them
    #[arg(long, value_name = "SET", default_value = "default")]
    devices: String,
    /// Run this shell text, pass its output on, exit with its code
    #[arg(short = 'c', value_name = "COMMANDS")]
    commands: Option<String>,
    /// Time limit for -c, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The passthru to put into L1, instead of building one [env: LAB_PASSTHRU]
    #[arg(long, value_name = "FILE")]
    passthru: Option<PathBuf>,
    /// Cargo profile to build passthru with
    #[arg(long, value_name = "NAME", default_value = "lab")]
    profile: String,
}

#[derive(Args)]
struct DemoArgs {
    /// Use this PCI device of this host, which needs an IOMMU
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// With --host: do not ask
    #[arg(long, requires = "host")]
    yes: bool,
    /// Who runs the guest: qemu proves the lab itself
    #[arg(long, value_name = "VMM", default_value = "passthru", conflicts_with = "host")]
    vmm: Vmm,
    /// The passthru to show, instead of building one [env: LAB_PASSTHRU]
    #[arg(long, value_name = "FILE")]
    passthru: Option<PathBuf>,
}

#[derive(Args)]
struct TestArgs {
    /// Run only the tests and scenarios with one of these in their name, or, after `=`, with exactly that name
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Also run the scenarios that take long
    #[arg(long)]
    long: bool,
    /// List the scenarios, run nothing
    #[arg(long)]
    list: bool,
    /// Leave out `cargo test`
    #[arg(long)]
    scenarios_only: bool,
    /// The passthru to test, instead of building one [env: LAB_PASSTHRU]
    #[arg(long, value_name = "FILE")]
    passthru: Option<PathBuf>,
}

#[derive(Args)]
struct FuzzArgs {
    /// Run only the targets with one of these in their name
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Time of each target, seconds
    #[arg(long, value_name = "N", default_value_t = fuzz::SHORT.time.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

#[derive(Args)]
struct BenchArgs {
    /// Rounds in which time is measured; at most 3 of as many more count everything
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Memory of the guests
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: String,
    /// Also write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure one of the two only
    #[arg(long, value_name = "VMM")]
    only: Option<Vmm>,
    /// What to measure
    #[arg(long, value_name = "PART", default_value = "all")]
    part: bench::Part,
    /// The passthru to measure, instead of the release build [env: LAB_PASSTHRU]
    #[arg(long, value_name = "FILE")]
    passthru: Option<PathBuf>,
}

#[derive(Args)]
struct MeasureArgs {
    #[arg(long)]
    counting: bool,
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// File with the shell text that runs the VMM
    command: PathBuf,
}

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Setup => {
            let image = setup::run()?;
            println!("tree:   {}", image.tree.display());
            println!("images: {}", image.images.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Shell(args) => run_shell(&args),
        Command::Demo(args) => run_demo(&args),
        Command::Test(args) => run_tests(&args),
        Command::Fuzz(args) => run_fuzz(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Package { profile } => {
            for file in package::run(&profile)? {
                println!("{}", file.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Measure(args) => run_measure(&args),
        Command::Edu(args) => edu::run(&args.device, &args.uio, !args.no_dma).map(|()| ExitCode::SUCCESS),
        Command::Agent => agent::serve().map(|()| ExitCode::SUCCESS),
    }
}

fn run_shell(args: &ShellArgs) -> Result<ExitCode> {
    if args.devices == "help" {
        for machine in machines::ALL {
            println!("{:15} {}", machine.name, machine.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let machine = find_machine(&args.devices)?;
    let image = setup::run()?;
    let programs = Programs { passthru: Some(build::passthru(args.passthru.as_deref(), &args.profile)?) };
    let folder = report::run_folder(&build::target())?.join("shell");
    let mut l1 = L1::boot(&image, machine, &programs, &folder)
        .inspect_err(|_| eprint!("{}", report::consoles(&folder, 20, UNIX_EPOCH)))?;
    let code = match &args.commands {
        Some(text) => shell::command(&mut l1, text, Duration::from_secs(args.timeout))
            .inspect_err(|_| eprint!("{}", report::consoles(&folder, 20, UNIX_EPOCH)))?,
        None => shell::interactive(&mut l1)?,
    };
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn run_demo(args: &DemoArgs) -> Result<ExitCode> {
    let image = setup::run()?;
    let passthru = match args.vmm {
        Vmm::Passthru => Some(build::passthru(args.passthru.as_deref(), "lab")?),
        Vmm::Qemu => None,
    };
    let folder = report::run_folder(&build::target())?;
    match (&args.host, passthru) {
        (Some(bdf), Some(passthru)) => match demo::host::run(&image, &passthru, &folder, bdf, args.yes) {
            Err(e) if e.is::<demo::host::Refused>() => {
                eprintln!("lab: {e}");
                return Ok(ExitCode::from(demo::host::EXIT_REFUSED));
            }
            result => result?,
        },
        (_, passthru) => demo::lab::run(&image, &Programs { passthru }, &folder, args.vmm)
            .inspect_err(|_| eprint!("{}", report::consoles(&folder.join("demo"), 20, UNIX_EPOCH)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether `name` has one of `filters` in it, or is one that begins with `=`; without filters everything is chosen.
pub fn is_chosen(name: &str, filters: &[String]) -> bool {
    let fits = |filter: &String| {
        filter.strip_prefix('=').map_or_else(|| name.contains(filter.as_str()), |whole| name == whole)
    };
    filters.is_empty() || filters.iter().any(fits)
}

fn run_tests(args: &TestArgs) -> Result<ExitCode> {
    let filters = args.filters.as_slice();
    let chosen: Vec<_> = scenarios::all().filter(|s| is_chosen(s.name, filters)).collect();
    if args.list {
        for s in chosen {
            let long = if s.long { " (--long)" } else { "" };
            println!("{:32} {}{long}", s.name, s.machine.name);
        }
        for target in fuzz::targets()?.iter().map(|target| fuzz::result_name(target)).filter(|t| is_chosen(t, filters))
        {
            println!("{target:32} no machine");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let image = setup::run()?;
    let mut tally = Tally::default();
    if !args.scenarios_only {
        tally += build::cargo_test(filters)?;
        tally += fuzz::run(filters, if args.long { fuzz::LONG } else { fuzz::SHORT })?;
    }
    let (chosen, left_out): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|s| args.long || !s.long);
    tally.skipped += left_out.len() as u64;
    if !chosen.is_empty() {
        let passthru = if chosen.iter().any(|s| s.needs_passthru) {
            Some(build::passthru(args.passthru.as_deref(), "lab")?)
        } else {
            None
        };
        let folder = report::run_folder(&build::target())?;
        setup::progress(&format!("consoles are kept in {}", folder.display()));
        tally += runner::run(&image, &Programs { passthru }, &folder, chosen)?;
    }
    println!("{tally}");
    Ok(ExitCode::from(u8::from(tally.failed > 0)))
}

fn run_fuzz(args: &FuzzArgs) -> Result<ExitCode> {
    setup::run()?;
    let search = fuzz::Search { time: Duration::from_secs(args.seconds), seed: None };
    let tally = fuzz::run(&args.filters, search)?;
    println!("{tally}");
    Ok(ExitCode::from(u8::from(tally.failed > 0)))
}

fn run_bench(args: &BenchArgs) -> Result<ExitCode> {
    let vmms = args.only.map_or(vec![Vmm::Qemu, Vmm::Passthru], |only| vec![only]);
    let passthru =
        if vmms.contains(&Vmm::Passthru) { Some(build::passthru(args.passthru.as_deref(), "release")?) } else { None };
    let size = match &passthru {
        Some(file) => Some(std::fs::metadata(file)?.len()),
        None => None,
    };
    let plan = bench::Plan { rounds: args.rounds, memory: args.memory.clone(), vmms, part: args.part };
    let image = setup::run()?;
    let programs = Programs { passthru };
    bench::run(&image, &programs, &plan, size, args.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn run_measure(args: &MeasureArgs) -> Result<ExitCode> {
    let text = std::fs::read_to_string(&args.command)?;
    let limit = Duration::from_secs(args.limit);
    let run = bench::measure::run(&text, args.counting, limit)?;
    println!("{}", serde_json::to_string(&run)?);
    Ok(ExitCode::SUCCESS)
}

fn find_machine(name: &str) -> Result<&'static Machine> {
    machines::find(name).with_context(|| {
        let names: Vec<&str> = machines::ALL.iter().map(|m| m.name).collect();
        format!("no device set `{name}`; there are: {}", names.join(", "))
    })
}
