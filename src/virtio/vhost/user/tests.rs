use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::session::Session;
use super::*;
use crate::backends::Backends;
use crate::backends::chardev::{self, testing::event_loop};
use crate::event_loop::EventLoop;
use crate::irq::testing::Recorder;
use crate::memory::host::PageSize;
use crate::memory::{Backing, HostMem, PRIORITY_PLATFORM, Region};
use crate::object::Args;
use crate::pci::testing::Bench;
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{CONFIG, Driver, rings};

/// Requests of the protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 6;
const PROTOCOL: u64 = 1 << 0 | 1 << 5 | 1 << 9 | 1 << 12;
/// CONFIGURE_MEM_SLOTS, and how many regions the test's daemon takes by it.
const MEM_SLOTS: u64 = 1 << 15;
const SLOTS: u64 = 16;

/// What a daemon was told: the request and its body.
type Told = (u32, Vec<u8>);

/// A daemon that does what it is told, and nothing at its queues.
struct Daemon {
    stream: UnixStream,
    /// Its answer to GET_VRING_BASE.
    base: u32,
    config: u8,
    protocol: u64,
    tell: Sender<Told>,
    files: Vec<std::fs::File>,
}

impl Daemon {
    fn serve(mut self) {
        while let Some((request, body)) = self.receive() {
            let reply = match request {
                GET_FEATURES => FEATURES.to_le_bytes().to_vec(),
                GET_PROTOCOL_FEATURES => self.protocol.to_le_bytes().to_vec(),
                GET_MAX_MEM_SLOTS => SLOTS.to_le_bytes().to_vec(),
                GET_QUEUE_NUM => 4u64.to_le_bytes().to_vec(),
                GET_CONFIG => [&body[..12], &vec![self.config; body.len() - 12]].concat(),
                GET_VRING_BASE => [&body[..4], &self.base.to_le_bytes()].concat(),
                GET_INFLIGHT_FD => [&4096u64.to_le_bytes()[..], &[0; 8], &body[16..]].concat(),
                _ => Vec::new(),
            };
            // A daemon that another thread waits for is told of after it has answered.
            if !reply.is_empty() {
                self.reply(request, &reply);
            }
            let _ = self.tell.send((request, body));
        }
    }

    fn receive(&mut self) -> Option<Told> {
        let mut header = [0; 12];
        let (count, file) = self.stream.recv_with_fd(&mut header).ok()?;
        self.files.extend(file);
        self.stream.read_exact(&mut header[count..]).ok().filter(|()| count > 0)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((word(0), body))
    }

    fn reply(&mut self, request: u32, body: &[u8]) {
        let message = message(request, body);
        let sent = match request {
            GET_INFLIGHT_FD => {
                let record = HostMem::memfd("inflight", 4096, PageSize::Small).unwrap();
                let fd = record.file().unwrap().0.as_fd().as_raw_fd();
                self.stream.send_with_fd(&message[..], fd).unwrap()
            }
            _ => self.stream.write(&message).unwrap(),
        };
        assert_eq!(sent, message.len());
    }
}

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let words = [request, 5, body.len() as u32];
    words.into_iter().flat_map(u32::to_le_bytes).chain(body.iter().copied()).collect()
}

/// A machine with a device whose daemon the test is.
struct Setup {
    listener: UnixListener,
    tell: Sender<Told>,
    told: Receiver<Told>,
    driver: Driver,
    _event_loop: EventLoop,
    _folder: tempfile::TempDir,
}

fn shape() -> Shape {
    Shape { device_type: 2, class: [0, 0, 1], queues: 2, served: 2, queue_size: 8, config: Config::Daemon(16) }
}

/// A socket as a character back end, claimed.
fn claim(path: &Path, more: &str, event_loop: &EventLoop) -> Claim<dyn Chardev> {
    let backends = Arc::new(Backends::default());
    let text = format!("socket,id=c0,path={}{more}", path.display());
    let args = Args::parse("--chardev", Some("backend"), &text).unwrap();
    let made = chardev::create(args, &event_loop.handle(), &backends).unwrap();
    backends.chardevs.add(made.name, made.of_type, made.back, made.shared).unwrap();
    backends.chardevs.claim("c0", "dev0").unwrap()
}

fn daemon(listener: &UnixListener, base: u32, config: u8, tell: &Sender<Told>) -> UnixStream {
    daemon_with(PROTOCOL, listener, base, config, tell)
}

fn daemon_with(protocol: u64, listener: &UnixListener, base: u32, config: u8, tell: &Sender<Told>) -> UnixStream {
    let (stream, _) = listener.accept().unwrap();
    let ours = stream.try_clone().unwrap();
    let daemon = Daemon { stream, base, config, protocol, tell: tell.clone(), files: Vec::new() };
    std::thread::spawn(move || daemon.serve());
    ours
}

impl Setup {
    fn new(more: &str) -> (Setup, UnixStream) {
        Setup::with(PROTOCOL, more)
    }

