//! How long VFIO_IOMMU_MAP_DMA takes: zeroing and pinning the guest's RAM costs seconds in
//! the lab. Where a VMM's main thread waits for it, the time is taken out of the comparison;
//! what passthru's thread for it does beside the guest is not. Measured by two kernel probes
//! (kernel document `trace/kprobetrace`).

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

const TRACING: &str = "/sys/kernel/tracing";
const ENTER: &str = "lab_vfio_enter";
const LEAVE: &str = "lab_vfio_leave";
/// The name of passthru's thread that pins beside the guest.
const BACKGROUND: &str = "dma-map-";
/// `_IO(VFIO_TYPE, VFIO_BASE + 13)`.
const MAP_DMA: &str = "cmd=0x3b71";

/// Sets the probes and empties the trace.
pub fn start() -> Result<()> {
    stop();
    fs::write(
        format!("{TRACING}/kprobe_events"),
        format!("p:{ENTER} vfio_iommu_type1_ioctl cmd=%si:x32\nr:{LEAVE} vfio_iommu_type1_ioctl\n"),
    )
    .context("cannot set a kernel probe")?;
    for event in [ENTER, LEAVE] {
        fs::write(format!("{TRACING}/events/kprobes/{event}/enable"), "1")?;
    }
    fs::write(format!("{TRACING}/trace"), "")?;
    Ok(())
}

/// Takes the probes away.
pub fn stop() {
    for event in [ENTER, LEAVE] {
        // Both fail when there is no such probe, which is what is wanted.
        let _ = fs::write(format!("{TRACING}/events/kprobes/{event}/enable"), "0");
        let _ = fs::write(format!("{TRACING}/kprobe_events"), format!("-:{event}"));
    }
}

/// What was spent on VFIO_IOMMU_MAP_DMA.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MapTime {
    /// By threads that the start waits for, ms.
    pub waited_ms: f64,
    /// By the thread beside the guest, ms.
    pub beside_ms: f64,
    /// Requests of both.
    pub calls: u64,
}

/// What was spent since [`start`].
pub fn read() -> Result<MapTime> {
    Ok(parse(&fs::read_to_string(format!("{TRACING}/trace"))?))
}

/// Reads lines like ` passthru-812  [001] .....  12.345678: lab_vfio_enter: (f+0x0/0x1) cmd=0x3b71`.
fn parse(trace: &str) -> MapTime {
    let mut entered: BTreeMap<&str, f64> = BTreeMap::new();
    let mut total = MapTime::default();
    for line in trace.lines().filter(|l| !l.starts_with('#')) {
        let Some((head, rest)) = line.split_once(": ") else {
            continue;
        };
        let task = head.split('[').next().unwrap_or_default().trim();
        let time = head.split_whitespace().last().and_then(|t| t.parse().ok());
        let Some(time) = time else {
            continue;
        };
        if rest.starts_with(ENTER) && rest.contains(MAP_DMA) {
            entered.insert(task, time);
        } else if rest.starts_with(LEAVE)
            && let Some(since) = entered.remove(task)
        {
            let ms = (time - since) * 1000.0;
            total.calls += 1;
            if task.starts_with(BACKGROUND) {
                total.beside_ms += ms;
            } else {
                total.waited_ms += ms;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_map_dma_counts() {
        let trace = "# tracer: nop\n#\n\
            vmm-81 [001] ..... 10.000000: lab_vfio_enter: (vfio_iommu_type1_ioctl+0x0/0x9) cmd=0x3b70\n\
            vmm-81 [001] ..... 10.100000: lab_vfio_leave: (x <- y)\n\
            vmm-81 [001] ..... 11.000000: lab_vfio_enter: (vfio_iommu_type1_ioctl+0x0/0x9) cmd=0x3b71\n\
            vmm-82 [000] ..... 11.100000: lab_vfio_enter: (vfio_iommu_type1_ioctl+0x0/0x9) cmd=0x3b71\n\
            vmm-82 [000] ..... 11.350000: lab_vfio_leave: (x <- y)\n\
            vmm-81 [001] ..... 16.500000: lab_vfio_leave: (x <- y)\n\
            dma-map-83 [001] ..... 17.000000: lab_vfio_enter: (vfio_iommu_type1_ioctl+0x0/0x9) cmd=0x3b71\n\
            dma-map-83 [001] ..... 17.100000: lab_vfio_leave: (x <- y)\n";
        let total = parse(trace);
        assert!((total.waited_ms - 5750.0).abs() < 0.01 && (total.beside_ms - 100.0).abs() < 0.01, "{total:?}");
        assert_eq!(total.calls, 3);
        assert_eq!(parse(""), MapTime::default());
    }
}
