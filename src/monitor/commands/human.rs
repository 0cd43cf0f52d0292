//! `human-monitor-command`: the few words of QEMU's other monitor that people and scripts use most.

use std::fmt::Write;

use serde_json::Value;

use super::super::control::{Control, CpuView, DeviceView, MemoryView, Removal, Status, Ticket};
use super::super::message::Failure;
use super::{Command, Later, Reply, param};
use crate::backends::block::BlockNode;
use crate::backends::chardev::Chardev;
use crate::backends::iothread::IoThread;
use crate::backends::net::Netdev;
use crate::backends::table::Listed;
use crate::object::{Args, Kind};
use crate::pci::BarKind;
use crate::pci::bar::ROM_INDEX;
use crate::pci::view::{BusView, FunctionView};
use crate::pci_names;

/// The commands of this file.
pub static COMMANDS: &[Command] = &[Command {
    name: "human-monitor-command",
    doc: "Runs a command of the other monitor and answers with its text; `help` lists them",
    params: &[param("command-line", super::Kind::String, "The command")],
    open: false,
    run: |control, arguments| Ok(run(control, arguments.text("command-line"))),
}];

/// A command line of the other monitor.
struct Line {
    words: &'static str,
    doc: &'static str,
    run: fn(&mut dyn Control, &str) -> Result<Said, Failure>,
}

/// What a line comes to.
enum Said {
    Text(String),
    /// It is under way, and will say nothing more than what went wrong.
    Later(Ticket),
}

impl From<String> for Said {
    fn from(text: String) -> Said {
        Said::Text(text)
    }
}

/// What a line says that has nothing to say.
fn nothing() -> Said {
    Said::Text(String::new())
}

