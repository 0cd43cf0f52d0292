//! Every network back end in one guest: iperf3 each way, and a file that must come whole.

use anyhow::{Result, ensure};
use serde_json::json;

use super::daemons::{kill, start};
use crate::l1::live::Live;
use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("netdevs", netdevs).limit(600)];

/// What gives the file to guests that ask. With HTTP, because passt ends a connection whose guest's side has closed its half
/// before all that was sent has arrived.
const FILE_SERVER: &str = "exec python3 -m http.server 80 --directory /tmp";
const IPERF_SERVER: &str = "exec iperf3 --server";
const PASST_USER: &str = "rm -f /tmp/user.sock; exec passt --vhost-user --foreground --socket /tmp/user.sock";
const PASST: &str = "rm -f /tmp/stream.sock; exec passt --foreground --socket /tmp/stream.sock";

/// A network card of the guest and what is at the other end of it.
struct Nic {
    /// Last digit of its MAC address.
    number: u32,
    /// The guest's address, with its network.
    guest: &'static str,
    host: &'static str,
}

/// Passt takes the guest's packets whatever its address is, and connects to addresses of the host as any program does.
const fn by_passt(number: u32) -> Nic {
    Nic { number, guest: "169.254.2.1/16", host: "10.9.8.1" }
}

const TAP: Nic = Nic { number: 1, guest: "10.9.1.2/24", host: "10.9.1.1" };
const VHOST: Nic = Nic { number: 2, guest: "10.9.2.2/24", host: "10.9.2.1" };
const USER: Nic = by_passt(3);
const STREAM: Nic = by_passt(4);
const VHOST_USER: Nic = by_passt(5);
const E1000E: Nic = by_passt(6);
const MACVTAP: Nic = Nic { number: 7, guest: "10.9.7.2/24", host: "10.9.7.1" };
/// A macvtap on one end of a pair, whose other end is L1's. Passt is a server of DHCP on hosts with a default route.
const MAKE_MACVTAP: &str = "modprobe -a veth macvtap; ip link add lab3 type veth peer name lab4; \
    ip link add link lab3 name lab5 type macvtap mode bridge; ip link set lab5 address 52:54:00:09:00:07; \
    for link in lab3 lab4 lab5; do ip link set $link up; done; ip addr add 10.9.7.1/24 dev lab4; \
    ip route add default via 10.9.7.254 dev lab4";
/// Passt gives the guest the host's address.
const DHCP: &str = "printf '#!/bin/sh\\n[ $1 != bound ] || ip addr add $ip/$mask dev $interface\\n' > /tmp/dhcp; \
    chmod +x /tmp/dhcp; ip link set $IF up; udhcpc -i $IF -n -q -t 10 -s /tmp/dhcp; \
    echo LAB dhcp=$(ip -4 -o addr show dev $IF | grep -c inet); ip addr flush dev $IF";

/// Two taps of different owners, a macvtap by its descriptor, and passt in three ways: started by passthru, at a socket with
/// the packets in a stream, and as a vhost-user daemon, which is killed and started again in the midst of its work. An
/// e1000e of ours comes up by each kind of interrupt, is out and comes back.
fn netdevs(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("head -c 8M /dev/urandom > /tmp/net.file; ip link set lo up; \
         ip addr add 10.9.8.1/32 dev lo; modprobe -a tun vhost_net; \
         ip tuntap add lab1 mode tap vnet_hdr; ip addr add 10.9.1.1/24 dev lab1")?;
    let sum = lab.l1.ok("sha256sum < /tmp/net.file | cut -d ' ' -f 1")?.trim().to_owned();
    let servers = [lab.l1.start(FILE_SERVER)?, lab.l1.start(IPERF_SERVER)?];
    lab.l1.ok(MAKE_MACVTAP)?;
    let stream = start(lab.l1, PASST, "/tmp/stream.sock")?;
    let user = start(lab.l1, PASST_USER, "/tmp/user.sock")?;
    let mut guest = Guest::new()
        .tools()
        .cpus(2)
        .device("pcie-root-port,id=rp1")
        .option("--netdev user,id=n6")
        .device("e1000e,id=nic6,bus=rp1,netdev=n6,mac=52:54:00:09:00:06")
        .option("--netdev tap,id=n7,fd=7 7<>/dev/tap$(cat /sys/class/net/lab5/ifindex)")
        .option("--netdev tap,id=n1,ifname=lab1,script=no,downscript=no")
        .option("--netdev tap,id=n2,ifname=lab2,vhost=on,script=no,downscript=no")
        .option("--netdev user,id=n3")
        .option("--netdev stream,id=n4,addr.type=unix,addr.path=/tmp/stream.sock")
        .option("--chardev socket,id=c0,path=/tmp/user.sock,reconnect-ms=100 --netdev vhost-user,id=n5,chardev=c0");
    for number in [1, 2, 3, 4, 5, 7] {
        guest = guest.device(&format!("virtio-net-pci,netdev=n{number},mac=52:54:00:09:00:0{number}"));
    }
    let mut guest = lab.l1.live(&guest)?;
    // This one came with the guest.
    lab.l1.ok("ip addr add 10.9.2.1/24 dev lab2")?;
    for nic in [TAP, VHOST, USER, STREAM, VHOST_USER, MACVTAP] {
        work(lab.l1, &mut guest, &nic, &sum)?;
    }
    e1000e(lab.l1, &mut guest, &sum)?;
    // The connection is lost with the daemon, the device is not.
    guest.sh(
        lab.l1,
        &format!(
            "{}; (timeout 60 iperf3 -c {} -t 30 > /tmp/long 2>&1; echo > /tmp/ended) & \
             i=0; until [ $(cat /sys/class/net/$IF/statistics/tx_bytes) -gt 2000000 ] || [ $i -ge 200 ]; \
             do sleep 0.1; i=$((i+1)); done",
            up(&VHOST_USER),
            VHOST_USER.host
        ),
    )?;
    kill(lab.l1, &user)?;
    let user = start(lab.l1, PASST_USER, "/tmp/user.sock")?;
    guest.sh(lab.l1, &format!("killall iperf3; {}; {}", name(&VHOST_USER), DOWN))?;
    work(lab.l1, &mut guest, &VHOST_USER, &sum)?;
    let ended = guest.power_off(lab.l1)?.success()?;
    for job in servers.iter().chain([&stream, &user]) {
        kill(lab.l1, job)?;
    }
    ended.expect("the daemon at unix:/tmp/user.sock is there again")?.lacks("soft lockup")?;
    // One was there before and stays, the other goes with the guest.
    lab.l1.ok("ip link del lab1 && ip link del lab3 && ! ip link show lab2")?;
    Ok(())
}

