//! What the packages' metadata names is there, all that is there is named, and the scripts are shell.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

/// Files of packaging/ that packages are made with, and those that only one kind of package has.
const NOT_INSTALLED: [&str; 2] = ["packaging/debian/", "packaging/rpm/"];
const DEBIAN_ONLY: &str = "packaging/initramfs-tools/";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources of a package's assets.
fn sources(kind: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let manifest: Table = manifest.parse().expect("it is TOML");
    let assets = manifest["package"]["metadata"][kind]["assets"].as_array().expect("assets").clone();
    let source = |asset: &Value| match asset {
        Value::Array(asset) => asset[0].as_str().map(str::to_owned),
        asset => asset["source"].as_str().map(str::to_owned),
    };
    assets.iter().map(|asset| source(asset).expect("a source")).collect()
}

/// Every file below a folder, from the root on.
fn files(folder: &str, out: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root().join(folder)).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(root()).expect("below the root").to_str().expect("a name").to_owned();
        if path.is_dir() { files(&name, out) } else { assert!(out.insert(name)) }
    }
}

/// Whether a source, perhaps `FOLDER/*.EXTENSION`, names the file.
fn names(source: &str, file: &str) -> bool {
    match source.split_once('*') {
        Some((folder, end)) => file.strip_prefix(folder).is_some_and(|name| name.ends_with(end) && !name.contains('/')),
        None => source == file,
    }
}

#[test]
fn packages_have_all_that_is_made_for_them_and_nothing_that_is_not_there() {
    let mut there = BTreeSet::new();
    files("packaging", &mut there);
    files("udev", &mut there);
    files("docs", &mut there);
    there.extend(["README.md", "LICENSE"].map(str::to_owned));
    for kind in ["deb", "generate-rpm"] {
        let sources = sources(kind);
        for source in sources.iter().filter(|source| !source.starts_with("target/")) {
            assert!(there.iter().any(|file| names(source, file)), "{kind}: {source} is not there");
        }
        let installed = there.iter().filter(|file| !NOT_INSTALLED.iter().any(|folder| file.starts_with(folder)));
        // Debian has the license's text already.
        let installed = installed.filter(|file| *file != "LICENSE");
        for file in installed.filter(|file| kind == "deb" || !file.starts_with(DEBIAN_ONLY)) {
            assert!(sources.iter().any(|source| names(source, file)), "{kind}: {file} is in no package");
        }
    }
}

#[test]
fn the_scripts_are_shell() {
    let mut all = BTreeSet::new();
    for folder in ["packaging/debian", "packaging/rpm", "packaging/initramfs-tools"] {
        files(folder, &mut all);
    }
    let is_script = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("it can be read");
        text.starts_with("#!/bin/sh\n") || path.extension().is_some_and(|extension| extension == "sh")
    };
    let scripts: Vec<PathBuf> = all.iter().map(|name| root().join(name)).filter(is_script).collect();
    assert!(scripts.len() >= 8, "{scripts:?}");
    for script in scripts {
        let output = Command::new("sh").arg("-n").arg(&script).output().expect("a shell");
        assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    }
}
