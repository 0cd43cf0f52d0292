//! A machine as its user has it: passthru installed from its package, devices reserved for guests, a router that systemd
//! starts, and what becomes of all that when something goes wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::steps;
use crate::l0::machines;
use crate::l1::{Guest, L1};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("service", service).on(&machines::SERVICE).exclusive().limit(1500).without_passthru().long()];

/// The twins that the guest gets.
const WAN: &str = "01:00.0";
const LAN: &str = "02:00.0";
/// How long L1 may take to go down in order.
const REBOOT: Duration = Duration::from_secs(180);
/// What systemctl waits for: the start or the end of a guest.
const SYSTEMCTL: Duration = Duration::from_secs(200);
/// Times that the service is restarted.
const RESTARTS: u32 = 20;
const UNIT: &str = "passthru@router";

/// The guest: a router between its two cards, which powers off when its button is pressed.
const ROUTER: &str = r#"
modprobe -a e1000e button evdev
card() { grep -l "$1" /sys/class/net/*/address | cut -d / -f 5; }
i=0; until [ -n "$(card 00:01)" ] && [ -n "$(card 00:02)" ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done
ip addr add 10.1.0.1/24 dev $(card 00:01); ip link set $(card 00:01) up
ip addr add 10.2.0.1/24 dev $(card 00:02); ip link set $(card 00:02) up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo LAB routes=1
head -c 24 /dev/input/event0 > /dev/null
echo LAB button=1
"#;

/// The host's ends of the wires, each in a network of its own.
const ENDS: &str = r"
end() {
    card=$(grep -l 00:0$2 /sys/class/net/*/address | cut -d / -f 5)
    ip netns add $1; ip link set $card netns $1
    ip -n $1 addr add 10.$3.0.2/24 dev $card; ip -n $1 link set $card up
    ip -n $1 route add default via 10.$3.0.1
}
end a 3 1; end b 4 2";

/// Both cards have a name and are kept for guests.
const NAMES: &str = r#"mkdir -p /etc/passthru/devices.d
cat > /etc/passthru/devices.d/cards.toml << 'END'
[[device]]
name = "wan"
address = "01:00.0"
reserve = true

[[device]]
name = "lan"
path = "0000:00:03.0/00.0"
reserve = true
END"#;

const VM_FILE: &str = r#"cat > /etc/passthru/router.toml << 'END'
kernel = "/srv/router/vmlinuz"
initrd = "/srv/router/initrd.img"
append = "console=ttyS0 quiet"
memory = "256M"

[[device]]
driver = "pcie-root-port"
id = "rp1"

[[device]]
driver = "vfio-pci"
host = "wan"
bus = "rp1"

[[device]]
driver = "pcie-root-port"
id = "rp2"

[[device]]
driver = "vfio-pci"
host = "lan"
bus = "rp2"
END"#;

fn service(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    let files = Files::of(l1)?;
    install(l1).context("install")?;
    reserve(l1).context("devices.d")?;
    start(l1).context("start")?;
    unprivileged(l1).context("while it runs")?;
    stop(l1).context("stop")?;
    restarts(l1).context("restart")?;
    killed(l1).context("kill -9")?;
    power_cut(l1).context("power cut")?;
    purge(l1, &files).context("purge")
}

/// Runs systemctl; the unit's journal is the evidence when it fails.
fn systemctl(l1: &mut L1, words: &str) -> Result<()> {
    let output = l1.sh_within(&format!("systemctl {words}"), SYSTEMCTL)?;
    if output.code != 0 {
        let journal = l1.sh("journalctl -b -u 'passthru*' -o cat --no-pager | tail -40")?;
        anyhow::bail!("systemctl {words}: {}{}", output.stderr, journal.stdout);
    }
    Ok(())
}

/// Both cards are kept for guests, and nobody but root may open their nodes.
fn kept(l1: &mut L1) -> Result<()> {
    for bdf in [WAN, LAN] {
        let driver = steps::driver(l1, bdf)?;
        ensure!(driver == "vfio-pci", "{bdf} is on {driver}");
    }
    l1.ok("! getfacl -cp /dev/vfio/[0-9]* | grep -q user:passthru")?;
    let left = l1.ok("ls /run/passthru/vm 2>/dev/null || true")?;
    ensure!(left.trim().is_empty(), "left under /run/passthru/vm: {left}");
    Ok(())
}

