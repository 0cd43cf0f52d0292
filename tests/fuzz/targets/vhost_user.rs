//! A vhost-user device whose daemon answers what it likes, says what it likes unasked, and goes when it likes.
#![no_main]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use fuzz::driver::{COMMON, Guest, QUEUES};
use fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use passthru::backends::Backends;
use passthru::backends::chardev::{Chardev, FrontEnd, Lent, Peer};
use passthru::memory::HostMem;
use passthru::memory::Space;
use passthru::memory::host::PageSize;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// One whose configuration space is ours, one of the daemon's, one with queues that the daemon does not serve.
const LINES: [&str; 3] = [
    "vhost-user-rng-pci,chardev=c0",
    "vhost-user-blk-pci,chardev=c0,num-queues=2,queue-size=8",
    "vhost-user-vsock-pci,chardev=c0",
];
/// Connections of one run at most.
const MAX_DAEMONS: usize = 3;
const MAX_STEPS: usize = 24;
/// Requests of the protocol that are always answered, and one that brings the daemon's way to speak unasked.
const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const GET_INFLIGHT_FD: u32 = 31;
const GET_MAX_MEM_SLOTS: u32 = 36;
/// Virtio 1.0, the protocol's features, indirect descriptors and event indices.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// Queues, replies, back channel, configuration space, record of what it is at, memory region by region.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 15;
/// Flags of a message.
const REPLY: u32 = 5;
const NEED_REPLY: u32 = 8;
const LONGEST: usize = 4096;

/// What the daemons do, one after the other: a decision for each message.
type Script = Arc<Mutex<Vec<u8>>>;

struct Daemon {
    stream: UnixStream,
    script: Script,
    unasked: Option<UnixStream>,
}

impl Daemon {
    fn decide(&self, count: usize) -> Vec<u8> {
        let mut script = self.script.lock().unwrap();
        let count = count.min(script.len());
        script.drain(..count).collect()
    }

    /// Serves until one side has enough.
    fn serve(mut self) -> Option<()> {
        loop {
            let (request, flags, body) = self.receive()?;
            let reply = match request {
                GET_FEATURES => FEATURES.to_le_bytes().to_vec(),
                GET_PROTOCOL_FEATURES => PROTOCOL.to_le_bytes().to_vec(),
                GET_QUEUE_NUM | GET_MAX_MEM_SLOTS => 4u64.to_le_bytes().to_vec(),
                GET_CONFIG => body.clone(),
                GET_VRING_BASE => body.clone(),
                GET_INFLIGHT_FD => [&4096u64.to_le_bytes()[..], &[0; 8], body.get(16..)?].concat(),
                _ if flags & NEED_REPLY != 0 => vec![0; 8],
                _ => Vec::new(),
            };
            let decision = self.decide(1).first().copied().unwrap_or(0);
            match decision % 8 {
                // As it should.
                0..=3 => self.reply(request, &reply)?,
                // Unasked first.
                4 => {
                    let said = self.decide(usize::from(decision >> 3));
                    let _ = self.unasked.as_ref().map(|mut unasked| unasked.write_all(&said));
                    self.reply(request, &reply)?;
                }
                // Other content, of the length that it should have.
                5 if !reply.is_empty() => {
                    let mut other = self.decide(reply.len());
                    other.resize(reply.len(), 0);
                    self.reply(request, &other)?;
                }
                // Of another length, or no message at all; then it goes, because somebody may wait for more.
                6 => {
                    let other = self.decide(usize::from(decision >> 3) * 4);
                    return self.reply(request, &other);
                }
                7 => return self.stream.write_all(&self.decide(usize::from(decision >> 3) * 4)).ok(),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        let mut header = [0; 12];
        let (count, file) = self.stream.recv_with_fd(&mut header).ok()?;
        self.stream.read_exact(&mut header[count..]).ok().filter(|()| count > 0)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut body = vec![0; (word(8) as usize).min(LONGEST)];
        self.stream.read_exact(&mut body).ok()?;
        if let Some(file) = file.filter(|_| word(0) == SET_BACKEND_REQ_FD) {
            let unasked = UnixStream::from(std::os::fd::OwnedFd::from(file));
            unasked.set_nonblocking(true).ok()?;
            self.unasked = Some(unasked);
        }
        Some((word(0), word(4), body))
    }

    fn reply(&mut self, request: u32, body: &[u8]) -> Option<()> {
        if body.is_empty() {
            return Some(());
        }
        let words = [request, REPLY, body.len() as u32];
        let message: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).chain(body.iter().copied()).collect();
        if request != GET_INFLIGHT_FD {
            return self.stream.write_all(&message).ok();
        }
        let record = HostMem::memfd("inflight", 4096, PageSize::Small).ok()?;
        self.stream.send_with_fd(&message[..], record.file()?.0.as_raw_fd()).ok().map(drop)
    }
}

/// A socket at whose other end is one daemon after the other.
#[derive(Clone)]
struct Socket {
    script: Script,
    daemons: Arc<Mutex<Vec<JoinHandle<Option<()>>>>>,
}

impl Chardev for Socket {
    fn write(&self, _: &[u8]) {}
    fn attach(&self, _: Weak<dyn FrontEnd>) {}
    fn peer(&self) -> Peer {
        Peer { place: "nowhere".into(), present: true }
    }
    fn lend(&self) -> Option<Box<dyn Lent>> {
        Some(Box::new(self.clone()))
    }
}

impl Lent for Socket {
    fn connect(&self, _: Duration) -> io::Result<UnixStream> {
        let mut daemons = self.daemons.lock().unwrap();
        if daemons.len() == MAX_DAEMONS {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        let daemon = Daemon { stream: theirs, script: self.script.clone(), unasked: None };
        daemons.push(std::thread::Builder::new().spawn(move || daemon.serve())?);
        Ok(ours)
    }
    fn lost(&self) {}
    fn again(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }
    fn place(&self) -> String {
        "nowhere".into()
    }
}

fn run(line: &str, backends: Arc<Backends>, input: &mut Input) {
    let Some(guest) = Guest::new(line, backends) else { return };
    guest.start(u64::MAX);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, at, value) = (input.u8(), input.u8(), input.u16());
        match kind % 5 {
            0 => guest.write(COMMON + 0x3000 + 4 * (u64::from(at) % QUEUES), 0, 2),
            1 => guest.memory.read(Space::Mmio, COMMON + u64::from(at), &mut [0; 4]),
            2 => guest.start(u64::MAX),
            3 => guest.device().reset(),
            // Its own configuration space, which some daemons have.
            _ => guest.write(COMMON + 0x2000 + u64::from(at & 0x3f), value.into(), 1),
        }
    }
    guest.end();
}

// The device, how much the daemons' script is, the script, the driver's steps.
fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let line = LINES[usize::from(input.u8()) % LINES.len()];
    let len = usize::from(input.u8());
    let script = Arc::new(Mutex::new(input.take(len).to_vec()));
    let socket = Socket { script, daemons: Arc::default() };
    let backends = Backends::default();
    if backends.chardevs.add("c0".into(), "socket", Arc::new(socket.clone()), false).is_ok() {
        run(line, Arc::new(backends), &mut input);
    }
    let daemons = std::mem::take(&mut *socket.daemons.lock().unwrap());
    for daemon in daemons {
        assert!(daemon.join().is_ok(), "the fuzzer's own daemon has failed");
    }
});
