//! Both roles, with real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;

use super::super::testing::{Port, cx, event_loop, run_until, settle};
use super::*;
use crate::object::Args;

struct Bench {
    event_loop: EventLoop,
    socket: Arc<dyn Chardev>,
    port: Arc<Port>,
}

fn create(event_loop: &EventLoop, text: &str) -> Result<Arc<dyn Chardev>> {
    let mut args = Args::parse("--chardev", None, text)?;
    TYPE.create(&mut args, &cx(event_loop))
}

impl Bench {
    fn new(text: &str) -> Bench {
        let event_loop = event_loop();
        let socket = create(&event_loop, text).unwrap();
        let port = Port::new(1 << 20);
        socket.attach(port.weak());
        Bench { event_loop, socket, port }
    }

    fn until(&mut self, mut done: impl FnMut(&dyn Chardev, &Port) -> bool) {
        run_until(&mut self.event_loop, || done(&*self.socket, &self.port));
    }
}

#[test]
fn a_server_serves_one_client_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut bench = Bench::new(&format!("path={},server=on,wait=off", path.display()));
    assert_eq!(bench.socket.peer().place, format!("disconnected:unix:{},server=on", path.display()));
    bench.socket.write(b"nobody hears this");
    let mut first = UnixStream::connect(&path).unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    bench.until(|socket, _| socket.peer().present);
    first.write_all(b"first").unwrap();
    bench.until(|_, port| port.seen() == b"first");
    bench.socket.write(b"hello");
    let mut seen = [0; 5];
    first.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");
    first.shutdown(Shutdown::Both).unwrap();
    bench.until(|_, port| port.seen() == b"firstsecond");
    assert_eq!(*bench.port.peers.lock(), [true, false, true]);
    bench.socket.write(b"hello");
    second.read_exact(&mut seen).unwrap();
    let Bench { event_loop, socket, .. } = bench;
    drop((socket, event_loop));
    assert!(!path.exists());
}

#[test]
fn the_guest_waits_for_the_first_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut bench = Bench::new(&format!("path={},server=on", path.display()));
    assert!(bench.socket.is_awaited());
    let client = UnixStream::connect(&path).unwrap();
    bench.until(|socket, _| !socket.is_awaited());
    drop(client);
    bench.until(|socket, _| !socket.peer().present);
    assert!(!bench.socket.is_awaited(), "only for the first");
}

#[test]
fn a_client_that_does_not_read_does_not_stop_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut bench = Bench::new(&format!("path={},server=on,wait=off", path.display()));
    let deaf = UnixStream::connect(&path).unwrap();
    bench.until(|socket, _| socket.peer().present);
    while bench.socket.ready() {
        bench.socket.write(&[7; 1000]);
    }
    drop(deaf);
    bench.until(|socket, port| !socket.peer().present && port.readies.load(Ordering::SeqCst) > 0);
    assert!(bench.socket.ready());
}

#[test]
fn a_tcp_client_and_a_tcp_server() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut bench = Bench::new(&format!("host=127.0.0.1,port={port}"));
    let (mut peer, _) = server.accept().unwrap();
    peer.write_all(b"in").unwrap();
    bench.until(|_, port| port.seen() == b"in");
    drop(server);
    // Its port is free again for a server of ours.
    let mut bench = Bench::new(&format!("host=127.0.0.1,port={port},server=on,wait=off"));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"again").unwrap();
    bench.until(|_, port| port.seen() == b"again");
    assert!(bench.socket.peer().place.starts_with("tcp:127.0.0.1:"));
}

#[test]
fn a_client_connects_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server");
    let mut bench = Bench::new(&format!("path={},reconnect-ms=1", path.display()));
    settle(&mut bench.event_loop);
    assert!(!bench.socket.peer().present);
    for turn in 1..3 {
        let server = UnixListener::bind(&path).unwrap();
        let (mut peer, _) = server.accept().unwrap();
        peer.write_all(b"x").unwrap();
        bench.until(|_, port| port.seen().len() == turn);
        std::fs::remove_file(&path).unwrap();
        drop((server, peer));
        bench.until(|socket, _| !socket.peer().present);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let event_loop = event_loop();
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent").display().to_string();
    for (text, code, words) in [
        ("", Code::BadProperty, "needs path="),
        ("path=a,port=1", Code::BadProperty, "not both"),
        ("host=a", Code::BadProperty, "needs path="),
        ("path=a,wait=on", Code::BadProperty, "wait=on"),
        ("path=a,server=on,reconnect-ms=1", Code::BadProperty, "reconnect-ms="),
        (&format!("path={absent}"), Code::ChardevFailed, "cannot be connected to"),
        (&format!("path={absent}/x,server=on"), Code::ChardevFailed, "cannot be made"),
    ] {
        let error = create(&event_loop, text).map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{text}");
        assert!(error.cause().contains(words), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However a stream is cut, it arrives as it was sent, in the front end's own steps.
    #[test]
    fn cuts_do_not_matter(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5000), 1..6), room in 1usize..6000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut bench = Bench::new(&format!("path={},server=on,wait=off", path.display()));
        let all = pieces.concat();
        let mut client = UnixStream::connect(&path).unwrap();
        let writer = thread::spawn(move || pieces.iter().for_each(|piece| client.write_all(piece).unwrap()));
        bench.until(|socket, port| {
            port.room.store(room, Ordering::SeqCst);
            socket.resume();
            port.seen().len() == all.len()
        });
        writer.join().unwrap();
        prop_assert_eq!(bench.port.seen(), all);
    }
}
