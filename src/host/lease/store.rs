//! The file about one process, or about a VM that root prepares: what was changed, as it was before.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::claims::Claim;
use super::{Added, Moved};
use crate::error::{Code, Error, Result, explain_io};
use crate::host::names::Name;
use crate::host::record::{self, Unreadable};
use crate::host::{Host, read};

/// The version of the file's form.
const VERSION: u32 = 1;

/// What a process has changed, or root for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pid: u32,
    /// When it started, in clock ticks after the boot: another process may get the same number.
    started: Option<u64>,
    /// Then it is the VM's, for as long as that is prepared, and no process counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vm: Option<Name>,
    pub(super) interrupts: Vec<Moved>,
    pub(super) pages: Vec<Added>,
    /// The huge pages that the guest takes, whether they were added or there before.
    #[serde(default)]
    pub(super) claims: Vec<Claim>,
}

impl Record {
    pub(super) fn of_this_process(host: &Host) -> Record {
        let pid = std::process::id();
        Record { pid, started: started(host, pid), ..Record::empty() }
    }

    pub(super) fn of_vm(vm: &Name) -> Record {
        Record { vm: Some(vm.clone()), ..Record::empty() }
    }

    fn empty() -> Record {
        let (interrupts, pages, claims) = Default::default();
        Record { version: VERSION, pid: 0, started: None, vm: None, interrupts, pages, claims }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interrupts.is_empty() && self.pages.is_empty() && self.claims.is_empty()
    }

    /// Whether the process still runs, or the VM is still prepared.
    pub(super) fn is_alive(&self, host: &Host) -> bool {
        if let Some(vm) = &self.vm {
            return host.prepared_vms().contains(vm);
        }
        let now = started(host, self.pid);
        now.is_some() && now == self.started
    }

    /// The guest's process, if it runs: that of a VM is known by the devices that it has open.
    pub(super) fn processes(&self, host: &Host) -> Vec<u32> {
        let Some(vm) = &self.vm else { return vec![self.pid] };
        let devices = host.prepared(vm).ok().flatten().map(|note| note.devices).unwrap_or_default();
        let devices: Vec<_> = devices.into_iter().filter_map(|bdf| host.device(bdf).ok()).collect();
        let nodes = devices.iter().flat_map(|device| host.vfio_nodes(device)).collect::<Vec<_>>();
        host.holders_of(&nodes).processes.into_iter().map(|process| process.pid).collect()
    }

    /// No process has a number that begins with a letter.
    pub(super) fn name(&self) -> String {
        match &self.vm {
            Some(vm) => Record::name_of_vm(&vm.to_string()),
            None => format!("{}.json", self.pid),
        }
    }

    pub(super) fn name_of_vm(vm: &str) -> String {
        format!("vm-{vm}.json")
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("it has version {}, this passthru writes version {VERSION}", self.version));
        }
        self.interrupts.iter().try_for_each(Moved::check)?;
        self.pages.iter().try_for_each(Added::check)
    }
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)). The name before it may contain anything, and ends with the last `)`.
fn started(host: &Host, pid: u32) -> Option<u64> {
    let stat = read::text(host.proc(format!("{pid}/stat")))?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn folder(host: &Host) -> PathBuf {
    host.run("leases")
}

/// The names of all files.
pub(super) fn names(host: &Host) -> Vec<String> {
    read::names(folder(host)).into_iter().filter(|name| !name.starts_with('.')).collect()
}

/// Writes a record; on return it is there, whole.
pub(super) fn write(host: &Host, what: &Record) -> Result<()> {
    let folder = folder(host);
    record::make_folder(&folder).map_err(|error| unusable(&folder, &error).fix("run it as root"))?;
    record::check_folder(&folder).map_err(|error| unreadable(&folder, &error))?;
    let text = serde_json::to_string_pretty(what).map_err(io::Error::from);
    let written = text.and_then(|text| record::replace(&folder, &what.name(), &text));
    written.map_err(|error| unusable(&folder.join(what.name()), &error).fix("run it as root"))
}

/// Reads a record, believing nothing.
pub(super) fn read(host: &Host, name: &str) -> Result<Option<Record>> {
    let path = folder(host).join(name);
    let text = record::read(&path).map_err(|error| unreadable(&path, &error))?;
    let Some(text) = text else { return Ok(None) };
    let record: Record =
        serde_json::from_str(&text).map_err(|error| distrusted(&path, &format!("it is damaged: {error}")))?;
    record.check().map_err(|why| distrusted(&path, &why))?;
    match record.name() == name {
        true => Ok(Some(record)),
        false => Err(distrusted(&path, "it is not named after its process or VM")),
    }
}

/// Removes a record, if it is there.
pub(super) fn remove(host: &Host, record: &Record) -> Result<()> {
    let folder = folder(host);
    if !folder.exists() {
        return Ok(());
    }
    record::remove(&folder, &record.name()).map_err(|error| unusable(&folder, &error))
}

fn unreadable(path: &Path, error: &Unreadable) -> Error {
    match error {
        Unreadable::Io(error) => unusable(path, error),
        Unreadable::Distrusted(why) => distrusted(path, why),
    }
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::JournalUnusable, "what is changed for a guest cannot be noted").evidence(format!(
        "{}: {}",
        path.display(),
        explain_io(error)
    ))
}

fn distrusted(path: &Path, why: &str) -> Error {
    Error::new(Code::JournalUnusable, "a note of what was changed for a guest is not to be trusted")
        .evidence(format!("{}: {why}", path.display()))
        .fix("look at that file, then remove it")
}
