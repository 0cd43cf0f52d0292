//! QEMU's short forms of a character back end, as `--serial`, `--monitor` and `--qmp` take them: `stdio`, `mon:stdio`,
//! `pty`, `file:PATH`, `unix:PATH,server=on,wait=off`, `tcp:HOST:PORT`, `chardev:ID`, `null`, `none`. Pure.

use super::CHARDEVS;
use crate::error::{Code, Error, Result};
use crate::object::{Args, Id, PropValue};

/// Where a short form says that the bytes go.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Nowhere: there is no front end either.
    None,
    /// To the back end of that name.
    Named(Id),
    /// To a back end of its own.
    New(New),
}

/// A back end that a short form describes.
#[derive(Debug, Clone, PartialEq)]
pub struct New {
    /// What `--chardev` would have.
    pub args: Args,
    /// A monitor shares it (`mon:`).
    pub monitor: bool,
}

impl New {
    /// The back end's properties. `terminal`: whether standard input is one: there the keys of a mux work though none was
    /// asked for, or a guest that hangs could not be left.
    pub fn resolve(self, terminal: bool) -> Args {
        let stdio = self.args.peek(CHARDEVS.key) == Some("stdio");
        if self.monitor || stdio && terminal { self.args.with("mux", "on") } else { self.args }
    }
}

/// What may be written, for errors and help.
pub const FORMS: &str = "stdio, mon:stdio, pty, file:PATH, unix:PATH, tcp:HOST:PORT, chardev:ID, null or none";

/// Reads `text`, which was written after `option`; a back end of its own is called `id`.
///
/// # Errors
/// [`Code::Usage`] for another form, [`Code::BadProperty`] for what its type does not take.
pub fn parse(option: &'static str, text: &str, id: &str) -> Result<Target> {
    let (monitor, form) = match text.strip_prefix("mon:") {
        Some(form) => (true, form),
        None => (false, text),
    };
    if let (Some(id), false) = (form.strip_prefix("chardev:"), monitor) {
        let id = Id::parse(id).map_err(|_| unknown(option, text))?;
        return Ok(Target::Named(id));
    }
    let made = |of_type: &str, properties: &[(&str, &str)]| -> Result<Args> {
        let args = Args::parse(option, None, "")?.with(CHARDEVS.key, of_type);
        Ok(properties.iter().fold(args, |args, (key, value)| args.with(key, value)))
    };
    let args = match form.split_once(':') {
        None if form == "none" && !monitor => return Ok(Target::None),
        None if form == "stdio" => made("stdio", &[("signal", "off")])?,
        None if matches!(form, "null" | "pty" | "ringbuf") => made(form, &[])?,
        // QEMU takes all of the rest as a name, commas too.
        Some(("file", path)) if !path.is_empty() => made("file", &[("path", path)])?,
        Some(("pty", path)) if !path.is_empty() => made("pty", &[("path", path)])?,
        Some((kind @ ("unix" | "tcp"), rest)) if !rest.is_empty() => {
            let mut args = Args::parse(option, Some("address"), rest)?;
            let address = args.take("address").unwrap_or_default();
            let args = args.with(CHARDEVS.key, "socket");
            match (kind, address.rsplit_once(':')) {
                ("unix", _) if !address.is_empty() => args.with("path", &address),
                ("tcp", Some((host, port))) => {
                    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                    let server = matches!(args.peek("server"), Some("on" | "yes" | "true" | "y"));
                    let host = match (host, server) {
                        ("", true) => "0.0.0.0",
                        ("", false) => "localhost",
                        _ => host,
                    };
                    args.with("host", host).with("port", port)
                }
                _ => return Err(unknown(option, text)),
            }
        }
        _ => return Err(unknown(option, text)),
    };
    Ok(Target::New(New { args: args.with("id", id), monitor }))
}

fn unknown(option: &str, text: &str) -> Error {
    Error::new(Code::Usage, format!("`{option}` cannot go to `{text}`")).fix(format!("use one of {FORMS}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::Catalogue;

    fn made(text: &str) -> New {
        match parse("--serial", text, "serial0").unwrap() {
            Target::New(new) => new,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_forms() {
        for (text, backend) in [
            ("null", "backend=null"),
            ("stdio", "backend=stdio signal=off"),
            ("pty", "backend=pty"),
            ("pty:/run/console", "backend=pty path=/run/console"),
            ("file:/tmp/a,b", "backend=file path=/tmp/a,b"),
            ("unix:/tmp/a,,b,server=on,wait=off", "server=on wait=off backend=socket path=/tmp/a,b"),
            ("tcp:host:4444", "backend=socket host=host port=4444"),
            ("tcp::4444,server=on", "server=on backend=socket host=0.0.0.0 port=4444"),
            ("tcp::4444,reconnect-ms=10", "reconnect-ms=10 backend=socket host=localhost port=4444"),
            ("tcp:[::1]:1", "backend=socket host=::1 port=1"),
        ] {
            let new = made(text);
            let entries: Vec<String> = new.args.entries().map(|(key, value)| format!("{key}={value}")).collect();
            assert_eq!(entries.join(" "), format!("{backend} id=serial0"), "{text}");
            CHARDEVS.check(&new.args).unwrap();
        }
        assert_eq!(parse("--serial", "none", "serial0").unwrap(), Target::None);
        assert!(
            matches!(parse("--serial", "chardev:c0", "serial0").unwrap(), Target::Named(id) if id.as_str() == "c0")
        );
        for text in
            ["", "file:", "pty:", "unix:", "tcp:", "tcp:4444", "Stdio", "chardev:", "mon:none", "mon:chardev:a", "mon:"]
        {
            assert_eq!(parse("--serial", text, "serial0").unwrap_err().code(), Code::Usage, "{text}");
        }
    }

    #[test]
    fn a_terminal_and_a_monitor_get_the_keys() {
        for (text, terminal, mux) in [
            ("stdio", true, Some("on")),
            ("stdio", false, None),
            ("mon:stdio", false, Some("on")),
            ("mon:pty", false, Some("on")),
            ("pty", true, None),
        ] {
            assert_eq!(made(text).resolve(terminal).peek("mux"), mux, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(mon:)?(file|unix|tcp|pty|chardev)?:?[\\[\\]a-z0-9:,=/\\PC]{0,30}") {
            if let Ok(Target::New(new)) = parse("--serial", &text, "serial0") {
                let _ = CHARDEVS.check(&new.resolve(true));
            }
        }
    }
}
