//! Emulated devices beside QEMU's: the same guest, command line, back ends and work under both.
//!
//! An exit or a system call costs the same on every machine: what counts is that passthru needs no more of them for an
//! operation than QEMU. Rates are compared round by round, since the rounds alternate.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::marked;
use super::measure::{Mark, Run};
use super::table::Sample;
use crate::l1::{Guest, L1, Vmm};

/// Limit of one guest, L1's time.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Rounds in which exits and system calls are counted; they hardly differ.
pub const COUNTING_ROUNDS: u32 = 2;
/// A median of the ratios of rates under this is a failure.
const LEAST_RATIO: f64 = 0.8;
/// Exits and system calls for an operation that may be more than QEMU's: those of the machine's own timers fall into the
/// time of a work as they please.
const SLACK: f64 = 0.05;

/// One thing that the guest does with a device.
struct Work {
    name: &'static str,
    /// The device, and the unit of its rate.
    what: &'static str,
    /// What is counted as one operation, and how many the work does.
    operation: &'static str,
    operations: f64,
    /// Shell text of the guest that writes what `rate` reads.
    script: &'static str,
    rate: fn(&str) -> Option<f64>,
}

/// Size of a request of the sequential work, as fio and the table have it.
const MIB: f64 = 1048576.0;
/// Bytes that go to the port of virtio-serial and to the serial port.
const PORT_BYTES: f64 = 64.0 * MIB;
const SERIAL_BYTES: f64 = 65536.0;

/// iperf3 sees that all was sent when its next interval is over: with those of a second, rates come in steps.
const WORKS: &[Work] = &[
    Work {
        name: "blk4k",
        what: "virtio-blk-pci, random reads of 4 KiB, 16 at a time, 1/s",
        operation: "read",
        operations: 16384.0,
        script: "fio --filename=$DISK --rw=randread --bs=4k --io_size=64M --size=64M $FIO | cut -d ';' -f 8",
        rate: number,
    },
    Work {
        name: "blk1m",
        what: "virtio-blk-pci, sequential reads of 1 MiB, 16 at a time, MiB/s",
        operation: "read",
        operations: 1024.0,
        script: "fio --filename=$DISK --rw=read --bs=1M --io_size=1G --size=64M $FIO | cut -d ';' -f 7",
        rate: |text| Some(number(text)? / 1024.0),
    },
    Work {
        name: "vhostout",
        what: "virtio-net-pci, tap with vhost-net, sent, Mbit/s",
        operation: "MiB",
        operations: 128.0,
        script: "iperf3 -J -i 0.1 -n 128M -c 10.9.1.1 | received",
        rate: megabits,
    },
    Work {
        name: "vhostin",
        what: "virtio-net-pci, tap with vhost-net, received, Mbit/s",
        operation: "MiB",
        operations: 128.0,
        script: "iperf3 -J -i 0.1 -R -n 128M -c 10.9.1.1 | received",
        rate: megabits,
    },
    Work {
        name: "passtout",
        what: "virtio-net-pci, passt by a stream, sent, Mbit/s",
        operation: "MiB",
        operations: 64.0,
        script: "iperf3 -J -i 0.1 -n 64M -c 169.254.2.2 | received",
        rate: megabits,
    },
    Work {
        name: "passtin",
        what: "virtio-net-pci, passt by a stream, received, Mbit/s",
        operation: "MiB",
        operations: 64.0,
        script: "iperf3 -J -i 0.1 -R -n 64M -c 169.254.2.2 | received",
        rate: megabits,
    },
    Work {
        name: "port",
        what: "virtserialport to a file, writes of 4 KiB, MiB/s",
        operation: "write",
        operations: PORT_BYTES / 4096.0,
        script: "timed dd if=/dev/zero of=/dev/virtio-ports/bench bs=4k count=16384",
        rate: |text| Some(PORT_BYTES / MIB / seconds(text)?),
    },
    Work {
        name: "serial",
        what: "isa-serial to a file, bytes/s",
        operation: "byte",
        operations: SERIAL_BYTES,
        script: "timed dd if=/dev/zero of=/dev/ttyS1 bs=1k count=64",
        rate: |text| Some(SERIAL_BYTES / seconds(text)?),
    },
];

