//! What the commands of the control socket do to the machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::back_ends::Makes;
use super::inbox::Task;
use super::options::action::{OnPanic, OnWatchdog};
use super::types::{DEVICES, MACHINES, OBJECTS};
use super::{End, Machine};
use crate::backends::block::{BLOCKDEVS, BlockNode, overlay};
use crate::backends::chardev::{CHARDEVS, Chardev};
use crate::backends::iothread::IoThread;
use crate::backends::net::{NETDEVS, Netdev};
use crate::backends::table::Table;
use crate::cpu::topology::MAX_APIC_ID;
use crate::device::Device;
use crate::monitor::control::{
    Control, CpuView, DeviceView, DmaView, MemoryView, Removal, Resources, Status, Ticket, VmView,
};
use crate::monitor::message::Failure;
use crate::object::{Args, Kind, Prop, PropValue};
use crate::pci::view::{self, BusView};

impl Machine {
    /// Makes the guest stand still, for the reason that `status` says.
    pub(super) fn pause(&mut self, status: Status) {
        if self.status == Status::Running {
            self.running.iter().for_each(super::Running::pause);
            self.status = status;
            self.monitor.event("STOP", None);
        }
    }
}

impl Machine {
    /// The guest's name: the user's, or the one that its control socket was given.
    fn name(&self) -> String {
        let made = || self.folder.as_ref().map(|folder| folder.name().to_owned());
        self.guest_name.clone().or_else(made).unwrap_or_default()
    }
}

impl Control for Machine {
    fn status(&self) -> Status {
        self.status
    }

    fn stop(&mut self) {
        self.pause(Status::Paused);
    }

    fn cont(&mut self) -> Result<(), Failure> {
        if self.status == Status::Shutdown {
            return Err(Failure::generic("Resetting the Virtual Machine is required"));
        }
        if self.status != Status::Running {
            self.status = Status::Running;
            self.monitor.event("RESUME", None);
            self.running.iter().for_each(super::Running::resume);
            self.plugged.resumed();
        }
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), Failure> {
        let running = self.running.as_ref().ok_or_else(|| Failure::generic("the guest does not run"))?;
        Ok(running.inject_nmi()?)
    }

    fn reset(&mut self) {
        self.wish = Some(End::Reset { by_guest: false });
    }

    fn power_button(&mut self) {
        self.monitor.event("POWERDOWN", None);
        self.board.power_button();
    }

    fn quit(&mut self) {
        self.wish = Some(End::Quit);
    }

    fn device_add(&mut self, args: Args) -> Result<Option<Ticket>, Failure> {
        Ok(self.plug(args)?)
    }

    fn device_del(&mut self, removal: &Removal) -> Result<(), Failure> {
        if self.plugged.device(&removal.id).is_none() {
            return Err(Failure::no_device(&removal.id));
        }
        let timeout = removal.timeout.map(Duration::from_millis);
        Ok(self.unplug(&removal.id, timeout, removal.force)?)
    }