static LINES: &[Line] = &[
    Line {
        words: "info chardev",
        doc: "the character back ends",
        run: |control, _| {
            let line = |row: Listed<dyn Chardev>| format!("{}: filename={}\n", row.name, row.back.peer().place);
            Ok(control.chardevs().list().into_iter().map(line).collect::<String>().into())
        },
    },
    Line {
        words: "info block",
        doc: "the disks and their nodes",
        run: |control, _| Ok(disks(&control.nodes().list()).into()),
    },
    Line {
        words: "info name",
        doc: "the guest's name",
        run: |control, _| Ok(format!("{}\n", control.identity().0).into()),
    },
    Line {
        words: "info uuid",
        doc: "the number that the guest is known by",
        run: |control, _| Ok(format!("{}\n", control.identity().1.unwrap_or_default()).into()),
    },
    Line {
        words: "info version",
        doc: "the version of passthru",
        run: |_, _| Ok(concat!("passthru ", env!("CARGO_PKG_VERSION"), "\n").to_owned().into()),
    },
    Line {
        words: "info kvm",
        doc: "whether KVM runs the guest",
        run: |_, _| Ok("kvm support: enabled\n".to_owned().into()),
    },
    Line {
        words: "info iothreads",
        doc: "the threads of --object iothread",
        run: |control, _| {
            let line = |row: Listed<IoThread>| format!("{}:\n  thread_id={}\n", row.name, row.back.thread_id());
            Ok(control.iothreads().list().into_iter().map(line).collect::<String>().into())
        },
    },
    Line {
        words: "info memory-devices",
        doc: "the memory devices, and how much of each the guest has",
        run: |control, _| Ok(control.memory_devices().iter().map(memory).collect::<String>().into()),
    },
    Line {
        words: "info cpus",
        doc: "the guest's processors and the threads that run them",
        run: |control, _| {
            let line = |cpu: CpuView| format!("  CPU #{}: thread_id={}\n", cpu.index, cpu.thread);
            Ok(control.cpus().into_iter().map(line).collect::<String>().into())
        },
    },
    Line { words: "info pci", doc: "the PCI functions", run: |control, _| Ok(pci(&control.pci()).into()) },
    Line {
        words: "info qtree",
        doc: "the devices on their buses",
        run: |control, _| Ok(tree(&control.devices()).into()),
    },
    Line {
        words: "info vfio",
        doc: "the passed-through devices",
        run: |control, _| Ok(vfio(&control.devices()).into()),
    },
    Line {
        words: "info balloon",
        doc: "the guest's memory beside its balloon",
        run: |control, _| match control.balloon() {
            Some(actual) => Ok(format!("balloon: actual={}\n", actual >> 20).into()),
            None => Err(Failure::no_balloon()),
        },
    },
    Line {
        words: "balloon",
        doc: "MEBIBYTES: asks the guest to have no more memory",
        run: |control, rest| match rest.parse::<u64>().ok().and_then(|size| size.checked_mul(1 << 20)) {
            Some(bytes @ 1..) => control.inflate(bytes).map(|()| nothing()),
            _ => Err(Failure::generic("Parameter 'target' expects a size")),
        },
    },
    Line {
        words: "watchdog_action",
        doc: "WORD: what is done when the guest does not write to its watchdog",
        run: |control, rest| control.set_action("watchdog", rest).map(|()| nothing()),
    },
    Line {
        words: "info status",
        doc: "whether the guest runs",
        run: |control, _| {
            let said = match control.status() {
                status @ (Status::Running | Status::Paused) => status.name().to_owned(),
                other => format!("paused ({})", other.name()),
            };
            Ok(format!("VM status: {said}\n").into())
        },
    },
    Line {
        words: "device_add",
        doc: "TYPE,KEY=VALUE,...: plugs a device",
        run: |control, rest| {
            let under_way = control.device_add(Args::parse("--device", Some("driver"), rest)?)?;
            Ok(under_way.map_or_else(nothing, Said::Later))
        },
    },
    Line {
        words: "device_del",
        doc: "ID: asks the guest to give a device up",
        run: |control, rest| {
            let removal = Removal { id: rest.to_owned(), timeout: None, force: false };
            control.device_del(&removal).map(|()| nothing())
        },
    },
    Line {
        words: "chardev-add",
        doc: "TYPE,KEY=VALUE,...: makes a character back end",
        run: |control, rest| {
            let args = Args::parse("--chardev", Some("backend"), rest)?;
            control.add_back_end(Kind::Chardev, args).map(|()| nothing())
        },
    },
    Line {
        words: "chardev-remove",
        doc: "ID: removes one that no front end has",
        run: |control, rest| {
            control.chardevs().remove(rest)?;
            Ok(nothing())
        },
    },
    Line {
        words: "netdev_add",
        doc: "TYPE,KEY=VALUE,...: makes a network back end",
        run: |control, rest| {
            let args = Args::parse("--netdev", Some("type"), rest)?;
            control.add_back_end(Kind::Netdev, args).map(|()| nothing())
        },
    },
    Line {
        words: "netdev_del",
        doc: "ID: removes one that no device has",
        run: |control, rest| {
            control.netdevs().remove(rest)?;
            Ok(nothing())
        },
    },
    Line {
        words: "object_add",
        doc: "TYPE,KEY=VALUE,...: makes an object",
        run: |control, rest| {
            let args = Args::parse("--object", Some("qom-type"), rest)?;
            control.add_back_end(Kind::Object, args).map(|()| nothing())
        },
    },
    Line {
        words: "object_del",
        doc: "ID: removes one that nobody uses",
        run: |control, rest| {
            control.remove_object(rest)?;
            Ok(nothing())
        },
    },
    Line {
        words: "info network",
        doc: "the network back ends",
        run: |control, _| {
            let line = |row: Listed<dyn Netdev>| {
                let user = row.users.first().map(|user| format!(" (used by {user})")).unwrap_or_default();
                format!("{}: type={}, {}{user}\n", row.name, row.of_type, row.back.place())
            };
            Ok(control.netdevs().list().into_iter().map(line).collect::<String>().into())
        },
    },
    Line {
        words: "system_reset",
        doc: "resets the machine",
        run: |control, _| {
            control.reset();
            Ok(nothing())
        },
    },
    Line {
        words: "system_powerdown",
        doc: "presses the power button",
        run: |control, _| {
            control.power_button();
            Ok(nothing())
        },
    },
    Line {
        words: "quit",
        doc: "ends the process at once",
        run: |control, _| {
            control.quit();
            Ok(nothing())
        },
    },
    Line {
        words: "stop",
        doc: "makes the guest stand still",
        run: |control, _| {
            control.stop();
            Ok(nothing())
        },
    },
    Line { words: "cont", doc: "lets it go on", run: |control, _| control.cont().map(|()| nothing()) },
    Line {
        words: "nmi",
        doc: "sends the guest's first processor a non-maskable interrupt",
        run: |control, _| control.inject_nmi().map(|()| nothing()),
    },
];

/// The text that a command line gives; a mistake is text too.
pub fn run(control: &mut dyn Control, line: &str) -> Reply {
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let found = LINES.iter().find_map(|known| {
        let rest = line.strip_prefix(known.words)?;
        (rest.is_empty() || rest.starts_with(' ')).then(|| (known, rest.trim_start()))
    });
    match found {
        Some((known, rest)) => match (known.run)(control, rest) {
            Ok(Said::Text(said)) => text(&said).into(),
            Ok(Said::Later(ticket)) => Reply::Later(Later { ticket, finish: |done| Ok(outcome(done)) }),
            Err(failure) => outcome(Err(failure)).into(),
        },
        None if line.is_empty() => text("").into(),
        None if line == "help" => {
            text(&LINES.iter().map(|known| format!("{} -- {}\n", known.words, known.doc)).collect::<String>()).into()
        }
        None => text(&format!("unknown command: '{line}'\n")).into(),
    }
}

