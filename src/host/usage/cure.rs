//! What ends each use, in words or as the command that does it. Pure.

use std::collections::BTreeSet;

use super::Use;

/// Mount points without which no system runs.
const OF_THE_SYSTEM: [&str; 3] = ["/", "/usr", "/var"];

/// What ends those uses for the sake of which a device is refused, each once.
pub(in crate::host) fn cures(uses: &[Use]) -> String {
    let of_the_system = uses.iter().find_map(|used| match used {
        Use::Mounted { at, .. } if OF_THE_SYSTEM.contains(&at.as_str()) => Some(at),
        _ => None,
    });
    if let Some(at) = of_the_system {
        return format!("choose another device: the host runs from this one ({at})");
    }
    let cures: BTreeSet<String> = uses.iter().filter(|used| used.is_vital()).map(cure).collect();
    cures.into_iter().collect::<Vec<_>>().join("; ")
}

fn cure(used: &Use) -> String {
    match used {
        Use::Mounted { at, .. } => format!("`umount {}`", word(at)),
        Use::Swap { device, through } => {
            // What the kernel is told is the outermost device; its own name is the label's first word.
            let outermost = through.last().and_then(|label| label.split(' ').next()).unwrap_or(device);
            format!("`swapoff /dev/{outermost}`")
        }
        Use::Held { holder, .. } => {
            format!("take {holder} down (`vgchange -an`, `cryptsetup close`, `mdadm --stop`)")
        }
        Use::DefaultRoute { interface, .. } => {
            format!("give the default route to another interface than {interface} (`ip route`)")
        }
        Use::InterfaceUp { interface } => format!("`ip link set {interface} down`"),
        Use::Display { card, connector } => format!("switch {connector} of {card} off"),
        Use::Opened { node, processes } => {
            let names: Vec<String> =
                processes.iter().map(|process| format!("{} (process {})", process.name, process.pid)).collect();
            let end = format!("end what has {node} open: {}", names.join(", "));
            match node.starts_with("dri/") {
                true => format!("{end}; or, for a desktop's only card, `passthru bind --profile single-gpu`"),
                false => end,
            }
        }
        Use::VirtualFunction { function, .. } => format!("end the use of {function}"),
    }
}

/// A mount point as a shell takes it.
fn word(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), |quoted| quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::busy::Process;

    #[test]
    fn each_use_has_its_end() {
        let through = |name: &str| vec![name.to_owned()];
        let device = || "sda1".to_owned();
        let open = |node: &str| Use::Opened {
            node: node.to_owned(),
            processes: vec![Process { pid: 42, name: "sway".into() }],
        };
        for (used, wanted) in [
            (
                Use::Mounted { device: device(), through: Vec::new(), at: "/".into() },
                "choose another device: the host runs from this one (/)",
            ),
            (Use::Mounted { device: device(), through: Vec::new(), at: "/my disk".into() }, "`umount '/my disk'`"),
            (Use::Swap { device: device(), through: Vec::new() }, "`swapoff /dev/sda1`"),
            (Use::Swap { device: device(), through: through("dm-2 (vg-swap)") }, "`swapoff /dev/dm-2`"),
            (open("input/event7"), "end what has input/event7 open: sway (process 42)"),
            (
                open("dri/card0"),
                "end what has dri/card0 open: sway (process 42); or, for a desktop's only card, `passthru bind --profile \
                 single-gpu`",
            ),
        ] {
            assert_eq!(cures(&[used.clone(), used]), wanted);
        }
        assert_eq!(cures(&[open("snd/pcmC0D0p")]), "", "no reason to refuse it");
    }
}
