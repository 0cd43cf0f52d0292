//! `--monitor` and `--mon`: where people find a monitor.

use crate::backends::chardev::shorthand::{self, Target};
use crate::error::{Code, Error, Result};
use crate::object::{Args, Id, Props, options_help, prop_enum, props};

props! {
    /// A monitor on a character back end.
    struct Mon {
        /// Name of the back end
        chardev: Id,
        /// readline for people; control, QMP for programs, is had by --qmp
        mode: Mode = "readline",
        /// QEMU's word for indented QMP; without effect on a monitor for people
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

/// Reads all of both options: the back ends that have a monitor.
pub fn parse(monitors: &[String], mons: Vec<Args>) -> Result<Vec<Target>> {
    let named = (0..).zip(monitors).map(|(index, text): (u32, &String)| {
        // The name that QEMU gives to such a back end.
        shorthand::parse("--monitor", text, &format!("compat_monitor{index}"))
    });
    named.chain(mons.into_iter().map(mon)).collect()
}

fn mon(mut args: Args) -> Result<Target> {
    let mon = Mon::parse(&mut args)?;
    args.finish()?;
    match mon.mode {
        Mode::Readline => Ok(Target::Named(mon.chardev)),
        Mode::Control => Err(Error::new(Code::Usage, "QMP is on sockets only, not on a character back end")
            .evidence(args.written())
            .fix("write --qmp unix:PATH,wait=off")),
    }
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
        let [Target::None, Target::New(new), Target::Named(first), Target::Named(second)] = &targets.unwrap()[..]
        else {
            panic!("other targets");
        };
        assert_eq!((new.args.peek("id"), first.as_str(), second.as_str()), (Some("compat_monitor1"), "c0", "c1"));
        assert_eq!(parse(&[], vec![mon("c0,mode=control")]).unwrap_err().code(), Code::Usage);
    }
}
