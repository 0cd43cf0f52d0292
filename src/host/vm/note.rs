//! What was prepared for a VM, noted in /run/passthru/prepared before each step.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::names::Name;
use crate::host::{Host, read, record};

/// The version of the file's form.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";

/// What was prepared for a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    version: u32,
    /// The VM.
    pub vm: Name,
    /// The devices that were bound for it.
    pub devices: Vec<Bdf>,
    /// The user who was given nodes, by its number.
    pub user: Option<u32>,
    /// Those nodes.
    pub nodes: Vec<Granted>,
}

/// A node that a user was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Its path.
    pub path: PathBuf,
    /// The rights that its list gave to the user before.
    pub former: Option<u16>,
}

impl Prepared {
    pub(super) fn new(vm: Name) -> Prepared {
        Prepared { version: VERSION, vm, devices: Vec::new(), user: None, nodes: Vec::new() }
    }

    /// The note about one of these nodes and this user.
    pub(super) fn grant(&self, user: u32, node: &std::path::Path) -> Option<&Granted> {
        self.nodes.iter().find(|granted| self.user == Some(user) && granted.path == node)
    }
}

impl Host {
    fn vm_folder(&self) -> PathBuf {
        self.run("prepared")
    }

    /// What is noted of a VM.
    ///
    /// # Errors
    /// [`Code::JournalUnusable`] for a note that is damaged, or that anybody could have written.
    pub fn prepared(&self, vm: &Name) -> Result<Option<Prepared>> {
        let path = self.vm_folder().join(format!("{vm}{SUFFIX}"));
        let bad = |why: String| {
            Error::new(Code::JournalUnusable, format!("the note about VM {vm} cannot be used"))
                .evidence(format!("{}: {why}", path.display()))
                .fix("look at the nodes that it names with `getfacl`, then remove it")
        };
        let text = record::read(&path).map_err(|error| bad(error.to_string()))?;
        let Some(text) = text else { return Ok(None) };
        let note: Prepared = serde_json::from_str(&text).map_err(|error| bad(format!("it is damaged: {error}")))?;
        if note.version != VERSION || note.vm != *vm {
            return Err(bad(format!("it is of version {} and about {}", note.version, note.vm)));
        }
        // Root changes what the note names: only nodes, by their plain paths.
        let dev = self.dev("");
        let plain = |node: &Granted| {
            let mut rest = node.path.strip_prefix(&dev).into_iter().flat_map(|rest| rest.components()).peekable();
            rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_)))
        };
        match note.nodes.iter().find(|node| !plain(node)) {
            Some(node) => Err(bad(format!("{} is no node", node.path.display()))),
            None => Ok(Some(note)),
        }
    }

    /// The VMs that something is noted about.
    pub fn prepared_vms(&self) -> Vec<Name> {
        let names = read::names(self.vm_folder()).into_iter();
        names.filter_map(|name| name.strip_suffix(SUFFIX)?.to_owned().try_into().ok()).collect()
    }

    pub(super) fn note_vm(&self, note: &Prepared) -> Result<()> {
        let folder = self.vm_folder();
        let unusable = |error: std::io::Error| {
            Error::new(Code::JournalUnusable, format!("what is done for VM {} cannot be noted", note.vm))
                .evidence(format!("{}: {}", folder.display(), explain_io(&error)))
                .fix("run it as root")
        };
        record::make_folder(&folder).map_err(unusable)?;
        let text = serde_json::to_string_pretty(note).map_err(|error| unusable(error.into()))?;
        record::replace(&folder, &format!("{}{SUFFIX}", note.vm), &text).map_err(unusable)
    }

    pub(super) fn forget_vm(&self, vm: &Name) -> Result<()> {
        record::remove(&self.vm_folder(), &format!("{vm}{SUFFIX}")).map_err(|error| {
            Error::new(Code::JournalUnusable, format!("the note about VM {vm} cannot be removed"))
                .evidence(format!("{}: {}", self.vm_folder().display(), explain_io(&error)))
                .fix("run it as root")
        })
    }
}
