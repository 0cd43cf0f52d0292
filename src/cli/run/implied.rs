//! The options of QEMU command lines that only say what passthru does anyway: accepted, and without effect.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// One such option.
struct Row {
    name: &'static str,
    /// The only value that it may have, if it takes one.
    value: Option<&'static str>,
    /// What passthru does anyway.
    fact: &'static str,
}

const ROWS: &[Row] = &[
    Row { name: "accel", value: Some("kvm"), fact: "Guests run by KVM alone" },
    Row { name: "display", value: Some("none"), fact: "Guests have no emulated display" },
    Row { name: "enable-kvm", value: None, fact: "Guests run by KVM alone" },
    Row { name: "net", value: Some("none"), fact: "Guests have no network cards but those of --device" },
    Row { name: "nic", value: Some("none"), fact: "Guests have no network cards but those of --device" },
    Row { name: "no-user-config", value: None, fact: "There are no configuration files that are read unasked" },
    Row { name: "nodefaults", value: None, fact: "Guests have no devices but those of --device" },
    Row { name: "nographic", value: None, fact: "Guests have no emulated display" },
    Row { name: "parallel", value: Some("none"), fact: "Guests have no parallel port" },
    Row { name: "rtc", value: Some("base=utc"), fact: "The guest's clock has UTC" },
    Row { name: "vga", value: Some("none"), fact: "Guests have no emulated graphics card" },
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
                None => arg.action(ArgAction::SetTrue).overrides_with(row.name),
                Some(value) => arg.action(ArgAction::Append).value_name(value).value_parser(move |given: &str| {
                    match given == value {
                        true => Ok(()),
                        false => Err(format!("only `{value}` is possible ({})", row.fact)),
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
