//! The commands against a machine that only remembers what it was told.

use std::sync::Arc;

use super::*;
use crate::backends::Backends;
use crate::backends::block::BlockNode;
use crate::backends::chardev::Chardev;
use crate::backends::chardev::null::Null;
use crate::backends::iothread::IoThread;
use crate::backends::net::Netdev;
use crate::backends::table::Table;
use crate::monitor::control::{CpuView, DeviceView, MemoryView, Removal, Resources, Status, VmView};
use crate::object::{self, Args, Prop};
use crate::pci::view::BusView;

#[derive(Default)]
pub(in crate::monitor) struct Fake {
    pub(in crate::monitor) calls: Vec<String>,
    pub(in crate::monitor) status: Status,
    /// The next device is under way when its command returns.
    pub(in crate::monitor) slow: Option<Ticket>,
    pub(in crate::monitor) backends: Backends,
    pub(in crate::monitor) balloon: Option<u64>,
}

impl Control for Fake {
    fn status(&self) -> Status {
        self.status
    }
    fn stop(&mut self) {
        self.calls.push("stop".into());
    }
    fn cont(&mut self) -> Result<(), Failure> {
        self.calls.push("cont".into());
        Ok(())
    }
    fn inject_nmi(&mut self) -> Result<(), Failure> {
        self.calls.push("nmi".into());
        Ok(())
    }
    fn identity(&self) -> (String, Option<uuid::Uuid>) {
        ("router".into(), None)
    }
    fn reset(&mut self) {
        self.calls.push("reset".into());
    }
    fn power_button(&mut self) {
        self.calls.push("power button".into());
    }
    fn quit(&mut self) {
        self.calls.push("quit".into());
    }
    fn device_add(&mut self, mut args: Args) -> Result<Option<Ticket>, Failure> {
        args.take("driver");
        self.calls.push(format!("add {:?}", args.take_rest()));
        Ok(self.slow.take())
    }
    fn device_del(&mut self, removal: &Removal) -> Result<(), Failure> {
        self.calls.push(format!("del {} {:?} {}", removal.id, removal.timeout, removal.force));
        Err(Failure::no_device(&removal.id))
    }
    fn properties(&self, _: &str) -> Result<Vec<&'static Prop>, Failure> {
        Ok(Vec::new())
    }
    fn types(&self) -> Vec<(&'static str, &'static str)> {
        vec![("vfio-pci", "device"), ("null", "chardev")]
    }
    fn machines(&self) -> Vec<(&'static str, u32)> {
        vec![("q35", 255)]
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
    fn add_back_end(&mut self, kind: object::Kind, mut args: Args) -> Result<(), Failure> {
        self.calls.push(format!("{kind:?} {:?}", args.take_rest()));
        Ok(())
    }
    fn balloon(&self) -> Option<u64> {
        self.balloon
    }
    fn memory_devices(&self) -> Vec<MemoryView> {
        let (id, backend) = ("vm0".to_owned(), "m0".to_owned());
        let [address, most, requested, plugged, block] = [4 << 30, 1 << 30, 64 << 20, 32 << 20, 2 << 20];
        vec![MemoryView { id, backend, node: 1, address, most, requested, plugged, block }]
    }
    fn base_memory(&self) -> u64 {
        256 << 20
    }
    fn request_memory(&mut self, id: &str, bytes: u64) -> Result<(), Failure> {
        self.calls.push(format!("{id} is to have {bytes}"));
        Ok(())
    }
    fn inflate(&mut self, bytes: u64) -> Result<(), Failure> {
        self.calls.push(format!("inflate {bytes}"));
        self.balloon.map(drop).ok_or_else(Failure::no_balloon)
    }
    fn set_action(&mut self, trouble: &str, word: &str) -> Result<(), Failure> {
        self.calls.push(format!("{trouble}={word}"));
        Ok(())
    }
    fn cpus(&self) -> Vec<CpuView> {
        vec![CpuView { index: 0, thread: 17, socket: 0, core: 0, thread_of_core: 0 }]
    }
    fn nodes(&self) -> Arc<Table<dyn BlockNode>> {
        self.backends.nodes.clone()
    }
    fn block_commit(&mut self, _: Arc<dyn BlockNode>, job: String) -> Result<(), Failure> {
        self.calls.push(format!("commit {job}"));
        Ok(())
    }
    fn pci(&self) -> BusView {
        BusView { number: 0, name: "pcie.0".into(), functions: Vec::new() }
    }
    fn devices(&self) -> Vec<DeviceView> {
        let device = |id: &str, of_type: &str, bus: &str, adds: Option<&str>| DeviceView {
            id: id.into(),
            of_type: of_type.into(),
            bus: bus.into(),
            addr: "00.0".into(),
            adds: adds.map(Into::into),
            facts: vec![("host", "0000:01:00.0".into())],
            bars: Vec::new(),
        };
        vec![device("rp1", "pcie-root-port", "pcie.0", Some("rp1")), device("nic0", "vfio-pci", "rp1", None)]
    }
    fn vm(&self) -> VmView {
        VmView { name: "router".into(), pid: 7, ..VmView::default() }
    }
    fn resources(&self) -> Resources {
        Resources { descriptors: 7, ..Resources::default() }
    }
}