fn outcome(done: Result<(), Failure>) -> Value {
    text(&done.map_or_else(|failure| format!("Error: {}\n", failure.text), |()| String::new()))
}

fn text(said: &str) -> Value {
    Value::String(said.replace('\n', "\r\n"))
}

fn pci(bus: &BusView) -> String {
    let mut out = String::new();
    for function in &bus.functions {
        describe(bus.number, function, &mut out);
        if let Some(bridge) = &function.bridge {
            out += &pci(&bridge.bus);
        }
    }
    out
}

/// Writing to a text cannot fail.
fn describe(bus: u8, function: &FunctionView, out: &mut String) {
    let [sub, base] = function.class.to_le_bytes();
    let (vendor, device) = function.ids;
    let name = pci_names::class(base, sub).unwrap_or("Class");
    let _ = writeln!(out, "  Bus {bus:2}, device {:3}, function {}:", function.devfn.slot(), function.devfn.function());
    let _ = writeln!(out, "    {name} [{:04x}]: PCI device {vendor:04x}:{device:04x}", function.class);
    if let Some((pin, line)) = function.interrupt {
        let _ = writeln!(out, "      IRQ {line}, pin {}", char::from(b'A' + pin));
    }
    if let Some(bridge) = &function.bridge {
        let _ = writeln!(out, "      BUS {bus}, secondary {}, subordinate {}", bridge.bus.number, bridge.subordinate);
    }
    for bar in &function.bars {
        let end = bar.address.saturating_add(bar.size - 1);
        let kind = match bar.kind {
            BarKind::Io => "I/O at",
            BarKind::Mem64 if bar.index != ROM_INDEX && bar.prefetchable => "64 bit prefetchable memory at",
            BarKind::Mem64 if bar.index != ROM_INDEX => "64 bit memory at",
            _ => "32 bit memory at",
        };
        let _ = writeln!(out, "      BAR{}: {kind} {:#x} [{end:#x}].", bar.index, bar.address);
    }
    let _ = writeln!(out, "      id \"{}\"", function.id);
}

fn tree(devices: &[DeviceView]) -> String {
    let mut out = String::new();
    branch(devices, "pcie.0", 0, &mut out);
    out
}

/// Ports come before what is behind them, so every level is deeper than the one before and the recursion ends.
fn branch(devices: &[DeviceView], bus: &str, depth: usize, out: &mut String) {
    let space = "  ".repeat(depth);
    let _ = writeln!(out, "{space}bus: {bus}");
    for (index, device) in devices.iter().enumerate().filter(|(_, device)| device.bus == bus) {
        let _ = writeln!(out, "{space}  dev: {}, id \"{}\"", device.of_type, device.id);
        let _ = writeln!(out, "{space}    addr = {}", device.addr);
        for (name, value) in &device.facts {
            let _ = writeln!(out, "{space}    {name} = {value}");
        }
        if let Some(adds) = &device.adds {
            branch(devices.get(index + 1..).unwrap_or_default(), adds, depth + 2, out);
        }
    }
}

/// A node whose user is a node is not the guest's.
fn disks(nodes: &[Listed<dyn BlockNode>]) -> String {
    let mut out = String::new();
    for node in nodes {
        for user in node.users.iter().filter(|user| nodes.iter().all(|node| node.name != **user)) {
            let info = node.back.info();
            let file = node.back.filename().map(|file| file.display().to_string()).unwrap_or_default();
            let only = if info.read_only { ", read-only" } else { "" };
            let mode = if info.write_back { "writeback" } else { "writethrough" };
            let direct = if info.block_size > 1 { ", direct" } else { "" };
            let _ = writeln!(out, "{}: {file} ({}{only})", node.name, node.of_type);
            let _ = writeln!(out, "    Attached to:      {user}");
            let _ = writeln!(out, "    Cache mode:       {mode}{direct}");
        }
    }
    out
}

fn memory(device: &MemoryView) -> String {
    let MemoryView { id, backend, node, address, most, requested, plugged, block } = device;
    format!(
        "Memory device [virtio-mem]: \"{id}\"\n  memaddr: {address:#x}\n  node: {node}\n  requested-size: {requested}\n  \
         size: {plugged}\n  max-size: {most}\n  block-size: {block}\n  memdev: /objects/{backend}\n"
    )
}

fn vfio(devices: &[DeviceView]) -> String {
    let mut out = String::new();
    for device in devices.iter().filter(|device| device.of_type == crate::vfio::front_end::NAME) {
        let _ = writeln!(out, "{}: at {} of {}", device.id, device.addr, device.bus);
        for (name, value) in &device.facts {
            let _ = writeln!(out, "  {name}: {value}");
        }
    }
    out
}
