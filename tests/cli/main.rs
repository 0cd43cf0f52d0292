//! Golden tests of the command line: what the real binary prints, and its exit code, compared with golden/NAME.txt; and
//! of the pages of docs/ that are made from the code.
//!
//! A new test is a row of [`CASES`]; `UPDATE_GOLDEN=1 cargo test --test cli` writes the files.

mod assets;
mod docs;
mod generated;
mod golden;
mod packaging;
mod service;

/// Name of the golden file, and the words after `passthru`.
const CASES: &[(&str, &[&str])] = &[
    // Help.
    ("help", &["--help"]),
    ("help-short", &["-h"]),
    ("version", &["--version"]),
    ("run-help", &["run", "--help"]),
    ("run-help-short", &["run", "-h"]),
    ("run-help-single-dash", &["run", "-help"]),
    ("bind-help", &["bind", "--help"]),
    ("release-help", &["release", "--help"]),
    ("recover-help", &["recover", "--help"]),
    ("rom-help", &["rom", "--help"]),
    ("rom-inspect-help", &["rom", "inspect", "--help"]),
    ("devices-help", &["devices", "--help"]),
    ("check-help", &["check", "--help"]),
    ("inspect-help", &["inspect", "--help"]),
    ("explain-help", &["explain", "--help"]),
    ("convert-help", &["convert", "--help"]),
    ("img-help", &["img", "--help"]),
    ("img-create-help", &["img", "create", "--help"]),
    ("img-info-help", &["img", "info", "--help"]),
    ("img-check-help", &["img", "check", "--help"]),
    ("img-convert-help", &["img", "convert", "--help"]),
    ("img-resize-help", &["img", "resize", "--help"]),
    ("img-snapshot-help", &["img", "snapshot", "--help"]),
    ("img-commit-help", &["img", "commit", "--help"]),
    ("list-help", &["list", "--help"]),
    ("ctl-help", &["ctl", "--help"]),
    ("ctl-device-del-help", &["ctl", "router", "device_del", "--help"]),
    ("ctl-nobody", &["ctl", "router-that-is-not-there", "status"]),
    ("run-memory-help", &["run", "-m", "help"]),
    ("run-smp-help", &["run", "-smp", "?"]),
    ("run-cpu-help", &["run", "--cpu", "help"]),
    ("run-name-help", &["run", "-name", "help"]),
    ("device-help", &["run", "--device", "help"]),
    ("device-help-single-dash", &["run", "-device", "help"]),
    ("device-help-vfio-pci", &["run", "--device", "vfio-pci,help"]),
    ("device-help-pcie-root-port", &["run", "--device", "pcie-root-port,help"]),
    ("object-help", &["run", "--object", "help"]),
    ("object-help-iommufd", &["run", "-object", "iommufd,help"]),
    ("machine-help", &["run", "-M", "help"]),
    ("machine-help-q35", &["run", "-M", "q35,help"]),
    ("machine-help-single-dash", &["run", "-machine", "?"]),
    // The codes.
    ("explain", &["explain"]),
    ("explain-json", &["explain", "--json"]),
    ("explain-code", &["explain", "PT012"]),
    ("explain-code-json", &["explain", "pt2", "--json"]),
    ("explain-unknown", &["explain", "PT999"]),
    // Words that clap refuses.
    ("no-command", &[]),
    ("unknown-command", &["rum"]),
    ("unknown-option", &["run", "--kernal", "x"]),
    ("unknown-option-single-dash", &["run", "-kernal", "x"]),
    ("joined-short-option", &["run", "-m768M"]),
    ("missing-value", &["run", "-kernel", "-append", "x"]),
    ("stray-word", &["run", "vmlinuz"]),
    ("serial-twice", &["run", "--serial", "stdio", "--serial", "null"]),
    ("flag-with-value", &["run", "--no-reboot=yes"]),
    ("bind-bad-profile", &["bind", "01:00.0", "--profile", "two-gpus"]),
    ("bind-nothing", &["bind"]),
    ("bind-bad-address", &["bind", "01:00.8"]),
    ("write-attribute-orphan", &["write-attribute", "0", "/nonexistent/driver_override", "x"]),
    ("bind-unknown-name", &["bind", "lan"]),
    ("device-unknown-name", &["run", "--kernel", "x", "--device", "vfio-pci,host=lan"]),
    ("bind-bad-mac", &["bind", "01:10.0", "--vf-mac=01:00:5e:00:00:01"]),
    ("bind-bad-vlan", &["bind", "01:10.0", "--vlan", "4095"]),
    ("bind-bad-bar-size", &["bind", "01:00.0", "--bar-size", "6:1G"]),
    ("bind-settings-for-two", &["bind", "01:10.0", "01:10.2", "--trust=on"]),
    ("bind-absent-whole", &["bind", "ffff:ff:1f"]),
    ("bind-absent", &["bind", "ffff:ff:1f.7"]),
    ("release-absent", &["release", "ffff:ff:1f.7"]),
    ("release-nothing", &["release"]),
    ("rom-nothing", &["rom"]),
    ("rom-inspect-absent", &["rom", "inspect", "/nonexistent"]),
    ("rom-inspect-none", &["rom", "inspect", "/dev/null"]),
    ("inspect-absent", &["inspect", "ffff:ff:1f.7"]),
    ("check-of-nothing", &["check", "--sysroot", "/nonexistent"]),
    ("check-of-nothing-json", &["check", "--json", "--sysroot", "/nonexistent", "01:00.0"]),
    ("plan-help", &["plan", "--help"]),
    ("plan-of-nothing", &["plan", "--sysroot", "/nonexistent", "--smp", "2"]),
    ("plan-bad-list", &["plan", "--sysroot", "/nonexistent", "--cpu-placement", "3-2"]),
    ("check-of-a-vm-without-kernel", &["check", "tests/cli/vm/no-kernel.toml", "--sysroot", "/nonexistent"]),
    ("check-bad-option", &["check", "--device", "vfio-pci,hots=01:00.0"]),
    ("devices-svg-to-nowhere", &["devices", "--sysroot", "/nonexistent", "--svg", "/nonexistent/x.svg"]),
    ("devices-usb-of-nothing", &["devices", "--usb", "--sysroot", "/nonexistent"]),
    ("devices-of-nothing", &["devices", "--sysroot", "/nonexistent"]),
    ("devices-of-nothing-json", &["devices", "--json", "--sysroot", "/nonexistent"]),
    ("inspect-nothing", &["inspect"]),
    ("recover-stray-word", &["recover", "01:00.0"]),
    ("convert-nothing", &["convert"]),
    ("convert-absent", &["convert", "/nonexistent"]),
    (
        "convert-words",
        &[
            "convert",
            "--",
            "qemu-system-x86_64",
            "-m",
            "4G",
            "-kernel",
            "/k",
            "-device",
            "vfio-pci,host=01:00.0",
            "-spice",
            "a",
        ],
    ),
    ("convert-json", &["convert", "--json", "--", "-m", "4G", "-cdrom", "a.iso"]),
    // Options of QEMU that contradict what passthru is.
    ("accel-tcg", &["run", "-accel", "tcg"]),
    ("display-gtk", &["run", "-display", "gtk"]),
    ("vga-std", &["run", "-vga", "std"]),
    ("nic-user", &["run", "-nic", "user"]),
    // Values of `run`.
    ("no-kernel", &["run"]),
    ("memory-bad-size", &["run", "--kernel", "x", "-m", "lots"]),
    ("memory-unknown-key", &["run", "--kernel", "x", "-m", "1G,hugepage=2M"]),
    ("memory-bad-hugepages", &["run", "--kernel", "x", "-m", "1G,hugepages=4M"]),
    ("memory-part-of-a-page", &["run", "--kernel", "x", "-m", "769,hugepages=2M"]),
    ("smp-bad-count", &["run", "--kernel", "x", "--smp", "0"]),
    ("smp-bad-product", &["run", "--kernel", "x", "--smp", "8,sockets=1,cores=2,threads=2"]),
    ("cpu-unknown-model", &["run", "--kernel", "x", "--cpu", "hots"]),
    ("cpu-bad-feature", &["run", "--kernel", "x", "--cpu", "host,+"]),
    ("serial-bad", &["run", "--kernel", "x", "--serial", "vc"]),
    ("name-unknown-key", &["run", "--kernel", "x", "--name", "a,process=b"]),
    ("device-bad-grammar", &["run", "--kernel", "x", "--device", "vfio-pci,=1"]),
    ("device-bad-json", &["run", "--kernel", "x", "--device", "{\"driver\":"]),
    ("device-help-unknown", &["run", "--device", "vfoi-pci,help"]),
    ("machine-help-unknown", &["run", "-M", "pc,help"]),
    ("machine-unknown", &["run", "--kernel", "x", "-M", "q53"]),
    ("machine-unknown-property", &["run", "--kernel", "x", "-M", "q35,cf9=on"]),
    ("machine-bad-property", &["run", "--kernel", "x", "-M", "q35,cf8=maybe"]),
    // Devices: mistakes that are found without the host.
    ("device-unknown", &["run", "--kernel", "x", "--device", "vfoi-pci,host=01:00.0"]),
    ("device-no-type", &["run", "--kernel", "x", "--device", "id=a"]),
    ("device-unknown-property", &["run", "--kernel", "x", "--device", "vfio-pci,hots=01:00.0"]),
    (
        "device-unknown-property-json",
        &["run", "--kernel", "x", "--device", r#"{"driver":"vfio-pci","hots":"01:00.0"}"#],
    ),
    ("device-bad-host", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.8"]),
    ("device-whole-absent", &["run", "--kernel", "x", "--device", "vfio-pci,host=ffff:ff:1f"]),
    ("addr-without-function-0", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.1,addr=5.1"]),
    ("device-no-host", &["run", "--kernel", "x", "--device", "vfio-pci"]),
    ("device-rom-twice", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,rombar=0,romfile=/a"]),
    ("device-rom-absent", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,rom=file:/nonexistent"]),
    ("device-rom-none", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,rom=on"]),
    ("device-two-hosts", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,sysfsdev=/a/0000:01:00.0"]),
    ("device-bad-sysfsdev", &["run", "--kernel", "x", "--device", "vfio-pci,sysfsdev=/sys/class/net/eth0"]),
    ("device-bad-choice", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,p2p=maybe"]),
    ("device-bad-id", &["run", "--kernel", "x", "--device", "pcie-root-port,id=1"]),
    (
        "device-duplicate-id",
        &["run", "--kernel", "x", "--device", "pcie-root-port,id=a", "--device", "pcie-root-port,id=a"],
    ),
    ("device-id-of-a-bus", &["run", "--kernel", "x", "--device", "pcie-root-port,id=pcie.0"]),
    (
        "bus-unknown",
        &["run", "--kernel", "x", "--device", "pcie-root-port,id=rp1", "--device", "vfio-pci,host=01:00.0,bus=rp2"],
    ),
    (
        "bus-too-late",
        &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,bus=rp1", "--device", "pcie-root-port,id=rp1"],
    ),
    ("bus-of-another-kind", &["run", "--kernel", "x", "--device", "vfio-pci,host=01:00.0,bus=isa.0"]),
    ("addr-bad", &["run", "--kernel", "x", "--device", "pcie-root-port,addr=20"]),
    (
        "addr-taken",
        &["run", "--kernel", "x", "--device", "pcie-root-port,id=rp1,addr=2", "--device", "pcie-root-port,addr=02.0"],
    ),
    ("addr-of-the-host-bridge", &["run", "--kernel", "x", "--device", "pcie-root-port,addr=0"]),
    (
        "addr-behind-a-port",
        &[
            "run",
            "--kernel",
            "x",
            "--device",
            "pcie-root-port,id=rp1",
            "--device",
            "vfio-pci,host=01:00.0,bus=rp1,addr=1",
        ],
    ),
    // The first thing of the host that is looked at.
    ("kernel-absent", &["run", "--kernel", "/nonexistent/vmlinuz", "--device", "vfio-pci,host=01:00.0"]),
];

#[test]
fn what_is_printed_is_what_was_agreed() {
    golden::check(CASES);
}

/// `passthru explain | head -1`: a reader that has gone away is neither a panic nor an error.
#[test]
fn a_closed_pipe_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = golden::passthru().arg("explain").stdout(writer).output().expect("passthru starts");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// A full disk is an error with a code.
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = golden::passthru().arg("explain").stdout(full).output().expect("passthru starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("passthru: PT033: "));
}
