//! Plays the kernel's driver core on a made-up tree: `driver_override`, `unbind` and `drivers_probe` do what
//! drivers/base/bus.c and drivers/pci/pci-sysfs.c do, and faults can be set for the n-th change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use crate::host::acl::Acl;
use crate::host::effects::Effects;
use crate::host::setting::VfAttribute;
use crate::host::setting::netlink::VfState;

/// What goes wrong with one change of the host. Changes are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The change is refused with this errno.
    Refuse(usize, i32),
    /// The kernel does not answer, nor to anything more that is asked of the same device.
    Stuck(usize),
    /// The process is killed before the change.
    KillBefore(usize),
    /// The process is killed after the change.
    KillAfter(usize),
}

/// The panic that stands for SIGKILL: nothing of the code under test runs after it.
#[derive(Debug)]
pub(crate) struct Killed;

/// The fake kernel.
#[derive(Debug)]
pub(crate) struct FakeKernel {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    natural: BTreeMap<String, String>,
    declining: BTreeSet<String>,
    modules: BTreeSet<String>,
    fault: Option<Fault>,
    writes: Vec<(String, String)>,
    changes: usize,
    vf: Vec<VfAttribute>,
    pool: Option<(u64, u64)>,
    acls: BTreeMap<PathBuf, Vec<u8>>,
    late: Vec<PathBuf>,
    of_services: BTreeMap<String, Vec<u32>>,
}

impl FakeKernel {
    pub(crate) fn new(root: PathBuf) -> FakeKernel {
        FakeKernel { root, state: Mutex::default() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// udev has an event of this node before it, whose rules take its list away (TAG+="uaccess").
    pub(crate) fn event_to_come(&self, node: PathBuf) {
        self.state.lock().late.push(node);
    }

    /// Sets what goes wrong, and starts to count from 0.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        state.fault = fault;
        state.changes = 0;
    }

    /// Every write so far: the path below /sys and the value.
    pub(crate) fn writes(&self) -> Vec<(String, String)> {
        self.state.lock().writes.clone()
    }

    /// The driver that takes a device when no override is set.
    pub(crate) fn set_natural(&self, address: &str, driver: &str) {
        self.state.lock().natural.insert(address.to_owned(), driver.to_owned());
    }

    /// Makes a driver's probe fail: `drivers_probe` succeeds all the same.
    pub(crate) fn decline(&self, driver: &str) {
        self.state.lock().declining.insert(driver.to_owned());
    }

    /// Lets modprobe find a module, whose driver appears when it is loaded.
    pub(crate) fn add_module(&self, name: &str) {
        self.state.lock().modules.insert(name.to_owned());
    }

    /// Makes a driver's folder.
    pub(crate) fn add_driver(&self, name: &str) {
        let folder = self.drivers().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("unbind"), "").unwrap();
    }

    /// Binds a device to a driver.
    pub(crate) fn attach(&self, address: &str, driver: &str) {
        let (device, folder) = (self.device(address), self.drivers().join(driver));
        symlink(&folder, device.join("driver")).unwrap();
        symlink(&device, folder.join(address)).unwrap();
    }

    fn drivers(&self) -> PathBuf {
        self.root.join("sys/bus/pci/drivers")
    }

