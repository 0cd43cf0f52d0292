//! `--serial`: where the guest's serial port goes.

use std::path::PathBuf;

use crate::error::{Code, Error, Result};

/// Where the guest's serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialOption {
    /// The process's standard input and output.
    Stdio,
    /// Output goes to a file, which is made or emptied; there is no input.
    File(PathBuf),
    /// A port that is attached to nothing.
    Null,
    /// No port at all.
    None,
}

/// Reads the option.
pub fn parse(text: &str) -> Result<SerialOption> {
    match (text, text.strip_prefix("file:")) {
        // QEMU's name for a console whose escape keys (Ctrl-A) work, as ours always do.
        ("stdio" | "mon:stdio", _) => Ok(SerialOption::Stdio),
        ("null", _) => Ok(SerialOption::Null),
        ("none", _) => Ok(SerialOption::None),
        (_, Some(path)) if !path.is_empty() => Ok(SerialOption::File(PathBuf::from(path))),
        _ => Err(Error::new(Code::Usage, format!("the serial port cannot go to `{text}`"))
            .fix("use one of `--serial stdio`, `--serial file:PATH`, `--serial null`, `--serial none`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places() {
        for (text, expected) in [
            ("stdio", SerialOption::Stdio),
            ("mon:stdio", SerialOption::Stdio),
            ("null", SerialOption::Null),
            ("none", SerialOption::None),
            ("file:/tmp/a,b", SerialOption::File("/tmp/a,b".into())),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "file:", "tcp::4444", "Stdio"] {
            assert_eq!(parse(text).unwrap_err().code(), Code::Usage, "{text}");
        }
    }
}
