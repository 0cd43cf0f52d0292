//! Small reads from sysfs and procfs. A file that is absent, unreadable or not understood is `None` or empty: the
//! kernel's version and the user's rights decide what is there, so every caller has to do without.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// No file that is read here is larger; mountinfo of a host with many containers is the largest.
const MAX_TEXT: u64 = 16 << 20;

/// A file's text without the white space around it. Devices, processes and mounts are called as someone else likes, and
/// most of it is printed: what a terminal would obey is replaced.
pub(super) fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
    let printable = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
    Some(String::from_utf8_lossy(&bytes).trim().chars().map(printable).collect())
}

/// A file's lines; none if it cannot be read.
pub(super) fn lines(path: impl AsRef<Path>) -> Vec<String> {
    text(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A decimal number.
pub(super) fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    text(path)?.parse().ok()
}

/// A hexadecimal number, with or without `0x`.
pub(super) fn hex(path: impl AsRef<Path>) -> Option<u32> {
    u32::from_str_radix(text(path)?.trim_start_matches("0x"), 16).ok()
}

/// The last part of what a symbolic link points to: sysfs's way to name a driver or a group.
pub(super) fn link_name(path: impl AsRef<Path>) -> Option<String> {
    name_of(&std::fs::read_link(path).ok()?)
}

/// The last part of a path.
pub(super) fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// The names in a folder, sorted; none if it is absent.
pub(super) fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The path with every link resolved, if it exists.
pub(super) fn real(path: impl AsRef<Path>) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_commands_the_terminal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " a\u{1b}[2Jb\rc\td\ne\u{9b} \n").unwrap();
        assert_eq!(text(file.path()).as_deref(), Some("a\u{fffd}[2Jb\u{fffd}c\td\ne\u{fffd}"));
    }
}
