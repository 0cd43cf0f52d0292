//! The benchmark's table: medians, spread, ratios, and the targets of the issue.

use std::fmt::Write;

use super::Figures;
use super::hist::Counts;
use super::measure::Run;
use crate::l1::Vmm;

/// Middle and outer values of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub median: f64,
    least: f64,
    most: f64,
}

impl Sample {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, least, most })
    }

    /// Median, and the outer values where they differ.
    pub fn text(self) -> String {
        let number = |v: f64| {
            if v.fract().abs() < 1e-9 { format!("{v:.0}") } else { format!("{v:.2}") }
        };
        if (self.most - self.least).abs() < 1e-9 {
            number(self.median)
        } else {
            format!("{} ({}..{})", number(self.median), number(self.least), number(self.most))
        }
    }
}

/// A line of the table: how a figure is taken, and the most that passthru may have.
struct Row {
    what: &'static str,
    take: fn(&Figures) -> Option<Sample>,
    target: Option<f64>,
}

const ROWS: &[Row] = &[
    Row {
        what: "exits to user space, start to init",
        take: |f| counted(f, |r| at(r, "up", Counts::user_exits)),
        target: Some(500.0),
    },
    Row {
        what: "VM exits to init, less host interrupts",
        take: |f| counted(f, |r| at(r, "up", Counts::guest_exits)),
        target: Some(4500.0),
    },
    Row {
        what: "  of them the guest's timer, which follows time",
        take: |f| counted(f, |r| at(r, "up", Counts::ticks)),
        target: None,
    },
    Row {
        what: "nested page faults to init",
        take: |f| counted(f, |r| at(r, "up", Counts::page_faults)),
        target: Some(450.0),
    },
    Row {
        what: "  of them accesses of the in-kernel IOAPIC",
        take: |f| counted(f, |r| at(r, "up", Counts::ioapic)),
        target: None,
    },
    Row { what: "ioctls before the first KVM_RUN", take: |f| exact(f.ioctls.as_ref()?.total), target: Some(90.0) },
    Row { what: "  of them VFIO_IOMMU_MAP_DMA", take: |f| exact(f.ioctls.as_ref()?.map_dma), target: None },
    Row {
        what: "private dirty memory beside guest RAM, MiB",
        take: |f| counted(f, |r| Some(r.mark("up")?.memory.private_dirty as f64 / 1024.0)),
        target: Some(1.5),
    },
    Row {
        what: "resident memory beside guest RAM, MiB",
        take: |f| counted(f, |r| Some(r.mark("up")?.memory.resident as f64 / 1024.0)),
        target: Some(5.0),
    },
    Row {
        what: "user exits of a 64 MiB NVMe read, console aside",
        take: |f| counted(f, |r| between(r, "nvme")),
        target: Some(0.0),
    },
    Row {
        what: "user exits of 100 pings, console aside",
        take: |f| counted(f, |r| between(r, "ping")),
        target: Some(0.0),
    },
    Row {
        what: "user exits of 100 pings by INTx, console aside",
        take: |f| counted(f, |r| between(r, "intx")),
        target: Some(0.0),
    },
    Row {
        what: "exec to init less MAP_DMA, s",
        take: |f| Sample::of(f.timed.iter().filter_map(boot_seconds).collect()),
        target: None,
    },
    Row {
        what: "exec to init with 256 MiB, one processor, s",
        take: |f| Sample::of(f.starts[0].iter().filter_map(whole_seconds).collect()),
        target: None,
    },
    Row {
        what: "exec to init with 2 GiB, one processor, s",
        take: |f| Sample::of(f.starts[1].iter().filter_map(whole_seconds).collect()),
        target: None,
    },
    Row {
        what: "VFIO_IOMMU_MAP_DMA with 2 GiB",
        take: |f| Sample::of(f.starts[1].iter().map(|run| run.map_calls as f64).collect()),
        target: None,
    },
    Row {
        what: "device_del to DEVICE_DELETED, s (QEMU by ACPI)",
        take: |f| Sample::of(f.plugged.as_ref()?.unplug.clone()),
        target: None,
    },
    Row {
        what: "device_add to interface, s (QEMU by ACPI)",
        take: |f| Sample::of(f.plugged.as_ref()?.plug.clone()),
        target: None,
    },
    Row {
        what: "device_del to DEVICE_DELETED, s (both natively)",
        take: |f| Sample::of(f.natively.as_ref()?.unplug.clone()),
        target: None,
    },
    Row {
        what: "device_add to interface, s (both natively)",
        take: |f| Sample::of(f.natively.as_ref()?.plug.clone()),
        target: None,
    },
    Row {
        what: "stripped binary, MB",
        take: |f| exact(f.binary?).map(|s| Sample { median: s.median / 1e6, least: s.least / 1e6, most: s.most / 1e6 }),
        target: Some(6.0),
    },
];

/// Seconds from exec to init.
fn whole_seconds(run: &Run) -> Option<f64> {
    Some(run.mark("up")?.ms / 1000.0)
}

/// Seconds from exec to init without the time in MAP_DMA that nothing else is done in.
fn boot_seconds(run: &Run) -> Option<f64> {
    Some((run.mark("up")?.ms - run.map_ms) / 1000.0)
}

