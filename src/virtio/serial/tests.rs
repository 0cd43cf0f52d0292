use std::sync::atomic::Ordering;

use super::port::{Options, Port};
use super::*;
use crate::backends::Backends;
use crate::backends::chardev::FrontEnd;
use crate::backends::chardev::testing::Recorder;
use crate::device::{Unit, Word};
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{CONFIG, Driver};

/// Queues of the ports 0 and 1, and of messages.
const CONSOLE_RX: u16 = 0;
const CONSOLE_TX: u16 = 1;
const MESSAGES_RX: u16 = 2;
const MESSAGES_TX: u16 = 3;
const PORT_RX: u16 = 4;
const PORT_TX: u16 = 5;
/// Where the tests put buffers.
const AT: u64 = 0x20000;

struct Bench {
    driver: Driver,
    bus: Arc<SerialBus>,
    backends: Arc<Backends>,
    words: Arc<Mutex<Vec<Word>>>,
}

impl Bench {
    fn new() -> Bench {
        let bus = SerialBus::new("vser0.0".into(), "vser0".into(), 3);
        let driver = Driver::new(Serial::new("vser0".into(), bus.clone()), &PciOptions::default());
        Bench { driver, bus, backends: Arc::default(), words: Arc::default() }
    }

    /// Makes a port with a back end of its own and puts it on the bus.
    fn plug(&self, id: &str, console: bool, name: Option<&str>) -> (Arc<Port>, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        self.backends.chardevs.add(id.into(), "null", recorder.clone(), false).unwrap();
        let chardev = self.backends.chardevs.claim(id, id).unwrap();
        let words = self.words.clone();
        let options = Options { id: id.into(), number: None, name: name.map(str::to_owned), console };
        let port = Port::new(options, self.bus.clone(), Arc::new(move |_, word| words.lock().push(word)), chardev);
        port.clone().attach().unwrap();
        (port, recorder)
    }

    /// Says something of a port to the device.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.driver.put(AT, &message);
        self.driver.request(MESSAGES_TX, &[(AT, 8, false)]);
    }

    /// The next message of the device: port, event, value, and what follows.
    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let at = AT + 0x1000;
        let len = self.driver.request(MESSAGES_RX, &[(at, 64, true)]) as usize;
        let bytes = self.driver.bytes(at, len);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (u32::from(word(0)), word(4), word(6), bytes[8..].to_vec())
    }

    fn send(&mut self, queue: u16, bytes: &[u8]) {
        self.driver.put(AT + 0x2000, bytes);
        self.driver.submit(queue, &[(AT + 0x2000, bytes.len() as u32, false)]);
        self.driver.kick(queue);
    }
}

#[test]
fn queues_and_ports() {
    assert_eq!([0, 1, 2].map(queues_of), [[0, 1], [4, 5], [6, 7]]);
    assert_eq!([0, 1, 4, 5, 6, 7].map(port_of), [(0, true), (0, false), (1, true), (1, false), (2, true), (2, false)]);
    let bench = Bench::new();
    assert_eq!((bench.driver.read(CONFIG + 4, 4), bench.driver.offered() & 7), (3, MULTIPORT | EMERGENCY));
}

