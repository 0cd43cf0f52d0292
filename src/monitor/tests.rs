//! The socket with real clients, and a machine that only remembers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::commands::tests::Fake;
use super::*;

struct Bench {
    folder: tempfile::TempDir,
    event_loop: EventLoop,
    monitor: Monitor,
    fake: Fake,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let mut event_loop = EventLoop::new(|_, signal| panic!("{signal}")).unwrap();
        let monitor = Monitor::default();
        monitor.listen(&folder.path().join("qmp"), &mut event_loop).unwrap();
        Bench { folder, event_loop, monitor, fake: Fake::default() }
    }

    fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.folder.path().join("qmp")).unwrap())
    }

    /// One turn of the machine's loop: wait for something, and do it.
    fn turn(&mut self) {
        assert_eq!(self.event_loop.run().unwrap(), Return::Yielded);
        self.monitor.serve(&mut self.fake);
        self.monitor.settle(&mut self.event_loop);
    }

    /// A client that has negotiated.
    fn session(&mut self) -> BufReader<UnixStream> {
        let mut client = self.connect();
        self.turn();
        assert!(line(&mut client)["QMP"].is_object());
        send(&mut client, r#"{"execute": "qmp_capabilities"}"#);
        self.turn();
        assert_eq!(line(&mut client), json!({"return": {}}));
        client
    }
}

fn send(client: &mut BufReader<UnixStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).unwrap();
}