/// What the works need, in the guest.
const PREPARE: &str = r#"
modprobe -a virtio_pci virtio_blk virtio_net virtio_console
nic() {
    until grep -q "$1" /sys/class/net/*/address; do sleep 0.1; done
    name=$(grep -l "$1" /sys/class/net/*/address | cut -d / -f 5)
    ip link set "$name" up
    ip addr add "$2" dev "$name"
}
nic 52:54:00:09:01:01 10.9.1.2/24
nic 52:54:00:09:01:02 169.254.2.1/16
until DISK=/dev/$(cd /sys/block && grep -lsx BENCH vd*/serial | cut -d / -f 1) && [ -b "$DISK" ]; do sleep 0.1; done
mkdir -p /dev/virtio-ports
until grep -qsx bench /sys/class/virtio-ports/*/name; do sleep 0.1; done
port=$(grep -lsx bench /sys/class/virtio-ports/*/name | cut -d / -f 5)
[ -e /dev/virtio-ports/bench ] || ln -s "/dev/$port" /dev/virtio-ports/bench
FIO="--name=bench --direct=1 --ioengine=libaio --iodepth=16 --randseed=1 --minimal"
received() { grep bits_per_second | tail -n 1 | cut -d : -f 2 | tr -d ', \t'; }
timed() { read -r from rest < /proc/uptime; "$@" 2> /dev/null; read -r to rest < /proc/uptime; echo "$from $to"; }
fio --filename=$DISK --rw=read --bs=1M --io_size=16M --size=64M $FIO > /dev/null
for host in 10.9.1.1 169.254.2.2; do
    ping -c 1 -W 5 $host > /dev/null
    iperf3 -n 1M -c $host > /dev/null
done
"#;

/// What the back ends need, in L1, once in each of its lives.
const BACK_ENDS: &str = "[ -e /tmp/bench.raw ] || {
    ip link set lo up
    # Before there is a network that passt would take its addresses from.
    (passt --foreground --socket /tmp/bench.sock > /dev/null 2>&1 &)
    until [ -S /tmp/bench.sock ]; do sleep 0.1; done
    modprobe -a tun vhost_net
    ip tuntap add bench0 mode tap vnet_hdr
    ip addr add 10.9.1.1/24 dev bench0
    ip link set bench0 up
    (iperf3 -s > /dev/null 2>&1 &)
    head -c 64M /dev/zero > /tmp/bench.raw
}";

/// Sets the back ends up.
pub fn prepare(l1: &mut L1) -> Result<()> {
    l1.sh_within(BACK_ENDS, Duration::from_secs(60))?;
    l1.ok("test -f /tmp/bench.raw && pidof passt iperf3").map(drop)
}

/// The guest that does all works; `counting` puts markers around each.
pub fn guest(vmm: Vmm, counting: bool) -> Guest {
    let guest = Guest::new()
        .vmm(vmm)
        .tools()
        // QEMU takes an option with two dashes as well.
        .option("--blockdev driver=file,node-name=f0,filename=/tmp/bench.raw")
        .option("--blockdev driver=raw,node-name=d0,file=f0")
        .option("--netdev tap,id=n0,ifname=bench0,script=no,downscript=no,vhost=on")
        .option("--netdev stream,id=n1,addr.type=unix,addr.path=/tmp/bench.sock")
        .option("--chardev file,id=c0,path=/tmp/port.out --chardev file,id=c1,path=/tmp/serial.out")
        .device("virtio-blk-pci,drive=d0,serial=BENCH")
        .device("virtio-net-pci,netdev=n0,mac=52:54:00:09:01:01")
        .device("virtio-net-pci,netdev=n1,mac=52:54:00:09:01:02")
        .device("virtio-serial-pci,id=ports")
        .device("virtserialport,bus=ports.0,chardev=c0,name=bench")
        .device("isa-serial,chardev=c1")
        .script(PREPARE);
    WORKS.iter().fold(guest, |guest, work| {
        let text = format!("echo \"LAB {}=$({})\"", work.name, work.script);
        guest.script(&if counting { marked(work.name, &text) } else { text })
    })
}

/// What the guests of one VMM have shown.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Devices {
    pub timed: Vec<Run>,
    pub counted: Vec<Run>,
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// What iperf3 tells in bits a second.
fn megabits(text: &str) -> Option<f64> {
    Some(number(text)? / 1e6)
}

/// Between two readings of the guest's clock.
fn seconds(text: &str) -> Option<f64> {
    let (from, to) = text.split_once(' ')?;
    Some(number(to)? - number(from)?).filter(|passed| *passed > 0.0)
}

impl Work {
    fn rate_of(&self, run: &Run) -> Option<f64> {
        (self.rate)(run.values.get(self.name)?)
    }

