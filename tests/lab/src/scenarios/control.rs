//! The control socket of a running guest, by its own client and by QEMU's, and its answers beside QEMU's.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("control-socket", control_socket),
    Scenario::new("control-socket-power", power),
    Scenario::new("ctl", ctl),
    Scenario::new("qemu-qmp", qemu_qmp),
];

/// What is asked is answered, and a guest that stood still goes on with its devices.
fn control_socket(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new().cpus(2).passes(NIC);
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::ping(2))?;
        let pci = guest.qmp(lab.l1, "query-pci", json!({}))?;
        let behind = &pci[0]["devices"][1]["pci_bridge"]["devices"][0];
        ensure!(behind["id"]["device"] == 0x10d3, "the NIC is not behind the port: {pci}");
        let before = guest.resources(lab.l1)?;
        ensure!(before["host-devices"] == 1 && before["iova-mappings"].as_u64() > Some(0), "{before}");
        let refused = guest.qmp_fails(lab.l1, "device_del", json!({ "id": "nothing" }))?;
        ensure!(refused.contains("Device 'nothing' not found"), "{refused}");
        guest.qmp(lab.l1, "stop", json!({}))?;
        guest.event(lab.l1, "STOP")?;
        let status = guest.qmp(lab.l1, "query-status", json!({}))?;
        ensure!(status["status"] == "paused", "{status}");
        guest.qmp(lab.l1, "cont", json!({}))?;
        guest.event(lab.l1, "RESUME")?;
        guest.sh(lab.l1, &l2::ping(3))?;
        ensure!(guest.value("ping")? == "3", "pings were lost after the pause");
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("rcu_sched")?;
    Ok(())
}

/// A reset by command starts the guest again; `quit` ends it, and the socket's file is gone.
fn power(lab: &mut Lab) -> Result<()> {
    let mut guest = lab.l1.live(&Guest::new().reboots())?;
    guest.qmp(lab.l1, "system_reset", json!({}))?;
    let reset = guest.event(lab.l1, "RESET")?;
    ensure!(reset["reason"] == "host-qmp-system-reset", "{reset}");
    guest.shell().listens(lab.l1)?;
    let ended = guest.quit(lab.l1)?.success()?;
    ensure!(ended.text.matches("L2 UP").count() == 2, "the guest came up another number of times");
    lab.l1.ok("[ -z \"$(ls /tmp/qmp* 2>/dev/null)\" ]")?;
    Ok(())
}

/// Every guest is found by its name without having been asked for a socket, says how it is, and takes commands.
fn ctl(lab: &mut Lab) -> Result<()> {
    const FOLDER: &str = "/run/passthru/vm/router";
    let none = lab.l1.ok("passthru list")?;
    ensure!(none.contains("no guest runs"), "{none}");
    let guest = Guest::new().reboots().option("--name router").device("pcie-root-port,id=rp2").passes(NIC);
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        let mode = lab.l1.ok(&format!("stat -c '%a %U' {FOLDER}"))?;
        ensure!(mode.trim() == "700 root", "the folder is {mode}");
        let listed: serde_json::Value = serde_json::from_str(&lab.l1.ok("passthru list --json")?)?;
        ensure!(listed[0]["name"] == "router" && listed[0]["pid"] == guest.shell().job().pid, "{listed}");
        ensure!(listed[0]["devices"][0].as_str().is_some_and(|host| host.ends_with(NIC)), "{listed}");
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;

        let told = lab.l1.ok("passthru ctl router status")?;
        for part in
            ["router: running", "mmio-write ", "256 MiB mapped in", "interrupts: MSI-X", "BAR 0: mapped directly 0x0"]
        {
            ensure!(told.contains(part), "`{part}` is not in the status:\n{told}");
        }
        let metrics = lab.l1.ok("passthru ctl router metrics")?;
        ensure!(metrics.contains("passthru_dma_mapped_bytes{vm=\"router\",address_space=\"0\",iommu=\""), "{metrics}");
        let again = lab.l1.fails("passthru run --name router --kernel /images/bzImage --serial none", 2)?;
        ensure!(again.contains("PT047"), "{again}");
        let absent = lab.l1.fails("passthru ctl rooter status", 2)?;
        ensure!(absent.contains("PT048") && absent.contains("did you mean `router`"), "{absent}");

        let events = lab.l1.start("exec passthru ctl router events")?;
        let id = listed_id(&told)?;
        lab.l1.ok(&format!("passthru ctl router device_del {id} --timeout 60"))?;
        lab.l1.ok(&format!("passthru ctl router device_add vfio-pci,id=back,host={NIC},bus=rp2"))?;
        let there = lab.l1.ok("passthru ctl router status")?;
        ensure!(there.contains("back: vfio-pci at 00.0 of rp2"), "{there}");
        lab.l1.ok("passthru ctl router reset && passthru ctl router powerdown && passthru ctl router quit")?;
        let ended = lab.l1.ended(guest.shell().job())?.success()?;
        ensure!(lab.l1.wait(&events, std::time::Duration::from_secs(20))? == Some(0), "`events` does not end");
        for event in ["DEVICE_DELETED", "SHUTDOWN"] {
            ensure!(events.text().contains(event), "{event} is not among the events:\n{}", events.text());
        }
        Ok(ended)
    })?;
    drop(ended);
    lab.l1.ok(&format!("[ ! -e {FOLDER} ]"))?;
    Ok(())
}