fn line(client: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn requests_may_be_sent_ahead_and_are_answered_in_order() {
    let mut bench = Bench::new();
    let mut client = bench.session();
    send(&mut client, r#"{"execute":"stop","id":1}{"execute":"nonsense","id":"b"}{"execute":"co"#);
    bench.turn();
    assert_eq!(line(&mut client), json!({"return": {}, "id": 1}));
    let failed = line(&mut client);
    assert_eq!((&failed["id"], &failed["error"]["class"]), (&json!("b"), &json!("CommandNotFound")));
    send(&mut client, "nt\",\"id\":3}\n");
    bench.turn();
    assert_eq!(line(&mut client)["id"], 3);
    assert_eq!(bench.fake.calls, ["stop", "cont"]);
}

#[test]
fn events_come_after_the_negotiation_only() {
    let mut bench = Bench::new();
    bench.monitor.event("RESET", None);
    let mut early = bench.connect();
    bench.turn();
    bench.monitor.event("RESET", None);
    assert!(line(&mut early)["QMP"].is_object());
    send(&mut early, r#"{"execute": "qmp_capabilities"}"#);
    bench.turn();
    assert_eq!(line(&mut early), json!({"return": {}}), "and no event before it");
    bench.monitor.event("DEVICE_DELETED", Some(device_data("nic0")));
    let event = line(&mut early);
    assert_eq!(event["data"], json!({"device": "nic0", "path": "/machine/peripheral/nic0"}));
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 0);
}

#[test]
fn several_clients_are_served_and_one_too_many_waits_until_one_has_left() {
    let mut bench = Bench::new();
    let mut served: Vec<_> = (0..MAX_CLIENTS).map(|_| bench.session()).collect();
    bench.monitor.event("RESET", None);
    for client in &mut served {
        assert_eq!(line(client)["event"], "RESET");
    }
    let mut late = bench.connect();
    late.get_ref().set_nonblocking(true).unwrap();
    bench.event_loop.handle().post(EventLoop::yield_now);
    bench.turn();
    assert!(late.read(&mut [0]).is_err(), "no greeting yet");
    send(&mut served[3], r#"{"execute":"stop"}"#);
    bench.turn();
    assert_eq!(line(&mut served[3]), json!({"return": {}}));
    served.remove(7);
    bench.turn();
    bench.turn();
    late.get_ref().set_nonblocking(false).unwrap();
    assert!(line(&mut late)["QMP"].is_object());
}

#[test]
fn a_slow_command_is_answered_to_who_gave_it() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (bench.session(), bench.session());
    bench.fake.slow = Some(1);
    send(&mut second, r#"{"execute":"device_add","arguments":{"driver":"a"}}"#);
    bench.turn();
    send(&mut first, r#"{"execute":"query-status"}"#);
    bench.turn();
    bench.monitor.answer(1, &Err(Failure::generic("why")));
    assert!(line(&mut first)["return"]["running"].is_boolean());
    assert_eq!(line(&mut second)["error"]["desc"], "why");
}

#[test]
fn a_client_that_sends_and_closes_gets_its_answers() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    send(&mut client, r#"{"execute":"qmp_capabilities"} {"execute":"query-status"}"#);
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    while !bench.monitor.0.borrow().clients.is_empty() || bench.fake.calls.is_empty() {
        bench.turn();
        bench.fake.calls.push("turn".into());
    }
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 3, "{rest}");
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_the_next_is_served() {
    let mut bench = Bench::new();
    let deaf = bench.session();
    while !bench.monitor.0.borrow().clients.is_empty() {
        bench.monitor.event("RESET", Some(json!({"filler": "x".repeat(4096)})));
        bench.monitor.settle(&mut bench.event_loop);
    }
    bench.session();
    drop(deaf);
}

#[test]
fn a_command_that_is_under_way_holds_up_only_what_has_no_name() {
    let mut bench = Bench::new();
    let mut client = bench.session();
    bench.fake.slow = Some(5);
    send(&mut client, r#"{"execute":"device_add","arguments":{"driver":"a"}} {"execute":"query-status","id":7}"#);
    bench.turn();
    assert_eq!(line(&mut client)["id"], 7, "a client that names its requests is served meanwhile");
    send(&mut client, r#"{"execute":"stop"} {"execute":"cont","id":8}"#);
    bench.turn();
    assert!(!bench.fake.calls.contains(&"stop".to_owned()), "{:?}", bench.fake.calls);
    bench.monitor.answer(6, &Ok(()));
    bench.monitor.answer(5, &Err(Failure::generic("why")));
    bench.monitor.answer(5, &Ok(()));
    bench.monitor.serve(&mut bench.fake);
    assert_eq!(line(&mut client)["error"]["desc"], "why");
    assert_eq!(line(&mut client), json!({"return": {}}));
    assert_eq!(line(&mut client)["id"], 8);
    assert_eq!(bench.fake.calls[1..], ["stop", "cont"]);
}

#[test]
fn the_other_monitor_s_device_is_answered_with_text_when_it_is_there() {
    let mut bench = Bench::new();
    let mut client = bench.session();
    for (ticket, done, text) in [(1, Ok(()), ""), (2, Err(Failure::generic("why")), "Error: why\r\n")] {
        bench.fake.slow = Some(ticket);
        send(&mut client, r#"{"execute":"human-monitor-command","arguments":{"command-line":"device_add a"}}"#);
        bench.turn();
        bench.monitor.answer(ticket, &done);
        assert_eq!(line(&mut client), json!({"return": text}));
    }
}

#[test]
fn a_client_that_has_left_is_not_answered() {
    let mut bench = Bench::new();
    let mut client = bench.session();
    bench.fake.slow = Some(1);
    send(&mut client, r#"{"execute":"device_add","arguments":{"driver":"a"}}"#);
    bench.turn();
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    bench.turn();
    assert!(!bench.monitor.0.borrow().clients.is_empty(), "it may still read");
    bench.monitor.answer(1, &Ok(()));
    bench.monitor.settle(&mut bench.event_loop);
    assert_eq!(line(&mut client), json!({"return": {}}));
    assert!(bench.monitor.0.borrow().clients.is_empty());
    bench.monitor.answer(1, &Ok(()));
}

#[test]
fn the_file_goes_with_the_machine() {
    let bench = Bench::new();
    let path = bench.folder.path().join("qmp");
    let Bench { monitor, event_loop, folder: _folder, .. } = bench;
    assert!(path.exists());
    drop(monitor);
    drop(event_loop);
    assert!(!path.exists());
}

#[test]
fn a_program_is_a_client_at_the_end_of_a_character_back_end() {
    use crate::backends::chardev::testing::Recorder;
    let mut bench = Bench::new();
    let backends = &bench.fake.backends;
    let recorder = Arc::new(Recorder::default());
    backends.chardevs.add("mon0".into(), "socket", recorder.clone(), false).unwrap();
    bench.monitor.attach_control(backends.chardevs.claim("mon0", "monitor").unwrap(), &bench.event_loop);
    bench.monitor.settle(&mut bench.event_loop);
    let front = || recorder.front.get().unwrap();
    let said = |bench: &mut Bench| {
        for _ in 0..100 {
            bench.turn();
            if recorder.bytes.lock().ends_with(b"\n") {
                break;
            }
        }
        let bytes: Vec<u8> = recorder.bytes.lock().drain(..).collect();
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    assert!(said(&mut bench)["QMP"].is_object());
    front().input(b"{\"execute\": \"qmp_capabilities\"}");
    assert_eq!(said(&mut bench), json!({"return": {}}));
    front().input(b"{\"execute\": \"stop\", \"id\": 7}");
    assert_eq!(said(&mut bench), json!({"return": {}, "id": 7}));
    assert_eq!(bench.fake.calls, ["stop"]);

    // Who comes after the one that has gone begins anew.
    front().peer_changed(false);
    front().peer_changed(true);
    assert!(said(&mut bench)["QMP"].is_object());
    front().input(b"{\"execute\": \"stop\"}");
    assert_eq!(said(&mut bench)["error"]["class"], "CommandNotFound");
}
