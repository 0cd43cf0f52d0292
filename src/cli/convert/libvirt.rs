//! A libvirt domain: what `virsh dumpxml` prints (libvirt.org/formatdomain.html).

use roxmltree::{Document, Node, ParsingOptions};

use super::draft::Draft;

/// Elements of a domain that say how libvirt manages it, not what the guest is.
const UNNEEDED: &[&str] = &[
    "title",
    "description",
    "metadata",
    "currentMemory",
    "on_poweroff",
    "on_crash",
    "resource",
    "pm",
    "seclabel",
    // The vCPUs' places: see `placement`.
    "cputune",
];
/// The same, of its devices: their buses are made as they are needed, and a serial console is a `<serial>` as well.
const UNNEEDED_DEVICES: &[&str] = &["emulator", "controller"];
/// Of any device: what libvirt calls it, where it is in the guest, and how it is managed.
const OF_EVERY_DEVICE: &[&str] = &["alias", "address", "boot"];
/// Features that every guest has, or none.
const FEATURES: &[&str] = &["acpi", "apic", "pae", "vmport", "smm"];

/// Takes over what the domain in `text` says.
///
/// # Errors
/// What keeps it from being read.
pub fn read(text: &str, draft: &mut Draft) -> Result<(), String> {
    let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| error.to_string())?;
    let domain = document.root_element();
    if !domain.has_tag_name("domain") {
        return Err(format!("its root is <{}>, not <domain>", domain.tag_name().name()));
    }
    if let Some(tuning) = child(domain, "cputune") {
        placement(tuning, draft);
    }
    for element in domain.children().filter(Node::is_element) {
        match element.tag_name().name() {
            "name" => draft.set("<name>", "name", Some(&content(element).replace(',', ",,"))),
            "memory" => memory(element, domain, draft),
            "memoryBacking" => memory_backing(element, draft),
            "vcpu" => cpus(element, domain, draft),
            "cpu" => cpu(element, draft),
            "os" => os(element, draft),
            "on_reboot" if content(element) == "destroy" => draft.set("<on_reboot>", "no-reboot", None),
            "on_reboot" => {}
            "uuid" => draft.set("<uuid>", "uuid", Some(content(element))),
            "features" => rest(element, "<features>", FEATURES, draft),
            "clock" if element.attribute("offset").unwrap_or("utc") != "utc" => {
                draft.leave("<clock>", "the guest's clock has UTC");
            }
            "clock" => {}
            "devices" => element.children().filter(Node::is_element).for_each(|device| self::device(device, draft)),
            name if UNNEEDED.contains(&name) => {}
            name => draft.leave(format!("<{name}>"), "passthru has no such setting"),
        }
    }
    Ok(())
}

fn content<'a>(element: Node<'a, '_>) -> &'a str {
    element.text().unwrap_or_default().trim()
}

fn child<'a, 'i>(element: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    element.children().find(|node| node.has_tag_name(name))
}

/// Notes the children of `element` that are none of `known`.
fn rest(element: Node, what: &str, known: &[&str], draft: &mut Draft) {
    for child in element.children().filter(Node::is_element) {
        let name = child.tag_name().name();
        if !known.contains(&name) {
            draft.leave(format!("{what}<{name}>"), "passthru has no such setting");
        }
    }
}

/// The CPUs of the host that the virtual ones are pinned to, if each has its own.
fn placement(tuning: Node, draft: &mut Draft) {
    rest(tuning, "<cputune>", &["vcpupin"], draft);
    let pins = tuning.children().filter(|node| node.has_tag_name("vcpupin"));
    let cpus: Option<Vec<u32>> = pins.map(|pin| pin.attribute("cpuset")?.parse().ok()).collect();
    match cpus {
        Some(cpus) if cpus.is_empty() => {}
        Some(cpus) => {
            let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            draft.set("<vcpupin>", "cpu-placement", Some(&list.join(",")));
        }
        None => draft.leave(
            "<vcpupin>",
            "a virtual CPU has one CPU: `cpu-placement = \"auto\"` chooses, `passthru plan` shows it",
        ),
    }
}

/// A size with libvirt's unit, as `-m` takes it; KiB is the default there.
fn size(element: Node) -> Option<String> {
    let number: u64 = content(element).parse().ok()?;
    let bytes = match element.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => number,
        "KB" => number.checked_mul(1000)?,
        "k" | "KiB" => number.checked_mul(1 << 10)?,
        "MB" => number.checked_mul(1_000_000)?,
        "M" | "MiB" => number.checked_mul(1 << 20)?,
        "GB" => number.checked_mul(1_000_000_000)?,
        "G" | "GiB" => number.checked_mul(1 << 30)?,
        "TB" => number.checked_mul(1_000_000_000_000)?,
        "T" | "TiB" => number.checked_mul(1 << 40)?,
        _ => return None,
    };
    Some(match (bytes.trailing_zeros(), bytes) {
        (_, 0) => return None,
        (30.., _) => format!("{}G", bytes >> 30),
        (20.., _) => format!("{}M", bytes >> 20),
        _ => format!("{}K", bytes >> 10),
    })
}

