//! `passthru img` beside qemu-img: what one makes, the other reads, and they say the same of it.
//!
//! Where qemu-img is not installed, only passthru's own half is tested, and the test says so.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// The exit code, and what was printed.
fn run(program: &str, folder: &Path, words: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = Command::new(program).args(words).current_dir(folder).output().unwrap();
    let text = [stdout, stderr].concat();
    (status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

struct Lab {
    folder: TempDir,
    has_qemu: bool,
}

impl Lab {
    fn new() -> Lab {
        let has_qemu = Command::new("qemu-img").arg("--version").output().is_ok();
        if !has_qemu {
            eprintln!("qemu-img is not installed: its half of the test is left out");
        }
        Lab { folder: tempfile::tempdir().unwrap(), has_qemu }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `passthru img WORDS` ends with `code`; what it printed.
    #[track_caller]
    fn img_ends(&self, code: i32, words: &[&str]) -> String {
        let all = [&["img"], words].concat();
        let (ended, text) = run(env!("CARGO_BIN_EXE_passthru"), self.path(), &all);
        assert_eq!(ended, code, "passthru img {words:?}: {text}");
        text
    }

    #[track_caller]
    fn img(&self, words: &[&str]) -> String {
        self.img_ends(0, words)
    }

    /// `qemu-img WORDS` goes well, if there is one.
    #[track_caller]
    fn qemu(&self, words: &[&str]) -> String {
        if !self.has_qemu {
            return String::new();
        }
        let (ended, text) = run("qemu-img", self.path(), words);
        assert_eq!(ended, 0, "qemu-img {words:?}: {text}");
        text
    }

    /// A raw disk of `len` bytes with data, zeros and holes.
    fn disk(&self, name: &str, len: usize) {
        let byte = |at: usize| if (at / 70_000).is_multiple_of(3) { (at * 31 % 251) as u8 } else { 0 };
        fs::write(self.path().join(name), (0..len).map(byte).collect::<Vec<_>>()).unwrap();
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.img(words)).unwrap()
    }
}

#[test]
fn images_are_the_same_both_ways() {
    let lab = Lab::new();
    lab.disk("disk.raw", 5 << 20);
    for options in
        ["cluster_size=64K", "cluster_size=512", "cluster_size=2M", "preallocation=metadata", "preallocation=full"]
    {
        lab.img(&["convert", "-O", "qcow2", "-o", options, "disk.raw", "ours.qcow2"]);
        lab.img(&["check", "ours.qcow2"]);
        lab.qemu(&["check", "ours.qcow2"]);
        lab.qemu(&["compare", "disk.raw", "ours.qcow2"]);
        lab.img(&["convert", "ours.qcow2", "back.raw"]);
        assert!(fs::read(lab.path().join("back.raw")).unwrap() == fs::read(lab.path().join("disk.raw")).unwrap());
    }
    if !lab.has_qemu {
        return;
    }
    for words in [
        &["-o", "compat=0.10"][..],
        &["-o", "compat=1.1,lazy_refcounts=on"],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-c"],
    ] {
        lab.qemu(&[&["convert", "-O", "qcow2"], words, &["disk.raw", "theirs.qcow2"]].concat());
        lab.img(&["check", "theirs.qcow2"]);
        lab.img(&["convert", "-f", "qcow2", "-O", "raw", "theirs.qcow2", "back.raw"]);
        lab.qemu(&["compare", "-f", "raw", "-F", "raw", "disk.raw", "back.raw"]);
    }
}

#[test]
fn both_say_the_same_of_an_image() {
    let lab = Lab::new();
    lab.img(&["create", "-f", "qcow2", "base.qcow2", "10M"]);
    lab.img(&["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    let ours = lab.json(&["info", "--output=json", "top.qcow2"]);
    assert_eq!(ours["virtual-size"], 10 << 20);
    assert_eq!(ours["backing-filename"], "base.qcow2");
    let chain = lab.json(&["info", "--json", "--backing-chain", "top.qcow2"]);
    assert_eq!(chain[1]["filename"], "base.qcow2");
    if lab.has_qemu {
        let theirs: Value = serde_json::from_str(&lab.qemu(&["info", "--output=json", "top.qcow2"])).unwrap();
        let ours = ours.as_object().unwrap();
        for (key, value) in ours {
            assert_eq!(theirs.get(key), Some(value), "{key}");
        }
        lab.qemu(&["snapshot", "-c", "before", "base.qcow2"]);
        let inside = lab.json(&["snapshot", "-l", "--json", "base.qcow2"]);
        assert_eq!((&inside[0]["name"], &inside[0]["id"]), (&"before".into(), &"1".into()));
        let check: Value = lab.json(&["check", "--json", "base.qcow2"]);
        let theirs: Value = serde_json::from_str(&lab.qemu(&["check", "--output=json", "base.qcow2"])).unwrap();
        for key in ["image-end-offset", "total-clusters", "check-errors", "corruptions", "leaks"] {
            assert_eq!(theirs.get(key), check.get(key), "{key}");
        }
    }
}

#[test]
fn overlays_and_commits() {
    let lab = Lab::new();
    lab.disk("base.raw", 3 << 20);
    lab.disk("other.raw", 4 << 20);
    lab.img(&["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "4M"]);
    lab.img(&["convert", "-n", "-O", "qcow2", "other.raw", "top.qcow2"]);
    lab.img(&["check", "top.qcow2"]);
    lab.qemu(&["check", "top.qcow2"]);
    lab.qemu(&["compare", "-f", "raw", "-F", "qcow2", "other.raw", "top.qcow2"]);
    lab.img(&["commit", "top.qcow2"]);
    assert!(fs::read(lab.path().join("base.raw")).unwrap() == fs::read(lab.path().join("other.raw")).unwrap());
    lab.qemu(&["check", "top.qcow2"]);
    lab.qemu(&["compare", "-f", "raw", "-F", "qcow2", "other.raw", "top.qcow2"]);
    let empty = lab.json(&["check", "--json", "top.qcow2"]);
    assert_eq!(empty["allocated-clusters"], 0);
    lab.img(&["resize", "top.qcow2", "+1M"]);
    lab.img_ends(2, &["resize", "top.qcow2", "1M"]);
    lab.img(&["resize", "--shrink", "top.qcow2", "1M"]);
    lab.qemu(&["check", "top.qcow2"]);
}

#[test]
fn what_cannot_be_is_refused_with_its_code() {
    let lab = Lab::new();
    lab.disk("disk.raw", 1 << 20);
    lab.img(&["create", "-f", "qcow2", "loop.qcow2", "-u", "-b", "loop.qcow2", "-F", "qcow2", "1M"]);
    for (words, code) in [
        (&["info", "--backing-chain", "loop.qcow2"][..], "PT096"),
        (&["info", "-f", "qcow2", "disk.raw"], "PT095"),
        (&["check", "disk.raw"], "PT095"),
        (&["create", "-f", "qcow2", "x.qcow2"], "PT014"),
        (&["create", "-f", "qcow2", "-b", "disk.raw", "x.qcow2"], "PT014"),
        (&["create", "-f", "qcow2", "-b", "nothing", "-F", "raw", "x.qcow2"], "PT023"),
        (&["create", "-f", "qcow2", "-o", "cluster_size=3K", "x.qcow2", "1M"], "PT095"),
        (&["create", "-f", "qcow2", "-o", "cluster=3K", "x.qcow2", "1M"], "PT016"),
        (&["commit", "disk.raw"], "PT096"),
        (&["snapshot", "-c", "s", "disk.raw"], "PT014"),
        (&["convert", "disk.raw", "disk.raw"], "PT097"),
        (&["convert", "disk.raw", "no/folder"], "PT023"),
    ] {
        let all = [&["img"], words].concat();
        let (ended, text) = run(env!("CARGO_BIN_EXE_passthru"), lab.path(), &all);
        assert!(ended != 0 && text.contains(code), "{words:?}: {text}");
    }
    if lab.has_qemu {
        lab.qemu(&[
            "create",
            "-q",
            "--object",
            "secret,id=s,data=word",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "luks.qcow2",
            "1M",
        ]);
        let text = lab.img_ends(2, &["info", "luks.qcow2"]);
        assert!(text.contains("PT095") && text.contains("encryption"), "{text}");
    }
}

/// The exit codes of a damaged image are qemu-img's.
#[test]
fn damage_is_told() {
    let lab = Lab::new();
    lab.disk("disk.raw", 1 << 20);
    lab.img(&["convert", "-O", "qcow2", "disk.raw", "image.qcow2"]);
    let file = lab.path().join("image.qcow2");
    let whole = fs::read(&file).unwrap();
    let at = |offset: usize| u64::from_be_bytes(whole[offset..offset + 8].try_into().unwrap()) as usize;
    let block = at(at(48));
    for (count, code) in [(2u16, 3), (0, 2)] {
        let mut damaged = whole.clone();
        damaged[block..block + 2].copy_from_slice(&count.to_be_bytes());
        fs::write(&file, damaged).unwrap();
        lab.img_ends(code, &["check", "image.qcow2"]);
        if lab.has_qemu {
            assert_eq!(run("qemu-img", lab.path(), &["check", "image.qcow2"]).0, code);
        }
    }
}