/// What comes in on one wire leaves on the other, one hop later, or not at all.
fn forwards(l1: &mut L1, expected: bool) -> Result<()> {
    let tries = if expected { 60 } else { 1 };
    let text = format!(
        "for i in $(seq {tries}); do ip netns exec a ping -c 1 -W 1 10.2.0.2 && exit; done | grep -c ttl=63 || true"
    );
    let seen = l1.sh_within(&text, SYSTEMCTL)?.stdout.trim() == "1";
    ensure!(seen == expected, "packets between the wires: {seen}, expected: {expected}");
    Ok(())
}

fn install(l1: &mut L1) -> Result<()> {
    steps::settled(l1)?;
    steps::provide_package(l1)?;
    l1.ok("dpkg -i /share/passthru.deb")?;
    l1.ok("id passthru && passthru --version && systemctl is-enabled passthru-recover")?;
    l1.ok("systemd-analyze verify --man=no /usr/lib/systemd/system/passthru@.service \
         /usr/lib/systemd/system/passthru-recover.service && udevadm verify /usr/lib/udev/rules.d/70-passthru.rules")?;
    Ok(())
}

/// After the next boot the cards are on vfio-pci, and their driver has never seen them.
fn reserve(l1: &mut L1) -> Result<()> {
    for bdf in [WAN, LAN] {
        ensure!(steps::driver(l1, bdf)? == "e1000e", "{bdf} is not on e1000e before it is reserved");
    }
    l1.ok(NAMES)?;
    l1.ok("sync")?;
    l1.reboot(REBOOT)?;
    steps::settled(l1)?;
    kept(l1)?;
    let seen = l1.sh("journalctl -b -k -o cat --no-pager | grep 'e1000e 0000:'")?;
    ensure!(seen.stdout.is_empty(), "the host's driver had a card first:\n{}", seen.stdout);
    Ok(())
}

fn start(l1: &mut L1) -> Result<()> {
    // Only the initramfs is wanted: the command line stands in the VM file.
    l1.prepare(&Guest::new().fat().script(ROUTER))?;
    l1.ok("mkdir -p /srv/router && cp /images/bzImage /srv/router/vmlinuz && cp /tmp/initrd* /srv/router/initrd.img && sync")?;
    l1.ok(VM_FILE)?;
    l1.ok(ENDS)?;
    l1.ok("passthru check router")?;
    forwards(l1, false)?;
    systemctl(l1, &format!("start {UNIT}"))?;
    forwards(l1, true)
}

/// The VMM is the user passthru, without a capability, and has this VM's nodes and no other's.
fn unprivileged(l1: &mut L1) -> Result<()> {
    let status = l1.ok(&format!("cat /proc/$(systemctl show -P MainPID {UNIT})/status"))?;
    for name in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let none = format!("{name}:\t0000000000000000");
        ensure!(status.contains(&none), "it has capabilities:\n{status}");
    }
    let user = l1.ok("id -u passthru")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap_or_default();
    ensure!(uid.split('\t').all(|id| id == user.trim()), "it runs as {uid}");
    l1.ok("getfacl -cp /dev/vfio/[0-9]* | grep -c user:passthru:rw | grep -qx 2")?;
    let list = l1.ok("passthru list && passthru ctl router status && passthru ctl router metrics")?;
    ensure!(list.contains("router") && list.contains(WAN), "{list}");
    let exposure = l1.ok(&format!("systemd-analyze security --no-pager --threshold=30 {UNIT}"))?;
    ensure!(exposure.contains("exposure level"), "{exposure}");
    Ok(())
}

fn stop(l1: &mut L1) -> Result<()> {
    systemctl(l1, &format!("stop {UNIT}"))?;
    let journal = l1.ok(&format!("journalctl -b -u {UNIT} -o cat --no-pager"))?;
    ensure!(journal.contains("LAB button=1"), "the guest has not shut down by itself:\n{journal}");
    let result = l1.ok(&format!("systemctl show -P Result {UNIT}"))?;
    ensure!(result.trim() == "success", "it ended with {result}");
    kept(l1)?;
    forwards(l1, false)
}

