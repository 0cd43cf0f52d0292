//! The table of commands. A command is a row with its parameters, one line about it, and what it does; what QMP says of
//! unknown and missing arguments follows from the row.

mod block;
mod chardev;
mod device;
mod guest;
pub(super) mod human;
mod memory;
mod net;
mod pci;
mod query;
mod run_state;

use serde_json::{Map, Value, json};

use super::control::{Control, Ticket};
use super::message::{Failure, FailureClass, Request};

/// A command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// Whether it takes other arguments than these.
    pub open: bool,
    run: fn(&mut dyn Control, Arguments) -> Result<Reply, Failure>,
}

/// What a command comes to.
pub enum Reply {
    /// It is done and returns this.
    Now(Value),
    /// It is under way.
    Later(Later),
}

/// A command that is under way.
pub struct Later {
    /// Under this name its outcome is told.
    pub ticket: Ticket,
    /// What it then returns.
    pub finish: fn(Result<(), Failure>) -> Result<Value, Failure>,
}

impl From<Value> for Reply {
    fn from(value: Value) -> Reply {
        Reply::Now(value)
    }
}

/// A parameter of a command.
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// Whether it may be absent.
    pub optional: bool,
    /// What it means, in one line.
    pub doc: &'static str,
}

/// Kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A whole number, not negative.
    Integer,
    /// true or false.
    Boolean,
    /// A list.
    Array,
    /// Members.
    Object,
}

impl Kind {
    /// JSON's word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Boolean => "boolean",
            Kind::Array => "array",
            Kind::Object => "object",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Kind::String => value.is_string(),
            Kind::Integer => value.is_u64(),
            Kind::Boolean => value.is_boolean(),
            Kind::Array => value.is_array(),
            Kind::Object => value.is_object(),
        }
    }
}

const fn param(name: &'static str, kind: Kind, doc: &'static str) -> Param {
    Param { name, kind, optional: false, doc }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Param {
    Param { name, kind, optional: true, doc }
}

/// The groups of commands, each with its heading.
pub static GROUPS: &[(&str, &[Command])] = &[
    ("Protocol", query::PROTOCOL),
    ("Run state", run_state::COMMANDS),
    ("Devices", device::COMMANDS),
    ("The guest", guest::COMMANDS),
    ("Memory", memory::COMMANDS),
    ("Disks", block::COMMANDS),
    ("Character back ends", chardev::COMMANDS),
    ("Networks and objects", net::COMMANDS),
    ("What there is", query::COMMANDS),
    ("PCI", pci::COMMANDS),
    ("For people", human::COMMANDS),
];

/// An event.
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// The members of its data.
    pub data: &'static str,
    /// What it says, in one line.
    pub doc: &'static str,
}