/// The emulated card, by MSI-X, MSI and the pin, with the guest's own driver; and again after it was out.
fn e1000e(l1: &mut L1, guest: &mut Live, sum: &str) -> Result<()> {
    for mode in ["2", "1", "0"] {
        let said = guest.sh(
            l1,
            &format!(
                "rmmod e1000e 2>/dev/null; modprobe e1000e IntMode={mode}; {}; {DHCP}; grep $IF /proc/interrupts; true",
                name(&E1000E)
            ),
        )?;
        ensure!(guest.value("dhcp")? == "1", "DHCP with mode {mode}: {said}");
        work(l1, guest, &E1000E, sum)?;
    }
    guest.device_del(l1, "nic6")?;
    guest.sh(l1, "! grep -q 52:54:00:09:00:06 /sys/class/net/*/address")?;
    let add = json!({ "driver": "e1000e", "id": "nic8", "bus": "rp1", "netdev": "n6", "mac": "52:54:00:09:00:06" });
    guest.device_add(l1, add)?;
    work(l1, guest, &E1000E, sum)
}

/// `$IF`: the card's name in the guest.
fn name(nic: &Nic) -> String {
    let number = nic.number;
    format!(
        "modprobe -a virtio_pci virtio_net e1000e 2>/dev/null; cd /sys/class/net; \
         i=0; until grep -q 52:54:00:09:00:0{number} */address || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
         IF=$(grep -l 52:54:00:09:00:0{number} */address | cut -d / -f 1)"
    )
}

fn up(nic: &Nic) -> String {
    let Nic { guest, host, .. } = nic;
    format!(
        "{}; ip link set $IF up; ip addr add {guest} dev $IF; ip route replace {host} dev $IF; i=0; \
         until wget -T 2 -q -O /dev/null http://{host}/ 2>/dev/null || [ $i -ge 20 ]; do sleep 0.2; i=$((i+1)); done",
        name(nic)
    )
}

const DOWN: &str = "ip addr flush dev $IF; ip link set $IF down";

/// Passt now and then resets the connection by which iperf3's ends tell each other of the end: it may try again.
fn iperf(host: &str, more: &str) -> String {
    format!(
        "for try in 1 2 3; do timeout 30 iperf3 -c {host} -n 4M {more} > /tmp/iperf 2>&1; done=$?; \
         tail -n 5 /tmp/iperf; [ $done != 0 ] || break; sleep 1; done"
    )
}

/// A file comes whole, and iperf3 ends well each way.
fn work(l1: &mut L1, guest: &mut Live, nic: &Nic, sum: &str) -> Result<()> {
    let Nic { number, host, .. } = nic;
    let said = guest.sh(
        l1,
        &format!(
            "{}; echo LAB file{number}=$(wget -q -O - http://{host}/net.file | sha256sum | cut -d ' ' -f 1); \
             {}; to=$done; {}; echo LAB iperf{number}=$to,$done; {DOWN}",
            up(nic),
            iperf(host, ""),
            iperf(host, "-R")
        ),
    )?;
    let file = guest.value(&format!("file{number}"))?;
    ensure!(file == sum, "another file comes by the back end n{number}: {said}");
    let iperf = guest.value(&format!("iperf{number}"))?;
    ensure!(iperf == "0,0", "iperf3 by the back end n{number} ended with {iperf}: {said}");
    Ok(())
}
