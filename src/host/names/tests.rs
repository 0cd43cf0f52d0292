//! Names on made-up hosts: what is found, what is refused, and what is said then.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::host::bind::BindOptions;
use crate::host::testtree::{TestTree, bdf, hosts};
use crate::host::{bind, release};

const FILE: &str = "etc/passthru/devices.d/a.toml";

fn made_up(name: &str) -> TestTree {
    hosts::ALL.iter().find(|(other, _)| *other == name).unwrap().1()
}

/// Two ports of one card that differ in all that twins differ in.
fn twins() -> TestTree {
    let tree = made_up("twin-nics");
    for (address, interface, last) in [("0000:04:00.0", "eno1", 0x10u8), ("0000:04:00.1", "eno2", 0x11)] {
        tree.attribute(address, &format!("net/{interface}/address"), &format!("52:54:00:00:00:{last:02x}\n"));
        tree.attribute(address, "subsystem_vendor", "0x1028\n");
        tree.attribute(address, "subsystem_device", "0x0001\n");
        std::fs::write(tree.pci_path(address).join("config"), with_serial(0xa036_9fff_ff00_0000 | u64::from(last)))
            .unwrap();
    }
    tree.file("sys/bus/pci/slots/3/address", "0000:04:00\n");
    tree
}

/// A configuration space with a serial number.
fn with_serial(serial: u64) -> Vec<u8> {
    let mut config = vec![0u8; 4096];
    config[6] = 0x10;
    config[0x34] = 0x40;
    config[0x40] = 0x10;
    config[0x100..0x104].copy_from_slice(&0x0001_0003u32.to_le_bytes());
    config[0x104..0x108].copy_from_slice(&(serial as u32).to_le_bytes());
    config[0x108..0x10c].copy_from_slice(&((serial >> 32) as u32).to_le_bytes());
    config
}

/// What the name `lan` means if this is what is said about it.
fn lan(tree: &TestTree, what: &str) -> Result<String> {
    tree.file(FILE, &format!("[[device]]\nname = \"lan\"\n{what}\n"));
    tree.host().locate(&"lan".parse().unwrap()).map(|addr| addr.to_string())
}

#[test]
fn twins_are_told_apart_by_any_of_their_marks() {
    let tree = twins();
    for what in [
        "address = \"04:00.1\"",
        "path = \"0000:00:1c.0/00.1\"",
        "mac = \"52:54:00:00:00:11\"",
        "serial = \"a0-36-9f-ff-ff-00-00-11\"",
        "serial = \"A0:36:9F:FF:FF:00:00:11\"",
        "id = \"8086:1521\"\nfunction = 1",
        "slot = \"3\"\nfunction = 1",
        "address = \"04:00\"\nfunction = 1",
        "id = \"8086:1521\"\nsubsystem = \"1028:0001\"\nmac = \"52:54:00:00:00:11\"",
    ] {
        assert_eq!(lan(&tree, what).unwrap(), "0000:04:00.1", "{what}");
    }
    for what in
        ["address = \"04:00\"", "slot = \"3\"\nall-functions = true", "id = \"8086:1521\"\nall-functions = true"]
    {
        assert_eq!(lan(&tree, what).unwrap(), "0000:04:00", "{what}");
    }
}

#[test]
fn of_two_that_fit_none_is_taken() {
    let tree = twins();
    for what in ["id = \"8086:1521\"", "slot = \"3\"", "subsystem = \"1028:0001\""] {
        let error = lan(&tree, what).unwrap_err();
        assert_eq!(error.code(), Code::NameUnresolved, "{what}");
        assert_eq!(error.cause(), "2 devices are lan");
        assert_eq!(
            error.evidence_lines()[2],
            "0000:04:00.1 has the path 0000:00:1c.0/00.1, slot 3, serial a0-36-9f-ff-ff-00-00-11, mac 52:54:00:00:00:11"
        );
    }
}

#[test]
fn what_is_not_found_says_what_was_nearly() {
    let tree = twins();
    for (what, seen) in [
        ("id = \"8086:1521\"\npath = \"0000:00:1d.0/00.0\"", "0000:04:00.0 has the path 0000:00:1c.0/00.0"),
        ("id = \"8086:1522\"\naddress = \"04:00.0\"", "0000:04:00.0 has the id 8086:1521"),
        (
            "function = 0\nserial = \"00-00-00-00-00-00-00-01\"",
            "0000:04:00.0 has the serial number a0-36-9f-ff-ff-00-00-10",
        ),
        (
            "address = \"00:1f.3\"\nmac = \"52:54:00:00:00:11\"",
            "0000:00:1f.3 has no interface whose mac could be asked for",
        ),
        (
            "address = \"00:1f.3\"\nserial = \"00-00-00-00-00-00-00-01\"",
            "0000:00:1f.3 has a serial number that only root",
        ),
    ] {
        let error = lan(&tree, what).unwrap_err();
        assert_eq!(error.code(), Code::NameUnresolved);
        assert!(error.to_string().contains(seen), "{what}: {error}");
    }
    assert_eq!(lan(&tree, "address = \"09:00.0\"").unwrap_err().evidence_lines().len(), 1);
}

