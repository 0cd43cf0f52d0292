use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use super::config::{SHAPE, bit};
use super::*;
use crate::backends::net::frames::Framed;
use crate::backends::net::testing::queue_pair;
use crate::backends::net::{HEADER, MAX_PACKET, NETDEVS, NetQueue};
use crate::backends::table::Table;
use crate::backends::{BackendCx, Backends};
use crate::event_loop::EventLoop;
use crate::object::{Args, Kind, Props};
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{Buffer, CONFIG, Driver};

const RX: u16 = 0;
const TX: u16 = 1;
const CTRL: u16 = 2;
/// Where the tests put buffers.
const AT: u64 = 0x20000;

/// A back end whose other end is the test's.
struct Fake {
    pairs: Vec<Arc<dyn NetQueue>>,
    said: Mutex<Vec<String>>,
}

impl Netdev for Fake {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.pairs
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn set_offloads(&self, on: Offloads) -> io::Result<()> {
        self.said.lock().push(format!("{on:?}"));
        Ok(())
    }
    fn set_pairs(&self, count: usize) -> io::Result<()> {
        self.said.lock().push(format!("{count} pairs"));
        Ok(())
    }
    fn place(&self) -> String {
        "fake".into()
    }
}

struct Wire {
    driver: Driver,
    fake: Arc<Fake>,
    ends: Vec<UnixDatagram>,
}

fn wire(shape: Shape, features: u64) -> Wire {
    let (mut pairs, mut ends): (Vec<Arc<dyn NetQueue>>, _) = (Vec::new(), Vec::new());
    for _ in 0..shape.pairs {
        let (queue, theirs) = queue_pair();
        pairs.push(queue);
        ends.push(theirs);
    }
    let (driver, fake) = driver_on(pairs, shape, features);
    Wire { driver, fake, ends }
}

/// A device on these queues, and its driver.
fn driver_on(pairs: Vec<Arc<dyn NetQueue>>, shape: Shape, features: u64) -> (Driver, Arc<Fake>) {
    let fake = Arc::new(Fake { pairs, said: Mutex::default() });
    let table: Arc<Table<dyn Netdev>> = Table::new(Kind::Netdev);
    table.add("n0".into(), "fake", fake.clone(), false).unwrap();
    let claim = table.claim("n0", "net0").unwrap();
    let mut driver = Driver::new(Net::new("net0".into(), claim, shape, Path::Threads), &PciOptions::default());
    driver.start(features);
    (driver, fake)
}

/// A packet with an empty header and this body.
fn packet(body: &[u8]) -> Vec<u8> {
    [&[0; HEADER], body].concat()
}

fn room(at: u64, len: u32) -> Buffer {
    (at, len, true)
}

#[test]
fn packets_go_both_ways() {
    let Wire { mut driver, ends, .. } = wire(SHAPE, bit::MRG_RXBUF);
    driver.put(AT, &packet(b"from the guest"));
    assert_eq!(driver.request(TX, &[(AT, 12, false), (AT + 12, 14, false)]), 0);
    let mut buffer = [0; 100];
    let len = ends[0].recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], packet(b"from the guest"));
    driver.submit(RX, &[room(AT, 100)]);
    driver.kick(RX);
    ends[0].send(&packet(b"from the host")).unwrap();
    assert_eq!(driver.used(RX), (0, 25));
    assert_eq!(driver.bytes(AT + 10, 15), b"\x01\0from the host", "the header has the number of buffers");
}

