//! Devices come and go.

use serde_json::{Value, json};

use super::super::control::Removal;
use super::super::message::Failure;
use super::{Command, Kind, Later, Reply, nothing, optional, param};
use crate::object::{Args, Preset};

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "device_add",
        doc: "Plugs a device into the running guest; the arguments are the properties of `--device`, with text, numbers \
              or booleans as values. It goes behind a pcie-root-port that has nothing behind it. The first passed-through \
              device of an IOMMU is answered when the guest's memory is mapped for it; requests with an id are answered \
              meanwhile",
        params: &[
            param("driver", Kind::String, "Type of the device, such as vfio-pci"),
            optional("id", Kind::String, "Name of the device; needed to take it out again"),
            optional("bus", Kind::String, "Id of the root port"),
        ],
        open: true,
        run: |control, arguments| {
            let text = arguments.into_json().to_string();
            let under_way = control.device_add(Args::parse("--device", Some("driver"), &text)?)?;
            let finish = |done: Result<(), Failure>| done.map(|()| json!({}));
            Ok(under_way.map_or_else(nothing, |ticket| Reply::Later(Later { ticket, finish })))
        },
    },
    Command {
        name: "device_del",
        doc: "Asks the guest to give a device up. The event DEVICE_DELETED says that it is out, \
              DEVICE_UNPLUG_GUEST_ERROR that the guest keeps it",
        params: &[
            param("id", Kind::String, "Name of the device"),
            optional(
                "timeout",
                Kind::Integer,
                "Milliseconds that the guest has for it; without it, as long as it likes",
            ),
            optional("force", Kind::Boolean, "Take the device away after that time, or at once where there is none"),
        ],
        open: false,
        run: |control, arguments| {
            let removal = Removal {
                id: arguments.text("id").to_owned(),
                timeout: arguments.number("timeout"),
                force: arguments.flag("force"),
            };
            control.device_del(&removal)?;
            Ok(nothing())
        },
    },
    Command {
        name: "device-list-properties",
        doc: "The properties of a device type",
        params: &[param("typename", Kind::String, "The type")],
        open: false,
        run: |control, arguments| {
            let props = control.properties(arguments.text("typename"))?;
            let described = props.iter().map(|prop| {
                let mut row = json!({ "name": prop.name, "type": prop.kind, "description": prop.doc });
                if let (Preset::Text(text), Some(members)) = (prop.preset, row.as_object_mut()) {
                    members.insert("default-value".into(), text.into());
                }
                row
            });
            Ok(described.collect::<Value>().into())
        },
    },
];

impl From<crate::object::Invalid> for Failure {
    fn from(invalid: crate::object::Invalid) -> Failure {
        Failure::generic(invalid.to_string())
    }
}
