//! The machine: what `passthru run` builds, starts, starts again and takes down.
//!
//! | file | what |
//! |---|---|
//! | [`options`] | what the user asked for |
//! | [`preflight`] | what can be found out before anything is allocated |
//! | [`fit`] | whether guest and devices fit the host's addresses and memory nodes |
//! | [`functions`] | what a line means that passes all functions of a device |
//! | [`back_ends`] | what devices name but is none, made before them |
//! | [`references`] | whether what devices and back ends name is there, and theirs alone |
//! | [`places`] | which id, bus and address each device gets |
//! | [`plug`] | the one path by which every device comes into the machine; [`types`] are the tables of types |
//! | [`hotplug`], [`unplug`], [`inbox`] | devices that come and go; the table of an unplug; what other threads ask for |
//! | [`board`] | the devices that sit in no slot |
//! | [`ram`] | what the guest's memory is made of, and which node has which of it |
//! | [`pinning`] | when and by how many threads RAM is pinned |
//! | [`placement`] | which CPUs of the host its threads and interrupts get |
//! | [`control`] | what the control socket's commands do |
//! | [`service`], [`shutdown`] | what a service manager is told; the guest's way to its end |
//! | [`running`] | a VM descriptor with its vCPUs: one for each start of the guest |
//!
//! **Lock order**, outermost first: the VFIO context ([`crate::vfio::space`], opening and closing) -> `decode` (one for the
//! machine, [`crate::pci::decode`]) -> the layout lock of [`crate::memory::Memory`] -> a listener's own lock -> the kernel.
//! Inside `decode` and never around the layout lock: a bus's table, a function's own locks, its core's registers, its MSI
//! or MSI-X table, [`crate::irq::Router`]. A dispatch takes no lock but the device's. Listeners never call devices.
//!
//! **A restart of the guest** (reset, triple fault) stops all vCPUs, resets every device (bus mastering off before memory
//! is used anew), drops the VM descriptor, and starts a fresh one on the kept memory, the kept VFIO containers and their
//! pins. So no state of KVM's can survive: no MSR that makes it write to guest memory, no pending interrupt.

mod back_ends;
mod beside;
mod board;
mod control;
mod fit;
mod functions;
mod hotplug;
mod inbox;
pub mod options;
mod pid_file;
mod pinning;
mod placement;
mod places;
mod plug;
mod preflight;
mod ram;
mod references;
mod running;
mod service;
mod shutdown;
mod told;
pub mod types;
mod unplug;

pub use placement::place;
pub use preflight::examine;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use board::{Board, Signals};
use hotplug::{Plugs, Unplugs};
use inbox::{Inbox, Task};
use options::RunOptions;
use options::action::{Actions, OnPanic, OnReboot, OnShutdown};
use pid_file::PidFile;
use placement::Stay;
use places::Places;
use plug::{Parts, Plugged};
use preflight::Plan;
use ram::Ram;
use running::Running;
use service::Service;
use shutdown::{Shutdown, Step};

use crate::backends::Backends;
use crate::backends::memory::MemoryRef;
use crate::backends::table::Claim;
use crate::boot::acpi::numa::NumaInput;
use crate::boot::layout::{self, Layout};
use crate::boot::linux::LinuxImage;
use crate::boot_trace::{self, phases};
use crate::cpu::CpuPlan;
use crate::devices::isa::IsaBus;
use crate::devices::serial::{COM1_BASE, PORTS};
use crate::error::{Code, Error, Result};
use crate::event_loop::{EventLoop, Return};
use crate::host::Host;
use crate::irq::Router;
use crate::kvm::{ExitCounts, Kvm, VmEvent, VmEvents};
use crate::memory::room::Room;
use crate::memory::{HostMem, Memory, Space};
use crate::monitor::Monitor;
use crate::monitor::control::{Control, Status};
use crate::monitor::folder::{Folder, Folders};
use crate::monitor::message;
use crate::pci::PciRoot;
use crate::pci::cf8::{self, Cf8};
use crate::pci::decode::Decode;
use crate::pci::ecam::Ecam;
use crate::vfio::space::Vfio;

