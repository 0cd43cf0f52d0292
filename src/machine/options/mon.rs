//! `--monitor` and `--mon`: where people find a monitor.

use crate::backends::chardev::shorthand::{self, Target};
use crate::error::Result;
use crate::object::{Args, Id, Props, options_help, prop_enum, props};

props! {
    /// A monitor on a character back end.
    struct Mon {
        /// Name of the back end
        chardev: Id,
        /// readline for people, control for programs (QMP)
        mode: Mode = "readline",
        /// QEMU's word for indented QMP: without effect, answers are one line each
        pretty: Option<bool>,
    }
}

prop_enum! {
    /// Who uses the monitor.
    enum Mode {
        Readline = "readline",
        Control = "control",
    }
}

/// The key of the first value of `--mon`.
pub const IMPLIED: &str = "chardev";

/// The back ends that have a monitor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Monitors {
    /// For people.
    pub people: Vec<Target>,
    /// For programs, by their names.
    pub programs: Vec<String>,
}

/// Reads all of both options.
pub fn parse(monitors: &[String], mons: Vec<Args>) -> Result<Monitors> {
    let named = (0..).zip(monitors).map(|(index, text): (u32, &String)| {
        // The name that QEMU gives to such a back end.
        shorthand::parse("--monitor", text, &format!("compat_monitor{index}"))
    });
    let mut parsed = Monitors { people: named.collect::<Result<_>>()?, programs: Vec::new() };
    for mut args in mons {
        let mon = Mon::parse(&mut args)?;
        args.finish()?;
        match mon.mode {
            Mode::Readline => parsed.people.push(Target::Named(mon.chardev)),
            Mode::Control => parsed.programs.push(mon.chardev.as_str().to_owned()),
        }
    }
    Ok(parsed)
}

/// What `--mon` takes.
pub fn help() -> String {
    options_help("--mon options", &[Mon::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    #[test]
    fn the_forms() {
        check_props("--mon", Mon::TABLE);
        let mon = |text: &str| Args::parse("--mon", Some(IMPLIED), text).unwrap();
        let targets = parse(&["none".into(), "pty".into()], vec![mon("c0"), mon("chardev=c1,mode=readline,pretty=on")]);
        let [Target::None, Target::New(new), Target::Named(first), Target::Named(second)] =
            &targets.unwrap().people[..]
        else {
            panic!("other targets");
        };
        assert_eq!((new.args.peek("id"), first.as_str(), second.as_str()), (Some("compat_monitor1"), "c0", "c1"));
        let monitors = parse(&[], vec![mon("chardev=c0,mode=control,pretty=on"), mon("c1")]).unwrap();
        assert_eq!((monitors.people.len(), monitors.programs), (1, vec!["c0".to_owned()]));
    }
}