pub(super) fn run(fake: &mut Fake, command: &str, arguments: Value) -> Result<Value, Failure> {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    now(execute(Request { id: None, command: command.into(), arguments }, true, fake)?)
}

fn now(reply: Reply) -> Result<Value, Failure> {
    match reply {
        Reply::Now(value) => Ok(value),
        Reply::Later(later) => panic!("{} is under way", later.ticket),
    }
}

#[test]
fn passed_through_devices_are_listed_with_their_facts() {
    let listed = run(&mut Fake::default(), "x-query-vfio", json!({})).unwrap();
    assert_eq!(listed, json!([{"id": "nic0", "bus": "rp1", "addr": "00.0", "host": "0000:01:00.0"}]));
}

#[test]
fn memory_devices_are_asked_and_told_by_their_properties() {
    let mut fake = Fake::default();
    let ask = |fake: &mut Fake, path: &str, property: &str| {
        run(fake, "qom-get", json!({"path": path, "property": property})).map_err(|failure| failure.text)
    };
    assert_eq!(ask(&mut fake, "/machine/peripheral/vm0", "size").unwrap(), json!(32 << 20));
    assert_eq!(ask(&mut fake, "vm0", "requested-size").unwrap(), json!(64 << 20));
    assert_eq!(ask(&mut fake, "vm0", "colour").unwrap_err(), "Property 'virtio-mem-pci.colour' not found");
    assert_eq!(ask(&mut fake, "vm1", "size").unwrap_err(), "Device 'vm1' not found");
    let set = |fake: &mut Fake, property: &str, value: Value| {
        run(fake, "qom-set", json!({"path": "vm0", "property": property, "value": value}))
            .map_err(|failure| failure.text)
    };
    set(&mut fake, "requested-size", json!(96 << 20)).unwrap();
    assert!(set(&mut fake, "size", json!(1)).is_err() && set(&mut fake, "requested-size", json!("much")).is_err());
    assert_eq!(fake.calls, [format!("vm0 is to have {}", 96 << 20)]);
    let summary = run(&mut fake, "query-memory-size-summary", json!({})).unwrap();
    assert_eq!(summary, json!({"base-memory": 256 << 20, "plugged-memory": 32 << 20}));
    let devices = run(&mut fake, "query-memory-devices", json!({})).unwrap();
    assert_eq!(devices[0]["data"]["memdev"], "/objects/m0");
}

