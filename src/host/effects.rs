//! The one place through which the host is changed: writes to sysfs, the loading of modules, rtnetlink.
//!
//! All can block for ever inside the kernel (a driver that cannot let go of its device), so nothing else may do
//! them: writes and modprobe are children that are waited for only so long ([`super::bounded`]).

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Command;

use super::bounded;
use super::setting::VfAttribute;
use super::setting::netlink::{self, VfState};

/// Where `modprobe` is, in the order in which it is looked for. PATH is not trusted: units and hooks run without one.
const MODPROBE: [&str; 3] = ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe"];

/// How the host is changed. The tests' implementation plays the kernel on a made-up tree.
pub trait Effects: fmt::Debug + Send + Sync {
    /// Writes `value` to an attribute that exists, in one write(2), as sysfs demands.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;

    /// Loads a kernel module with what it needs. Built-in ones succeed.
    fn load_module(&self, name: &str) -> io::Result<()>;

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

    fn vf_state(&self, _: &Path, _: u32) -> io::Result<VfState> {
        Self::refuse()
    }

    fn set_vf(&self, _: &Path, _: u32, _: VfAttribute) -> io::Result<()> {
        Self::refuse()
    }
}
