//! `passthru check`: whether a guest could run, and what is in the way.

use clap::Args;
use serde::Serialize;

use super::run::{self, RunArgs};
use super::style::{Colour, Style};
use super::sysroot::Sysroot;
use super::{Platform, output, vm_file};
use crate::bdf::Bdf;
use crate::error::Result;
use crate::host::Host;
use crate::host::findings::{self, Finding, Level, LockRights, Subject};
use crate::host::names::DeviceRef;

/// Find out whether a guest could run, before anything is tried
///
/// Looks at the host, at the devices that are named, and at what the user may do. The options are those of
/// `passthru run`, as many of them as are known: `passthru check`, `passthru check 01:00.0`, `passthru check NAME` (of a VM
/// or of a device), `passthru check -m 8G --device vfio-pci,host=01:00.0`.
///
/// Each line is PASS, WARN (a guest runs, but worse than it could) or FAIL, with the code that `passthru explain`
/// explains, what was seen, and what mends it. Nothing is opened and nothing is changed. The exit code is 0 if nothing
/// fails, 4 if only devices do, else 3.
#[derive(Debug, Args)]
#[command(after_long_help = "", mut_arg("vm", |vm| vm.help(WHAT).value_name("NAME|DEVICE")))]
pub(super) struct CheckArgs {
    #[command(flatten)]
    run: RunArgs,
    /// See nodes, files and limits as this user sees them (root only)
    #[arg(long, value_name = "NAME", help_heading = LOOK)]
    user: Option<String>,
    /// Print JSON
    #[arg(long, help_heading = LOOK)]
    json: bool,
    #[command(flatten, next_help_heading = LOOK)]
    sysroot: Sysroot,
}

const LOOK: &str = "What is looked at";
/// Of the positional argument, which is more than for `run`.
const WHAT: &str = "VM file whose keys are these options, as for `passthru run`; or a device, by its address (01:00.0, or 01:00 \
                    for all of its functions) or its name";

/// What `--json` shows.
#[derive(Serialize)]
struct Report<'a> {
    verdict: Level,
    findings: &'a [Finding],
}

/// Gives the exit code of the process.
pub(super) fn execute(args: CheckArgs, platform: &dyn Platform) -> Result<u8> {
    let host = args.sysroot.host(platform.host());
    let here = args.sysroot.is_this_machine();
    let addressed: Option<DeviceRef> =
        args.run.vm().filter(|word| vm_file::is_device(word, platform.host())).and_then(|word| word.parse().ok());
    let vm = args.run.vm().filter(|_| addressed.is_none()).map(vm_file::vm_name).transpose()?;
    let (options, has_kernel) = run::described(args.run, platform)?;
    let of_guest = platform.examine(&options, has_kernel, &host)?;
    let passed = options.devices.iter().filter_map(|device| device.peek("host")?.parse().ok());
    let named: Vec<DeviceRef> = addressed.into_iter().chain(passed).collect();
    let devices = output::functions(&named, &host, |addr| host.functions(addr))?;

    // Root takes a service's devices, and gives its user the nodes, before each start.
    let prepared = match (&vm, &args.user) {
        (Some(vm), Some(user)) => *user == vm_file::service_user(&vm.to_string(), &host),
        _ => false,
    };
    let files = options.files();
    let mut findings = of_host(&host, &devices, prepared);
    findings.extend(of_guest);
    if let Some(vm) = &vm {
        if !has_kernel {
            // Of options it is asked what they would do; a VM is asked for as a whole.
            findings.push(Finding::fail(Subject::Host, &run::no_kernel()));
        }
        let narrow = vm_file::too_narrow(&vm.to_string(), options.netdev_types(), &files, &host);
        findings.extend(narrow.iter().map(|error| Finding::warn(Subject::Session, error)));
    }
    if here {
        if let Some(user) = &args.user {
            findings::become_user(user)?;
        }
        let locks = match &vm {
            Some(vm) if prepared && vm_file::locks_any_memory(&vm.to_string(), &host) => LockRights::OfTheService,
            _ => LockRights::OfTheProcess,
        };
        findings.extend(host.check_session(&devices, &files, prepared, locks));
    } else {
        // Who may open what on another machine cannot be asked here.
        findings.retain(|finding| finding.subject != Subject::Session);
    }
    findings.sort_by_key(|finding| finding.subject);
    if args.json {
        let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Pass);
        output::print_json(&Report { verdict, findings: &findings })?;
    } else {
        output::print(&text(&findings, Style::of_stdout()))?;
    }
    Ok(findings::exit_code(&findings))
}

/// What is found without knowing the guest or the user. `taken`: the devices are taken before the guest runs.
pub(super) fn of_host(host: &Host, devices: &[Bdf], taken: bool) -> Vec<Finding> {
    let machine = host.check_machine().into_iter().chain(host.check_names());
    machine.chain(devices.iter().flat_map(|&bdf| host.check_device(bdf, taken))).collect()
}

/// The findings by subjects, and how many there are of each level.
pub(super) fn text(findings: &[Finding], style: Style) -> String {
    let mut out = String::new();
    let mut subject = None;
    for finding in findings {
        if subject != Some(finding.subject) {
            out += &match finding.subject {
                Subject::Host => "host\n".to_owned(),
                Subject::Device(bdf) => format!("device {bdf}\n"),
                Subject::Session => format!("user {}\n", crate::host::check::node::current_user()),
            };
            subject = Some(finding.subject);
        }
        out += &line(finding, style);
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let counts = [Level::Fail, Level::Warn, Level::Pass].map(|level| format!("{} {}", count(level), level.word()));
    out + &format!("\n{}\n", counts.join(", "))
}

/// Columns before the text of a finding: `  PASS PT001 `.
const COLUMN: usize = 13;
/// And before what was seen and what mends it.
const INNER: usize = 19;

fn line(finding: &Finding, style: Style) -> String {
    let colour = match finding.level {
        Level::Pass => Colour::Good,
        Level::Warn => Colour::Caution,
        Level::Fail => Colour::Bad,
    };
    let level = style.paint(colour, finding.level.word());
    let indent = " ".repeat(COLUMN);
    let mut out = format!("  {level} {}  {}\n", finding.code, style.wrap(COLUMN, &indent, &finding.what));
    let inner = " ".repeat(INNER);
    let mut more = |name: &str, text: &str| out += &format!("{indent}{name}: {}\n", style.wrap(INNER, &inner, text));
    for seen in &finding.evidence {
        more("seen", seen);
    }
    if let Some(fix) = &finding.fix {
        more("mend", fix);
    }
    out
}
