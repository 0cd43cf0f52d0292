//! The one place through which the host is changed: writes to sysfs, the loading of modules, rtnetlink, who may open nodes.
//!
//! All can block for ever inside the kernel (a driver that cannot let go of its device), so nothing else may do
//! them: writes, rtnetlink's settings and modprobe are children that are waited for only so long ([`super::bounded`]).

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::setting::VfAttribute;
use super::setting::netlink::{self, VfState};
use super::{acl, bounded};

/// Where `systemctl` is, in the order in which it is looked for. PATH is not trusted: units and hooks run without one.
const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];
/// How long a service may take: systemd itself ends one after 90 s (DefaultTimeoutStopSec=), and needs a moment for that.
const SERVICE_LIMIT: Duration = Duration::from_secs(120);
/// Where `modprobe` is.
const MODPROBE: [&str; 3] = ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"];

/// Likewise `udevadm`; and what is there where udev runs.
const UDEVADM: [&str; 2] = ["/usr/bin/udevadm", "/bin/udevadm"];
const UDEV_RUNS: &str = "/run/udev/control";

/// How the host is changed. The tests' implementation plays the kernel on a made-up tree.
pub trait Effects: fmt::Debug + Send + Sync {
    /// Writes `value` to an attribute that exists, in one write(2), as sysfs demands.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;

    /// As [`Effects::write`], for attributes behind which is no driver that could block: without a child.
    fn write_quickly(&self, file: &Path, value: &str) -> io::Result<()>;

    /// Starts or stops a service of systemd, and waits until that is done.
    fn service(&self, unit: &str, start: bool) -> io::Result<()>;

    /// Loads a kernel module with what it needs. Built-in ones succeed.
    fn load_module(&self, name: &str) -> io::Result<()>;

    /// A file's mode, and its access control list if it has one.
    fn acl(&self, file: &Path) -> io::Result<(u32, Option<Vec<u8>>)>;

    /// Sets a file's access control list.
    fn set_acl(&self, file: &Path, list: &[u8]) -> io::Result<()>;

    /// Waits until udev has dealt with the devices that appeared, where it runs, or for this long.
    fn settle(&self, limit: Duration);

    /// What the network interface in a sysfs folder says about its virtual function `number`.
    fn vf_state(&self, interface: &Path, number: u32) -> io::Result<VfState>;

    /// Tells the network interface what its virtual function `number` is to be.
    fn set_vf(&self, interface: &Path, number: u32, attribute: VfAttribute) -> io::Result<()>;
}

/// Changes the machine that the program runs on.
#[derive(Debug)]
pub struct RealEffects;

impl Effects for RealEffects {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        bounded::write(file, value)
    }

    fn write_quickly(&self, file: &Path, value: &str) -> io::Result<()> {
        bounded::write_here(file, value)
    }

    fn service(&self, unit: &str, start: bool) -> io::Result<()> {
        run(&SYSTEMCTL, &[if start { "start" } else { "stop" }, "--", unit], SERVICE_LIMIT)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        run(&MODPROBE, &["--", name], bounded::LIMIT)
    }

    fn acl(&self, file: &Path) -> io::Result<(u32, Option<Vec<u8>>)> {
        Ok((std::fs::metadata(file)?.mode(), xattr::get(file, acl::ATTRIBUTE)?))
    }

    fn set_acl(&self, file: &Path, list: &[u8]) -> io::Result<()> {
        xattr::set(file, acl::ATTRIBUTE, list)
    }

    fn settle(&self, limit: Duration) {
        let udevadm = UDEVADM.iter().find(|path| Path::new(path).exists());
        if let Some(udevadm) = udevadm.filter(|_| Path::new(UDEV_RUNS).exists()) {
            let mut command = Command::new(udevadm);
            command.arg("settle").arg(format!("--timeout={}", limit.as_secs()));
            // What it comes to is not known to matter: whoever opens the nodes will tell.
            let _ = bounded::run(command, limit + bounded::LIMIT);
        }
    }

    fn vf_state(&self, interface: &Path, number: u32) -> io::Result<VfState> {
        netlink::vf_state(interface, number)
    }

    fn set_vf(&self, interface: &Path, number: u32, attribute: VfAttribute) -> io::Result<()> {
        bounded::set_vf(interface, number, attribute)
    }
}

/// Runs the first of these programs that is there; what it says when it fails is the error.
fn run(programs: &[&str], words: &[&str], limit: Duration) -> io::Result<()> {
    let program = programs.iter().find(|path| Path::new(path).exists()).ok_or_else(|| {
        let name = programs.first().and_then(|path| Path::new(path).file_name()).unwrap_or_default();
        io::Error::new(io::ErrorKind::NotFound, format!("{} is not installed", name.display()))
    })?;
    let mut command = Command::new(program);
    command.args(words);
    let ended = bounded::run(command, limit)?;
    if ended.code == Some(0) { Ok(()) } else { Err(io::Error::other(ended.words)) }
}

/// Changes nothing: for a copy of another machine's trees.
#[derive(Debug)]
pub struct NoEffects;

impl NoEffects {
    fn refuse<T>() -> io::Result<T> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Effects for NoEffects {
    fn write(&self, _: &Path, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn write_quickly(&self, _: &Path, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn service(&self, _: &str, _: bool) -> io::Result<()> {
        Self::refuse()
    }

    fn load_module(&self, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn acl(&self, _: &Path) -> io::Result<(u32, Option<Vec<u8>>)> {
        Self::refuse()
    }

    fn set_acl(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Self::refuse()
    }

    fn settle(&self, _: Duration) {}

    fn vf_state(&self, _: &Path, _: u32) -> io::Result<VfState> {
        Self::refuse()
    }

    fn set_vf(&self, _: &Path, _: u32, _: VfAttribute) -> io::Result<()> {
        Self::refuse()
    }
}
