//! The command line against a recorder: what each command is asked for.

use std::cell::RefCell;

use super::*;
use crate::backends::chardev::shorthand::Target;
use crate::error::Code;
use crate::host::Host;
use crate::host::findings::Finding;
use crate::host::testtree::{TestTree, bdf};
use crate::machine::options::action::{OnReboot, OnShutdown};
use crate::machine::options::{HugePages, RunOptions};
use crate::object::testing::{DEVICES, MACHINES, OBJECTS};
use crate::object::{Catalogue, Kind, MemSize};
use crate::placement::{self, Plan, Request};

/// Remembers what guests it was asked to run, on a made-up host with two network cards.
struct Recorder {
    tree: TestTree,
    host: Host,
    runs: RefCell<Vec<RunOptions>>,
}

impl Recorder {
    fn new() -> Recorder {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        tree.pci("0000:02:00.0").driver("e1000e").group(2).add();
        let host = tree.host();
        Recorder { tree, host, runs: RefCell::default() }
    }

    /// The drivers of the two cards.
    fn drivers(&self) -> [Option<String>; 2] {
        ["01:00.0", "02:00.0"].map(|address| self.tree.host().driver(bdf(address)))
    }
}

impl Platform for Recorder {
    fn devices(&self) -> &dyn Catalogue {
        &DEVICES
    }

    fn machines(&self) -> &dyn Catalogue {
        &MACHINES
    }

