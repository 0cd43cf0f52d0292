//! The file as a whole: what names something that was left out.

use std::collections::BTreeSet;

use super::draft::{Draft, Setting};
use crate::object::Args;

/// Buses that are there without an option.
const BOARD: [&str; 2] = ["pcie.0", "isa.0"];
/// Properties of a device that name what it stands on.
const STANDS_ON: [&str; 3] = ["drive", "netdev", "chardev"];

/// Makes the file one that starts: a device of the host gets a root port for a bus that is not there (a file of settings made
/// it), others go to the first free place; what stands on something that was left out is left out as well.
pub fn complete(draft: &mut Draft) {
    let with_host_devices = draft.settings.iter().any(|it| of_type(draft, it).is_some_and(|name| name == "vfio-pci"));
    let mut known = names(draft);
    for setting in std::mem::take(&mut draft.settings) {
        let Some(args) = draft.properties(&setting).filter(|_| setting.option == "device") else {
            draft.settings.push(setting);
            continue;
        };
        let is_balloon = of_type(draft, &setting).is_some_and(|name| name.starts_with("virtio-balloon"));
        if is_balloon && with_host_devices {
            draft.leave(
                label(draft, &setting),
                "memory of passed-through devices is pinned: a guest cannot give it back",
            );
            continue;
        }
        let missing = STANDS_ON.iter().find_map(|key| args.peek(key).filter(|name| !known.contains(*name)));
        if let Some(name) = missing {
            draft.leave(label(draft, &setting), format!("`{name}`, on which it stands, is left out"));
            continue;
        }
        let setting = match args.peek("iothread").filter(|name| !known.contains(*name)) {
            Some(name) => {
                draft.leave(format!("iothread={name} of {}", label(draft, &setting)), "there is none of this name");
                let text = draft.without("device", &args, &["iothread"]).unwrap_or_default();
                Setting::repeated("device", text)
            }
            None => setting,
        };
        let setting = on_a_bus(draft, &mut known, setting);
        draft.settings.push(setting);
    }
}

/// The device, on a bus that there is.
fn on_a_bus(draft: &mut Draft, known: &mut BTreeSet<String>, setting: Setting) -> Setting {
    let Some(args) = draft.properties(&setting) else { return setting };
    let Some(bus) = args.peek("bus").filter(|bus| !known.contains(*bus)).map(str::to_owned) else { return setting };
    let port = format!("pcie-root-port,id={bus}");
    if of_type(draft, &setting).is_some_and(|name| name == "vfio-pci") && draft.takes("device", &port) {
        known.insert(bus);
        draft.settings.push(Setting::repeated("device", port));
        return setting;
    }
    draft.leave(
        format!("bus={bus} of {}", label(draft, &setting)),
        "there is no such bus: the device goes to the first free place",
    );
    let text = draft.without("device", &args, &["bus", "addr"]).unwrap_or_default();
    Setting::repeated("device", text)
}

/// Everything that a device can name: buses and back ends.
fn names(draft: &Draft) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = BOARD.map(str::to_owned).into();
    for setting in &draft.settings {
        let args = match setting.option.as_str() {
            "drive" => setting.value.as_deref().and_then(|text| Args::parse("--", None, text).ok()),
            _ => draft.properties(setting),
        };
        let Some(args) = args else { continue };
        for id in ["id", "node-name"].iter().filter_map(|key| args.peek(key)) {
            names.insert(id.to_owned());
            // The bus of an adapter.
            names.insert(format!("{id}.0"));
        }
        match of_type(draft, setting).as_deref() {
            Some("virtio-scsi-pci" | "virtio-scsi") => names.insert("scsi.0".to_owned()),
            Some("virtio-serial-pci" | "virtio-serial") => names.insert("virtio-serial-bus.0".to_owned()),
            _ => false,
        };
    }
    names
}

fn of_type(draft: &Draft, setting: &Setting) -> Option<String> {
    if setting.option != "device" {
        return None;
    }
    Some(draft.properties(setting)?.entries().next()?.1.to_owned())
}

/// How the list calls a device.
fn label(draft: &Draft, setting: &Setting) -> String {
    let id = draft.properties(setting).and_then(|args| args.peek("id").map(|id| format!(",id={id}")));
    format!("-device {}{}", of_type(draft, setting).unwrap_or_default(), id.unwrap_or_default())
}
