//! The options of QEMU command lines that only say what passthru does anyway: accepted, and without effect. And those that
//! say how QEMU's process runs, which `passthru convert` leaves out without a word: passthru's is run another way, and the
//! refusal says by what.

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
    /// Some of these keys, each with one of its words.
    Keys(&'static [(&'static str, &'static [&'static str])]),
    /// Any: none has an effect.
    Any(&'static str),
    /// It is refused, whatever its value is; the name of that, if it takes one.
    Refused(Option<&'static str>),
}

use Value::{Any, Keys, One, Refused};

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
    of("D", Refused(Some("FILE")), "messages go to standard error, and the journal of a service keeps them"),
    of("d", Refused(Some("ITEMS")), "messages go to standard error; --verbose says more"),
    of("daemonize", Refused(None), "passthru stays where it was started; systemd starts services"),
    of("display", One(&["none"]), NO_DISPLAY),
    flag("enable-kvm", "Guests run by KVM alone"),
    of(
        "global",
        One(&["ICH9-LPC.disable_s3=1", "ICH9-LPC.disable_s4=1", "kvm-pit.lost_tick_policy=delay"]),
        "The machine cannot sleep, and KVM's timer makes up for ticks that the guest missed",
    ),
    of("k", Any("LANGUAGE"), NO_DISPLAY),
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
        Keys(&[("mem-lock", &["off"]), ("cpu-pm", &["off"])]),
        "Only what passed-through devices need is locked",
    ),
    of("parallel", One(&["none"]), "Guests have no parallel port"),
    of(
        "rtc",
        Keys(&[("base", &["utc"]), ("clock", &["host"]), ("driftfix", &["none", "slew"])]),
        "The guest's clock has UTC, and goes as the host's; it has no ticks to lose",
    ),
    of("runas", Refused(Some("USER")), "a service has its user by systemd (User=)"),
    of("sandbox", One(&["off"]), "A service is confined by systemd"),
    of("vga", One(&["none"]), NO_DISPLAY),
];

/// Whether the option called `long` is one of them.
pub(super) fn has(long: &str) -> bool {
    ROWS.iter().any(|row| row.name == long)
}

/// Whether it is one that says how QEMU's process runs, not what the guest is.
pub(super) fn is_of_process(long: &str) -> bool {
    ROWS.iter().any(|row| row.name == long && matches!(row.value, Refused(_)))
}

/// Whether `text` has only keys and words of `keys`.
fn check_keys(text: &str, keys: &[(&str, &[&str])]) -> Result<(), String> {
    let fits = |pair: &str| {
        let (key, word) = pair.split_once('=').unwrap_or((pair, ""));
        keys.iter().any(|(known, words)| *known == key && words.contains(&word))
    };
    if text.split(',').all(fits) {
        return Ok(());
    }
    let all = keys.iter().map(|(key, words)| format!("`{key}={}`", words.join("|")));
    Err(format!("only {} is possible", all.collect::<Vec<_>>().join(", ")))
}

/// Takes part in the parsing of a command line and keeps nothing.
#[derive(Debug)]
pub(super) struct Implied;

impl Args for Implied {
    fn augment_args(command: Command) -> Command {
        let heading = "Accepted from QEMU command lines, without effect";
        ROWS.iter().fold(command, |command, row| {
            let arg = Arg::new(row.name).long(row.name).help(row.fact).help_heading(heading).hide_short_help(true);
            let arg = match row.name.as_bytes() {
                [letter] => arg.short(char::from(*letter)),
                _ => arg,
            };
            command.arg(match row.value {
                Value::None => arg.action(ArgAction::SetTrue).overrides_with(row.name),
                Any(name) => arg.action(ArgAction::Append).value_name(name),
                One(values) => arg.action(ArgAction::Append).value_name(values[0]).value_parser(move |given: &str| {
                    match values.contains(&given) {
                        true => Ok(()),
                        false => Err(format!("only `{}` is possible ({})", values.join("` or `"), row.fact)),
                    }
                }),
                Keys(keys) => {
                    arg.action(ArgAction::Append).value_name("KEY=WORD...").value_parser(move |given: &str| {
                        check_keys(given, keys).map_err(|error| format!("{error} ({})", row.fact))
                    })
                }
                Refused(value) => {
                    let arg = arg.hide(true).action(ArgAction::Append);
                    let arg = match value {
                        Some(name) => arg.value_name(name),
                        None => arg.num_args(0).default_missing_value("on"),
                    };
                    arg.value_parser(|_: &str| Err::<(), _>(row.fact))
                }
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