    /// Of a count that grows, for each operation.
    fn each(&self, runs: &[Run], count: Count) -> Option<Sample> {
        let one = |run: &Run| {
            let from = run.mark(&format!("{}-start", self.name))?;
            let to = run.mark(&format!("{}-end", self.name))?;
            Some(count(to).saturating_sub(count(from)) as f64 / self.operations)
        };
        Sample::of(runs.iter().filter_map(one).collect())
    }
}

type Count = fn(&Mark) -> u64;

/// What is counted for each operation.
const COUNTS: [(&str, Count); 2] = [
    ("exits to user space", |mark| mark.counts.user_exits().saturating_sub(mark.counts.console())),
    ("system calls", |mark| mark.system_calls),
];

/// The table of all works, and what of it fails.
pub fn render(qemu: &Devices, ours: &Devices) -> (String, Vec<String>) {
    let mut out = format!(
        "\nEmulated devices, 1 vCPU, 256 MiB. Median (least..most).\n\n{:66} {:>28} {:>28}\n",
        "", "QEMU q35", "passthru"
    );
    let mut failures = Vec::new();
    let mut line = |what: &str, theirs: Option<Sample>, mine: Option<Sample>, verdict: &str| {
        let text = |sample: Option<Sample>| sample.map_or("-".to_owned(), Sample::text);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{what:66} {:>28} {:>28} {verdict}", text(theirs), text(mine));
    };
    for work in WORKS {
        let rates = |devices: &Devices| devices.timed.iter().filter_map(|run| work.rate_of(run)).collect::<Vec<_>>();
        let (theirs, mine) = (rates(qemu), rates(ours));
        let ratio = Sample::of(theirs.iter().zip(&mine).map(|(theirs, mine)| mine / theirs).collect());
        let verdict = match ratio {
            Some(ratio) if ratio.median < LEAST_RATIO => {
                failures.push(format!("{}: {} of QEMU's rate", work.what, ratio.text()));
                format!("ratio {} FAILS", ratio.text())
            }
            Some(ratio) => format!("ratio {}", ratio.text()),
            None => {
                failures.push(format!("{}: no rate", work.what));
                String::new()
            }
        };
        line(work.what, Sample::of(theirs), Sample::of(mine), &verdict);
        for (name, count) in COUNTS {
            let (theirs, mine) = (work.each(&qemu.counted, count), work.each(&ours.counted, count));
            let what = format!("  {name} for each {}", work.operation);
            let more = theirs.zip(mine).is_none_or(|(theirs, mine)| mine.median > theirs.median + SLACK);
            if more {
                failures.push(format!("{}: more {name}", work.what));
            }
            line(&what, theirs, mine, if more { "MORE" } else { "ok" });
        }
    }
    (out, failures)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::hist::Counts;
    use super::*;

    fn run(work: &Work, rate: &str, calls: u64) -> Run {
        let mark = |name: &str, calls| Mark {
            name: format!("{}-{name}", work.name),
            ms: 0.0,
            counts: Counts::default(),
            memory: Default::default(),
            system_calls: calls,
        };
        Run {
            marks: vec![mark("start", 10), mark("end", 10 + calls)],
            map_ms: 0.0,
            beside_ms: 0.0,
            map_calls: 0,
            success: true,
            values: BTreeMap::from([(work.name.to_owned(), rate.to_owned())]),
            tail: String::new(),
        }
    }

    #[test]
    fn a_slow_device_and_one_with_more_system_calls_fail() {
        let work = &WORKS[0];
        let devices =
            |rate: &str, calls| Devices { timed: vec![run(work, rate, 0)], counted: vec![run(work, rate, calls)] };
        let of_it = |qemu, ours| {
            let failures = render(&qemu, &ours).1;
            failures.into_iter().filter(|failure| failure.starts_with(work.what)).collect::<Vec<_>>()
        };
        assert!(of_it(devices("100", 16384), devices("81", 16384)).is_empty());
        assert_eq!(of_it(devices("100", 16384), devices("79", 16384)).len(), 1);
        assert_eq!(of_it(devices("100", 16384), devices("79", 18000)).len(), 2);
        let nothing = of_it(Devices::default(), devices("100", 1));
        assert!(nothing.iter().any(|failure| failure.ends_with("no rate")));
    }

    #[test]
    fn reports_become_rates() {
        assert_eq!(megabits(" 1.5e+09\r"), Some(1500.0));
        assert_eq!(seconds("10.25 12.25"), Some(2.0));
        assert_eq!(seconds("10.25 10.25"), None);
    }
}
