//! What the commands that show a host say of whole made-up hosts, compared with the files of tests/cli/hosts;
//! `UPDATE_GOLDEN=1 cargo test --lib cli::golden` writes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::style::Style;
use super::{check as check_command, devices, explain};
use crate::host::findings::{Finding, Level};
use crate::host::testtree::TestTree;
use crate::host::testtree::hosts;

/// Compares `seen` with the file of a host, or writes it.
fn compare(name: &str, kind: &str, tree: &TestTree, seen: &str) -> String {
    let seen = seen.replace(&tree.host().sys("").parent().unwrap().display().to_string(), "");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/hosts").join(format!("{name}.{kind}"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, seen).unwrap();
        return String::new();
    }
    let golden = fs::read_to_string(&file).unwrap_or_default();
    if golden == seen { String::new() } else { format!("{}: it says now\n{seen}\n", file.display()) }
}

fn check(kind: &str, render: impl Fn(&TestTree) -> String) {
    let failures: String = hosts::ALL
        .iter()
        .map(|(name, make)| {
            let tree = make();
            compare(name, kind, &tree, &render(&tree))
        })
        .collect();
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn devices_of_every_host() {
    check("devices.txt", |tree| devices::text(&tree.host().survey(), Style::of_width(100)));
}

/// The picture is looked at by people: whoever changes it renders the files (`rsvg-convert`) and looks.
#[test]
fn pictures_of_every_host() {
    check("svg", |tree| devices::picture(&tree.host().survey()));
}

/// What is found when every function that is no bridge is looked at.
fn findings(tree: &TestTree) -> Vec<Finding> {
    let host = tree.host();
    let devices = host.devices();
    let devices = devices.iter().filter(|device| !device.bridge && device.class >> 16 != 6);
    let devices: Vec<_> = devices.map(|device| device.bdf).collect();
    check_command::of_host(&host, &devices, false)
}

#[test]
fn checks_of_every_host() {
    check("check.txt", |tree| check_command::text(&findings(tree), Style::of_width(100)));
}

/// What a user reads who asks about each code that is not well.
#[test]
fn explanations_of_what_is_wrong_with_every_host() {
    check("explain.txt", |tree| {
        let wrong = findings(tree).into_iter().filter(|finding| finding.level != Level::Pass);
        let codes: BTreeSet<String> = wrong.map(|finding| finding.code.to_string()).collect();
        codes.iter().map(|code| format!("{}\n", explain::page(explain::find(code).unwrap()))).collect()
    });
}

#[test]
fn usb_devices_of_a_laptop() {
    let (name, make) = hosts::ALL[3];
    assert_eq!(name, "laptop");
    let tree = make();
    let seen = devices::usb(&tree.host().usb_devices(), Style::of_width(100));
    let failure = compare(name, "usb.txt", &tree, &seen);
    assert!(failure.is_empty(), "{failure}");
}
