//! The protocol itself, and what there is.

use serde_json::{Value, json};

use super::super::control::DeviceView;
use super::super::message::{self, Failure};
use super::{Command, Kind, Reply, all, nothing, optional};

/// A device with all that there is to say of it.
fn device(device: DeviceView) -> serde_json::Result<Value> {
    let DeviceView { id, of_type, bus, addr, adds: _, facts, bars } = device;
    let mut view = json!({ "id": id, "type": of_type, "bus": bus, "addr": addr, "bars": serde_json::to_value(bars)? });
    for (name, value) in facts {
        view[name] = value.into();
    }
    Ok(view)
}

/// The commands of the protocol.
pub static PROTOCOL: &[Command] = &[
    Command {
        name: "qmp_capabilities",
        doc: "Ends the negotiation, which every session begins with; there are no capabilities to enable",
        params: &[optional("enable", Kind::Array, "Capabilities to enable; none are offered")],
        open: false,
        run: |_, arguments| match arguments.0.get("enable").and_then(Value::as_array).and_then(|list| list.first()) {
            Some(name) => Err(Failure::generic(format!("Capability {name} not available"))),
            None => Ok(nothing()),
        },
    },
    Command {
        name: "query-version",
        doc: "Version of passthru",
        params: &[],
        open: false,
        run: |_, _| Ok(message::version().into()),
    },
    Command {
        name: "query-commands",
        doc: "Names of all commands",
        params: &[],
        open: false,
        run: |_, _| Ok(all().map(|command| json!({ "name": command.name })).collect::<Value>().into()),
    },
];

/// The other questions.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "query-status",
        doc: "Whether the guest runs: running, paused, io-error (a device's error stopped it), guest-panicked, watchdog, \
              shutdown (it has powered off) or prelaunch (it has not been started)",
        params: &[],
        open: false,
        run: |control, _| {
            let status = control.status();
            let running = status == super::super::control::Status::Running;
            Ok(json!({ "status": status.name(), "running": running }).into())
        },
    },
    Command {
        name: "query-name",
        doc: "The guest's name",
        params: &[],
        open: false,
        run: |control, _| Ok(json!({ "name": control.identity().0 }).into()),
    },
    Command {
        name: "query-uuid",
        doc: "The number that the guest is known by (--uuid); zeros if it has none",
        params: &[],
        open: false,
        run: |control, _| Ok(json!({ "UUID": control.identity().1.unwrap_or_default().to_string() }).into()),
    },
    Command {
        name: "query-kvm",
        doc: "Whether KVM runs the guest, which it always does",
        params: &[],
        open: false,
        run: |_, _| Ok(json!({ "enabled": true, "present": true }).into()),
    },
    Command {
        name: "query-target",
        doc: "The guest's architecture",
        params: &[],
        open: false,
        run: |_, _| Ok(json!({ "arch": "x86_64" }).into()),
    },
    Command {
        name: "query-machines",
        doc: "The machine types, and how many processors each can have",
        params: &[],
        open: false,
        run: |control, _| {
            let described = control.machines().into_iter().map(|(name, most)| {
                json!({
                    "name": name, "is-default": true, "cpu-max": most, "hotpluggable-cpus": false,
                    "numa-mem-supported": false, "deprecated": false, "acpi": true, "default-cpu-type": "host",
                })
            });
            Ok(described.collect::<Value>().into())
        },
    },
    Command {
        name: "query-current-machine",
        doc: "What this machine can do: it cannot be suspended to memory",
        params: &[],
        open: false,
        run: |_, _| Ok(json!({ "wakeup-suspend-support": false }).into()),
    },
    Command {
        name: "query-iothreads",
        doc: "The threads of `--object iothread`, which never poll",
        params: &[],
        open: false,
        run: |control, _| {
            let described = control.iothreads().list().into_iter().map(|row| {
                json!({
                    "id": &*row.name, "thread-id": row.back.thread_id(), "poll-max-ns": 0, "poll-grow": 0,
                    "poll-shrink": 0, "aio-max-batch": 0,
                })
            });
            Ok(described.collect::<Value>().into())
        },
    },
    Command {
        name: "query-cpus-fast",
        doc: "The guest's processors: where each is in the topology, and the thread that runs it",
        params: &[],
        open: false,
        run: |control, _| {
            let described = control.cpus().into_iter().map(|cpu| {
                json!({
                    "cpu-index": cpu.index,
                    "qom-path": format!("/machine/unattached/device[{}]", cpu.index),
                    "thread-id": cpu.thread,
                    "target": "x86_64",
                    "props": { "socket-id": cpu.socket, "core-id": cpu.core, "thread-id": cpu.thread_of_core },
                })
            });
            Ok(described.collect::<Value>().into())
        },
    },
    Command {
        name: "qom-list-types",
        doc: "The types of devices, objects and back ends, by the option that makes them; `implements` takes device, object, \
              chardev, blockdev or netdev",
        params: &[
            optional("implements", Kind::String, "Only types of this kind"),
            optional("abstract", Kind::Boolean, "QEMU's word: there are no abstract types"),
        ],
        open: false,
        run: |control, arguments| {
            let kind = arguments.text("implements");
            let types = control.types().into_iter().filter(|(_, parent)| kind.is_empty() || kind == *parent);
            Ok(types.map(|(name, parent)| json!({ "name": name, "parent": parent })).collect::<Value>().into())
        },
    },
    Command {
        name: "x-query-vfio",
        doc: "The passed-through devices: where they are on host and guest, by which of the kernel's interfaces they are \
              open (iommufd or type1) and why, and how many ranges their IOMMU maps",
        params: &[],
        open: false,
        run: |control, _| {
            let devices = control.devices().into_iter();
            let passed = devices.filter(|device| device.of_type == crate::vfio::front_end::NAME);
            Ok(passed
                .map(|device| {
                    let place = [("id", device.id), ("bus", device.bus), ("addr", device.addr)];
                    let facts = place.into_iter().chain(device.facts);
                    Value::Object(facts.map(|(name, value)| (name.to_owned(), Value::String(value))).collect())
                })
                .collect::<Value>()
                .into())
        },
    },
    Command {
        name: "x-query-vm",
        doc: "All that `passthru ctl NAME status` shows: name, process, state, start, exits by cause, address spaces, devices \
              with their facts and how their BARs answer, and the counts of x-query-resources",
        params: &[],
        open: false,
        run: |control, _| {
            let described = serde_json::to_value(control.vm()).and_then(|mut vm| {
                let devices: serde_json::Result<Value> = control.devices().into_iter().map(device).collect();
                vm["status"] = control.status().name().into();
                vm["version"] = env!("CARGO_PKG_VERSION").into();
                vm["devices"] = devices?;
                vm["resources"] = serde_json::to_value(control.resources())?;
                Ok(vm)
            });
            described.map(Reply::Now).map_err(|error| Failure::generic(error.to_string()))
        },
    },
    Command {
        name: "x-query-resources",
        doc: "Counts of what is held for the guest: descriptors, threads, memory slots, routes, irqfds, IOMMU mappings, \
              devices. They are the same before a device comes and after it has gone",
        params: &[],
        open: false,
        run: |control, _| {
            let counts = serde_json::to_value(control.resources());
            counts.map(Reply::Now).map_err(|error| Failure::generic(error.to_string()))
        },
    },
];
