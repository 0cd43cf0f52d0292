//! VM files: a guest as a TOML file whose keys are the options of `passthru run`.
//!
//! A file becomes words of the command line before clap sees them, so that there is one declaration of every option and
//! one place that checks it.

mod service;
mod words;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command};

use super::{Platform, output, run};
use crate::bdf::{Bdf, DeviceAddr};
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;
use crate::host::names::{DeviceRef, Name};
use crate::machine::options::RunOptions;
use crate::vfio::front_end::NAME as VFIO_PCI;
pub(super) use service::{locks_any_memory, service_user, too_narrow};
pub(super) use words::{Word, has_properties, options};

/// The positional argument of `run` that names a file.
const NAME: &str = "vm";
/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The commands that take a VM file.
const COMMANDS: [&str; 3] = ["run", "check", "plan"];

/// The command line `argv` of `passthru run NAME` or `passthru check NAME` with what the VM file says before the user's own
/// words, if it names a file. An option that may be given once and is `given` by the user replaces the file's; one that may
/// be given many times adds to it.
///
/// # Errors
/// [`Code::VmFile`] if the file cannot be read or understood.
pub(super) fn expand(
    argv: &[OsString],
    given: &ArgMatches,
    syntax: &Command,
    host: &Host,
) -> Result<Option<Vec<OsString>>> {
    let Some((command, given)) = given.subcommand().filter(|(name, _)| COMMANDS.contains(name)) else {
        return Ok(None);
    };
    let Some(name) = given.get_one::<String>(NAME) else { return Ok(None) };
    let Some(run) = syntax.find_subcommand(command) else { return Ok(None) };
    let file = path(name, host);
    if command == "check" && is_device(name, host) {
        return Ok(None);
    }
    let mut out: Vec<OsString> = argv.iter().take(2).cloned().collect();
    let mut words = words::read(&file, &text(&file, host)?, run)?;
    if !words.iter().any(|word| word.option == "name") {
        words.extend(guest_name(&file));
    }
    out.extend(words.into_iter().filter(|word| !replaced(word, run, given)).map(OsString::from));
    out.extend(argv.iter().skip(2).cloned());
    Ok(Some(out))
}

/// A VM file and what `bind --vm` must know of it.
pub(super) struct Vm {
    /// What it is called.
    pub name: Name,
    /// The devices of the host that it has, in the order of the file.
    pub devices: Vec<Bdf>,
    /// All that it says.
    pub options: RunOptions,
}

impl Vm {
    /// Reads the file that `name` means, as `passthru run` does.
    ///
    /// # Errors
    /// [`Code::VmFile`], those of its options, and of the devices that it names.
    pub fn read(name: &str, syntax: &Command, platform: &dyn Platform) -> Result<Vm> {
        let host = platform.host();
        let file = path(name, host);
        let vm = vm_name(name)?;
        let text = text(&file, host)?;
        let words = syntax.find_subcommand("run").map(|run| words::read(&file, &text, run)).transpose()?;
        let mut options = run::of_words(words.into_iter().flatten().map(OsString::from), platform)?;
        // What is noted about it is found by the file's name.
        options.name = Some(vm.to_string());
        let passed = options.devices.iter().filter(|device| device.peek(platform.devices().key()) == Some(VFIO_PCI));
        let named = passed.filter_map(|device| match device.peek("host") {
            Some(host) => Some(host.parse::<DeviceRef>()),
            None => Some(Path::new(device.peek("sysfsdev")?).file_name()?.to_str()?.parse()),
        });
        let named = named.collect::<Result<Vec<DeviceRef>, _>>()?;
        let devices = output::functions(&named, host, |addr| host.functions(addr))?;
        Ok(Vm { name: vm, devices, options })
    }
}

/// What the VM of a file is called.
///
/// # Errors
/// [`Code::VmFile`] for a name that could not be one of a file under /run/passthru.
pub(super) fn vm_name(name: &str) -> Result<Name> {
    let stem = Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    stem.strip_suffix(SUFFIX).unwrap_or(stem).to_owned().try_into().map_err(|why: String| {
        Error::new(Code::VmFile, "a VM cannot be called so").evidence(why).fix("give the file another name")
    })
}

/// Whether `name` means a device where it can also mean a VM: an address does, and a device's name that no VM has.
pub(super) fn is_device(name: &str, host: &Host) -> bool {
    name.parse::<DeviceAddr>().is_ok() || (!path(name, host).exists() && host.knows_name(name))
}

/// The file that `name` means: `/etc/passthru/NAME.toml`, or a path if it looks like one.
fn path(name: &str, host: &Host) -> PathBuf {
    if name.contains('/') || name.ends_with(SUFFIX) { name.into() } else { host.etc(format!("{name}{SUFFIX}")) }
}

const SUFFIX: &str = ".toml";

/// What a guest is called if nobody says it: as its file.
fn guest_name(file: &Path) -> Option<Word> {
    let stem = file.file_stem()?.to_str()?;
    Some(Word { option: "name".to_owned(), value: Some(stem.replace(',', ",,")) })
}

fn text(file: &Path, host: &Host) -> Result<String> {
    let unreadable = |why: String| {
        let there = names(host);
        let fix = match there.len() {
            0 => "write one, or make one of a QEMU command line or a libvirt domain with `passthru convert`".to_owned(),
            _ => format!("the files that are there: {}", Vec::from_iter(there).join(", ")),
        };
        Error::new(Code::VmFile, "the VM file cannot be read").evidence(format!("{}: {why}", file.display())).fix(fix)
    };
    let size = std::fs::metadata(file).map_err(|error| unreadable(explain_io(&error)))?.len();
    if size > MAX_FILE {
        return Err(unreadable(format!("it has {size} bytes, more than {MAX_FILE}")));
    }
    std::fs::read_to_string(file).map_err(|error| unreadable(explain_io(&error)))
}

/// The option that may be given many times, and yet is the file's or the user's: the user who wants the guest's console on the
/// terminal does not want a second port.
const SERIAL: &str = "serial";

/// The guests that have a file in `/etc/passthru`.
pub(super) fn names(host: &Host) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(host.etc("")) else { return BTreeSet::new() };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(str::to_owned));
    names.collect()
}

/// Whether the user's words take the place of `word`.
fn replaced(word: &Word, run: &Command, given: &ArgMatches) -> bool {
    let Some(option) = run.get_arguments().find(|arg| arg.get_long() == Some(word.option.as_str())) else {
        return false;
    };
    let adds = matches!(option.get_action(), ArgAction::Append) && word.option != SERIAL;
    !adds && is_given(given, option.get_id().as_str())
}

fn is_given(given: &ArgMatches, id: &str) -> bool {
    given.value_source(id) == Some(ValueSource::CommandLine)
}