/// The guest is ended at once here: its shutting down was seen before.
fn restarts(l1: &mut L1) -> Result<()> {
    l1.ok("cp /etc/passthru/router.toml /root; sed -i '1i shutdown-timeout = 0' /etc/passthru/router.toml")?;
    systemctl(l1, &format!("start {UNIT}"))?;
    let counts =
        |l1: &mut L1| l1.ok("ls /dev/vfio | wc -l; mount | wc -l; ls -R /run/passthru | wc -l; systemctl --failed -q");
    let before = counts(l1)?;
    for turn in 1..=RESTARTS {
        l1.ok("systemctl reset-failed 'passthru@*'")?;
        systemctl(l1, &format!("restart {UNIT}")).with_context(|| format!("turn {turn}"))?;
    }
    forwards(l1, true)?;
    ensure!(counts(l1)? == before, "something stays behind at each restart");
    systemctl(l1, &format!("stop {UNIT}"))?;
    l1.ok("cp /root/router.toml /etc/passthru/router.toml; sync")?;
    kept(l1)
}

/// The manager starts it anew; after the stop nothing is left.
fn killed(l1: &mut L1) -> Result<()> {
    l1.ok("systemctl reset-failed 'passthru@*'")?;
    systemctl(l1, &format!("start {UNIT}"))?;
    let former = l1.ok(&format!("systemctl show -P MainPID {UNIT}"))?;
    systemctl(l1, &format!("kill --signal=KILL {UNIT}"))?;
    steps::eventually(l1, &format!("[ $(systemctl show -P NRestarts {UNIT}) = 1 ] && systemctl is-active -q {UNIT}"))?;
    ensure!(l1.ok(&format!("systemctl show -P MainPID {UNIT}"))? != former, "it was not started anew");
    forwards(l1, true)?;
    systemctl(l1, &format!("stop {UNIT}"))?;
    kept(l1)
}

/// The power goes while the guest works; the next boot starts the guest, as its user wished.
fn power_cut(l1: &mut L1) -> Result<()> {
    systemctl(l1, &format!("enable --now {UNIT}"))?;
    forwards(l1, true)?;
    l1.ok("sync")?;
    l1.power_cut()?;
    steps::settled(l1)?;
    l1.ok(ENDS)?;
    forwards(l1, true)?;
    systemctl(l1, &format!("disable --now {UNIT}"))?;
    kept(l1)
}

/// The cards go back to their driver, and no file stays.
fn purge(l1: &mut L1, before: &Files) -> Result<()> {
    l1.ok("cd / && dpkg --purge passthru")?;
    for bdf in [WAN, LAN] {
        steps::eventually(
            l1,
            &format!("[ \"$(basename $(readlink /sys/bus/pci/devices/0000:{bdf}/driver))\" = e1000e ]"),
        )?;
        let left = l1.ok(&format!("cat /sys/bus/pci/devices/0000:{bdf}/driver_override"))?;
        ensure!(left.trim() == "(null)", "{bdf} still has driver_override {left}");
    }
    l1.fails("getent passwd passthru", 2)?;
    l1.fails("ls -d /run/passthru", 2)?;
    let new = before.new_since(&Files::of(l1)?);
    ensure!(new.is_empty(), "files stay behind:\n{}", new.join("\n"));
    steps::settled(l1)
}

/// Files of the system, without what others keep: the package manager's own notes, logs and caches.
struct Files(std::collections::BTreeSet<String>);

impl Files {
    fn of(l1: &mut L1) -> Result<Self> {
        let text = l1.ok("find /etc /usr /var /boot -xdev -path /var/lib/dpkg -prune -o -path /var/log -prune \
             -o -path /var/cache -prune -o -path /var/lib/systemd -prune -o -path /var/tmp -prune -o -print | grep passthru || true")?;
        Ok(Self(text.lines().map(str::to_owned).collect()))
    }

    fn new_since(&self, later: &Self) -> Vec<String> {
        later.0.difference(&self.0).cloned().collect()
    }
}
