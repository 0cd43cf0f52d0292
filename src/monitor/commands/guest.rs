//! The guest's memory and its troubles: balloon, panic, watchdog.

use serde_json::json;

use super::super::message::Failure;
use super::{Command, Kind, nothing, optional, param};

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "balloon",
        doc: "Asks the guest to have no more memory than this; it gives the rest back as it can",
        params: &[param("value", Kind::Integer, "Bytes of memory that it keeps")],
        open: false,
        run: |control, arguments| match arguments.number("value") {
            Some(bytes @ 1..) => control.inflate(bytes).map(|()| nothing()),
            _ => Err(Failure::generic("Parameter 'target' expects a size")),
        },
    },
    Command {
        name: "query-balloon",
        doc: "Bytes of memory that the guest has beside its balloon",
        params: &[],
        open: false,
        run: |control, _| match control.balloon() {
            Some(actual) => Ok(json!({ "actual": actual }).into()),
            None => Err(Failure::no_balloon()),
        },
    },
    Command {
        name: "set-action",
        doc: "Changes what --action says",
        params: &[
            optional("panic", Kind::String, "When the guest has panicked: pause, shutdown, exit-failure or none"),
            optional(
                "watchdog",
                Kind::String,
                "When it does not write to its watchdog: reset, shutdown, poweroff, pause, debug or none",
            ),
        ],
        open: false,
        run: |control, arguments| {
            for trouble in ["panic", "watchdog"] {
                let word = arguments.text(trouble);
                if !word.is_empty() {
                    control.set_action(trouble, word)?;
                }
            }
            Ok(nothing())
        },
    },
    Command {
        name: "watchdog-set-action",
        doc: "Changes what --action watchdog= says",
        params: &[param("action", Kind::String, "reset, shutdown, poweroff, pause, debug or none")],
        open: false,
        run: |control, arguments| control.set_action("watchdog", arguments.text("action")).map(|()| nothing()),
    },
];