    fn device(&self, address: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address)
    }

    fn unbind(&self, driver: &str, address: &str) -> io::Result<()> {
        if !self.drivers().join(driver).join(address).exists() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        fs::remove_file(self.drivers().join(driver).join(address))?;
        fs::remove_file(self.device(address).join("driver"))
    }

    fn probe(&self, state: &State, address: &str) -> io::Result<()> {
        if !self.device(address).exists() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        if self.device(address).join("driver").exists() {
            return Ok(());
        }
        let overridden = fs::read_to_string(self.device(address).join("driver_override"))?;
        let driver = match overridden.trim() {
            "(null)" => state.natural.get(address).cloned(),
            name => Some(name.to_owned()),
        };
        if let Some(driver) =
            driver.filter(|name| self.drivers().join(name).exists() && !state.declining.contains(name))
        {
            self.attach(address, &driver);
        }
        Ok(())
    }

    fn apply(&self, state: &State, file: &Path, value: &str) -> io::Result<()> {
        let value = value.strip_suffix('\n').unwrap_or(value);
        match file.file_name().and_then(|name| name.to_str()) {
            Some("driver_override") if value.is_empty() => fs::write(file, "(null)\n"),
            Some("driver_override") => fs::write(file, format!("{value}\n")),
            Some("drivers_probe") => self.probe(state, value),
            Some("unbind" | "bind") if file.starts_with(self.root.join("sys/bus/platform")) => {
                self.platform(file, value)
            }
            // Named by the link of an interface to its driver.
            Some("unbind") if file.starts_with(self.root.join("sys/bus/usb")) => {
                fs::remove_file(file.parent().unwrap())
            }
            // A virtual console driver.
            Some("bind") => fs::write(file, format!("{value}\n")),
            Some(name) if name.starts_with("resource") => self.resize(file, value),
            Some("unbind") => {
                let driver = fs::canonicalize(file)?.parent().and_then(|at| Some(at.file_name()?.to_owned())).unwrap();
                self.unbind(driver.to_str().unwrap(), value)
            }
            Some("reset_method") => self.choose_reset(file, value),
            Some("smp_affinity_list" | "compact_memory") => fs::write(file, format!("{value}\n")),
            Some("nr_hugepages") => self.resize_pool(state, file, value),
            Some("control") => fs::write(file, format!("{value}\n")),
            other => panic!("{other:?} must never be written"),
        }
    }

    fn platform(&self, file: &Path, device: &str) -> io::Result<()> {
        let driver = file.parent().unwrap();
        let link = self.root.join("sys/bus/platform/devices").join(device).join("driver");
        if file.ends_with("bind") {
            return symlink(driver, link);
        }
        if self.state_keeps_memory() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        fs::remove_file(link)?;
        fs::write(self.root.join("proc/iomem"), "")
    }

    fn state_keeps_memory(&self) -> bool {
        self.root.join("keeps-memory").exists()
    }

    /// As many pages as there is memory in one piece; each compaction makes room for some more.
    fn resize_pool(&self, state: &State, file: &Path, value: &str) -> io::Result<()> {
        let wanted: u64 = value.parse().unwrap();
        let compacted = state.writes.iter().filter(|(name, _)| name.ends_with("compact_memory")).count() as u64;
        let most = state.pool.map_or(u64::MAX, |(first, more)| first + more * compacted);
        let now: u64 = fs::read_to_string(file)?.trim().parse().unwrap();
        let then = if wanted > now { wanted.min(most.max(now)) } else { wanted };
        let free = file.with_file_name("free_hugepages");
        if let Some(count) = fs::read_to_string(&free).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
            fs::write(free, format!("{}\n", (count + then).saturating_sub(now)))?;
        }
        fs::write(file, format!("{then}\n"))
    }

    /// A process that ends when a service is stopped.
    pub(crate) fn ends_with(&self, unit: &str, pid: u32) {
        self.state.lock().of_services.entry(unit.to_owned()).or_default().push(pid);
    }

    /// The pool of huge pages can have `first` pages, and `more` after each compaction.
    pub(crate) fn set_pool(&self, first: u64, more: u64) {
        self.state.lock().pool = Some((first, more));
    }

    /// As `__resource_resize_store` does.
    fn resize(&self, file: &Path, value: &str) -> io::Result<()> {
        let folder = file.parent().unwrap();
        if folder.join("driver").exists() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let exponent: u32 = value.parse().unwrap();
        let sizes = fs::read_to_string(file)?;
        if u64::from_str_radix(sizes.trim(), 16).unwrap() >> exponent & 1 == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let size = (1u64 << 20) << exponent;
        fs::write(folder.join("resource"), resource_line(size))
    }

    /// As `reset_method_store` does, on a function that has `flr` and `bus`.
    fn choose_reset(&self, file: &Path, value: &str) -> io::Result<()> {
        match value.split(' ').all(|name| ["flr", "bus"].contains(&name)) {
            true => fs::write(file, format!("{value}\n")),
            false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Lets a physical function's driver know its virtual functions; `None` for one that it does not offer.
    pub(crate) fn set_vf_state(&self, state: Vec<VfAttribute>) {
        self.state.lock().vf = state;
    }

    /// The rights that access control lists give to a user by name.
    pub(crate) fn granted(&self, user: u32) -> Vec<(PathBuf, u16)> {
        let state = self.state.lock();
        let rights = |(file, list): (&PathBuf, &Vec<u8>)| {
            let file = file.strip_prefix(self.root.join("dev")).unwrap_or(file);
            Some((file.to_owned(), Acl::parse(list)?.rights_of(user)?))
        };
        state.acls.iter().filter_map(rights).collect()
    }

    pub(crate) fn vf(&self) -> Vec<VfAttribute> {
        self.state.lock().vf.clone()
    }

    /// Counts a change and lets the fault that is set for it happen; `true`: killed after it.
    fn count(&self, state: &mut State) -> io::Result<bool> {
        let number = state.changes;
        state.changes += 1;
        match state.fault {
            Some(Fault::Refuse(at, errno)) if at == number => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Stuck(at)) if number >= at => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "process 1 is still at it after 30 s"))
            }
            Some(Fault::KillBefore(at)) if at == number => std::panic::panic_any(Killed),
            Some(Fault::KillAfter(at)) if at == number => Ok(true),
            _ => Ok(false),
        }
    }
}