/// Runs a guest until it powers off, reboots with `--no-reboot`, or the user ends it.
pub fn run(options: RunOptions, host: &Host) -> Result<()> {
    boot_trace::lap(phases::OPTIONS);
    match &options.boot_trace {
        Some(path) => boot_trace::to_file(path)?,
        None => boot_trace::off(),
    }
    let _pid_file = options.pid_file.as_deref().map(PidFile::write).transpose()?;
    Machine::new(options, host).and_then(|mut machine| machine.run()).inspect_err(service::failed)
}

/// A machine with all of its devices. The fields drop in this order, and the order matters: vCPUs stop before devices
/// go, devices go before the VFIO context, and memory goes last.
pub struct Machine {
    running: Option<Running>,
    plugged: Plugged,
    places: Places,
    unplugs: Unplugs,
    /// What waits for the guest's memory to be mapped before it is shown to the guest.
    plugs: Plugs,
    inbox: Arc<Inbox>,
    host: Host,
    /// Bytes of the guest's memory.
    ram: u64,
    /// Bytes that it can come to have.
    most: u64,
    board: Board,
    cf8: Arc<Cf8>,
    ecam: Arc<Ecam>,
    config_pages: bool,
    root: Arc<PciRoot>,
    vfio: Arc<Vfio>,
    router: Arc<Router>,
    memory: Arc<Memory>,
    events: Arc<VmEvents>,
    event_loop: EventLoop,
    monitor: Monitor,
    /// After the loop, which has the socket in it.
    folder: Option<Folder>,
    /// What the user calls the guest.
    guest_name: Option<String>,
    /// When it was first started, in seconds since 1970.
    since: u64,
    restarts: u64,
    /// Exits of the starts before this one.
    exits: ExitCounts,
    /// When each device had its last error (in seconds since 1970), and what was said of it.
    errors: BTreeMap<Arc<str>, (u64, String)>,
    signals: Rc<Signals>,
    service: Service,
    shutdown: Shutdown,
    status: Status,
    /// How a client of the control socket wants this start of the guest to end.
    wish: Option<End>,
    /// The objects that are the guest's memory, which is nobody else's.
    _ram_objects: Vec<Claim<HostMem>>,
    /// The guest's memory nodes, where the user says them.
    numa: Option<NumaInput>,
    /// After all devices, which use them.
    backends: Arc<Backends>,
    /// Commits of overlays that are under way.
    jobs: BTreeSet<String>,
    kvm: Kvm,
    cpus: CpuPlan,
    image: LinuxImage,
    layout: Layout,
    uuid: Option<Uuid>,
    /// What is done about a guest that ends or is in trouble.
    actions: Actions,
    /// Start with processors that stand still.
    paused: bool,
    /// Start only when a client of the control socket is there.
    wait: bool,
    /// The last: what it gives back, the guest no longer uses then.
    stay: Stay,
}

/// How a start of the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The machine is reset.
    Reset { by_guest: bool },
    /// The guest switched the machine off.
    Shutdown,
    /// A signal or the terminal ends the process.
    Signal,
    /// A client of the control socket does.
    Quit,
    /// The guest has panicked.
    Panicked,
    /// Its watchdog does.
    Watchdog,
}

fn reset_reason(by_guest: bool) -> &'static str {
    if by_guest { "guest-reset" } else { "host-qmp-system-reset" }
}