    fn with(protocol: u64, more: &str) -> (Setup, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, told) = channel();
        let event_loop = event_loop();
        let chardev = claim(&path, more, &event_loop);
        let first = daemon_with(protocol, &listener, 7, 0xc0, &tell);
        let bench = Bench::new();
        let device = VhostUser::new("dev0".into(), shape(), chardev, &bench.memory).unwrap();
        let driver = Driver::on(bench, device, &PciOptions::default());
        (Setup { listener, tell, told, driver, _event_loop: event_loop, _folder: folder }, first)
    }

    /// The next request of this kind, skipping others.
    fn next(&self, request: u32) -> Vec<u8> {
        loop {
            let (kind, body) =
                self.told.recv_timeout(Duration::from_secs(60)).expect("the daemon was told nothing more");
            if kind == request {
                return body;
            }
        }
    }
}

fn state(index: u32, value: u32) -> Vec<u8> {
    [index, value].into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_daemon_is_told_what_the_driver_has_set_up() {
    let (mut setup, _daemon) = Setup::new("");
    setup.driver.enable_msix();
    assert_eq!(setup.driver.offered(), 1 << 32 | 1 << 29 | 1 << 6, "what daemon and transport know");
    assert_eq!(setup.driver.read(CONFIG, 4), 0xc0c0_c0c0);
    setup.driver.negotiate(1 << 6);
    setup.driver.enable(0, 1);
    setup.driver.enable(1, 2);
    setup.driver.driver_ok();
    setup.next(SET_BACKEND_REQ_FD);
    assert_eq!(setup.next(SET_FEATURES), (1u64 << 32 | 1 << 30 | 1 << 6).to_le_bytes());
    let table = setup.next(SET_MEM_TABLE);
    assert_eq!((table.len(), table[0], u64::from_le_bytes(table[16..24].try_into().unwrap())), (40, 1, 1 << 20));
    setup.next(GET_INFLIGHT_FD);
    setup.next(SET_INFLIGHT_FD);
    assert_eq!(setup.next(SET_VRING_BASE), state(0, 0));
    assert_eq!(setup.next(SET_VRING_CALL)[0], 0);
    setup.next(SET_VRING_KICK);
    setup.next(SET_VRING_KICK);
    assert_eq!([setup.next(SET_VRING_ENABLE), setup.next(SET_VRING_ENABLE)], [state(0, 1), state(1, 1)]);
    // It does not acknowledge what it is told, so it is asked something before the guest goes on.
    setup.next(GET_FEATURES);
    assert_eq!(setup.driver.status(), 0xf);
    // Bus mastering off: the daemon gives the queues back; on: they go on where they were.
    setup.driver.config_write(4, 2, 2);
    assert_eq!(setup.next(SET_VRING_ENABLE), state(0, 0));
    assert_eq!(setup.next(GET_VRING_BASE)[..4], [0; 4]);
    setup.driver.config_write(4, 6, 2);
    assert_eq!(setup.next(SET_VRING_BASE), state(0, 7));
    setup.driver.write(crate::virtio::testing::COMMON + 0x14, 0, 1);
    setup.next(GET_VRING_BASE);
}

#[test]
fn the_next_daemon_goes_on_behind_what_was_used() {
    let (mut setup, first) = Setup::new(",reconnect-ms=10");
    setup.driver.start(0);
    setup.next(SET_INFLIGHT_FD);
    assert_eq!(setup.next(SET_VRING_ENABLE), state(0, 1));
    setup.driver.write(rings(0)[2] + 2, 5, 2);
    first.shutdown(std::net::Shutdown::Both).unwrap();
    let second = daemon(&setup.listener, 0, 0xc1, &setup.tell);
    // With the record of the first.
    setup.next(SET_INFLIGHT_FD);
    assert_eq!(setup.next(SET_VRING_BASE), state(0, 5));
    assert_eq!(setup.next(SET_VRING_BASE), state(1, 0));
    setup.driver.until(|driver| driver.read(CONFIG, 1) == 0xc1);
    assert_eq!(setup.driver.status(), 0xf, "the driver has not noticed");
    // A driver that begins while no daemon is there is served by the next.
    second.shutdown(std::net::Shutdown::Both).unwrap();
    setup.driver.start(0);
    let _third = daemon(&setup.listener, 0, 0xc1, &setup.tell);
    assert_eq!(setup.next(SET_VRING_ENABLE), state(0, 1));
}

#[test]
fn without_another_daemon_the_driver_is_told() {
    let (mut setup, first) = Setup::new("");
    setup.driver.start(0);
    first.shutdown(std::net::Shutdown::Both).unwrap();
    setup.driver.until(|driver| driver.status() & 64 != 0);
}

#[test]
fn memory_that_comes_and_goes_is_told_of() {
    let (mut setup, _daemon) = Setup::new("");
    setup.driver.start(0);
    setup.next(SET_MEM_TABLE);
    let more = Arc::new(HostMem::memfd("more", 0x1000, PageSize::Small).unwrap());
    let region = Region::whole("more", 0x1000, PRIORITY_PLATFORM, Backing::Ram(more.slice()));
    let memory = &setup.driver.bench.memory;
    let added = memory.update(|map| map.add(Space::Mmio, 1 << 32, region)).unwrap();
    assert_eq!(setup.next(SET_MEM_TABLE)[0], 2);
    memory.update(|map| map.remove(added)).unwrap();
    assert_eq!(setup.next(SET_MEM_TABLE)[0], 1);
}

/// Guest addresses of ADD_MEM_REG and REM_MEM_REG.
fn address(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[8..16].try_into().unwrap())
}