impl Effects for FakeKernel {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let killed = self.count(&mut state)?;
        let name = file.strip_prefix(self.root.join("sys")).unwrap_or(file).display().to_string();
        state.writes.push((name, value.to_owned()));
        self.apply(&state, file, value)?;
        if killed {
            std::panic::panic_any(Killed);
        }
        Ok(())
    }

    fn write_quickly(&self, file: &Path, value: &str) -> io::Result<()> {
        self.write(file, value)
    }

    fn service(&self, unit: &str, start: bool) -> io::Result<()> {
        let mut state = self.state.lock();
        let killed = self.count(&mut state)?;
        let verb = if start { "start" } else { "stop" };
        state.writes.push(("systemctl".to_owned(), format!("{verb} {unit}")));
        let events = self.root.join("sys/fs/cgroup/system.slice").join(unit).join("cgroup.events");
        fs::write(events, format!("populated {}\n", u8::from(start)))?;
        if !start {
            for pid in state.of_services.remove(unit).unwrap_or_default() {
                fs::remove_dir_all(self.root.join(format!("proc/{pid}")))?;
            }
        }
        if killed {
            std::panic::panic_any(Killed);
        }
        Ok(())
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let killed = self.count(&mut state)?;
        if !state.modules.contains(name) {
            return Err(io::Error::other(format!("modprobe: FATAL: Module {name} not found")));
        }
        self.add_driver(name);
        if killed {
            std::panic::panic_any(Killed);
        }
        Ok(())
    }

    fn acl(&self, file: &Path) -> io::Result<(u32, Option<Vec<u8>>)> {
        Ok((fs::metadata(file)?.mode(), self.state.lock().acls.get(file).cloned()))
    }

    /// A list that says no more than a mode becomes one, as in the kernel.
    fn set_acl(&self, file: &Path, list: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let killed = self.count(&mut state)?;
        let mode = fs::metadata(file)?.mode();
        if list == Acl::of_mode(mode).bytes() {
            state.acls.remove(file);
        } else {
            state.acls.insert(file.to_owned(), list.to_owned());
        }
        if killed {
            std::panic::panic_any(Killed);
        }
        Ok(())
    }

    fn settle(&self, _: Duration) {
        let mut state = self.state.lock();
        for node in std::mem::take(&mut state.late) {
            state.acls.remove(&node);
        }
    }

    fn vf_state(&self, _: &Path, number: u32) -> io::Result<VfState> {
        assert_eq!(number, 1, "the virtual function of the tree is number 1");
        Ok(self.state.lock().vf.clone())
    }

    fn set_vf(&self, _: &Path, _: u32, attribute: VfAttribute) -> io::Result<()> {
        let mut state = self.state.lock();
        let killed = self.count(&mut state)?;
        let same = |is: &&mut VfAttribute| std::mem::discriminant(*is) == std::mem::discriminant(&attribute);
        match state.vf.iter_mut().find(same) {
            Some(is) => *is = attribute,
            None => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
        if killed {
            std::panic::panic_any(Killed);
        }
        Ok(())
    }
}

/// The line of a 64-bit prefetchable BAR 0 of this size.
pub(crate) fn resource_line(size: u64) -> String {
    format!("{:#018x} {:#018x} 0x000000000014220c\n", 0x80_0000_0000u64, 0x80_0000_0000u64 + size - 1)
}