#[test]
fn names_are_unique_and_every_row_has_its_text() {
    let mut names: Vec<&str> = all().map(|command| command.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    for command in all() {
        assert!(!command.doc.is_empty() && !command.doc.ends_with('.'), "{}", command.name);
        assert!(command.params.iter().all(|param| !param.doc.is_empty()), "{}", command.name);
    }
}

#[test]
fn nothing_but_the_negotiation_goes_before_it_and_it_goes_once() {
    let mut fake = Fake::default();
    let request = |command: &str| Request { id: None, command: command.into(), arguments: Map::new() };
    let failure = execute(request("stop"), false, &mut fake).and_then(now).unwrap_err();
    assert_eq!(failure.class, FailureClass::CommandNotFound);
    assert!(failure.text.contains("qmp_capabilities"));
    assert_eq!(execute(request("qmp_capabilities"), false, &mut fake).and_then(now).unwrap(), json!({}));
    assert!(execute(request("qmp_capabilities"), true, &mut fake).is_err());
    assert!(fake.calls.is_empty());
}

#[test]
fn arguments_are_checked_by_their_row() {
    let mut fake = Fake::default();
    for (command, arguments, text) in [
        ("device_del", json!({}), "Parameter 'id' is missing"),
        ("device_del", json!({"id": 1}), "Invalid parameter type for 'id', expected: string"),
        ("device_del", json!({"id": "a", "timeout": -1}), "Invalid parameter type for 'timeout', expected: integer"),
        ("stop", json!({"now": true}), "Parameter 'now' is unexpected"),
        ("no-such", json!({}), "The command no-such has not been found"),
        ("device_del", json!({"id": "a", "timeout": 5, "force": true}), "Device 'a' not found"),
    ] {
        assert_eq!(run(&mut fake, command, arguments).unwrap_err().text, text);
    }
    assert_eq!(fake.calls, ["del a Some(5) true"]);
}

#[test]
fn a_device_s_arguments_are_properties_of_any_kind() {
    let mut fake = Fake::default();
    run(&mut fake, "device_add", json!({"driver": "vfio-pci", "host": "01:00.0", "rombar": 0, "x-no-mmap": true}))
        .unwrap();
    assert_eq!(fake.calls, [r#"add [("host", "01:00.0"), ("rombar", "0"), ("x-no-mmap", "on")]"#]);
}

#[test]
fn questions_are_answered_in_qmp_s_form() {
    let mut fake = Fake { status: Status::Paused, ..Fake::default() };
    let status = run(&mut fake, "query-status", json!({})).unwrap();
    assert_eq!((&status["status"], &status["running"]), (&json!("paused"), &json!(false)));
    assert_eq!(run(&mut fake, "query-pci", json!({})).unwrap(), json!([{"bus": 0, "devices": []}]));
    assert_eq!(run(&mut fake, "x-query-resources", json!({})).unwrap()["descriptors"], 7);
    let commands = run(&mut fake, "query-commands", json!({})).unwrap();
    assert_eq!(commands.as_array().unwrap().len(), all().count());
    assert_eq!(run(&mut fake, "query-machines", json!({})).unwrap()[0]["name"], "q35");
    let thread = Arc::new(IoThread::start("t0").unwrap());
    fake.backends.iothreads.add("t0".into(), "iothread", thread, true).unwrap();
    let threads = run(&mut fake, "query-iothreads", json!({})).unwrap();
    assert_eq!((&threads[0]["id"], threads[0]["thread-id"].is_number()), (&json!("t0"), true));
    assert_eq!(run(&mut fake, "query-version", json!({})).unwrap()["package"].as_str().unwrap(), "passthru 0.1.0");
}

#[test]
fn character_back_ends_are_listed_made_and_removed() {
    let mut fake = Fake::default();
    fake.backends.chardevs.add("c0".into(), "null", Arc::new(Null), false).unwrap();
    let listed = run(&mut fake, "query-chardev", json!({})).unwrap();
    assert_eq!(listed, json!([{"label": "c0", "filename": "null", "frontend-open": false}]));
    let claim = fake.backends.chardevs.claim("c0", "serial0").unwrap();
    let failure = run(&mut fake, "chardev-remove", json!({"id": "c0"})).unwrap_err();
    assert!(failure.text.contains("used by `serial0`"), "{failure:?}");
    drop(claim);
    for (command, arguments, text) in [
        ("ringbuf-read", json!({"device": "c0", "size": 5}), "c0 is not a ringbuf device"),
        ("ringbuf-read", json!({"device": "c1", "size": 5}), "Device 'c1' not found"),
        (
            "ringbuf-read",
            json!({"device": "c0", "size": 5, "format": "x"}),
            "Parameter 'format' does not accept value 'x'",
        ),
        ("chardev-add", json!({"id": "c1", "backend": 5}), "Invalid parameter type for 'backend', expected: object"),
    ] {
        assert_eq!(run(&mut fake, command, arguments).unwrap_err().text, text);
    }
    run(&mut fake, "chardev-remove", json!({"id": "c0"})).unwrap();
    run(&mut fake, "chardev-add", json!({"id": "c1", "backend": {"type": "pty", "data": {}}})).unwrap();
    assert_eq!(fake.calls, [r#"Chardev [("backend", "pty"), ("id", "c1")]"#]);
    let types = run(&mut fake, "qom-list-types", json!({"implements": "device"})).unwrap();
    assert_eq!(types, json!([{"name": "vfio-pci", "parent": "device"}]));
    assert_eq!(run(&mut fake, "query-cpus-fast", json!({})).unwrap()[0]["thread-id"], 17);
}

#[test]
fn the_other_monitor_answers_with_text() {
    let mut fake = Fake::default();
    let mut human = |line: &str| {
        let text = run(&mut fake, "human-monitor-command", json!({"command-line": line})).unwrap();
        text.as_str().unwrap().to_owned()
    };
    assert_eq!(human("info  status"), "VM status: running\r\n");
    assert_eq!(human("infostatus"), "unknown command: 'infostatus'\r\n");
    assert!(human("help").contains("info qtree -- "));
    assert_eq!([human("info name"), human("info kvm")], ["router\r\n", "kvm support: enabled\r\n"]);
    assert!(human("info memory-devices").contains("Memory device [virtio-mem]: \"vm0\""));
    let tree = human("info qtree");
    assert!(tree.starts_with("bus: pcie.0\r\n  dev: pcie-root-port, id \"rp1\""), "{tree}");
    assert!(tree.contains("    bus: rp1\r\n      dev: vfio-pci, id \"nic0\"\r\n        addr = 00.0"), "{tree}");
    assert_eq!(human("info vfio"), "nic0: at 00.0 of rp1\r\n  host: 0000:01:00.0\r\n");
    assert_eq!(human("device_del nic0"), "Error: Device 'nic0' not found\r\n");
    human("device_add vfio-pci,host=01:00.0");
    assert_eq!(fake.calls, ["del nic0 None false", r#"add [("host", "01:00.0")]"#]);
}

#[test]
fn mistakes_have_qemu_s_classes() {
    let mut fake = Fake::default();
    for (command, arguments, class) in [
        ("no-such", json!({}), FailureClass::CommandNotFound),
        ("device_del", json!({"id": "x"}), FailureClass::DeviceNotFound),
        ("netdev_del", json!({"id": "x"}), FailureClass::DeviceNotFound),
        ("block-commit", json!({"device": "x"}), FailureClass::DeviceNotFound),
        ("qom-get", json!({"path": "x", "property": "y"}), FailureClass::DeviceNotFound),
        ("chardev-remove", json!({"id": "x"}), FailureClass::Generic),
        ("ringbuf-read", json!({"device": "x", "size": 1}), FailureClass::Generic),
        ("object-del", json!({"id": "x"}), FailureClass::Generic),
        ("blockdev-del", json!({"node-name": "x"}), FailureClass::Generic),
        ("balloon", json!({"value": 1}), FailureClass::DeviceNotActive),
    ] {
        assert_eq!(run(&mut fake, command, arguments).unwrap_err().class, class, "{command}");
    }
}

#[test]
fn a_balloon_is_asked_for_and_looked_at() {
    let mut fake = Fake::default();
    let missing = run(&mut fake, "query-balloon", json!({})).unwrap_err();
    assert_eq!(missing.class, FailureClass::DeviceNotActive);
    fake.balloon = Some(1 << 30);
    assert_eq!(run(&mut fake, "query-balloon", json!({})).unwrap(), json!({ "actual": 1 << 30 }));
    run(&mut fake, "balloon", json!({ "value": 4096 })).unwrap();
    assert!(run(&mut fake, "balloon", json!({ "value": 0 })).is_err());
    run(&mut fake, "set-action", json!({ "watchdog": "pause", "panic": "none" })).unwrap();
    run(&mut fake, "watchdog-set-action", json!({ "action": "reset" })).unwrap();
    assert_eq!(fake.calls, ["inflate 4096", "panic=none", "watchdog=pause", "watchdog=reset"]);
}