fn memory(element: Node, domain: Node, draft: &mut Draft) {
    let Some(size) = size(element) else { return draft.leave("<memory>", "its size is not understood") };
    let pages = child(domain, "memoryBacking").and_then(|backing| child(backing, "hugepages")).map(|pages| {
        let page = child(pages, "page").and_then(|page| {
            let size = page.attribute("size")?.parse::<u64>().ok()?;
            Some((size, page.attribute("unit").unwrap_or("KiB")))
        });
        match page {
            Some((1, "G" | "GiB") | (1024, "M" | "MiB") | (1_048_576, "KiB")) => "1G",
            _ => "2M",
        }
    });
    let value = pages.map_or(size.clone(), |pages| format!("{size},hugepages={pages}"));
    draft.set("<memory>", "memory", Some(&value));
}

/// Huge pages are part of `memory`; locked memory is what passthru does anyway.
fn memory_backing(element: Node, draft: &mut Draft) {
    for part in element.children().filter(Node::is_element) {
        let name = part.tag_name().name();
        if !matches!(name, "hugepages" | "locked" | "nosharepages") {
            draft.leave(format!("<memoryBacking><{name}>"), "passthru has no such setting");
        }
    }
}

fn cpus(element: Node, domain: Node, draft: &mut Draft) {
    let topology = child(domain, "cpu").and_then(|cpu| child(cpu, "topology"));
    let mut value = content(element).to_owned();
    for key in ["sockets", "cores", "threads"] {
        if let Some(count) = topology.and_then(|topology| topology.attribute(key)) {
            value += &format!(",{key}={count}");
        }
    }
    draft.set("<vcpu>", "smp", Some(&value));
}

fn cpu(element: Node, draft: &mut Draft) {
    let mode = element.attribute("mode").unwrap_or("custom");
    let mut value = if mode == "maximum" { "max" } else { "host" }.to_owned();
    if mode == "custom" {
        draft.leave("<cpu mode='custom'>", "guests have the host's CPU");
    }
    for feature in element.children().filter(|node| node.has_tag_name("feature")) {
        let sign = match feature.attribute("policy").unwrap_or("require") {
            "force" | "require" => '+',
            "disable" | "forbid" => '-',
            _ => continue,
        };
        let name = feature.attribute("name").unwrap_or_default();
        let with = format!("{value},{sign}{name}");
        let before = draft.left().len();
        draft.set(&format!("<feature name='{name}'>"), "cpu", Some(&with));
        if draft.left().len() == before {
            value = with;
        }
    }
    draft.set("<cpu>", "cpu", Some(&value));
}

fn os(element: Node, draft: &mut Draft) {
    for part in element.children().filter(Node::is_element) {
        let text = content(part);
        match part.tag_name().name() {
            "kernel" => draft.set("<kernel>", "kernel", Some(text)),
            "initrd" => draft.set("<initrd>", "initrd", Some(text)),
            "cmdline" => draft.set("<cmdline>", "append", Some(text)),
            "type" => {
                let machine = part.attribute("machine").unwrap_or("q35");
                if machine != "q35" && !machine.starts_with("pc-q35") {
                    draft.leave(format!("<type machine='{machine}'>"), "the machine of passthru is a q35");
                }
            }
            "loader" | "nvram" | "firmware" => {
                draft.leave(
                    format!("<{}>", part.tag_name().name()),
                    "passthru starts a Linux kernel without firmware: set `kernel`",
                );
            }
            _ => {}
        }
    }
}

fn device(element: Node, draft: &mut Draft) {
    match element.tag_name().name() {
        "hostdev" if element.attribute("type") == Some("pci") => host_device(element, "<hostdev>", draft),
        "interface" if element.attribute("type") == Some("hostdev") => {
            host_device(element, "<interface type='hostdev'>", draft);
            if let Some(mac) = child(element, "mac").and_then(|mac| mac.attribute("address")) {
                draft
                    .leave(format!("<mac address='{mac}'>"), format!("`passthru bind ADDRESS --vf-mac={mac}` sets it"));
            }
        }
        "interface" if element.attribute("type") == Some("bridge") => bridged(element, draft),
        "interface" if element.attribute("type") == Some("network") => draft.leave(
            "<interface type='network'>",
            "name the network's bridge, which `virsh net-info` shows: `<interface type='bridge'>`",
        ),
        "disk" => disk(element, draft),
        "serial" => serial(element, draft),
        "console" if child(element, "target").is_none_or(|it| it.attribute("type") != Some("virtio")) => {}
        "rng" => rng(element, draft),
        "watchdog" => watchdog(element, draft),
        "memballoon" if element.attribute("model") == Some("none") => {}
        "memballoon" => draft.set("<memballoon>", "device", Some("virtio-balloon-pci")),
        "input" if element.attribute("bus") == Some("ps2") => {}
        "audio" if element.attribute("type") == Some("none") => {}
        name if UNNEEDED_DEVICES.contains(&name) => {}
        name => {
            let of_type = element.attribute("type").or(element.attribute("device")).unwrap_or_default();
            draft.leave(format!("<{name}> {of_type}").trim_end(), "passthru has no such device");
        }
    }
}

