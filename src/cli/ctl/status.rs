//! A guest's state for people, of what `x-query-vm` returned. Pure.

use serde_json::Value;

/// Members of a device that the text shows by themselves, or not at all.
const SHOWN: [&str; 10] =
    ["id", "type", "bus", "addr", "bars", "host", "last-reset", "last-reset-at", "last-error", "last-error-at"];

/// The state at `now`, seconds since 1970.
pub(super) fn text(vm: &Value, now: u64) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut out = format!(
        "{}: {}, process {}, passthru {}\n  started {} ago, reset {} times since\n",
        word(&vm["name"]),
        word(&vm["status"]),
        number(&vm["pid"]),
        word(&vm["version"]),
        duration(now.saturating_sub(number(&vm["since"]))),
        number(&vm["restarts"]),
    );
    let exits = vm["exits"].as_object().into_iter().flatten();
    let exits: Vec<String> = exits.map(|(cause, count)| format!("{cause} {count}")).collect();
    out += &format!("  exits to passthru: {}\n", exits.join(", "));
    for (index, space) in vm["dma"].as_array().into_iter().flatten().enumerate() {
        let (bytes, mappings) = (number(&space["bytes"]) >> 20, number(&space["mappings"]));
        out += &format!(
            "  DMA, address space {index} ({}): {bytes} MiB mapped in {mappings} ranges\n",
            word(&space["iommu"])
        );
    }
    for device in vm["devices"].as_array().into_iter().flatten() {
        describe(&mut out, device, now);
    }
    out
}

fn describe(out: &mut String, device: &Value, now: u64) {
    let host = device["host"].as_str().map(|host| format!(", host {host}")).unwrap_or_default();
    let [id, kind, addr, bus] = ["id", "type", "addr", "bus"].map(|name| word(&device[name]));
    *out += &format!("{id}: {kind} at {addr} of {bus}{host}\n");
    for (name, value) in device.as_object().into_iter().flatten().filter(|(name, _)| !SHOWN.contains(&name.as_str())) {
        *out += &format!("  {name}: {}\n", word(value));
    }
    for bar in device["bars"].as_array().into_iter().flatten() {
        let (mapped, trapped) = (ranges(&bar["mapped"]), ranges(&bar["trapped"]));
        let how = match (mapped.is_empty(), trapped.is_empty()) {
            (false, true) => format!("mapped directly {mapped}"),
            (true, false) => format!("trapped {trapped}"),
            _ => format!("mapped directly {mapped}; trapped {trapped}"),
        };
        let name = if bar["bar"] == 6 { "ROM".to_owned() } else { format!("BAR {}", bar["bar"]) };
        *out += &format!("  {name}: {how}\n");
    }
    for what in ["reset", "error"] {
        if let Some(told) = device[format!("last-{what}")].as_str() {
            let at = device[format!("last-{what}-at")].as_str().and_then(|at| at.parse::<u64>().ok());
            let ago = at.map(|at| format!(", {} ago", duration(now.saturating_sub(at)))).unwrap_or_default();
            *out += &format!("  last {what}: {told}{ago}\n");
        }
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Start and end of each range of offsets.
fn pairs(ranges: &Value) -> impl Iterator<Item = (u64, u64)> {
    let ranges = ranges.as_array().into_iter().flatten();
    ranges.filter_map(|range| Some((range["start"].as_u64()?, range["end"].as_u64()?)))
}

fn ranges(of: &Value) -> String {
    let all: Vec<String> = pairs(of).map(|(start, end)| format!("{start:#x}-{:#x}", end.saturating_sub(1))).collect();
    all.join(", ")
}

/// The bytes of some ranges of offsets.
pub(super) fn bytes(ranges: &Value) -> u64 {
    pairs(ranges).map(|(start, end)| end.saturating_sub(start)).sum()
}

/// A span of time in its two largest units.
pub(in crate::cli) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, name) in UNITS {
        if left >= unit || (unit == 1 && parts.is_empty()) {
            parts.push(format!("{} {name}", left / unit));
        }
        left %= unit;
    }
    parts.truncate(2);
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::vm;
    use super::*;

    #[test]
    fn all_of_it_is_told() {
        assert_eq!(
            text(&vm(), 1_700_003_660),
            "router: running, process 77, passthru 0.1.0\n  started 1 h 1 min ago, reset 1 times since\n  \
             exits to passthru: mmio-read 12, port-write 3\n  \
             DMA, address space 0 (type1): 256 MiB mapped in 2 ranges\n\
             rp1: pcie-root-port at 01.0 of pcie.0\n\
             nic0: vfio-pci at 00.0 of rp1, host 0000:01:00.0\n  interrupts: msix\n  iommu: type1\n  \
             BAR 0: mapped directly 0x0-0x1fff; trapped 0x2000-0x2fff\n  BAR 3: mapped directly 0x0-0xfff\n  \
             last reset: done, 1 h 10 s ago\n"
        );
        let mut vm = vm();
        vm["devices"][1]["last-error"] = "uncorrectable: data link protocol".into();
        vm["devices"][1]["last-error-at"] = "1700003600".into();
        let told = text(&vm, 1_700_003_660);
        assert!(told.ends_with("  last error: uncorrectable: data link protocol, 1 min ago\n"), "{told}");
        // Whatever a process says is shown, and nothing is relied on.
        text(&Value::Null, 0);
    }

    #[test]
    fn spans_of_time_are_short() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h"), (3661, "1 h 1 min"), (200_000, "2 d 7 h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
