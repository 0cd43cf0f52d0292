//! Character back ends: serial ports and a virtio console by sockets of both kinds and a pseudo-terminal, with checked data;
//! the console by a mux.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::l1::{Guest, L1, live::Live};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("console-back-ends", back_ends), Scenario::new("console-mux", mux)];

/// Bytes that go each way: more than all buffers of a serial port and of a back end's reader.
const IN: u32 = 6000;
const OUT: u32 = 20_000;

/// The guest's serial port at a PCI address.
fn pci_port(l1: &mut L1, guest: &mut Live, device: &str) -> Result<String> {
    let tty = guest.sh(
        l1,
        &format!("ls -d /sys/bus/pci/devices/0000:00:{device}/*/*/tty/* /sys/bus/pci/devices/0000:00:{device}/tty/* 2>/dev/null | head -n 1"),
    )?;
    let tty = tty.trim().rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(tty.starts_with("ttyS"), "the guest has no serial port at {device}: `{tty}`");
    Ok(tty)
}

/// What a guest gets by a terminal and sends by it is what the program at the other end sends and gets.
fn exchange(l1: &mut L1, guest: &mut Live, tty: &str, peer: &str) -> Result<()> {
    // Opened before the first byte comes: opening empties the receiver. The last close forgets the settings of some.
    guest.sh(
        l1,
        &format!(
            "rm -f /tmp/open-{tty} /tmp/done-{tty}\n(exec 3<>/dev/{tty}; stty -F /dev/{tty} raw -echo; touch /tmp/open-{tty}; head -c {IN} <&3 > /tmp/in-{tty}; \
             head -c {OUT} /dev/urandom > /tmp/out-{tty}; cat /tmp/out-{tty} >&3; stty -F /dev/{tty} raw; touch /tmp/done-{tty}; \
             sleep 20) > /dev/null 2>&1 &\n\
             i=0; until [ -e /tmp/open-{tty} ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done"
        ),
    )?;
    // It ends when it is told to: what ends by itself may still be there when the scenario does.
    l1.ok(&format!(
        "head -c {IN} /dev/urandom > /tmp/in; timeout 90 socat -,ignoreeof {peer} < /tmp/in > /tmp/out & echo $! > /tmp/peer"
    ))?;
    let sums = guest.sh(
        l1,
        &format!(
            "i=0; until [ -e /tmp/done-{tty} ] || [ $i -ge 600 ]; do sleep 0.1; i=$((i+1)); done\n\
             sha256sum < /tmp/in-{tty}; sha256sum < /tmp/out-{tty}"
        ),
    )?;
    let wait =
        format!("i=0; until [ $(stat -c %s /tmp/out) -ge {OUT} ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done");
    let ours = l1.ok(&format!("{wait}; sha256sum < /tmp/in; sha256sum < /tmp/out"))?;
    l1.ok("p=$(cat /tmp/peer); kill $p; while [ -e /proc/$p ]; do sleep 0.1; done")?;
    ensure!(sums.trim() == ours.trim(), "by {peer} the guest has\n{sums}and the host\n{ours}");
    Ok(())
}

