//! `--qmp`: where the control socket is.

use std::path::PathBuf;

use crate::error::{Code, Error, Result};
use crate::object::{Args, Props, options_help, props};

/// The control socket that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpOptions {
    /// The socket's file.
    pub path: PathBuf,
    /// Whether the guest starts only when the first client is there.
    pub wait: bool,
}

props! {
    /// The control socket.
    struct Given {
        /// unix:PATH, the file that is made for the socket
        address: String,
        /// Listen for clients; passthru always does
        server: bool = "on",
        /// Start the guest only when the first client is there
        wait: bool = "on",
    }
}

/// The key of the option's first value.
pub const IMPLIED: &str = "address";

/// Reads the option.
pub fn parse(mut args: Args) -> Result<QmpOptions> {
    let given = Given::parse(&mut args)?;
    args.finish()?;
    let usage = |cause: String| Error::new(Code::Usage, cause).evidence(args.written());
    let Some(path) = given.address.strip_prefix("unix:").filter(|path| !path.is_empty()) else {
        return Err(usage(format!("the control socket cannot be at `{}`", given.address))
            .fix("write --qmp unix:/run/passthru/guest.sock,wait=off"));
    };
    if !given.server {
        return Err(usage("the control socket listens, it does not connect".into()).fix("leave server=off out"));
    }
    Ok(QmpOptions { path: path.into(), wait: given.wait })
}

/// What the option takes.
pub fn help() -> String {
    options_help("--qmp options", &[Given::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    fn qmp(text: &str) -> Result<QmpOptions> {
        parse(Args::parse("--qmp", Some(IMPLIED), text)?)
    }

    #[test]
    fn the_forms() {
        check_props("--qmp", Given::TABLE);
        for (text, path, wait) in [
            ("unix:/tmp/a", "/tmp/a", true),
            ("unix:/tmp/a,server=on,wait=off", "/tmp/a", false),
            ("unix:a,,b,server,nowait=off,wait=off", "", false),
            ("unix:a,,b,wait=off", "a,b", false),
        ] {
            match qmp(text) {
                Ok(options) => assert_eq!((options.path.to_str(), options.wait), (Some(path), wait), "{text}"),
                Err(error) => assert_eq!((error.code(), path), (Code::BadProperty, ""), "{error}"),
            }
        }
        for text in ["", "unix:", "tcp:localhost:4444", "unix:/a,server=off"] {
            assert!([Code::Usage, Code::BadProperty].contains(&qmp(text).unwrap_err().code()), "{text}");
        }
    }
}
