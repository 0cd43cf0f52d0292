//! The guest's memory, and that of its devices which comes and goes.

use serde_json::{Value, json};

use super::super::control::{Control, MemoryView};
use super::super::message::Failure;
use super::{Arguments, Command, Kind, nothing, param};
use crate::virtio::mem;

/// The property that can be set.
const REQUESTED: &str = "requested-size";
/// Where QEMU's tree of objects has devices.
const PERIPHERAL: &str = "/machine/peripheral/";

/// A property of a memory device: what it is called, and what it is.
type Property = (&'static str, fn(&MemoryView) -> Value);

const PROPERTIES: [Property; 5] = [
    (REQUESTED, |memory| memory.requested.into()),
    ("size", |memory| memory.plugged.into()),
    ("block-size", |memory| memory.block.into()),
    ("memaddr", |memory| memory.address.into()),
    ("node", |memory| memory.node.into()),
];

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "query-memory-size-summary",
        doc: "Bytes of memory: of -m, and of what memory devices have given the guest",
        params: &[],
        open: false,
        run: |control, _| {
            let plugged: u64 = control.memory_devices().iter().map(|memory| memory.plugged).sum();
            Ok(json!({ "base-memory": control.base_memory(), "plugged-memory": plugged }).into())
        },
    },
    Command {
        name: "query-memory-devices",
        doc: "The memory devices: their objects, where they are, and how much the guest is to have and has",
        params: &[],
        open: false,
        run: |control, _| Ok(control.memory_devices().iter().map(described).collect::<Value>().into()),
    },
    Command {
        name: "qom-get",
        doc: "A property of a memory device: requested-size, size, block-size, memaddr or node",
        params: &[param("path", Kind::String, PATH), param("property", Kind::String, "Its name")],
        open: false,
        run: |control, arguments| {
            let memory = device(control, &arguments)?;
            let property = arguments.text("property");
            let found = PROPERTIES.iter().find(|(name, _)| *name == property);
            found.map(|(_, get)| get(&memory).into()).ok_or_else(|| no_property(property))
        },
    },
    Command {
        name: "qom-set",
        doc: "Sets requested-size of a memory device: the bytes that the guest is to have of it. What the guest then does is \
              told by MEMORY_DEVICE_SIZE_CHANGE",
        params: &[
            param("path", Kind::String, PATH),
            param("property", Kind::String, "requested-size"),
            param("value", Kind::Integer, "Bytes, a multiple of the block size"),
        ],
        open: false,
        run: |control, arguments| {
            let memory = device(control, &arguments)?;
            match (arguments.text("property"), arguments.number("value")) {
                (REQUESTED, Some(bytes)) => control.request_memory(&memory.id, bytes).map(|()| nothing()),
                (other, _) if PROPERTIES.iter().any(|(name, _)| *name == other) => {
                    Err(Failure::generic(format!("Property '{}.{other}' is not writable", mem::NAME)))
                }
                (other, _) => Err(no_property(other)),
            }
        },
    },
];

const PATH: &str = "The device's id, or /machine/peripheral/ID";

/// The memory device that the path names.
fn device(control: &dyn Control, arguments: &Arguments) -> Result<MemoryView, Failure> {
    let path = arguments.text("path");
    let id = path.strip_prefix(PERIPHERAL).unwrap_or(path);
    control.memory_devices().into_iter().find(|memory| memory.id == id).ok_or_else(|| Failure::no_device(id))
}

fn no_property(name: &str) -> Failure {
    Failure::generic(format!("Property '{}.{name}' not found", mem::NAME))
}

fn described(memory: &MemoryView) -> Value {
    json!({
        "type": "virtio-mem",
        "data": {
            "id": memory.id,
            "memaddr": memory.address,
            "requested-size": memory.requested,
            "size": memory.plugged,
            "max-size": memory.most,
            "block-size": memory.block,
            "node": memory.node,
            "memdev": format!("/objects/{}", memory.backend),
        },
    })
}
