//! The guest's run: stop, go on, reset, switch off.

use super::{Command, nothing};

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "stop",
        doc: "Makes the guest's processors stand still; its passed-through devices go on",
        params: &[],
        open: false,
        run: |control, _| {
            control.stop();
            Ok(nothing())
        },
    },
    Command {
        name: "cont",
        doc: "Lets the guest go on; starts one that was given -S",
        params: &[],
        open: false,
        run: |control, _| control.cont().map(|()| nothing()),
    },
    Command {
        name: "inject-nmi",
        doc: "Sends the guest's first processor a non-maskable interrupt, as a PC's NMI button does",
        params: &[],
        open: false,
        run: |control, _| control.inject_nmi().map(|()| nothing()),
    },
    Command {
        name: "system_reset",
        doc: "Resets the machine, as its reset button does",
        params: &[],
        open: false,
        run: |control, _| {
            control.reset();
            Ok(nothing())
        },
    },
    Command {
        name: "system_powerdown",
        doc: "Presses the power button: the guest's system shuts down if it listens",
        params: &[],
        open: false,
        run: |control, _| {
            control.power_button();
            Ok(nothing())
        },
    },
    Command {
        name: "quit",
        doc: "Ends the process at once",
        params: &[],
        open: false,
        run: |control, _| {
            control.quit();
            Ok(nothing())
        },
    },
];