    fn properties(&self, of_type: &str) -> Result<Vec<&'static Prop>, Failure> {
        let found = DEVICES.find(of_type).map_err(|_| Failure::no_device(of_type))?;
        Ok(DEVICES.props_of(found).into_iter().flatten().collect())
    }

    fn types(&self) -> Vec<(&'static str, &'static str)> {
        let devices = DEVICES.types.iter().map(|of_type| (of_type.name(), "device"));
        let objects = OBJECTS.types.iter().map(|of_type| (of_type.name(), "object"));
        let chardevs = CHARDEVS.types.iter().map(|of_type| (of_type.name(), "chardev"));
        let nodes = BLOCKDEVS.types.iter().map(|of_type| (of_type.name(), "blockdev"));
        let netdevs = NETDEVS.types.iter().map(|of_type| (of_type.name(), "netdev"));
        devices.chain(objects).chain(chardevs).chain(nodes).chain(netdevs).collect()
    }

    fn machines(&self) -> Vec<(&'static str, u32)> {
        MACHINES.types.iter().map(|of_type| (of_type.name(), MAX_APIC_ID + 1)).collect()
    }

    fn iothreads(&self) -> Arc<Table<IoThread>> {
        self.backends.iothreads.clone()
    }

    fn chardevs(&self) -> Arc<Table<dyn Chardev>> {
        self.backends.chardevs.clone()
    }

    fn netdevs(&self) -> Arc<Table<dyn Netdev>> {
        self.backends.netdevs.clone()
    }

    fn remove_object(&mut self, id: &str) -> Result<(), Failure> {
        Ok(self.backends.remove_object(id)?)
    }

    fn add_back_end(&mut self, kind: Kind, args: Args) -> Result<(), Failure> {
        Ok(Makes { vfio: &self.vfio, event_loop: &self.event_loop.handle(), backends: &self.backends }
            .add(kind, args)?)
    }

    fn balloon(&self) -> Option<u64> {
        self.balloon_size()
    }

    fn memory_devices(&self) -> Vec<MemoryView> {
        let devices = self.plugged.pluggable_memories();
        let view = |device: &Arc<dyn Device>| {
            let memory = device.pluggable_memory()?;
            let range = memory.range();
            Some(MemoryView {
                id: device.id().to_owned(),
                backend: memory.backend(),
                node: memory.node(),
                address: range.start,
                most: range.end - range.start,
                requested: memory.requested(),
                plugged: memory.plugged(),
                block: memory.block_size(),
            })
        };
        devices.iter().filter_map(view).collect()
    }

    fn base_memory(&self) -> u64 {
        self.ram
    }

    fn request_memory(&mut self, id: &str, bytes: u64) -> Result<(), Failure> {
        let device = self.plugged.device(id).ok_or_else(|| Failure::no_device(id))?;
        let memory =
            device.pluggable_memory().ok_or_else(|| Failure::generic(format!("'{id}' is no memory device")))?;
        Ok(memory.request(bytes)?)
    }

    fn inflate(&mut self, bytes: u64) -> Result<(), Failure> {
        Machine::inflate(self, bytes).ok_or_else(Failure::no_balloon)
    }

    fn set_action(&mut self, trouble: &str, word: &str) -> Result<(), Failure> {
        let invalid = || Failure::generic(format!("Parameter '{trouble}' does not accept value '{word}'"));
        match trouble {
            "panic" => self.actions.panic = OnPanic::parse(word).map_err(|_| invalid())?,
            _ => self.actions.watchdog = OnWatchdog::parse(word).map_err(|_| invalid())?,
        }
        Ok(())
    }

    fn identity(&self) -> (String, Option<Uuid>) {
        (self.name(), self.uuid)
    }

    fn cpus(&self) -> Vec<CpuView> {
        let topology = self.cpus.topology();
        let threads = vcpu_threads();
        let view = |(index, id): (u32, u32)| CpuView {
            index,
            thread: threads.get(&index).copied().unwrap_or(0),
            socket: topology.socket_of(id),
            core: topology.core_of(id),
            thread_of_core: index % topology.threads().max(1),
        };
        (0..).zip(topology.apic_ids()).map(view).collect()
    }

    fn nodes(&self) -> Arc<Table<dyn BlockNode>> {
        self.backends.nodes.clone()
    }

    fn block_commit(&mut self, node: Arc<dyn BlockNode>, job: String) -> Result<(), Failure> {
        if node.switch().is_none() || node.backing().is_none() {
            return Err(Failure::generic(format!("'{job}' stands on no other image")));
        }
        if !self.jobs.insert(job.clone()) {
            return Err(Failure::generic(format!("Job ID '{job}' already in use")));
        }
        let (inbox, name) = (self.inbox.clone(), job.clone());
        // A thread of its own: it may take hours, and the guest runs meanwhile. It ends with the process, which leaves the
        // overlay whole.
        let commit = move || {
            let len = node.info().len;
            let done = node.switch().map(|switch| overlay::commit_live(switch, &name, &|| false).map(drop));
            let error = done.and_then(Result::err).map(|error| error.evidence_lines().join(", "));
            inbox.post(Task::Committed(name, len, error));
        };
        let started = std::thread::Builder::new().name("block-commit".into()).spawn(commit);
        started.map(drop).map_err(|error| {
            self.jobs.remove(&job);
            Failure::generic(format!("no thread for the job: {error}"))
        })
    }

    fn pci(&self) -> BusView {
        view::bus(self.root.bus(), 0)
    }

    fn devices(&self) -> Vec<DeviceView> {
        let mut views = self.plugged.views();
        for view in &mut views {
            if let Some((at, what)) = self.errors.get(view.id.as_str()) {
                view.facts.extend([("last-error", what.clone()), ("last-error-at", at.to_string())]);
            }
        }
        views
    }

    fn vm(&self) -> VmView {
        let running = self.running.as_ref().map(super::Running::exits).unwrap_or_default();
        let mut exits = self.exits;
        exits += running;
        let dma = self.vfio.address_spaces().into_iter();
        VmView {
            name: self.name(),
            pid: std::process::id(),
            since: self.since,
            restarts: self.restarts,
            exits: exits.by_cause().into(),
            dma: dma.map(|(iommu, mappings, bytes)| DmaView { iommu: iommu.to_string(), mappings, bytes }).collect(),
        }
    }

    fn resources(&self) -> Resources {
        // The folder's own descriptor, which is open while it is read, is not counted.
        let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
        Resources {
            descriptors: entries("/proc/self/fd").saturating_sub(1),
            threads: entries("/proc/self/task"),
            memory_slots: self.running.as_ref().map_or(0, super::Running::memory_slots),
            gsi_routes: self.router.routes_in_use(),
            irqfds: self.router.irqfds(),
            iova_mappings: self.vfio.mappings(),
            host_devices: self.vfio.devices(),
            functions: self.plugged.functions(),
        }
    }
}

/// The ids of the processors' threads, by the processors' numbers, as the kernel lists them by their names.
fn vcpu_threads() -> BTreeMap<u32, u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let thread = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        Some((name.trim().strip_prefix("vcpu")?.parse().ok()?, task.file_name().to_str()?.parse().ok()?))
    };
    tasks.filter_map(thread).collect()
}
