//! A guest's state as Prometheus reads it (text exposition format 0.0.4). Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// One sample: labels and value.
type Sample = (Vec<(&'static str, String)>, String);

/// Metrics of what `x-query-vm` returned.
pub(super) fn text(vm: &Value) -> String {
    let name = string(&vm["name"]);
    let guest = || vec![("vm", name.clone())];
    let mut out = String::new();
    let mut metric = |metric: &str, kind: &str, help: &str, samples: Vec<Sample>| {
        if !samples.is_empty() {
            let _ = write!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}\n");
        }
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
            let _ = writeln!(out, "{metric}{{{}}} {value}", labels.join(","));
        }
    };
    let one = |value: &Value| vec![(guest(), number(value))];
    let with = |label, value: String| guest().into_iter().chain([(label, value)]).collect::<Vec<_>>();

    metric(
        "passthru_vm_info",
        "gauge",
        "The guest and its process; always 1.",
        vec![(
            [("vm", name.clone()), ("pid", number(&vm["pid"])), ("version", string(&vm["version"]))].into(),
            "1".into(),
        )],
    );
    let running = if vm["status"] == "running" { "1" } else { "0" };
    metric("passthru_vm_running", "gauge", "1: the guest's processors run.", vec![(guest(), running.into())]);
    metric(
        "passthru_vm_start_time_seconds",
        "gauge",
        "When the guest was first started, since 1970.",
        one(&vm["since"]),
    );
    metric("passthru_vm_restarts_total", "counter", "Resets of the machine.", one(&vm["restarts"]));
    let exits = vm["exits"].as_object().into_iter().flatten();
    let exits = exits.map(|(cause, count)| (with("cause", cause.clone()), number(count))).collect();
    metric("passthru_vm_exits_total", "counter", "Exits of the guest's processors to user space.", exits);

    let spaces = || vm["dma"].as_array().into_iter().flatten().enumerate();
    let space = |(index, space): (usize, &Value), member: &str| {
        let labels = [("address_space", index.to_string()), ("iommu", string(&space["iommu"]))];
        (guest().into_iter().chain(labels).collect(), number(&space[member]))
    };
    let bytes = spaces().map(|each| space(each, "bytes")).collect();
    metric("passthru_dma_mapped_bytes", "gauge", "Bytes that an IOMMU maps for the guest's devices.", bytes);
    let mappings = spaces().map(|each| space(each, "mappings")).collect();
    metric("passthru_dma_mappings", "gauge", "Ranges that an IOMMU maps for the guest's devices.", mappings);

    let devices = || vm["devices"].as_array().into_iter().flatten().filter(|device| device["host"].is_string());
    let device = |device: &Value| with("device", string(&device["id"]));
    let info = devices().map(|it| {
        let more = [("host", &it["host"]), ("iommu", &it["iommu"]), ("interrupts", &it["interrupts"])];
        (device(it).into_iter().chain(more.map(|(label, value)| (label, string(value)))).collect(), "1".into())
    });
    metric("passthru_device_info", "gauge", "A passed-through device; always 1.", info.collect());
    let bars = devices().flat_map(|it| {
        ["mapped", "trapped"].map(|kind| {
            let bytes: u64 =
                it["bars"].as_array().into_iter().flatten().map(|bar| super::status::bytes(&bar[kind])).sum();
            (device(it).into_iter().chain([("access", kind.to_owned())]).collect(), bytes.to_string())
        })
    });
    metric(
        "passthru_device_bar_bytes",
        "gauge",
        "Bytes of a device's BARs, by how they answer the guest.",
        bars.collect(),
    );
    let at = |member: &str| {
        let known = devices().filter(|it| it[member].is_string());
        known.map(|it| (device(it), string(&it[member]))).collect::<Vec<Sample>>()
    };
    metric(
        "passthru_device_last_reset_seconds",
        "gauge",
        "When the device was last reset, since 1970.",
        at("last-reset-at"),
    );
    metric(
        "passthru_device_last_error_seconds",
        "gauge",
        "When the device last had an error, since 1970.",
        at("last-error-at"),
    );

    let resources = vm["resources"].as_object().into_iter().flatten();
    let resources = resources.map(|(resource, count)| (with("resource", resource.clone()), number(count))).collect();
    metric("passthru_vm_resources", "gauge", "What process and kernel hold for the guest.", resources);
    out
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> String {
    value.as_u64().unwrap_or_default().to_string()
}

/// A label's value: backslash, quote and line end are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::vm;
    use super::*;

    /// Reads one sample: the metric, its labels, its value.
    fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
        let (name, rest) = line.split_once('{').expect("labels");
        let (mut labels, mut chars) = (Vec::new(), rest.chars());
        loop {
            let label: String = chars.by_ref().take_while(|c| *c != '=').collect();
            assert_eq!(chars.next(), Some('"'), "{line}");
            let mut value = String::new();
            loop {
                match chars.next().expect("a closing quote") {
                    '"' => break,
                    '\\' => value.push(match chars.next().expect("an escaped character") {
                        'n' => '\n',
                        other => other,
                    }),
                    other => value.push(other),
                }
            }
            labels.push((label, value));
            match chars.next() {
                Some(',') => {}
                Some('}') => break,
                other => panic!("{other:?} in {line}"),
            }
        }
        (name.to_owned(), labels, chars.as_str().trim().parse().expect("a number"))
    }

    #[test]
    fn every_line_can_be_read_and_no_sample_comes_twice() {
        let mut vm = vm();
        vm["name"] = "ro\"ut\\er\n".into();
        let text = text(&vm);
        let (mut seen, mut typed, mut helped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# HELP ") {
                let (name, help) = comment.split_once(' ').unwrap();
                assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{name} is explained twice");
            } else if let Some(comment) = line.strip_prefix("# TYPE ") {
                let (name, kind) = comment.split_once(' ').unwrap();
                assert!(helped.contains(name), "{name} has no help");
                assert!(["gauge", "counter"].contains(&kind));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert!(typed.insert(name.to_owned()), "{name} is typed twice");
            } else {
                let (name, labels, _) = sample(line);
                assert!(typed.contains(&name), "{name} before its type");
                assert_eq!(labels[0], ("vm".to_owned(), "ro\"ut\\er\n".to_owned()));
                assert!(seen.insert((name, labels)), "{line} twice");
            }
        }
        assert!(seen.len() > 10);
    }

    #[test]
    fn what_there_is_to_say_is_said() {
        let text = text(&vm());
        for line in [
            "passthru_vm_running{vm=\"router\"} 1",
            "passthru_vm_exits_total{vm=\"router\",cause=\"mmio-read\"} 12",
            "passthru_dma_mapped_bytes{vm=\"router\",address_space=\"0\",iommu=\"type1\"} 268435456",
            "passthru_device_bar_bytes{vm=\"router\",device=\"nic0\",access=\"mapped\"} 12288",
            "passthru_device_bar_bytes{vm=\"router\",device=\"nic0\",access=\"trapped\"} 4096",
            "passthru_device_last_reset_seconds{vm=\"router\",device=\"nic0\"} 1700000050",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("last_error"), "there was none");
    }
}