impl Machine {
    /// Builds the machine and all of its devices. Nothing runs yet.
    pub fn new(options: RunOptions, host: &Host) -> Result<Machine> {
        let Plan { machine, image, kvm, cpus, phys_bits, back_ends, taken, mut places, stay } =
            preflight::plan(&options, host)?;
        boot_trace::lap(phases::CHECKS);
        let events = VmEvents::new()?;
        // Before any thread is started: threads inherit which signals are blocked.
        let signals = Rc::new(Signals::default());
        let mut event_loop = board::event_loop(&events, &signals)?;
        let folder = Folders::of_process(host).claim(options.name.as_deref())?;
        let monitor = Monitor::default();
        for qmp in &options.qmp {
            monitor.listen(&qmp.path, &mut event_loop)?;
        }
        let mut service = Service::of_process();
        service.status("Preparing the machine");
        let memory = Memory::new();
        let more = options.memory.most() - options.memory.size.0;
        let room = Room::new(layout::room(options.memory.size.0, more));
        let router = Router::new();
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new(places::ROOT_BUS, &decode);
        let vfio = Vfio::new(host.clone(), memory.clone());
        let inbox = Inbox::new(event_loop.handle());
        let arrived = inbox.clone();
        vfio.tell_of_interrupts(Arc::new(move |device| arrived.post(Task::Interrupts(device))));
        vfio.set_pinning(pinning::at_start(machine.dma_map, options.smp.cpus(), &inbox));
        let (serial, monitors) = (back_ends.serial().map(str::to_owned), back_ends.monitors().to_vec());
        let controls = back_ends.controls().to_vec();
        // Devices that other processes serve come with memory that these can be given.
        let shares_memory = back_ends.share_memory(&places);
        let backends = back_ends.make(&vfio, &event_loop.handle())?;
        let backend = machine.memory_backend.as_ref().map(MemoryRef::as_str);
        let ram_objects = ram::claim(&backends, &ram::objects(&options, backend), &options.memory)?;
        // Before the console, which has the focus where both share a back end.
        for id in monitors {
            let alone = !backends.chardevs.list().iter().any(|row| *row.name == *id && row.shared);
            monitor.attach(backends.chardevs.claim(&id, back_ends::MONITOR)?, alone, &event_loop);
        }
        for id in controls {
            monitor.attach_control(backends.chardevs.claim(&id, back_ends::MONITOR)?, &event_loop);
        }
        let serial = serial.map(|id| backends.chardevs.claim(&id, options::serial::ID)).transpose()?;
        let board = Board::new(&memory, &router, &mut event_loop, &events, serial)?;
        let isa = IsaBus::new(memory.clone(), router.clone());
        if board.has_serial() {
            isa.keep(COM1_BASE, PORTS as u16, options::serial::ID);
        }
        let told = inbox.clone();
        let parts = Parts {
            memory: memory.clone(),
            room,
            router: router.clone(),
            decode,
            vfio: vfio.clone(),
            backends: backends.clone(),
            isa,
            tell: Arc::new(move |id, word| told.post(Task::Told(id.clone(), word))),
        };
        let plugged = Plugged::new(&root, parts, &mut places)?;

        boot_trace::lap(phases::DEVICES);
        let layout = Layout::with_room(options.memory.size.0, more, phys_bits, plugged.last_bus())?;
        preflight::check_reserved(&layout, &vfio)?;
        if options.verbose {
            for report in vfio.describe() {
                crate::log::note(format_args!("{report}"));
            }
        }
        let cf8 = Cf8::new(root.clone(), board.reset_control(), !machine.cf8);
        let ecam = Ecam::new(root.clone());
        memory.update(|map| {
            map.add(Space::Pio, u64::from(cf8::BASE), cf8.region());
            map.add(Space::Mmio, layout.ecam.start, ecam.region(layout.last_bus));
        })?;
        let made_of = match ram_objects.as_slice() {
            [] if options.memory.share || shares_memory => Ram::Shared,
            [] => Ram::Own,
            objects => Ram::Of(objects),
        };
        let numa = ram::numa(&options, &ram_objects, &layout)?;
        ram::add(&memory, &layout, &options.memory, &machine, &made_of, root.has_legacy_vga())?;
        boot_trace::lap(phases::MEMORY);
        vfio.set_pinning(pinning::while_it_runs(options.smp.cpus(), &inbox));
        let mut machine = Machine {
            running: None,
            plugged,
            places: taken,
            unplugs: Unplugs::new(),
            plugs: Plugs::default(),
            inbox,
            host: host.clone(),
            ram: options.memory.size.0,
            most: options.memory.most(),
            board,
            cf8,
            ecam,
            config_pages: machine.config_pages,
            root,
            vfio,
            router,
            memory,
            events,
            event_loop,
            monitor,
            folder,
            guest_name: options.name,
            since: 0,
            restarts: 0,
            exits: ExitCounts::default(),
            errors: BTreeMap::new(),
            signals,
            shutdown: Shutdown::new(service.shutdown_limit(options.shutdown_timeout)),
            service,
            status: Status::Prelaunch,
            wish: None,
            _ram_objects: ram_objects,
            numa,
            backends,
            jobs: BTreeSet::new(),
            kvm,
            cpus,
            image,
            layout,
            uuid: options.uuid,
            actions: options.actions,
            paused: options.paused,
            wait: options.qmp.iter().any(|qmp| qmp.wait),
            stay,
        };
        machine.watch_all()?;
        Ok(machine)
    }