/// Every event that a client can hear of.
pub static EVENTS: &[Event] = &[
    Event { name: "STOP", data: "", doc: "The guest stands still" },
    Event { name: "RESUME", data: "", doc: "The guest goes on" },
    Event { name: "RESET", data: "guest, reason", doc: "The machine is reset, by the guest or by a command" },
    Event { name: "POWERDOWN", data: "", doc: "The power button was pressed" },
    Event {
        name: "DEVICE_DELETED",
        data: "device, path",
        doc: "A device is out, and all that was held for it is free",
    },
    Event {
        name: "DEVICE_UNPLUG_GUEST_ERROR",
        data: "device, path",
        doc: "The guest keeps a device: it said so, or did not answer in time",
    },
    Event {
        name: "VFIO_DEVICE_REQUEST",
        data: "device, path, host, timeout",
        doc: "The host wants a device back; the guest has this many milliseconds to give it up",
    },
    Event {
        name: "BLOCK_IO_ERROR",
        data: "qdev, node-name, operation, action, nospace, reason",
        doc: "A disk's node could not do a request: action says what becomes of it, and with stop the guest stands still",
    },
    Event {
        name: "VFIO_DEVICE_ERROR",
        data: "device, path, host, registers, policy",
        doc: "A device had an uncorrectable error; the AER registers (null: unreadable) and what is done (on-error=)",
    },
    Event {
        name: "BLOCK_JOB_COMPLETED",
        data: "device, type, len, offset, speed, error",
        doc: "A commit is done, or has failed with this error: then all is as it was",
    },
    Event {
        name: "VSERPORT_CHANGE",
        data: "id, open",
        doc: "A program of the guest's has opened a virtio serial port, or closed it",
    },
    Event {
        name: "BALLOON_CHANGE",
        data: "actual",
        doc: "The guest has given memory back, or taken some: it has this many bytes",
    },
    Event {
        name: "MEMORY_DEVICE_SIZE_CHANGE",
        data: "id, size, qom-path",
        doc: "The guest has got memory of a memory device, or given some back: it has this many bytes of it",
    },
    Event {
        name: "GUEST_PANICKED",
        data: "action",
        doc: "The guest has panicked; what is done about it (--action panic=): pause, poweroff or run",
    },
    Event { name: "GUEST_CRASHLOADED", data: "action", doc: "The guest has panicked, and runs its crash kernel" },
    Event { name: "GUEST_PVSHUTDOWN", data: "", doc: "The guest shuts down, and says so by its panic device" },
    Event {
        name: "WATCHDOG",
        data: "action",
        doc: "The guest has not written to its watchdog in time; what is done about it (--action watchdog=)",
    },
    Event { name: "SHUTDOWN", data: "guest, reason", doc: "The guest has ended, and the process is about to" },
];

/// The command that ends the negotiation.
const NEGOTIATION: &str = "qmp_capabilities";

/// Every command.
pub fn all() -> impl Iterator<Item = &'static Command> {
    GROUPS.iter().flat_map(|(_, commands)| commands.iter())
}

/// Runs a request. Before the client has negotiated, only the negotiation is there.
///
/// # Errors
/// QEMU's texts where the protocol is at fault, ours where a command is.
pub fn execute(request: Request, negotiated: bool, control: &mut dyn Control) -> Result<Reply, Failure> {
    let not_now = |text: &str| Err(Failure::new(FailureClass::CommandNotFound, text));
    match (negotiated, request.command == NEGOTIATION) {
        (false, false) => return not_now("Expecting capabilities negotiation with 'qmp_capabilities'"),
        (true, true) => return not_now("Capabilities negotiation is already complete, command ignored"),
        _ => {}
    }
    let Some(command) = all().find(|command| command.name == request.command) else {
        return not_now(&format!("The command {} has not been found", request.command));
    };
    let arguments = Arguments::check(command, request.arguments)?;
    (command.run)(control, arguments)
}

/// Arguments whose names and kinds fit their command.
struct Arguments(Map<String, Value>);

impl Arguments {
    fn check(command: &Command, given: Map<String, Value>) -> Result<Arguments, Failure> {
        for param in command.params {
            match given.get(param.name) {
                None if param.optional => {}
                None => return Err(Failure::generic(format!("Parameter '{}' is missing", param.name))),
                Some(value) if param.kind.fits(value) => {}
                Some(_) => {
                    let (name, kind) = (param.name, param.kind.name());
                    return Err(Failure::generic(format!("Invalid parameter type for '{name}', expected: {kind}")));
                }
            }
        }
        let known = |name: &String| command.open || command.params.iter().any(|param| param.name == name);
        match given.keys().find(|name| !known(name)) {
            Some(name) => Err(Failure::generic(format!("Parameter '{name}' is unexpected"))),
            None => Ok(Arguments(given)),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn object(&self, name: &str) -> Map<String, Value> {
        self.0.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn into_json(self) -> Value {
        Value::Object(self.0)
    }
}

/// What a command without a result answers.
fn nothing() -> Reply {
    Reply::Now(json!({}))
}

#[cfg(test)]
pub(super) mod tests;
