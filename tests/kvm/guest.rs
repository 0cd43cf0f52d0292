//! A small machine for the tests: 32 KiB of RAM, ports and a page of memory that record, and a port that ends the guest.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use passthru::boot::cpu_state::{CpuState, Segment};
use passthru::cpu::{CpuPlan, Model, SmpRequest, Topology};
use passthru::error::Result;
use passthru::kvm::{Kvm, KvmSlots, VcpuSet, Vm, VmEvent, VmEvents};
use passthru::memory::host::PageSize;
use passthru::memory::{Backing, HostMem, IoHandler, Listening, Memory, PRIORITY_PLATFORM, Region, Space, Stage};

/// Where the guest's code starts.
pub const CODE: u64 = 0x1000;
/// A page that traps.
pub const MMIO: u64 = 0x8000;
/// A page that reads as memory and traps on writes.
pub const ROM: u64 = 0x9000;
/// A write there is the guest's last.
const DONE_PORT: u16 = 0xf4;
/// `out 0xf4, al`, then halted for ever.
pub const DONE: [u8; 5] = [0xe6, DONE_PORT as u8, 0xf4, 0xeb, 0xfd];

/// Records accesses. Reads of 1, 2 or 4 bytes give 1, 2, 3 ... in turn.
pub struct Recorder {
    name: &'static str,
    log: Arc<Mutex<Vec<String>>>,
    next: Mutex<u32>,
}

impl IoHandler for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut next = self.next.lock();
        *next += 1;
        let bytes = next.to_le_bytes();
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        self.log.lock().push(format!("{} read {offset:#x} {}", self.name, data.len()));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.log.lock().push(format!("{} write {offset:#x} {data:02x?}", self.name));
    }
}

struct Done(Arc<VmEvents>);

impl IoHandler for Done {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: u64, _: &[u8]) {
        self.0.post(VmEvent::Shutdown);
    }
}

/// What outlives a VM: the memory map and the devices.
pub struct Machine {
    pub memory: Arc<Memory>,
    pub ram: Arc<HostMem>,
    pub events: Arc<VmEvents>,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    pub fn new(code: &[u8]) -> Machine {
        let memory = Memory::new();
        let events = VmEvents::new().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let ram = Arc::new(HostMem::anonymous(MMIO, PageSize::Small).unwrap());
        let rom = Arc::new(HostMem::anonymous(0x1000, PageSize::Small).unwrap());
        ram.slice().write(CODE, code);
        rom.slice().write(0x10, &[0x21]);
        let recorder = |name| Arc::new(Recorder { name, log: log.clone(), next: Mutex::new(0) });
        let rom = Backing::RomDevice { mem: rom.slice(), io: recorder("rom"), offset: 0 };
        let whole = |name, len, backing| Region::whole(name, len, PRIORITY_PLATFORM, backing);
        memory
            .update(|layout| {
                layout.add(Space::Mmio, 0, whole("ram", MMIO, Backing::Ram(ram.slice())));
                layout.add(Space::Mmio, MMIO, whole("mmio", 0x1000, Backing::io(recorder("mmio"))));
                layout.add(Space::Mmio, ROM, whole("rom", 0x1000, rom));
                layout.add(Space::Pio, 0x80, whole("port", 0x10, Backing::io(recorder("port"))));
                layout.add(Space::Pio, 0x3f8, whole("serial", 8, Backing::io(recorder("serial"))));
                let done = Backing::io(Arc::new(Done(events.clone())));
                layout.add(Space::Pio, DONE_PORT.into(), whole("done", 1, done));
            })
            .unwrap();
        Machine { memory, ram, events, log }
    }

    /// A byte of RAM.
    pub fn byte(&self, address: u64) -> u8 {
        let mut data = [0];
        self.ram.slice().read(address, &mut data);
        data[0]
    }

    /// Waits for the guest's end.
    pub fn end(&self) -> VmEvent {
        let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE).is_err() {}
        self.events.take().expect("the descriptor was readable")
    }

    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }
}

/// A VM on a machine. The fields drop in the order in which a VM must end.
pub struct Guest {
    pub vcpus: VcpuSet,
    _listening: Listening,
    pub slots: Arc<KvmSlots>,
    pub vm: Arc<Vm>,
}

impl Guest {
    pub fn new(kvm: &Kvm, machine: &Machine, cpus: u32, start: CpuState) -> Result<Guest> {
        let topology = Topology::plan(SmpRequest { cpus: Some(cpus), ..SmpRequest::default() })?;
        let plan = CpuPlan::new(&kvm.host_cpu()?, &Model::default(), topology)?;
        let vm = Vm::new(kvm)?;
        let slots = KvmSlots::new(vm.clone())?;
        let listening = machine.memory.listen(Stage::Guest, slots.clone())?;
        let vcpus = VcpuSet::new(&vm, &plan, Some(&start), &machine.memory, &machine.events)?;
        Ok(Guest { vcpus, _listening: listening, slots, vm })
    }
}

/// Starts, waits for the end, stops; the end must not be a failure.
pub fn run(kvm: &Kvm, machine: &Machine, start: CpuState) -> VmEvent {
    let mut guest = Guest::new(kvm, machine, 1, start).unwrap();
    guest.vcpus.start().unwrap();
    machine.end()
}

fn state(rip: u64, cr0: u64, limit: u32, wide: bool) -> CpuState {
    let data = Segment { limit, kind: 3, code_or_data: true, big: wide, granular: wide, ..Segment::default() };
    let cs = Segment { kind: 0xb, ..data };
    let tr = Segment { limit: 0x67, kind: 0xb, ..Segment::default() };
    CpuState { rip, rsp: 0x7000, cr0, cs, data, tr, ..CpuState::default() }
}

/// Real mode at [`CODE`], all segments at 0.
pub fn real_mode() -> CpuState {
    state(CODE, 0x10, 0xffff, false)
}

/// Protected mode without paging at [`CODE`], flat segments of 4 GiB.
pub fn protected_mode() -> CpuState {
    state(CODE, 0x11, u32::MAX, true)
}