fn counted(figures: &Figures, value: impl Fn(&Run) -> Option<f64>) -> Option<Sample> {
    Sample::of(figures.counted.iter().filter_map(value).collect())
}

fn at(run: &Run, mark: &str, value: impl Fn(&Counts) -> u64) -> Option<f64> {
    Some(value(&run.mark(mark)?.counts) as f64)
}

/// Exits to user space between two markers, without those of the serial port.
fn between(run: &Run, name: &str) -> Option<f64> {
    let start = &run.mark(&format!("{name}-start"))?.counts;
    let end = &run.mark(&format!("{name}-end"))?.counts;
    let all = end.user_exits().saturating_sub(start.user_exits());
    let console = end.console().saturating_sub(start.console());
    Some(all.saturating_sub(console) as f64)
}

fn exact(value: u64) -> Option<Sample> {
    Sample::of(vec![value as f64])
}

/// The whole report.
pub fn render(all: &[Figures], memory: &str) -> String {
    let find = |vmm: Vmm| all.iter().find(|f| f.vmm == vmm);
    let (qemu, ours) = (find(Vmm::Qemu), find(Vmm::Passthru));
    let mut out = format!(
        "\nGuest: 1 vCPU, {memory}, e1000e and NVMe passed through, direct boot, `quiet`. \
         Median (least..most).\n\n{:50} {:>28} {:>28} {:>7} {:>8}\n",
        "", "QEMU q35", "passthru", "ratio", "target"
    );
    for row in ROWS {
        let (theirs, mine) = (qemu.and_then(row.take), ours.and_then(row.take));
        let text = |s: Option<Sample>| s.map_or("-".to_owned(), Sample::text);
        let ratio = match (theirs, mine) {
            (Some(t), Some(m)) if t.median > 0.0 => format!("{:.2}", m.median / t.median),
            _ => "-".to_owned(),
        };
        let target = row.target.map_or(String::new(), |t| {
            let verdict = match mine {
                Some(m) if m.median > t => " MISSED",
                Some(_) => " ok",
                None => "",
            };
            format!("{t}{verdict}")
        });
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:50} {:>28} {:>28} {ratio:>7} {target:>8}", row.what, text(theirs), text(mine));
    }
    if let Some(ratio) = qemu.zip(ours).and_then(|(q, o)| time_ratio(q, o)) {
        let _ = writeln!(
            out,
            "\nexec to init less MAP_DMA, passthru to QEMU, round by round: {} (at most 0.70, aim 0.60)",
            ratio.text()
        );
    }
    for figures in all {
        if let Some(growth) = growth(figures) {
            let _ = writeln!(
                out,
                "\n{:?}: exec to init with 2 GiB is {} times that with 256 MiB, round by round",
                figures.vmm,
                growth.text()
            );
        }
    }
    for figures in all {
        out += &causes(figures);
    }
    out
}

/// The rounds alternate, so that each pair ran under about the same load.
fn time_ratio(qemu: &Figures, ours: &Figures) -> Option<Sample> {
    let pairs = qemu.timed.iter().zip(&ours.timed);
    let ratios = pairs.filter_map(|(q, o)| Some(boot_seconds(o)? / boot_seconds(q)?));
    Sample::of(ratios.collect())
}

/// What more memory costs at the start.
fn growth(figures: &Figures) -> Option<Sample> {
    let [small, large] = &figures.starts;
    let ratios = small.iter().zip(large).filter_map(|(s, l)| Some(whole_seconds(l)? / whole_seconds(s)?));
    Sample::of(ratios.collect())
}

/// The ports and addresses that most exits to init went to.
fn causes(figures: &Figures) -> String {
    const SHOWN: usize = 12;
    let Some(up) = figures.counted.last().and_then(|r| r.mark("up")) else {
        return String::new();
    };
    let mut causes: Vec<(u64, String)> = Vec::new();
    for (port, hits) in &up.counts.ports {
        causes.push((*hits, format!("port {port:#x}")));
    }
    for (gpa, hits) in &up.counts.mmio {
        causes.push((*hits, format!("address {gpa:#x}")));
    }
    causes.sort_by(|a, b| b.cmp(a));
    let shown: Vec<String> = causes.iter().take(SHOWN).map(|(hits, what)| format!("{what}: {hits}")).collect();
    format!(
        "\n{:?}, port and memory accesses that left the guest up to init (also those that KVM answers): {}\n",
        figures.vmm,
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(Sample::of(vec![]), None);
        let sample = Sample::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((sample.median, sample.least, sample.most), (2.0, 1.0, 3.0));
        assert_eq!(sample.text(), "2 (1..3)");
        assert_eq!(Sample::of(vec![1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Sample::of(vec![0.125]).unwrap().text(), "0.12");
    }

    #[test]
    fn a_table_without_figures_has_all_its_lines() {
        let text = render(&[Figures::of(Vmm::Qemu), Figures::of(Vmm::Passthru)], "1G");
        for row in ROWS {
            assert!(text.contains(row.what));
        }
        assert!(!text.contains("MISSED"));
    }

    #[test]
    fn a_missed_target_is_said() {
        let figures = Figures { binary: Some(7_000_000), ..Figures::of(Vmm::Passthru) };
        assert!(render(&[figures], "1G").contains("6 MISSED"));
    }
}
