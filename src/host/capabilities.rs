//! The lists of capabilities in configuration space, by their names (PCIe 7.5.3, 7.6 and 7.9; numbers: PCI Code and ID
//! Assignment, chapters 2 and 3). Pure.

use serde::Serialize;

/// Where the header ends, where the first list may be, and where the second begins.
const HEADER: usize = 0x40;
const CONVENTIONAL: usize = 0x100;
/// Status register with its bit "capabilities", and the pointer to the first (PCIe 7.5.1).
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const FIRST: usize = 0x34;
/// As many as there is room for in either space: a list that goes on is broken.
const MAX_CONVENTIONAL: usize = 48;
const MAX_EXTENDED: usize = 96;

/// A capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its number, of either list.
    pub id: u16,
    /// Where it is in configuration space.
    pub at: u16,
    /// Its name; `None`: not a known one.
    pub name: Option<&'static str>,
}

/// The capabilities of a function: the first list from 256 bytes on, both from 4096 on. A shorter configuration space, as
/// the kernel shows it to others than root, has none.
pub fn list(config: &[u8]) -> Vec<Capability> {
    let mut found = Vec::new();
    let byte = |at: usize| config.get(at).copied();
    if config.len() < CONVENTIONAL
        || byte(STATUS).is_none_or(|status| status & STATUS_CAPABILITIES == 0 || status == 0xff)
    {
        return found;
    }
    let mut at = usize::from(byte(FIRST).unwrap_or(0) & !3);
    while at >= HEADER && found.len() < MAX_CONVENTIONAL {
        let (Some(id), Some(next)) = (byte(at), byte(at + 1)) else { break };
        found.push(Capability { id: id.into(), at: at as u16, name: conventional(id) });
        at = usize::from(next & !3);
    }
    let conventional = found.len();
    let mut at = CONVENTIONAL;
    while found.len() - conventional < MAX_EXTENDED && at >= CONVENTIONAL {
        let Some(header) = config.get(at..).and_then(|rest| rest.first_chunk()).map(|it| u32::from_le_bytes(*it))
        else {
            break;
        };
        // An empty list is a header of zeros; one that cannot be read is all ones.
        if header == 0 || header == u32::MAX {
            break;
        }
        let id = (header & 0xffff) as u16;
        found.push(Capability { id, at: at as u16, name: extended(id) });
        at = (header >> 20) as usize & !3;
    }
    found
}

fn conventional(id: u8) -> Option<&'static str> {
    Some(match id {
        0x01 => "power management",
        0x03 => "vital product data",
        0x05 => "MSI",
        0x07 => "PCI-X",
        0x08 => "HyperTransport",
        0x09 => "vendor's",
        0x0a => "debug port",
        0x0c => "hot-plug controller",
        0x0d => "bridge's subsystem ID",
        0x10 => "PCI Express",
        0x11 => "MSI-X",
        0x12 => "SATA",
        0x13 => "advanced features",
        0x14 => "enhanced allocation",
        _ => return None,
    })
}

fn extended(id: u16) -> Option<&'static str> {
    Some(match id {
        0x0001 => "AER",
        0x0002 | 0x0009 => "virtual channels",
        0x0003 => "serial number",
        0x0004 => "power budgeting",
        0x000b => "vendor's",
        0x000d => "ACS",
        0x000e => "ARI",
        0x000f => "ATS",
        0x0010 => "SR-IOV",
        0x0013 => "page requests",
        0x0015 => "resizable BAR",
        0x0016 => "dynamic power allocation",
        0x0017 => "TPH",
        0x0018 => "latency tolerance",
        0x0019 => "secondary PCI Express",
        0x001b => "PASID",
        0x001d => "downstream port containment",
        0x001e => "L1 substates",
        0x001f => "precision time",
        0x0023 => "designated vendor's",
        0x0024 => "resizable BARs of VFs",
        0x0025 => "data link features",
        0x0026 => "16 GT/s",
        0x0027 => "lane margining",
        0x002a => "32 GT/s",
        0x002e => "data object exchange",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> Vec<u8> {
        let mut config = vec![0u8; 4096];
        config[STATUS] = STATUS_CAPABILITIES;
        config[FIRST] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x52].copy_from_slice(&[0x11, 0x40]);
        config[0x100..0x104].copy_from_slice(&0x1400_0001u32.to_le_bytes());
        config[0x140..0x144].copy_from_slice(&0x0001_0010u32.to_le_bytes());
        config
    }

    #[test]
    fn both_lists_are_read_and_a_circle_ends() {
        let found = list(&config());
        let names: Vec<_> = found.iter().filter_map(|it| it.name).collect();
        assert_eq!(names[..2], ["power management", "MSI-X"]);
        assert_eq!(found.len(), MAX_CONVENTIONAL + 2);
        assert_eq!((found[MAX_CONVENTIONAL].name, found[MAX_CONVENTIONAL].at), (Some("AER"), 0x100));
        assert_eq!((found[MAX_CONVENTIONAL + 1].name, found[MAX_CONVENTIONAL + 1].at), (Some("SR-IOV"), 0x140));
        assert!(list(&config()[..64]).is_empty());
        assert!(list(&[0xff; 4096]).is_empty());
    }

    proptest! {
        #[test]
        fn no_configuration_space_panics(config in prop::collection::vec(any::<u8>(), 0..4200)) {
            prop_assert!(list(&config).len() <= MAX_CONVENTIONAL + MAX_EXTENDED);
        }
    }
}