    /// Starts the guest, and starts it again whenever it resets, until it ends.
    pub fn run(&mut self) -> Result<()> {
        self.report();
        if self.wait && self.monitor.wait_for_client(&mut self.event_loop)? == Return::Stopped {
            return Ok(());
        }
        if self.wait_for_peers()? == Return::Stopped {
            return Ok(());
        }
        self.listen_unasked();
        self.status = if self.paused { Status::Prelaunch } else { Status::Running };
        self.since = message::now().as_secs();
        if !self.shutdown.limit().is_zero() {
            self.signals.let_sigterm_ask();
        }
        let mut first = true;
        loop {
            self.running = Some(Running::start(self)?);
            if std::mem::take(&mut first) {
                self.service.ready();
            }
            let mut end = self.serve();
            self.exits += self.running.take().map(|running| running.exits()).unwrap_or_default();
            // A guest that was asked to end and resets instead has done what it does at its end.
            let no_reboot = self.actions.reboot == OnReboot::Shutdown || self.shutdown.is_under_way();
            // Until they stood still, the vCPUs may have asked for more: a second reset, by a triple fault, is not for the
            // next start. A failure is told.
            if let (Some(VmEvent::Failed(error)), Ok(End::Reset { .. })) = (self.events.take(), &end) {
                end = Err(error);
            }
            let (name, reason, by_guest) = match &end {
                Ok(End::Reset { by_guest }) if no_reboot => ("SHUTDOWN", reset_reason(*by_guest), *by_guest),
                Ok(End::Reset { by_guest }) => ("RESET", reset_reason(*by_guest), *by_guest),
                Ok(End::Shutdown) => ("SHUTDOWN", "guest-shutdown", true),
                Ok(End::Signal) => ("SHUTDOWN", "host-signal", false),
                Ok(End::Quit) => ("SHUTDOWN", "host-qmp-quit", false),
                Ok(End::Panicked) => ("SHUTDOWN", "guest-panic", true),
                Ok(End::Watchdog) => ("SHUTDOWN", "guest-shutdown", true),
                Err(_) => ("SHUTDOWN", "host-error", false),
            };
            self.monitor.event(name, Some(json!({ "guest": by_guest, "reason": reason })));
            let mut end = end?;
            if end == End::Shutdown && self.actions.shutdown == OnShutdown::Pause && !self.shutdown.is_under_way() {
                end = self.stay_off()?;
            }
            match end {
                End::Panicked if self.actions.panic == OnPanic::ExitFailure => {
                    return Err(Error::new(Code::GuestPanicked, "the guest has panicked"));
                }
                End::Reset { .. } if !no_reboot || self.status == Status::Prelaunch => {
                    self.restarts += 1;
                    self.reset();
                }
                _ => {
                    self.service.stopping(Duration::ZERO);
                    self.service.status("Giving the devices back");
                    return Ok(());
                }
            }
        }
    }

    /// Serves the monitors while the machine is off (`--no-shutdown`), until it is reset, which switches it on, or ended.
    fn stay_off(&mut self) -> Result<End> {
        self.status = Status::Shutdown;
        self.monitor.event("STOP", None);
        loop {
            match self.serve()? {
                // There is nobody to say so again.
                End::Shutdown => {}
                End::Reset { by_guest } => {
                    // As in QEMU, it then waits for `cont`.
                    self.status = Status::Prelaunch;
                    self.monitor.event("RESET", Some(json!({ "guest": by_guest, "reason": reset_reason(by_guest) })));
                    return Ok(End::Reset { by_guest });
                }
                other => return Ok(other),
            }
        }
    }

