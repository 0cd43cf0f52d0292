//! What the command line prints, and clap's errors in our form.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write};

use clap::error::ErrorKind as ClapKind;
use serde::Serialize;

use crate::bdf::{Bdf, DeviceAddr};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::names::DeviceRef;

/// Writes `text` to standard output. A reader that has gone away (`| head -1`) is no failure.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::system("write to standard output", &error)),
        _ => Ok(()),
    }
}

/// Writes a remark to standard error.
pub(super) fn note(text: &str) {
    // As with `report`.
    let _ = writeln!(io::stderr().lock(), "passthru: {text}");
}

/// Writes `error` to standard error.
pub(super) fn report(error: &Error) {
    // Nobody is left to tell if standard error itself cannot be written.
    let _ = writeln!(io::stderr().lock(), "passthru: {error}");
}

/// `value` as indented JSON on standard output.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::system("write JSON", &io::Error::new(ErrorKind::InvalidData, error)))?;
    print(&(text + "\n"))
}

/// Every function that `devices` mean, each once; all of them are looked up before anything is done to the first. `find`
/// tells the functions of a whole device.
pub(super) fn functions(
    devices: &[DeviceRef],
    host: &Host,
    find: impl Fn(DeviceAddr) -> Result<Vec<Bdf>>,
) -> Result<Vec<Bdf>> {
    let mut all = Vec::new();
    for device in devices {
        let addr = host.locate(device)?;
        match addr.bdf() {
            // What is wrong with a function is said when it is its turn.
            Some(bdf) => all.push(bdf),
            None => all.extend(find(addr)?),
        }
    }
    let mut seen = BTreeSet::new();
    all.retain(|bdf| seen.insert(*bdf));
    Ok(all)
}

/// Does `act` to every item up to the first failure, and tells what was done: each at once as `text`, or all together as
/// a JSON array. What was done before a failure is told in either case.
pub(super) fn each<T, D: Serialize>(
    items: &[T],
    json: bool,
    act: impl Fn(&T) -> Result<D>,
    text: impl Fn(&D) -> String,
) -> Result<()> {
    if !json {
        return items.iter().try_for_each(|item| print(&text(&act(item)?)));
    }
    let mut done = Vec::new();
    let result = items.iter().try_for_each(|item| act(item).map(|it| done.push(it)));
    print_json(&done)?;
    result
}

/// Clap's complaint about the command line of `command` (`passthru run`) as one of our errors: its first paragraph is
/// the cause, its tips or the way to the help mend it.
pub(super) fn usage_error(error: &clap::Error, command: &str) -> Error {
    let help = format!("`{command} --help` lists what there is");
    if matches!(error.kind(), ClapKind::MissingSubcommand | ClapKind::DisplayHelpOnMissingArgumentOrSubcommand) {
        return Error::new(Code::Usage, "no command is given").fix(help);
    }
    let text = error.render().to_string();
    let lines = || text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage: "));
    let cause: Vec<&str> = lines().take_while(|line| !line.is_empty()).collect();
    let cause = cause.join(" ");
    let tips: Vec<&str> = lines().filter_map(|line| line.strip_prefix("tip: ")).collect();
    let fix = if tips.is_empty() { help } else { tips.join("; ") };
    Error::new(Code::Usage, cause.strip_prefix("error: ").unwrap_or(&cause)).fix(fix)
}

/// `text` in lines of at most `width` characters, broken at spaces.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_spaces() {
        assert_eq!(wrap("one two  three", 7), "one two\nthree");
        assert_eq!(wrap("longerthanwidth a b", 5), "longerthanwidth\na b");
        assert_eq!(wrap("", 5), "");
        assert_eq!(wrap("exactly fits", 12), "exactly fits");
    }
}