#[test]
fn ports_are_introduced_when_the_driver_asks() {
    let mut bench = Bench::new();
    let (_console, _) = bench.plug("c0", true, None);
    let (_port, _) = bench.plug("p1", false, Some("org.test"));
    bench.driver.start(MULTIPORT);
    bench.say(0, 0, 1);
    assert_eq!([bench.hear(), bench.hear()], [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    bench.say(0, 3, 1);
    assert_eq!([bench.hear(), bench.hear()], [(0, 4, 1, vec![]), (0, 6, 1, vec![])], "a console, and open");
    bench.say(1, 3, 1);
    assert_eq!([bench.hear(), bench.hear()], [(1, 7, 1, b"org.test\0".to_vec()), (1, 6, 1, vec![])]);
    // One that comes later, and goes.
    let (port, _) = bench.plug("p2", false, None);
    assert_eq!(bench.hear(), (2, 1, 1, vec![]));
    port.detach();
    assert_eq!(bench.hear(), (2, 2, 1, vec![]));
    port.peer_changed(false);
    bench.say(7, 3, 1);
    bench.say(7, 6, 1);
    bench.say(0, 99, 1);
    assert_eq!(bench.driver.status(), 0xf, "what is unknown is no harm");
}

#[test]
fn bytes_go_both_ways() {
    let mut bench = Bench::new();
    let (port, recorder) = bench.plug("p1", false, None);
    let (console, screen) = bench.plug("c0", true, None);
    bench.driver.start(MULTIPORT);
    bench.send(PORT_TX, b"from the guest");
    bench.driver.used(PORT_TX);
    bench.send(CONSOLE_TX, b"login: ");
    bench.driver.used(CONSOLE_TX);
    assert_eq!(
        (recorder.bytes.lock().clone(), screen.bytes.lock().clone()),
        (b"from the guest".to_vec(), b"login: ".to_vec())
    );
    // Nobody has opened the port: its input waits on the host.
    assert_eq!((port.room(), console.room() > 0), (0, true));
    bench.say(1, 6, 1);
    assert_eq!(*bench.words.lock(), [Word::PortOpen(true)]);
    assert_eq!(recorder.resumed.load(Ordering::SeqCst), 1);
    port.input(b"hello");
    for (queue, expected) in [(PORT_RX, &b"hel"[..]), (PORT_RX, b"lo")] {
        let len = bench.driver.request(queue, &[(AT + 0x3000, 3, true)]) as usize;
        assert_eq!(bench.driver.bytes(AT + 0x3000, len), expected);
    }
    bench.driver.submit(CONSOLE_RX, &[(AT + 0x3000, 8, true)]);
    bench.driver.kick(CONSOLE_RX);
    console.input(b"root\n");
    assert_eq!(bench.driver.used(CONSOLE_RX).1, 5);
}

#[test]
fn a_full_back_end_makes_the_writer_wait_and_loses_nothing() {
    let mut bench = Bench::new();
    let (port, recorder) = bench.plug("p1", false, None);
    bench.driver.start(MULTIPORT);
    recorder.full.store(true, Ordering::SeqCst);
    let bytes: Vec<u8> = (0..9000u32).map(|n| n as u8).collect();
    bench.send(PORT_TX, &bytes);
    bench.say(1, 6, 1);
    assert_eq!((bench.driver.used_index(PORT_TX), recorder.bytes.lock().len()), (0, 0));
    recorder.full.store(false, Ordering::SeqCst);
    port.output_ready();
    bench.driver.used(PORT_TX);
    assert_eq!(*recorder.bytes.lock(), bytes);
}

#[test]
fn a_console_is_looked_at_again_by_itself() {
    let mut bench = Bench::new();
    let (_console, recorder) = bench.plug("c0", true, None);
    bench.driver.start(MULTIPORT);
    recorder.full.store(true, Ordering::SeqCst);
    bench.send(CONSOLE_TX, b"panic");
    bench.say(0, 6, 1);
    // Nobody says that there is room.
    recorder.full.store(false, Ordering::SeqCst);
    bench.driver.used(CONSOLE_TX);
    assert_eq!(*recorder.bytes.lock(), b"panic");
}

#[test]
fn input_that_nobody_takes_is_bounded() {
    let bench = Bench::new();
    let (console, recorder) = bench.plug("c0", true, None);
    while console.room() > 0 {
        console.input(&[7; 1000]);
    }
    console.input(&[8; 1000]);
    assert_eq!(console.room(), 0);
    assert_eq!(recorder.resumed.load(Ordering::SeqCst), 0);
}

#[test]
fn a_driver_of_one_port_needs_no_messages() {
    let mut bench = Bench::new();
    let (_console, recorder) = bench.plug("c0", true, None);
    bench.driver.start(0);
    bench.send(CONSOLE_TX, b"old");
    bench.driver.used(CONSOLE_TX);
    bench.driver.write(CONFIG + 8, u64::from(b'!'), 4);
    assert_eq!(*recorder.bytes.lock(), b"old!");
}

#[test]
fn a_port_that_is_gone_leaves_its_back_end() {
    let mut bench = Bench::new();
    let (port, _recorder) = bench.plug("p1", false, None);
    bench.driver.start(MULTIPORT);
    bench.say(1, 6, 1);
    port.detach();
    drop(port);
    bench.send(PORT_TX, b"nobody");
    bench.driver.used(PORT_TX);
    bench.backends.chardevs.claim("p1", "another").unwrap();
}
