//! The one place through which the host is changed: writes to sysfs, the loading of modules, rtnetlink, who may open nodes.
//!
//! All can block for ever inside the kernel (a driver that cannot let go of its device), so nothing else may do
//! them: writes and modprobe are children that are waited for only so long ([`super::bounded`]).

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::setting::VfAttribute;
use super::setting::netlink::{self, VfState};
use super::{acl, bounded};

/// Where `modprobe` is, in the order in which it is looked for. PATH is not trusted: units and hooks run without one.
const MODPROBE: [&str; 3] = ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"];

/// Likewise `udevadm`; and what is there where udev runs.
const UDEVADM: [&str; 2] = ["/usr/bin/udevadm", "/bin/udevadm"];
const UDEV_RUNS: &str = "/run/udev/control";
const SETTLE_SECONDS: u32 = 10;

/// How the host is changed. The tests' implementation plays the kernel on a made-up tree.
pub trait Effects: fmt::Debug + Send + Sync {
    /// Writes `value` to an attribute that exists, in one write(2), as sysfs demands.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;

    /// Loads a kernel module with what it needs. Built-in ones succeed.
    fn load_module(&self, name: &str) -> io::Result<()>;

    /// A file's mode, and its access control list if it has one.
    fn acl(&self, file: &Path) -> io::Result<(u32, Option<Vec<u8>>)>;

    /// Sets a file's access control list.
    fn set_acl(&self, file: &Path, list: &[u8]) -> io::Result<()>;

    /// Waits until udev has dealt with the devices that appeared, where it runs.
    fn settle(&self);

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

    fn load_module(&self, name: &str) -> io::Result<()> {
        let modprobe = MODPROBE
            .iter()
            .find(|path| Path::new(path).exists())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "modprobe is not installed"))?;
        let mut command = Command::new(modprobe);
        command.arg("--").arg(name);
        let ended = bounded::run(command, "", bounded::LIMIT)?;
        if ended.code == Some(0) { Ok(()) } else { Err(io::Error::other(ended.words)) }
    }

    fn acl(&self, file: &Path) -> io::Result<(u32, Option<Vec<u8>>)> {
        Ok((std::fs::metadata(file)?.mode(), xattr::get(file, acl::ATTRIBUTE)?))
    }

    fn set_acl(&self, file: &Path, list: &[u8]) -> io::Result<()> {
        xattr::set(file, acl::ATTRIBUTE, list)
    }

    fn settle(&self) {
        let udevadm = UDEVADM.iter().find(|path| Path::new(path).exists());
        if let Some(udevadm) = udevadm.filter(|_| Path::new(UDEV_RUNS).exists()) {
            let mut command = Command::new(udevadm);
            command.arg("settle").arg(format!("--timeout={SETTLE_SECONDS}"));
            // What it comes to is not known to matter: whoever opens the nodes will tell.
            let _ = bounded::run(command, "", bounded::LIMIT);
        }
    }

    fn vf_state(&self, interface: &Path, number: u32) -> io::Result<VfState> {
        netlink::vf_state(interface, number)
    }

    fn set_vf(&self, interface: &Path, number: u32, attribute: VfAttribute) -> io::Result<()> {
        netlink::set_vf(interface, number, attribute)
    }
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

    fn load_module(&self, _: &str) -> io::Result<()> {
        Self::refuse()
    }

    fn acl(&self, _: &Path) -> io::Result<(u32, Option<Vec<u8>>)> {
        Self::refuse()
    }

    fn set_acl(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Self::refuse()
    }

    fn settle(&self) {}

    fn vf_state(&self, _: &Path, _: u32) -> io::Result<VfState> {
        Self::refuse()
    }

    fn set_vf(&self, _: &Path, _: u32, _: VfAttribute) -> io::Result<()> {
        Self::refuse()
    }
}
