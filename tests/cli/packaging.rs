//! The files of packaging/ and udev/: what systemd and udev say of them, where they are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Worst exposure that the service may have, in tenths (`systemd-analyze security`).
const EXPOSURE: u32 = 30;
/// The first version of udevadm that can verify rules.
const VERIFIES: u32 = 254;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The units in a folder of their own, with this build in the place of the installed program.
fn units() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(repository("packaging/systemd")).expect("the units") {
        let path = entry.expect("a unit").path();
        let text = fs::read_to_string(&path).expect("a unit");
        let text = text.replace("/usr/bin/passthru", env!("CARGO_BIN_EXE_passthru"));
        fs::write(folder.path().join(path.file_name().expect("a name")), text).expect("a copy");
    }
    folder
}

/// Runs a program of the system; `None`: it is not installed.
fn system(program: &str, arguments: &[&str], folder: &Path) -> Option<Output> {
    match Command::new(program).args(arguments).current_dir(folder).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("{program} is not installed: not asked");
            None
        }
    }
}

fn assert_well(output: &Output) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
}

#[test]
fn systemd_understands_the_units() {
    let folder = units();
    let units = ["./passthru@.service", "./passthru-interrupts@.service", "./passthru-recover.service"];
    if let Some(output) = system("systemd-analyze", &[&["verify", "--man=no"], &units[..]].concat(), folder.path()) {
        assert_well(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "not even a warning");
    }
}

/// What the manual promises of the service, and systemd would not miss.
#[test]
fn the_service_is_what_was_agreed() {
    let unit = fs::read_to_string(repository("packaging/systemd/passthru@.service")).expect("the unit");
    for line in [
        "Type=notify",
        "User=passthru",
        "ExecStartPre=+/usr/bin/passthru bind --vm %i --grant passthru",
        "ExecStopPost=+/usr/bin/passthru release --vm %i",
        "KillMode=mixed",
        "WatchdogSec=30s",
        "Restart=on-failure",
        "LimitMEMLOCK=infinity",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "NoNewPrivileges=yes",
    ] {
        assert_eq!(unit.lines().filter(|it| it == &line).count(), 1, "{line}");
    }
    // A wrong VM file and a host that is not ready: those codes, and no others, are not tried again.
    let exit_code = |words: &[&str]| crate::golden::passthru().args(words).output().expect("it runs").status.code();
    let wrong = exit_code(&["run", "--no-such-option"]).expect("a code");
    let absent = exit_code(&["check", "--sysroot", "/nonexistent"]).expect("a code");
    let prevented = format!("RestartPreventExitStatus={wrong} {absent}");
    assert!(unit.lines().any(|line| line == prevented), "{prevented}");
}

#[test]
fn the_service_is_exposed_to_little() {
    let folder = units();
    let threshold = format!("--threshold={EXPOSURE}");
    let words = ["security", "--offline=true", &threshold, "./passthru@.service"];
    if let Some(output) = system("systemd-analyze", &words, folder.path()) {
        assert_well(&output);
    }
}

/// Every command of the units and rules is one that this build has.
#[test]
fn the_commands_that_are_used_exist() {
    let units =
        fs::read_dir(repository("packaging/systemd")).expect("the units").map(|unit| unit.expect("a unit").path());
    let mut commands = 0;
    for file in units.chain([repository("udev/70-passthru.rules")]) {
        let text = fs::read_to_string(&file).expect("a file");
        for rest in
            text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split("/usr/bin/passthru ").skip(1))
        {
            let words: Vec<&str> = rest.split(['"', ' ']).collect();
            let output = crate::golden::passthru().arg(words[0]).arg("--help").output().expect("passthru starts");
            assert_well(&output);
            let help = String::from_utf8_lossy(&output.stdout);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{}: passthru {} has no {option}", file.display(), words[0]);
            }
            commands += 1;
        }
    }
    assert!(commands >= 5, "only {commands} commands");
}

#[test]
fn udev_understands_the_rules() {
    let rules = repository("udev/70-passthru.rules");
    let Some(version) = system("udevadm", &["--version"], Path::new("/")) else { return };
    let version = String::from_utf8_lossy(&version.stdout).trim().split(' ').next().and_then(|it| it.parse().ok());
    if version.is_some_and(|version: u32| version >= VERIFIES) {
        let rules = rules.to_str().expect("a path");
        assert_well(&system("udevadm", &["verify", "--resolve-names=never", rules], Path::new("/")).expect("udevadm"));
    }
}