/// A part of a PCI address, written as 0x1f.
fn number(text: Option<&str>) -> Option<u16> {
    let text = text.unwrap_or("0");
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn host_device(element: Node, what: &str, draft: &mut Draft) {
    let address = child(element, "source").and_then(|source| child(source, "address"));
    let part = |name| address.and_then(|address| number(address.attribute(name)));
    let (Some(domain), Some(bus), Some(slot), Some(function)) =
        (part("domain"), part("bus"), part("slot"), part("function"))
    else {
        return draft.leave(what, "its address is not understood");
    };
    let mut value = format!("vfio-pci,host={domain:04x}:{bus:02x}:{slot:02x}.{function}");
    if let Some(rom) = child(element, "rom") {
        if let Some(file) = rom.attribute("file") {
            value += &format!(",rom=file:{}", file.replace(',', ",,"));
        } else if rom.attribute("bar") == Some("off") || rom.attribute("enabled") == Some("no") {
            value += ",rom=off";
        }
    }
    draft.set(what, "device", Some(&value));
}

/// A disk on virtio, which `--drive` describes.
fn disk(element: Node, draft: &mut Draft) {
    let of_type = element.attribute("type").unwrap_or_default();
    let what = format!("<disk> {of_type}");
    let source = child(element, "source");
    let file = source.and_then(|source| source.attribute("file").or(source.attribute("dev")));
    let bus = child(element, "target").and_then(|target| target.attribute("bus"));
    let is_disk = matches!(element.attribute("device"), None | Some("disk"));
    let (Some(file), Some("virtio"), true) = (file, bus, is_disk) else {
        return draft.leave(what, "disks of files and of the host's disks, on virtio, are carried over");
    };
    let driver = child(element, "driver");
    let said = |name| driver.and_then(|driver| driver.attribute(name)).filter(|value| *value != "default");
    let mut value = format!("file={},format={},if=virtio", file.replace(',', ",,"), said("type").unwrap_or("raw"));
    for (name, key) in
        [("cache", "cache"), ("discard", "discard"), ("detect_zeroes", "detect-zeroes"), ("error_policy", "werror")]
    {
        if let Some(text) = said(name) {
            // QEMU's word for it is another.
            let text = if text == "enospace" { "enospc" } else { text };
            value += &format!(",{key}={text}");
        }
    }
    if child(element, "readonly").is_some() {
        value += ",readonly=on";
    }
    let known = [OF_EVERY_DEVICE, &["driver", "source", "target", "readonly", "backingStore"]].concat();
    rest(element, "<disk>", &known, draft);
    draft.set(&what, "drive", Some(&value));
}

/// Random numbers of the host.
fn rng(element: Node, draft: &mut Draft) {
    let backend = child(element, "backend").and_then(|backend| backend.attribute("model"));
    match backend {
        Some("random" | "builtin") => {
            rest(element, "<rng>", &[OF_EVERY_DEVICE, &["backend"]].concat(), draft);
            draft.set("<rng>", "device", Some("virtio-rng-pci"));
        }
        _ => draft.leave("<rng>", "random numbers come from the host's kernel"),
    }
}

fn watchdog(element: Node, draft: &mut Draft) {
    let what = "<watchdog>";
    match element.attribute("model") {
        Some("i6300esb") => {
            draft.set(what, "device", Some("i6300esb"));
            let action = element.attribute("action").unwrap_or("reset");
            draft.set(what, "action", Some(&format!("watchdog={action}")));
        }
        // Every q35 of libvirt's has one, whether the guest uses it or not.
        _ => draft.leave(what, "the watchdog of passthru is the i6300esb"),
    }
}

/// A virtio network device on a bridge of the host.
fn bridged(element: Node, draft: &mut Draft) {
    let what = "<interface type='bridge'>";
    let attribute = |name, key| child(element, name).and_then(|node| node.attribute(key));
    let (Some(bridge), Some("virtio")) = (attribute("source", "bridge"), attribute("model", "type")) else {
        return draft.leave(what, "network devices on virtio are carried over");
    };
    let id = format!("net{}", draft.netdev_types().len());
    rest(element, what, &[OF_EVERY_DEVICE, &["source", "model", "mac", "target"]].concat(), draft);
    draft.set(what, "netdev", Some(&format!("tap,id={id},br={bridge}")));
    let mac = attribute("mac", "address").map_or(String::new(), |mac| format!(",mac={mac}"));
    draft.set(what, "device", Some(&format!("virtio-net-pci,netdev={id}{mac}")));
}

fn serial(element: Node, draft: &mut Draft) {
    let of_type = element.attribute("type").unwrap_or_default();
    let path = child(element, "source").and_then(|source| source.attribute("path"));
    match (of_type, path) {
        ("file", Some(path)) => draft.set("<serial>", "serial", Some(&format!("file:{path}"))),
        ("stdio", _) => draft.set("<serial>", "serial", Some("stdio")),
        ("null" | "pty", _) => draft.set("<serial>", "serial", Some(of_type)),
        _ => draft.leave(format!("<serial> {of_type}"), "`passthru run --serial` says where it can go"),
    }
}