#[test]
fn a_long_packet_lies_in_several_buffers_that_are_used_at_once() {
    let Wire { mut driver, ends, .. } = wire(SHAPE, bit::MRG_RXBUF);
    let body: Vec<u8> = (0..200).collect();
    driver.submit(RX, &[room(AT, 100)]);
    driver.submit(RX, &[room(AT + 0x1000, 100)]);
    driver.kick(RX);
    ends[0].send(&packet(&body)).unwrap();
    // Two buffers are too few: the packet waits, and the driver sees nothing of it.
    driver.request(TX, &[(AT, 12, false)]);
    assert_eq!(driver.used_index(RX), 0);
    driver.submit(RX, &[room(AT + 0x2000, 100)]);
    driver.kick(RX);
    assert_eq!([driver.used(RX).1, driver.used(RX).1, driver.used(RX).1], [100, 100, 12]);
    assert_eq!(driver.bytes(AT + 10, 2), [3, 0]);
    let found = [driver.bytes(AT + 12, 88), driver.bytes(AT + 0x1000, 100), driver.bytes(AT + 0x2000, 12)].concat();
    assert_eq!(found, body);
}

#[test]
fn without_merging_a_packet_has_one_buffer_or_is_lost() {
    let Wire { mut driver, ends, .. } = wire(SHAPE, 0);
    driver.submit(RX, &[room(AT, 20)]);
    driver.submit(RX, &[room(AT + 0x1000, 20)]);
    driver.kick(RX);
    ends[0].send(&packet(b"too long for one buffer")).unwrap();
    ends[0].send(&packet(b"short")).unwrap();
    assert_eq!(driver.used(RX), (0, 17));
    assert_eq!(driver.bytes(AT + 12, 5), b"short");
}

/// The other end of a stream reads nothing for a while: packets wait in the ring, and none is lost.
#[test]
fn what_the_back_end_has_no_room_for_stays_the_drivers() {
    const COUNT: u16 = 8;
    const LEN: usize = 65000;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (mut driver, _) = driver_on(vec![Arc::new(Framed::new(ours.into()).unwrap())], SHAPE, 0);
    driver.put(AT, &packet(&vec![7; LEN]));
    for _ in 0..COUNT {
        driver.submit(TX, &[(AT, (HEADER + LEN) as u32, false)]);
    }
    driver.kick(TX);
    let mut frame = vec![0; 4 + LEN];
    for _ in 0..COUNT {
        theirs.read_exact(&mut frame).unwrap();
        assert_eq!(frame[..5], [&(LEN as u32).to_be_bytes()[..], &[7]].concat());
    }
    driver.until(|driver| driver.used_index(TX) == u64::from(COUNT));
}

#[test]
fn packets_wait_for_room() {
    let Wire { mut driver, ends, .. } = wire(SHAPE, bit::MRG_RXBUF);
    for number in 0..4 {
        ends[0].send(&packet(&[number])).unwrap();
    }
    for number in 0..4 {
        driver.submit(RX, &[room(AT, 20)]);
        driver.kick(RX);
        assert_eq!(driver.used(RX).1, 13);
        assert_eq!(driver.bytes(AT + 12, 1), [number]);
    }
}

#[test]
fn what_is_no_packet_is_answered_and_lost() {
    let Wire { mut driver, ends, .. } = wire(SHAPE, 0);
    ends[0].send(&[1; 4]).unwrap();
    assert_eq!(driver.request(TX, &[(AT, 11, false)]), 0, "shorter than its header");
    assert_eq!(driver.request(TX, &[(AT, MAX_PACKET as u32 + 1, false)]), 0, "longer than any");
    driver.request(TX, &[(AT, 13, false)]);
    assert_eq!(ends[0].recv(&mut [0; 100]).unwrap(), 13);
}

#[test]
fn the_guest_says_what_it_can_take_and_a_reset_forgets_it() {
    let features = bit::GUEST_CSUM | bit::GUEST_TSO4 | bit::HOST_TSO6;
    let Wire { mut driver, fake, .. } = wire(SHAPE, features);
    driver.negotiate(0);
    let said = fake.said.lock().clone();
    let taken = said.iter().rposition(|words| *words == format!("{:?}", Offloads::CSUM | Offloads::TSO4)).unwrap();
    assert!(said[taken + 1..].contains(&format!("{:?}", Offloads::empty())), "{said:?}");
}

