//! A writer for cpio archives in the "new ASCII" (newc) format, the format of
//! Linux initramfs images (kernel document `driver-api/early-userspace/buffer-format`).
//!
//! The kernel accepts several archives one after the other, so a scenario's
//! script is a small archive that is appended to a ready-made image.

use std::collections::BTreeSet;
use std::path::Path;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const TYPE_DIR: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_CHAR: u32 = 0o020_000;

/// An archive under construction. Parent directories are added as needed.
#[derive(Debug, Default, Clone)]
pub struct Archive {
    bytes: Vec<u8>,
    dirs: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with mode 0755 and its parents.
    pub fn dir(&mut self, path: &str) -> &mut Self {
        let path = path.trim_matches('/');
        if path.is_empty() || self.dirs.contains(path) {
            return self;
        }
        self.parents(path);
        self.entry(path, TYPE_DIR | 0o755, (0, 0), &[]);
        self.dirs.insert(path.to_owned());
        self
    }

    /// Adds a regular file; `mode` holds the permission bits only.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, TYPE_FILE | (mode & 0o7777), (0, 0), data);
        self
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, TYPE_LINK | 0o777, (0, 0), target.as_bytes());
        self
    }

    /// Adds a character device node (`/dev/console` must exist before init runs).
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, TYPE_CHAR | 0o600, (major, minor), &[]);
        self
    }

    /// Ends the archive and pads it, so that another one can follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry(TRAILER, 0, (0, 0), &[]);
        let padded = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(padded, 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
            let parent = parent.to_owned();
            self.dir(&parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let links = if mode & TYPE_DIR == TYPE_DIR { 2 } else { 1 };
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            u32::try_from(data.len()).unwrap_or(u32::MAX),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.inode += 1;
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: names, modes and data.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            assert_eq!(&bytes[..6], MAGIC.as_bytes());
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[6 + i * 8..14 + i * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_len) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_len - 1]).unwrap();
            let start = (110 + name_len).next_multiple_of(4);
            if name == TRAILER {
                return out;
            }
            let data = bytes[start..start + size].to_vec();
            out.push((name.to_owned(), u32::try_from(mode).unwrap(), data));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_come_back_with_their_parents_first() {
        let mut archive = Archive::new();
        archive.file("/a/b/script", 0o755, b"hello").file("a/b/x", 0o644, b"").link("bin", "usr/bin");
        let entries = read(&archive.finish());
        let names: Vec<&str> = entries.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/script", "a/b/x", "bin"]);
        assert_eq!(entries[2].1, 0o100_755);
        assert_eq!(entries[2].2, b"hello");
        assert_eq!(entries[4].2, b"usr/bin");
    }

    #[test]
    fn archives_can_be_joined() {
        let mut archive = Archive::new();
        archive.file("x", 0o644, b"12345");
        assert_eq!(archive.finish().len() % 512, 0);
    }
}