/// The id that the NIC was given.
fn listed_id(status: &str) -> Result<String> {
    let line = status.lines().find(|line| line.contains(": vfio-pci at "));
    let id = line.and_then(|line| line.split(':').next());
    id.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("no device in:\n{status}"))
}

/// QEMU's own client, unchanged, does what its users do: status, pause, errors, hot-plug, back ends, lists, an end.
fn qemu_qmp(lab: &mut Lab) -> Result<()> {
    const SOCKET: &str = "/tmp/qemu-qmp";
    let guest = Guest::new()
        .cpus(2)
        .fat()
        .device("pcie-root-port,id=rp1")
        .option(&format!("--qmp unix:{SOCKET},server=on,wait=off"));
    let mut guest = lab.l1.live(&guest)?;
    let script = include_str!("qemu-qmp.py");
    lab.l1.ok(&format!("cat > /tmp/qemu-qmp.py <<'END'\n{script}END\n"))?;
    let limit = std::time::Duration::from_secs(150);
    let said = lab.l1.sh_within(&format!("PYTHONPATH=/images/python python3 /tmp/qemu-qmp.py {SOCKET}"), limit)?;
    ensure!(said.code == 0, "{}", crate::l1::describe(&said));
    for line in [
        "greeting ['major', 'micro', 'minor']",
        "status running",
        "status paused",
        "refused DeviceNotFound",
        "deleted rng1",
        "cpus 2",
        "bridge 0x29c0",
        "types True",
        "properties True",
        "answers 32",
        "hmp VM status: running",
    ] {
        ensure!(said.stdout.lines().any(|said| said == line), "`{line}` is not in:\n{}", said.stdout);
    }
    ensure!(said.stdout.lines().any(|line| line.starts_with("chardevs") && line.contains("'c1'")), "{}", said.stdout);
    lab.l1.ended(guest.shell().job())?.success()?;
    same_shapes(lab.l1)
}

/// QEMU and passthru, which have the same devices and start no guest, answer the same questions with the same members.
fn same_shapes(l1: &mut L1) -> Result<()> {
    const DEVICES: &str = "-name lab -uuid 00112233-4455-6677-8899-aabbccddeeff -m size=128M,slots=2,maxmem=1G -smp 2 -S \
        -object iothread,id=t0 -object memory-backend-ram,id=m0,size=128M -device pcie-root-port,id=rp1,addr=5 \
        -chardev null,id=c0 -device pci-serial,chardev=c0,id=serial0,addr=6 \
        -blockdev null-co,node-name=d0,size=1048576 -device virtio-blk-pci,drive=d0,id=disk0,addr=7,iothread=t0 \
        -netdev tap,id=n0,ifname=SIDE0,script=no,downscript=no \
        -device virtio-net-pci,netdev=n0,id=nic0,addr=8 -device virtio-mem-pci,id=vm0,memdev=m0,addr=9 \
        -qmp unix:/tmp/SIDE.qmp,server=on,wait=off";
    l1.ok("modprobe tun")?;
    let qemu = DEVICES.replace("SIDE", "qemu");
    let ours = DEVICES.replace("SIDE", "ours");
    let jobs = [
        l1.start(&format!("exec qemu-system-x86_64 -M q35 -accel kvm -cpu kvm64 -nodefaults -display none {qemu}"))?,
        l1.start(&format!("exec passthru run --kernel /images/bzImage --serial none {ours}"))?,
    ];
    for socket in ["/tmp/qemu.qmp", "/tmp/ours.qmp"] {
        steps::eventually(l1, &format!("test -S {socket}"))
            .with_context(|| jobs.iter().map(|job| job.text()).collect::<String>())?;
    }
    let script = include_str!("qmp-shapes.py");
    l1.ok(&format!("cat > /tmp/qmp-shapes.py <<'END'\n{script}END\n"))?;
    let run = "PYTHONPATH=/images/python python3 /tmp/qmp-shapes.py /tmp/qemu.qmp /tmp/ours.qmp";
    let said = l1.sh_within(run, std::time::Duration::from_secs(60))?;
    ensure!(said.code == 0, "{}", crate::l1::describe(&said));
    ensure!(said.stdout.starts_with("compared "), "QEMU's answers have more, or others:\n{}", said.stdout);
    for job in &jobs {
        ensure!(l1.wait(job, std::time::Duration::from_secs(30))? == Some(0), "{}", job.text());
    }
    Ok(())
}