#[test]
fn pairs_are_switched_by_the_control_queue() {
    let shape = Shape { pairs: 2, ..SHAPE };
    let Wire { mut driver, fake, ends } = wire(shape, bit::MQ | bit::CTRL_VQ | bit::CTRL_RX);
    let mut command = |class: u8, number: u8, data: &[u8]| {
        driver.put(AT, &[&[class, number], data].concat());
        driver.put(AT + 0x100, &[0xff]);
        driver.request(4, &[(AT, 2 + data.len() as u32, false), (AT + 0x100, 1, true)]);
        driver.bytes(AT + 0x100, 1)[0]
    };
    assert_eq!([command(4, 0, &[2, 0]), command(4, 0, &[3, 0]), command(4, 0, &[0, 0])], [0, 1, 1]);
    assert_eq!([command(0, 0, &[1]), command(9, 0, &[1]), command(4, 0, &[1])], [0, 1, 1]);
    assert_eq!(fake.said.lock().iter().filter(|words| *words == "2 pairs").count(), 1);
    // The second pair has a thread of its own.
    driver.put(AT, &packet(b"2"));
    driver.request(3, &[(AT, 13, false)]);
    assert_eq!(ends[1].recv(&mut [0; 100]).unwrap(), 13);
}

#[test]
fn a_command_without_room_for_its_answer_breaks_its_queue() {
    let Wire { mut driver, .. } = wire(SHAPE, bit::CTRL_VQ);
    driver.submit(CTRL, &[(AT, 2, false)]);
    driver.kick(CTRL);
    driver.until(|driver| driver.status() & 0x40 != 0);
}

#[test]
fn a_link_that_is_gone_is_told() {
    let Wire { mut driver, mut ends, .. } = wire(SHAPE, bit::STATUS);
    assert_eq!(driver.read(CONFIG + 6, 2), 1);
    // Unix sockets tell of their end by a packet of nothing.
    ends[0].send(&[]).unwrap();
    driver.until(|driver| driver.read(CONFIG + 6, 2) == 0);
    ends.clear();
    assert_eq!(driver.request(TX, &[(AT, 13, false)]), 0, "what is sent is lost");
}

#[test]
fn a_driver_may_use_the_control_queue_alone() {
    let Wire { mut driver, .. } = wire(SHAPE, bit::CTRL_VQ | bit::CTRL_RX);
    driver.negotiate(bit::CTRL_VQ | bit::CTRL_RX);
    driver.enable(2, 0xffff);
    driver.driver_ok();
    assert_eq!(driver.status(), 0xf, "its thread waits for queues that are not there, too");
}

/// What a guest is offered on each back end that needs nothing of the host. A tap has all that the fake one has.
#[test]
fn each_back_end_offers_what_it_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let peers = (UnixListener::bind(folder.path().join("s")).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let stream = format!("stream,addr.type=unix,addr.path={}/s", folder.path().display());
    let socket = format!("socket,connect={}", peers.1.local_addr().unwrap());
    let own = bit::MAC | bit::STATUS | bit::CTRL_VQ | bit::CTRL_RX | bit::MRG_RXBUF;
    let offloads = config::features(&SHAPE, Offloads::all()) & !own;
    for (text, offered) in [
        (&*stream, own),
        (&socket, own),
        ("vhost-user,chardev=c0", own | offloads),
        ("vhost-user,chardev=c0,queues=4", own | offloads | bit::MQ),
    ] {
        let event_loop = EventLoop::new(|_, _| {}).unwrap().handle();
        let cx = BackendCx { name: "n0".into(), event_loop, backends: Arc::new(Backends::default()) };
        let mut args = Args::parse("--netdev", Some("type"), &format!("{text},id=n0")).unwrap();
        let of_type = NETDEVS.take_type(&mut args).unwrap();
        crate::backends::net::Common::parse(&mut args).unwrap();
        let netdev = of_type.create(&mut args, &cx).unwrap();
        // All pairs that it has, as with mq=on.
        let shape = Shape { pairs: netdev.pairs().len() as u16, ..SHAPE };
        assert_eq!(config::features(&shape, netdev.offloads()), offered, "{text}");
    }
}