#[test]
fn a_daemon_with_slots_is_told_of_what_changes_only() {
    let (mut setup, first) = Setup::with(PROTOCOL | MEM_SLOTS, ",reconnect-ms=10");
    setup.driver.start(0);
    setup.next(GET_MAX_MEM_SLOTS);
    assert_eq!(address(&setup.next(ADD_MEM_REG)), 0);
    let memory = setup.driver.bench.memory.clone();
    let more = Arc::new(HostMem::memfd("more", 0x1000, PageSize::Small).unwrap());
    let add = |at: u64| {
        let region = Region::whole("more", 0x1000, PRIORITY_PLATFORM, Backing::Ram(more.slice()));
        memory.update(|map| map.add(Space::Mmio, at << 32, region)).unwrap()
    };
    // More than one message has room for.
    let mut added = Vec::new();
    for at in 1..SLOTS {
        added.push(add(at));
        assert_eq!(address(&setup.next(ADD_MEM_REG)), at << 32);
    }
    memory.update(|map| map.remove(added.swap_remove(2))).unwrap();
    assert_eq!(address(&setup.next(REM_MEM_REG)), 3 << 32);
    // A driver that begins anew changes nothing; another daemon is told of all.
    setup.driver.start(0);
    let told: Vec<Told> = std::iter::from_fn(|| setup.told.recv_timeout(Duration::from_secs(60)).ok())
        .take_while(|(request, _)| *request != SET_VRING_KICK)
        .collect();
    assert!(told.iter().all(|(request, _)| ![ADD_MEM_REG, REM_MEM_REG, SET_MEM_TABLE].contains(request)));
    first.shutdown(std::net::Shutdown::Both).unwrap();
    let _second = daemon_with(PROTOCOL | MEM_SLOTS, &setup.listener, 0, 0xc0, &setup.tell);
    let all: Vec<u64> = (0..SLOTS - 1).map(|_| address(&setup.next(ADD_MEM_REG))).collect();
    assert_eq!(all, (0..SLOTS).filter(|at| *at != 3).map(|at| at << 32).collect::<Vec<_>>());
    // One more than there is room for: the connection is given up, the guest is not.
    add(17);
    assert_eq!(address(&setup.next(ADD_MEM_REG)), 17 << 32);
    add(18);
    assert_eq!(setup.driver.status() & 64, 0);
}

#[test]
fn daemons_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let event_loop = event_loop();
    let make = |shape: Shape| {
        let chardev = claim(&path, "", &event_loop);
        let _daemon = daemon(&listener, 0, 0, &channel().0);
        let bench = Bench::new();
        VhostUser::new("dev0".into(), shape, chardev, &bench.memory).err().map(|error| error.to_string())
    };
    assert_eq!(make(shape()), None);
    let many = make(Shape { queues: 5, served: 5, ..shape() }).unwrap();
    assert!(many.contains("it serves 4 queues, not 5"), "{many}");
    let closed = {
        let chardev = claim(&path, "", &event_loop);
        drop(listener.accept().unwrap());
        VhostUser::new("dev0".into(), shape(), chardev, &Bench::new().memory).err().unwrap()
    };
    assert_eq!(closed.code(), Code::VhostUserFailed);
    // Memory that is ours alone.
    let bench = Bench::new();
    bench.router.set_chip(Arc::new(Recorder::default())).unwrap();
    let own = Arc::new(HostMem::anonymous(0x1000, PageSize::Small).unwrap());
    let region = Region::whole("ram", 0x1000, PRIORITY_PLATFORM, Backing::Ram(own.slice()));
    bench.memory.update(|map| map.add(Space::Mmio, 0, region)).unwrap();
    let error = VhostUser::new("dev0".into(), shape(), claim(&path, "", &event_loop), &bench.memory).err().unwrap();
    assert_eq!(error.code(), Code::MemoryNotShared);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a daemon says, and however much of it, it is an error or a session, and soon.
    #[test]
    fn nonsense_is_an_error(
        answers in prop::collection::vec((0u32..40, 0u32..16, 0u32..5000, prop::collection::vec(any::<u8>(), 0..64)), 0..6),
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (request, flags, size, body) in answers {
            let words = [request, flags, size];
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).chain(body).collect();
            (&theirs).write_all(&bytes).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        if let Ok(mut session) = Session::open(ours, 2) {
            let _ = session.config(60);
        }
    }
}