fn back_ends(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .fat()
        .option("--chardev socket,id=a,path=/tmp/a.sock,server=on,wait=off")
        .device("pci-serial,chardev=a,id=first,addr=5")
        .option("--chardev pty,id=b,path=/tmp/pty")
        .device("pci-serial,chardev=b,id=second,addr=6")
        .option("--chardev socket,id=c,host=127.0.0.1,port=7003,server=on,wait=off")
        .device("isa-serial,chardev=c,id=com2")
        .option("--chardev socket,id=d,host=127.0.0.1,port=7004,reconnect-ms=100")
        .device("virtio-serial-pci,id=vser0,addr=7")
        .device("virtconsole,chardev=d,id=console")
        .option("--chardev ringbuf,id=ring,size=4K");
    lab.l1.ok("ip link set lo up")?;
    let mut guest = lab.l1.live(&guest)?;
    guest.sh(
        lab.l1,
        "modprobe -a virtio_pci virtio_console; i=0; until [ -e /dev/hvc0 ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done",
    )?;
    let (first, second) = (pci_port(lab.l1, &mut guest, "05.0")?, pci_port(lab.l1, &mut guest, "06.0")?);
    exchange(lab.l1, &mut guest, &first, "UNIX-CONNECT:/tmp/a.sock")?;
    exchange(lab.l1, &mut guest, &second, "/tmp/pty,raw,echo=0")?;
    // The next client is served as the first was.
    for _ in 0..2 {
        exchange(lab.l1, &mut guest, "ttyS1", "TCP:127.0.0.1:7003")?;
    }
    // Its server comes after the guest, and again after it has gone.
    for _ in 0..2 {
        exchange(lab.l1, &mut guest, "hvc0", "TCP-LISTEN:7004,bind=127.0.0.1,reuseaddr")?;
    }

    let listed = guest.qmp(lab.l1, "query-chardev", json!({}))?;
    let pty = listed.as_array().into_iter().flatten().find(|row| row["label"] == "b");
    let place = pty.map(|row| row["filename"].to_string()).unwrap_or_default();
    ensure!(place.contains("pty:/dev/pts/"), "{listed}");
    let refused = guest.qmp_fails(lab.l1, "chardev-remove", json!({ "id": "a" }))?;
    ensure!(refused.contains("used by `first`"), "{refused}");
    guest.qmp(lab.l1, "ringbuf-write", json!({ "device": "ring", "data": "hello" }))?;
    let read = guest.qmp(lab.l1, "ringbuf-read", json!({ "device": "ring", "size": 100 }))?;
    ensure!(read == "hello", "{read}");
    guest.qmp(lab.l1, "chardev-remove", json!({ "id": "ring" }))?;
    let backend = json!({ "type": "file", "data": { "out": "/tmp/added" } });
    guest.qmp(lab.l1, "chardev-add", json!({ "id": "added", "backend": backend }))?;
    guest.power_off(lab.l1)?.success()?;
    lab.l1.ok("[ ! -e /tmp/a.sock ] && [ ! -L /tmp/pty ]")?;
    Ok(())
}

/// The guest starts when the console's client is there; Ctrl-A c goes to the monitor and back; the log has it all.
fn mux(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .option("--serial chardev:con --mon con")
        .option("--chardev socket,id=con,path=/tmp/con.sock,server=on,mux=on,logfile=/tmp/con.log")
        .script("echo LAB up=1; read line; echo LAB line=$line");
    let command = lab.l1.prepare(&guest)?;
    let job = lab.l1.start(&command)?;
    lab.l1.expect(&job, "waiting for a client at disconnected:unix:/tmp/con.sock", Duration::from_secs(60))?;
    // The parts end by themselves: at the latest when the guest does, whose script has then read the line.
    let text = "until grep -q up=1 /tmp/con.txt; do sleep 0.2; done; printf '\\001cinfo status\\r'; sleep 2; \
                printf '\\001chello\\r'; until grep -q line=hello /tmp/con.txt; do sleep 0.2; done";
    lab.l1.ok(&format!(
        "touch /tmp/con.txt; (({text}) | timeout 120 socat - UNIX-CONNECT:/tmp/con.sock > /tmp/con.txt 2>&1; touch /tmp/typed) &"
    ))?;
    lab.l1.ended_within(&job, Duration::from_secs(180))?.success()?;
    let said = lab.l1.ok("until [ -e /tmp/typed ]; do sleep 0.2; done; cat /tmp/con.log")?;
    for part in ["LAB up=1", "(passthru) ", "VM status: running", "LAB line=hello"] {
        ensure!(said.contains(part), "`{part}` is not in what the console said:\n{said}");
    }
    Ok(())
}
