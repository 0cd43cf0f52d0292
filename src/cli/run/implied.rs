//! The options of QEMU command lines that only say what passthru does anyway: accepted, and without effect.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// One such option.
struct Row {
    name: &'static str,
    value: Value,
    /// What passthru does anyway.
    fact: &'static str,
}

/// The value that such an option may have.
#[derive(Clone, Copy)]
enum Value {
    /// It takes none.
    None,
    /// One of these.
    One(&'static [&'static str]),
    /// Any: none has an effect.
    Any(&'static str),
}

use Value::{Any, One};

const fn flag(name: &'static str, fact: &'static str) -> Row {
    Row { name, value: Value::None, fact }
}

const fn of(name: &'static str, value: Value, fact: &'static str) -> Row {
    Row { name, value, fact }
}

const NO_CARD: &str = "Guests have no network cards but those of --device";
const NO_DISPLAY: &str = "Guests have no emulated display";

const ROWS: &[Row] = &[
    of("accel", One(&["kvm"]), "Guests run by KVM alone"),
    of("boot", Any("ORDER"), "Guests boot the kernel of --kernel"),
    of("display", One(&["none"]), NO_DISPLAY),
    flag("enable-kvm", "Guests run by KVM alone"),
    of("msg", Any("KEY=VALUE"), "Messages have no time stamps; the journal of a service adds them"),
    of("net", One(&["none"]), NO_CARD),
    of("nic", One(&["none"]), NO_CARD),
    flag("no-fd-bootchk", "Guests have no floppy drives"),
    flag("no-hpet", "Guests have no HPET"),
    flag("no-user-config", "There are no configuration files that are read unasked"),
    flag("nodefaults", "Guests have no devices but those of --device"),
    flag("nographic", NO_DISPLAY),
    of(
        "overcommit",
        One(&["mem-lock=off", "mem-lock=off,cpu-pm=off"]),
        "Only what passed-through devices need is locked",
    ),
    of("parallel", One(&["none"]), "Guests have no parallel port"),
    of(
        "rtc",
        One(&["base=utc", "base=utc,clock=host", "clock=host"]),
        "The guest's clock has UTC, and goes as the host's",
    ),
    of("sandbox", One(&["off"]), "A service is confined by systemd"),
    of("vga", One(&["none"]), NO_DISPLAY),
];

/// Whether the option called `long` is one of them.
pub(super) fn has(long: &str) -> bool {
    ROWS.iter().any(|row| row.name == long)
}

/// Takes part in the parsing of a command line and keeps nothing.
#[derive(Debug)]
pub(super) struct Implied;

impl Args for Implied {
    fn augment_args(command: Command) -> Command {
        let heading = "Accepted from QEMU command lines, without effect";
        ROWS.iter().fold(command, |command, row| {
            let arg = Arg::new(row.name).long(row.name).help(row.fact).help_heading(heading).hide_short_help(true);
            command.arg(match row.value {
                Value::None => arg.action(ArgAction::SetTrue).overrides_with(row.name),
                Any(name) => arg.action(ArgAction::Append).value_name(name),
                One(values) => arg.action(ArgAction::Append).value_name(values[0]).value_parser(move |given: &str| {
                    match values.contains(&given) {
                        true => Ok(()),
                        false => Err(format!("only `{}` is possible ({})", values.join("` or `"), row.fact)),
                    }
                }),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Implied {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Implied)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}