    fn back_ends(&self, _: Kind) -> &dyn Catalogue {
        &OBJECTS
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn examine(&self, _: &RunOptions, _: bool, _: &Host) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    fn place(&self, options: &RunOptions, host: &Host) -> Result<Plan> {
        placement::plan(&Request { choice: options.placement.clone(), ..Request::default() }, &host.topology())
    }

    fn run(&self, options: RunOptions) -> Result<()> {
        self.runs.borrow_mut().push(options);
        Ok(())
    }
}

fn command(words: &[&str], recorder: &Recorder) -> Result<()> {
    dispatch(["passthru"].iter().chain(words).map(OsString::from).collect(), recorder).map(|_| ())
}

/// What `passthru run WORDS` asks for.
fn run(words: &[&str]) -> Result<RunOptions> {
    let recorder = Recorder::new();
    command(&[&["run"], words].concat(), &recorder)?;
    let mut runs = recorder.runs.into_inner();
    assert_eq!(runs.len(), 1, "{words:?} ran nothing");
    Ok(runs.remove(0))
}

#[test]
fn the_declaration_of_the_command_line_is_sound() {
    Cli::command().debug_assert();
}

/// Whether the serial port has a back end of this type and path.
fn goes_to(serial: &Target, of_type: &str, path: Option<&str>) -> bool {
    let Target::New(new) = serial else { return false };
    new.args.peek("backend") == Some(of_type) && new.args.peek("path") == path
}

#[test]
fn a_guest_needs_only_its_kernel() {
    let options = run(&["--kernel", "vmlinuz"]).unwrap();
    assert_eq!(options.kernel.as_os_str(), "vmlinuz");
    assert_eq!((options.initrd, options.append.as_str(), options.name), (None, "", None));
    assert_eq!(options.memory.size, MemSize(512 << 20));
    assert_eq!(options.smp.cpus(), 1);
    assert!(options.cpu.switches.is_empty());
    assert_eq!(options.machine.peek("type"), Some("q35"));
    assert!(goes_to(&options.serial, "stdio", None));
    assert!(options.devices.is_empty() && options.actions.reboot == OnReboot::Reset);
    assert_eq!(run(&[]).unwrap_err().code(), Code::Usage);
}

#[test]
fn a_command_line_of_qemu_is_understood() {
    let options = run(&[
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-display",
        "none",
        "-vga",
        "none",
        "-net",
        "none",
        "-nic",
        "none",
        "-parallel",
        "none",
        "-monitor",
        "none",
        "-enable-kvm",
        "-accel",
        "kvm",
        "-accel",
        "kvm",
        "-machine",
        "type=q35,x=1",
        "-cpu",
        "host,-avx512f,+x2apic",
        "-smp",
        "4,cores=2,threads=2",
        "-m",
        "size=2G,hugepages=2M",
        "-name",
        "guest=test",
        "-kernel",
        "bzImage",
        "-initrd",
        "initrd",
        "-append",
        "-x console=ttyS0",
        "-device",
        "pcie-root-port,id=rp0",
        "-device",
        r#"{"driver":"vfio-pci","host":"01:00.0","bus":"rp0"}"#,
        "-serial",
        "file:log",
        "-no-reboot",
        "-no-shutdown",
        "-S",
        "-uuid",
        "6f0c5f0e-3b0f-4c1e-9a52-1c6f3a2f7d10",
        "-k",
        "de",
        "-rtc",
        "base=utc,driftfix=slew",
        "-boot",
        "menu=off,strict=on",
        "-global",
        "ICH9-LPC.disable_s3=1",
    ])
    .unwrap();
    assert!(options.paused && options.actions.shutdown == OnShutdown::Pause);
    assert_eq!(options.uuid.unwrap().to_string(), "6f0c5f0e-3b0f-4c1e-9a52-1c6f3a2f7d10");
    assert_eq!(options.kernel.as_os_str(), "bzImage");
    assert_eq!(options.initrd.unwrap().as_os_str(), "initrd");
    assert_eq!(options.append, "-x console=ttyS0");
    assert_eq!((options.memory.size, options.memory.hugepages), (MemSize(2 << 30), HugePages::TwoMiB));
    assert_eq!((options.smp.cpus(), options.smp.cores(), options.smp.threads()), (4, 2, 2));
    let switches: Vec<_> = options.cpu.switches.iter().map(|switch| (switch.on, &*switch.name)).collect();
    assert_eq!(switches, [(false, "avx512f"), (true, "x2apic")]);
    assert_eq!(options.machine.peek("x"), Some("1"));
    assert_eq!(options.machine.peek("type"), Some("q35"));
    let drivers: Vec<_> = options.devices.iter().map(|device| device.peek("driver")).collect();
    assert_eq!(drivers, [Some("pcie-root-port"), Some("vfio-pci")]);
    assert_eq!(options.devices[1].peek("host"), Some("01:00.0"));
    assert!(goes_to(&options.serial, "file", Some("log")));
    assert_eq!(options.name.as_deref(), Some("test"));
    assert_eq!(options.actions.reboot, OnReboot::Shutdown);
}

#[test]
fn help_runs_nothing_and_needs_nothing_else() {
    for words in [
        ["--device", "help"],
        ["-device", "?"],
        ["--device", "number,help"],
        ["-M", "help"],
        ["-machine", "nothing,?"],
        ["-m", "help"],
        ["-smp", "help"],
        ["-cpu", "help"],
    ] {
        let recorder = Recorder::new();
        command(&[&["run"][..], &words].concat(), &recorder).unwrap();
        assert!(recorder.runs.borrow().is_empty(), "{words:?}");
    }
    let error = command(&["run", "--device", "numbers,help"], &Recorder::new()).unwrap_err();
    assert_eq!(error.code(), Code::UnknownType);
}

#[test]
fn every_device_is_bound_up_to_the_first_failure() {
    let recorder = Recorder::new();
    let drivers = |first: &str, second: &str| [first, second].map(|name| Some(name.to_owned()));
    for json in [&["--json"][..], &[]] {
        let error = command(&[&["bind", "1:0.0", "3:0.0", "2:0.0"], json].concat(), &recorder).unwrap_err();
        assert_eq!(error.code(), Code::DeviceAbsent);
        assert_eq!(recorder.drivers(), drivers("vfio-pci", "e1000e"));
        command(&[&["bind", "--force", "2:0.0"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), drivers("vfio-pci", "vfio-pci"));
        command(&[&["release", "1:0.0"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), drivers("e1000e", "vfio-pci"));
        command(&[&["recover"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), drivers("e1000e", "e1000e"));
    }
}

#[test]
fn a_vm_is_bound_and_released_by_its_name() {
    let recorder = Recorder::new();
    let both = |name: &str| [name, name].map(|name| Some(name.to_owned()));
    recorder.tree.file("etc/passthru/devices.d/a.toml", "[[device]]\nname = \"lan\"\naddress = \"02:00.0\"\n");
    let file = "kernel = \"/k\"\ndevice = [\"vfio-pci,host=1:0.0\", \"pcie-root-port,id=a\"]\n";
    recorder.tree.file("etc/passthru/router.toml", file);
    for json in [&["--json"][..], &[]] {
        command(&[&["bind", "--vm", "router"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), [Some("vfio-pci".to_owned()), Some("e1000e".to_owned())]);
        // What was bound is given back, whatever the file says now.
        recorder.tree.file("etc/passthru/router.toml", "device = \"vfio-pci,host=lan\"\n");
        command(&[&["bind", "--vm", "router", "--grant", "root"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), both("vfio-pci"));
        command(&[&["release", "--vm", "router"], json].concat(), &recorder).unwrap();
        assert_eq!(recorder.drivers(), both("e1000e"));
        command(&[&["release", "--vm", "router"], json].concat(), &recorder).unwrap();
        recorder.tree.file("etc/passthru/router.toml", file);
    }
    for (words, code) in [
        (&["bind", "--vm", "none"][..], Code::VmFile),
        (&["release", "--vm", "none"], Code::VmFile),
        (&["bind", "--vm", "router", "--trust=on"], Code::Usage),
        (&["bind", "--vm", "router", "--grant", "nobody-of-this-name"], Code::Usage),
        (&["bind", "--vm", "router", "1:0.0"], Code::Usage),
        (&["bind", "--grant", "root", "1:0.0"], Code::Usage),
        (&["bind", "--vm", "a b"], Code::VmFile),
    ] {
        assert_eq!(command(words, &recorder).unwrap_err().code(), code, "{words:?}");
    }
    recorder.tree.file("etc/passthru/bad.toml", "device = \"vfio-pci,host=01:00.8\"\n");
    assert_eq!(command(&["bind", "--vm", "bad"], &recorder).unwrap_err().code(), Code::Usage);
    assert_eq!(recorder.drivers(), both("e1000e"));
}

#[test]
fn the_class_of_an_error_is_the_exit_code() {
    let exit = |words: &[&str]| {
        let argv: Vec<OsString> = ["passthru"].iter().chain(words).map(OsString::from).collect();
        main(argv, &Recorder::new())
    };
    assert_eq!(exit(&["bind", "3:0.0"]), 4);
    assert_eq!(exit(&["bind"]), 2);
    assert_eq!(exit(&["run"]), 2);
    assert_eq!(exit(&["run", "--kernel", "x"]), 0);
}

/// What `passthru run WORDS` asks for with `/etc/passthru/router.toml` in place.
fn run_with_file(file: &str, words: &[&str]) -> Result<RunOptions> {
    let recorder = Recorder::new();
    let folder = recorder.host.etc("");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("router.toml"), file).unwrap();
    command(&[&["run"], words].concat(), &recorder)?;
    Ok(recorder.runs.into_inner().remove(0))
}

#[test]
fn a_vm_file_is_a_command_line() {
    let file = "kernel = \"k\"\nmemory = \"1G\"\nno-reboot = true\nserial = \"null\"\n\
        [[device]]\ndriver = \"vfio-pci\"\nhost = \"01:00.0\"";
    let options = run_with_file(file, &["router"]).unwrap();
    assert_eq!(options.kernel.as_os_str(), "k");
    assert_eq!(options.memory.size, MemSize(1 << 30));
    assert_eq!(options.name.as_deref(), Some("router"));
    assert!(goes_to(&options.serial, "null", None));
    assert_eq!(options.actions.reboot, OnReboot::Shutdown);
    assert_eq!(options.devices[0].peek("host"), Some("01:00.0"));
}

#[test]
fn the_command_line_comes_on_top_of_a_vm_file() {
    let file =
        "kernel = \"k\"\nmemory = \"1G\"\nno-reboot = true\nname = \"mine\"\ndevice = [\"vfio-pci,host=01:00.0\"]";
    let words = ["-m", "2G", "router", "-no-reboot", "-device", "vfio-pci,host=02:00.0"];
    let options = run_with_file(file, &words).unwrap();
    assert_eq!(options.memory.size, MemSize(2 << 30));
    assert_eq!(options.name.as_deref(), Some("mine"));
    let hosts: Vec<_> = options.devices.iter().map(|device| device.peek("host").unwrap()).collect();
    assert_eq!(hosts, ["01:00.0", "02:00.0"]);
    assert_eq!(run_with_file(file, &["router", "--name", "other"]).unwrap().name.as_deref(), Some("other"));
    let ports = "kernel = \"k\"\nserial = [\"null\", \"pty\"]";
    let options = run_with_file(ports, &["router"]).unwrap();
    assert!(goes_to(&options.serial, "null", None) && options.devices.len() == 1);
    let options = run_with_file(ports, &["router", "--serial", "stdio"]).unwrap();
    assert!(goes_to(&options.serial, "stdio", None) && options.devices.is_empty(), "not a third port");
}

#[test]
fn a_vm_file_that_is_missing_is_told_with_those_that_are_there() {
    let error = run_with_file("", &["ruoter"]).unwrap_err();
    assert_eq!(error.code(), Code::VmFile);
    assert!(error.to_string().contains("router"), "{error}");
}
