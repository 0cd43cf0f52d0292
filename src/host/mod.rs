//! The host's side, before any VFIO descriptor is opened: what devices there are, what the host uses them for, which
//! of them a guest can have, and the change of their drivers.
//!
//! Everything takes a [`Host`], which names the roots of the trees that are read (`/sys`, `/proc`, `/dev`) and
//! written (`/run/passthru`), so that tests run on made-up trees. Nothing here knows a guest.
//!
//! | file | what |
//! |---|---|
//! | [`pci`], [`group`], [`usb`] | facts from sysfs: PCI functions, IOMMU groups, USB devices (kernel: Documentation/ABI/testing) |
//! | [`names`], [`reserve`], [`claim`] | names that stay when addresses move (/etc/passthru/devices.d); devices that are kept for vfio-pci, USB devices that are kept for guests |
//! | [`usage`] | what the host uses a function for: mounts, swap, holders, routes |
//! | [`busy`], [`viable`] | who holds a group; what keeps a group from being handed out |
//! | [`check`] | which error a failed open or VFIO request really is |
//! | [`quirks`], [`wake`] | devices that do not do what their registers say; devices without power |
//! | [`limits`] | memory, locked memory and address bits, planned before anything is allocated |
//! | [`mod@bind`], [`mod@release`] | driver changes: `bind`, and `release` and `recover` that undo it |
//! | [`vm`], `acl` | all devices of a VM, and the nodes that its user gets for as long as it runs |
//! | [`acs`] | the kernel option that makes groups look smaller than they are |
//! | [`reset`], [`quarantine`] | which reset a function gets and whom else it hits; devices that did not come back from one |
//! | [`mod@inspect`], [`capabilities`] | all facts about one function together |
//! | [`findings`] | whether host, devices and user are ready for a guest: `passthru check` |
//! | [`survey`] | all functions by their groups, and what can be done with each group |
//! | [`topology`] | processors, caches and memory nodes, and who has them |
//! | [`lease`], [`threads`] | what is changed for as long as a guest runs: CPUs of interrupts and threads, huge pages |
//! | [`inherited`] | descriptors that came with the process |
//! | [`setting`] | what else `bind` changes: virtual functions, the size of BARs, the boot console |
//! | [`journal`], [`effects`], [`bounded`] | what was there before a change, kept across a crash; the one place that changes the host, by a child process that may get stuck |

use std::path::{Path, PathBuf};
use std::sync::Arc;

mod acl;
pub mod acs;
pub mod bind;
pub mod bounded;
pub mod busy;
pub mod capabilities;
mod change;
pub mod check;
pub mod claim;
mod drop_ins;
pub mod effects;
pub mod files;
pub mod findings;
pub mod group;
pub mod inherited;
pub mod inspect;
mod iova;
pub mod journal;
pub mod lease;
pub mod limits;
pub mod link;
pub mod names;
pub mod pci;
pub mod quarantine;
pub mod quirks;
mod read;
pub(crate) mod record;
pub mod release;
pub mod reserve;
pub mod reset;
pub mod setting;
pub mod survey;
pub mod threads;
pub mod tokens;
pub mod topology;
pub mod usage;
pub mod usb;
pub mod viable;
pub mod vm;
pub mod wake;

#[cfg(test)]
pub(crate) mod testtree;

pub use bind::bind;
pub use group::{Group, Member};
pub use lease::Lease;
pub use pci::PciDevice;
pub use release::{recover, release};
pub use usage::Use;

use effects::{Effects, NoEffects, RealEffects};

/// The trees of one host and the way to change them. Cloning is cheap; every question is answered anew from the trees.
#[derive(Debug, Clone)]
pub struct Host {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    run: PathBuf,
    etc: PathBuf,
    modules: PathBuf,
    /// The folder that the service manager has made for this process below `/run/passthru/vm`.
    service: Option<PathBuf>,
    effects: Arc<dyn Effects>,
}

impl Host {
    /// The machine that the program runs on.
    pub fn real() -> Host {
        let service = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        Host {
            service: service.filter(|path| path.parent() == Some(Path::new("/run/passthru/vm"))),
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            run: "/run/passthru".into(),
            etc: "/etc/passthru".into(),
            modules: "/lib/modules".into(),
            effects: Arc::new(RealEffects),
        }
    }

    /// A host whose `sys`, `proc`, `dev`, `run/passthru`, `etc/passthru` and `lib/modules` lie below `root`; changes go
    /// through `effects`.
    pub fn at(root: &Path, effects: Arc<dyn Effects>) -> Host {
        Host {
            sys: root.join("sys"),
            proc: root.join("proc"),
            dev: root.join("dev"),
            run: root.join("run/passthru"),
            etc: root.join("etc/passthru"),
            modules: root.join("lib/modules"),
            service: None,
            effects,
        }
    }

    /// A copy of a host's trees below `root`, which can be looked at and not changed.
    pub fn copied_to(root: &Path) -> Host {
        Host::at(root, Arc::new(NoEffects))
    }

    /// The same host, seen by the process of a service that has this folder.
    #[cfg(test)]
    pub(crate) fn in_service(mut self, folder: &Path) -> Host {
        self.service = Some(folder.to_owned());
        self
    }

    /// A path below `/sys`.
    pub fn sys(&self, path: impl AsRef<Path>) -> PathBuf {
        self.sys.join(path)
    }

    /// A path below `/proc`.
    pub fn proc(&self, path: impl AsRef<Path>) -> PathBuf {
        self.proc.join(path)
    }

    /// A path below `/dev`.
    pub fn dev(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dev.join(path)
    }

    /// A path below `/run/passthru`.
    pub fn run(&self, path: impl AsRef<Path>) -> PathBuf {
        self.run.join(path)
    }

    /// The folder of this process as a service, if it is one.
    pub fn service_folder(&self) -> Option<&Path> {
        self.service.as_deref()
    }

    /// A path below `/etc/passthru`.
    pub fn etc(&self, path: impl AsRef<Path>) -> PathBuf {
        self.etc.join(path)
    }

    /// A path below `/lib/modules`.
    pub fn modules(&self, path: impl AsRef<Path>) -> PathBuf {
        self.modules.join(path)
    }

    /// The way to change the host.
    pub(crate) fn effects(&self) -> &dyn Effects {
        self.effects.as_ref()
    }
}

impl Default for Host {
    fn default() -> Self {
        Host::real()
    }
}
