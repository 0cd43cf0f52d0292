//! `--action`: what is done when the guest reboots or powers off, has panicked, or does not write to its watchdog any more.

use crate::error::Result;
use crate::object::{Args, Props, options_help, prop_enum, props};

/// What is done about a guest that ends or is in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actions {
    /// When it reboots.
    pub reboot: OnReboot,
    /// When it powers off.
    pub shutdown: OnShutdown,
    /// When it has panicked.
    pub panic: OnPanic,
    /// When it does not write to its watchdog in time.
    pub watchdog: OnWatchdog,
}

props! {
    /// What is done about a guest that ends or is in trouble.
    struct Given {
        /// When it reboots: shutdown ends the process (--no-reboot)
        reboot: OnReboot = "reset",
        /// When it powers off: with pause the process stays, for a monitor's system_reset (--no-shutdown)
        shutdown: OnShutdown = "poweroff",
        /// When it says that it has panicked (pvpanic-pci): exit-failure ends the process with an error
        panic: OnPanic = "shutdown",
        /// When it does not write to its watchdog in time (i6300esb): shutdown presses the power button, debug only says it
        watchdog: OnWatchdog = "reset",
    }
}

prop_enum! {
    /// When the guest reboots.
    pub enum OnReboot {
        /// The machine is reset.
        Reset = "reset",
        /// The process ends.
        Shutdown = "shutdown",
    }
}

prop_enum! {
    /// When it powers off.
    pub enum OnShutdown {
        /// The process ends.
        Poweroff = "poweroff",
        /// It stays, with a machine that is off.
        Pause = "pause",
    }
}

prop_enum! {
    /// After a panic.
    pub enum OnPanic {
        /// The guest stands still.
        Pause = "pause",
        /// The process ends.
        Shutdown = "shutdown",
        /// It ends with an error.
        ExitFailure = "exit-failure",
        /// Nothing.
        None = "none",
    }
}

prop_enum! {
    /// When the watchdog barks.
    pub enum OnWatchdog {
        /// The machine is reset.
        Reset = "reset",
        /// The power button is pressed.
        Shutdown = "shutdown",
        /// The process ends.
        Poweroff = "poweroff",
        /// The guest stands still.
        Pause = "pause",
        /// It is said, which it always is.
        Debug = "debug",
        /// Nothing.
        None = "none",
    }
}

impl OnWatchdog {
    /// The word that the user writes.
    pub fn name(self) -> &'static str {
        match self {
            OnWatchdog::Reset => "reset",
            OnWatchdog::Shutdown => "shutdown",
            OnWatchdog::Poweroff => "poweroff",
            OnWatchdog::Pause => "pause",
            OnWatchdog::Debug => "debug",
            OnWatchdog::None => "none",
        }
    }
}

/// Reads the option, of which each may be given once.
pub fn parse(mut args: Args) -> Result<Actions> {
    let Given { reboot, shutdown, panic, watchdog } = Given::parse(&mut args)?;
    args.finish().map(|()| Actions { reboot, shutdown, panic, watchdog })
}

/// What `--action` takes.
pub fn help() -> String {
    options_help("--action options", &[Given::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::object::testing::check_props;

    #[test]
    fn the_words() {
        check_props("--action", Given::TABLE);
        let read = |text: &str| parse(Args::parse("--action", None, text).unwrap());
        let actions = read("").unwrap();
        assert_eq!((actions.panic, actions.watchdog), (OnPanic::Shutdown, OnWatchdog::Reset));
        assert_eq!(read("watchdog=pause,panic=none").unwrap().watchdog, OnWatchdog::Pause);
        assert_eq!((actions.reboot, actions.shutdown), (OnReboot::Reset, OnShutdown::Poweroff));
        assert_eq!(read("shutdown=pause,reboot=shutdown").unwrap().shutdown, OnShutdown::Pause);
        for wrong in ["watchdog=inject-nmi", "panic=reset", "reboot=poweroff"] {
            assert_eq!(read(wrong).unwrap_err().code(), Code::BadProperty, "{wrong}");
        }
    }
}