#[test]
fn what_a_driver_knew_is_remembered_while_the_device_is_bound() {
    let tree = twins();
    tree.file("proc/net/route", "");
    for what in ["mac = \"52:54:00:00:00:11\"", "serial = \"a0-36-9f-ff-ff-00-00-11\""] {
        assert_eq!(lan(&tree, what).unwrap(), "0000:04:00.1");
        bind(&tree.host(), bdf("04:00.1"), &BindOptions::default()).unwrap();
        let whole = std::fs::read(tree.pci_path("0000:04:00.1").join("config")).unwrap();
        // The driver's interface is gone, and who runs the guest may read the header only.
        std::fs::remove_dir_all(tree.pci_path("0000:04:00.1").join("net")).unwrap();
        std::fs::write(tree.pci_path("0000:04:00.1").join("config"), &whole[..64]).unwrap();
        assert_eq!(lan(&tree, what).unwrap(), "0000:04:00.1", "{what}");
        std::fs::write(tree.pci_path("0000:04:00.1").join("config"), &whole).unwrap();
        tree.attribute("0000:04:00.1", "net/eno2/address", "52:54:00:00:00:11\n");
        release(&tree.host(), bdf("04:00.1")).unwrap();
    }
}

#[test]
fn a_name_is_never_an_address() {
    for (text, name) in [("lan", true), ("gpu-0_a", true), ("abc", true), ("01:00.0", false), ("01:00", false)] {
        let parsed: DeviceRef = text.parse().unwrap();
        assert_eq!(matches!(parsed, DeviceRef::Name(_)), name, "{text}");
    }
    for text in ["", "0a", "-a", "a.b", "a/b", "a b", "\u{e4}", &"a".repeat(33)] {
        assert!(text.parse::<DeviceRef>().is_err(), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    for (text, seen) in [
        ("x = 1", "line 1: "),
        ("[[device]]\nname = \"a\"", "line 1: it says nothing that the device is known by"),
        ("[[device]]\nname = \"a\"\nfunction = 1", "it says nothing"),
        ("[[device]]\naddress = \"01:00.0\"", "line 1: "),
        ("[[device]]\nname = \"01:00.0\"\naddress = \"01:00.0\"", "line 2: "),
        ("[[device]]\nname = \"a\"\naddres = \"01:00.0\"", "line 3: "),
        ("[[device]]\nname = \"a\"\nserial = \"1\"", "line 3: expected eight bytes"),
        ("[[device]]\nname = \"a\"\nid = \"8086\"", "line 3: expected vendor and device"),
        ("[[device]]\nname = \"a\"\nmac = \"52:54:00:00:00:11\"\nreserve = true", "no mac before"),
        ("[[device]]\nname = \"a\"\naddress = \"01:00.0\"\nall-functions = true", "contradicts"),
        ("[[device]]\nname = \"a\"\naddress = \"01:00.0\"\nstart = \"../x\"", "line 4: "),
    ] {
        let error = declared::parse(Path::new("/x.toml"), text).unwrap_err();
        assert_eq!(error.code(), Code::NamesUnusable);
        assert!(error.evidence_lines()[0].starts_with("/x.toml: ") && error.to_string().contains(seen), "{error}");
    }
}

#[test]
fn a_bad_file_takes_nothing_from_the_others() {
    let tree = twins();
    assert!(lan(&tree, "address = \"04:00.0\"").is_ok());
    tree.file("etc/passthru/devices.d/b.toml", "[[device]]\nname = \"lan\"\naddress = \"04:00.1\"\n");
    tree.file("etc/passthru/devices.d/c.toml", "nonsense");
    tree.file("etc/passthru/devices.d/README", "nonsense");
    let locate = |name: &str| tree.host().locate(&name.parse().unwrap()).map(|addr| addr.to_string());
    assert_eq!(locate("lan").unwrap(), "0000:04:00.0");
    assert_eq!(locate("wan").unwrap_err().code(), Code::NamesUnusable);
    let findings = tree.host().check_names();
    let codes: Vec<Code> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::NamesUnusable, Code::NamesUnusable, Code::NameUnresolved]);
    assert!(findings[0].evidence[0].contains("b.toml: the name lan is declared twice"), "{findings:?}");
    assert_eq!(findings[2].what, "the name lan means 0000:04:00.0");
}

#[test]
fn what_is_unknown_names_what_there_is() {
    let tree = twins();
    let locate = |tree: &TestTree| tree.host().locate(&"wan".parse().unwrap()).unwrap_err();
    assert_eq!(locate(&tree).code(), Code::UnknownName);
    assert!(lan(&tree, "address = \"04:00.0\"").is_ok());
    assert!(locate(&tree).to_string().contains("the names that there are: lan"));
    assert_eq!(tree.host().names_of(bdf("04:00.0")).len(), 1);
    assert!(tree.host().names_of(bdf("04:00.1")).is_empty());
}

proptest! {
    #[test]
    fn no_file_panics(text in "(\\PC|[a-z=\"\\[\\]\n])*") {
        let _ = declared::parse(Path::new("/x.toml"), &text);
    }

    #[test]
    fn serial_numbers_are_read_back(number: u64) {
        prop_assert_eq!(Serial(number).to_string().parse::<Serial>().unwrap(), Serial(number));
    }
}