    /// Runs the loop until everybody is there whom a character back end waits for, or until the user ends the process.
    fn wait_for_peers(&mut self) -> Result<Return> {
        for chardev in self.backends.chardevs.list() {
            if chardev.back.is_awaited() {
                crate::log::note(format_args!("waiting for a client at {}", chardev.back.peer().place));
            }
            while chardev.back.is_awaited() {
                let returned = self.event_loop.run().map_err(|error| Error::system("wait for a client", &error))?;
                if returned == Return::Stopped {
                    return Ok(returned);
                }
            }
        }
        Ok(Return::Yielded)
    }

    /// Waits for events and does what they ask for, until this start of the guest ends.
    fn serve(&mut self) -> Result<End> {
        let monitor = self.monitor.clone();
        loop {
            self.do_tasks()?;
            monitor.serve(self);
            if let Some(end) = self.wish.take() {
                return Ok(end);
            }
            monitor.settle(&mut self.event_loop);
            let now = Instant::now();
            if self.shut_down(now) == Step::End {
                return Ok(End::Signal);
            }
            self.service.alive(now);
            self.report();
            let deadlines = [self.next_deadline(), self.shutdown.next(), self.service.next()];
            let deadline = deadlines.into_iter().flatten().min();
            if self.event_loop.run_until(deadline).map_err(|error| Error::system("wait for events", &error))?
                == Return::Stopped
            {
                return Ok(End::Signal);
            }
            match self.events.take() {
                Some(VmEvent::Reset) => return Ok(End::Reset { by_guest: true }),
                Some(VmEvent::Shutdown) => return Ok(End::Shutdown),
                Some(VmEvent::Failed(error)) => return Err(error),
                None => {}
            }
        }
    }

    /// Makes the socket that every guest has. Not before the guest starts: while a client of `--qmp` is waited for, nobody
    /// answers. The guest runs without it, too.
    fn listen_unasked(&mut self) {
        if let Some(folder) = &self.folder
            && let Err(error) = self.monitor.listen(&folder.socket(), &mut self.event_loop)
        {
            crate::log::warn(format_args!("there is no control socket: {error}"));
        }
    }

    /// Takes the guest a step further on the way to its end, if it was asked to go there.
    fn shut_down(&mut self, now: Instant) -> Step {
        let asked = self.signals.asked();
        let was_asked = self.shutdown.is_under_way();
        let step = match asked {
            true => self.shutdown.ask(now, self.status == Status::Running),
            false => self.shutdown.tick(now),
        };
        match (step, was_asked) {
            (Step::Press, before) => {
                if !before {
                    self.service.stopping(self.shutdown.limit());
                }
                self.power_button();
            }
            (Step::End, true) => {
                let seconds = self.shutdown.limit().as_secs();
                crate::log::warn(format_args!("the guest did not power off within {seconds} s and is ended"));
            }
            (Step::End, false) => {
                crate::log::warn(format_args!("the guest stands still, cannot shut down and is ended"));
            }
            (Step::Nothing, _) => {}
        }
        step
    }

    /// Tells the service manager what the guest is at. Asked at each turn of the loop: nothing is made for nobody.
    fn report(&mut self) {
        if !self.service.is_there() {
            return;
        }
        let status = match self.status {
            _ if self.shutdown.is_under_way() => "The guest was asked to power off".to_owned(),
            Status::Prelaunch => "Waiting for a client of the control socket".to_owned(),
            Status::Shutdown => "The guest is off".to_owned(),
            Status::Running => format!("Running; devices of the host: {}", self.vfio.devices()),
            Status::Paused => "Paused by a client of the control socket".to_owned(),
            Status::IoError => "Paused by the error of a device".to_owned(),
            Status::GuestPanicked => "Paused, because the guest has panicked".to_owned(),
            Status::Watchdog => "Paused by the guest's watchdog".to_owned(),
        };
        self.service.status(&status);
    }

    /// Puts everything into the state after power-on. No vCPU runs.
    fn reset(&mut self) {
        self.finish_unplugs();
        self.root.reset();
        self.plugged.reset();
        self.cf8.reset();
        self.board.reset();
    }
}
