//! Which device a declaration means: pure.

use super::{Declared, Identity};
use crate::bdf::DeviceAddr;

/// Why a declaration means no one device. The lines are for people.
#[derive(Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Nothing has all that is declared; the devices that lack one thing only.
    Nothing(Vec<String>),
    /// What tells those that have it all apart.
    Several(Vec<String>),
}

/// The device that is meant: of all functions, or of one device's functions where the name means them all.
pub fn resolve(declared: &Declared, all: &[Identity]) -> Result<DeviceAddr, Unresolved> {
    let fit: Vec<&Identity> = all.iter().filter(|identity| lacks(declared, identity).is_empty()).collect();
    let place = |identity: &&Identity| DeviceAddr {
        function: if declared.all_functions { None } else { Some(identity.bdf.function) },
        ..DeviceAddr::from(identity.bdf)
    };
    let first = fit.first().map(place).ok_or_else(|| {
        let near = all.iter().filter_map(|identity| match lacks(declared, identity).as_slice() {
            [only] if given(declared) > 1 => Some(format!("{} {only}", identity.bdf)),
            _ => None,
        });
        Unresolved::Nothing(near.collect())
    })?;
    if fit.iter().all(|identity| place(identity) == first) {
        return Ok(first);
    }
    Err(Unresolved::Several(fit.iter().map(|identity| tell(identity)).collect()))
}

/// How many things are declared.
fn given(declared: &Declared) -> usize {
    let by = &declared.known_by;
    [
        by.address.is_some(),
        by.id.is_some(),
        by.subsystem.is_some(),
        by.serial.is_some(),
        by.path.is_some(),
        by.slot.is_some(),
        by.mac.is_some(),
        by.function.is_some(),
    ]
    .into_iter()
    .filter(|is| *is)
    .count()
}

/// What is declared and not true of a function, in words that follow its address.
fn lacks(declared: &Declared, identity: &Identity) -> Vec<String> {
    let by = &declared.known_by;
    let mut lacks = Vec::new();
    if by.address.is_some_and(|address| !address.contains(identity.bdf)) {
        lacks.push("has another address".to_owned());
    }
    if by.function.is_some_and(|function| function != identity.bdf.function) {
        lacks.push("is another function".to_owned());
    }
    let ids = |(vendor, device): (u16, u16)| format!("{vendor:04x}:{device:04x}");
    if by.id.is_some_and(|id| id != identity.ids) {
        lacks.push(format!("has the id {}", ids(identity.ids)));
    }
    if by.subsystem.is_some() && by.subsystem != identity.subsystem {
        lacks.push(format!(
            "has {}",
            identity.subsystem.map_or("no subsystem".to_owned(), |it| format!("the subsystem {}", ids(it)))
        ));
    }
    if by.serial.is_some() && by.serial != identity.serial {
        lacks.push(match identity.serial {
            Some(serial) => format!("has the serial number {serial}"),
            None if identity.serial_is_known => "has no serial number".to_owned(),
            None => "has a serial number that only root can read (`passthru bind` notes it)".to_owned(),
        });
    }
    if by.path.as_ref().is_some_and(|path| *path != identity.path) {
        lacks.push(format!("has the path {}", identity.path));
    }
    if by.slot.is_some() && by.slot != identity.slot {
        lacks.push(
            identity.slot.as_ref().map_or("is in no slot with a number".to_owned(), |it| format!("is in slot {it}")),
        );
    }
    if by.mac.is_some_and(|mac| !identity.macs.contains(&mac)) {
        lacks.push(match identity.macs.as_slice() {
            [] => "has no interface whose mac could be asked for".to_owned(),
            macs => format!("has the mac {}", macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        });
    }
    lacks
}

/// By what a function can be told from its twins.
fn tell(identity: &Identity) -> String {
    let more = [
        identity.slot.as_ref().map(|slot| format!("slot {slot}")),
        identity.serial.map(|serial| format!("serial {serial}")),
    ];
    let macs = identity.macs.iter().map(|mac| format!("mac {mac}"));
    let words: Vec<String> = more.into_iter().flatten().chain(macs).collect();
    let words: String = words.iter().map(|word| format!(", {word}")).collect();
    format!("{} has the path {}{words}", identity.bdf, identity.path)
}
