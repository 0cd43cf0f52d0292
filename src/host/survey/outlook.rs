//! What can be done with a group: pure.

use serde::Serialize;

use super::{MemberSeen, Seen};
use crate::bdf::Bdf;
use crate::host::Use;
use crate::host::busy::Process;

/// Classes that are part of the board and of no use to a guest (PCI Code and ID Assignment 1.x): bridges of all kinds;
/// memory controllers; timers, interrupt controllers and IOMMUs; the SMBus; signal processing (sensors).
const BOARD_BASES: [u8; 2] = [0x06, 0x08];
const BOARD_CLASSES: [u16; 5] = [0x0500, 0x0580, 0x0c05, 0x0c80, 0x1180];

/// Whether a guest can have the devices of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prospect {
    /// Now.
    Ready,
    /// After `passthru bind`.
    AfterBind,
    /// Not while its present use lasts.
    InUse,
    /// There is nothing in it for a guest: bridges, and what belongs to the board.
    Host,
    /// No.
    Cannot,
}

impl Prospect {
    /// All, the best first.
    pub const ALL: [Prospect; 5] =
        [Prospect::Ready, Prospect::AfterBind, Prospect::InUse, Prospect::Host, Prospect::Cannot];

    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Prospect::Ready => "ready",
            Prospect::AfterBind => "bind",
            Prospect::InUse => "in use",
            Prospect::Host => "host",
            Prospect::Cannot => "cannot",
        }
    }

    /// What the word means.
    pub fn meaning(self) -> &'static str {
        match self {
            Prospect::Ready => "a guest can have it now",
            Prospect::AfterBind => "a guest can have it after `passthru bind`",
            Prospect::InUse => "something uses it now",
            Prospect::Host => "bridges and parts of the board, which stay with the host",
            Prospect::Cannot => "no guest can have it",
        }
    }
}

/// A prospect and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// Whether a guest can have it.
    pub prospect: Prospect,
    /// Why not; empty where it can.
    pub why: Vec<String>,
    /// What `passthru bind` has to take first, if that would do.
    pub bind: Vec<Bdf>,
}

impl Outlook {
    fn new(prospect: Prospect, why: Vec<String>) -> Outlook {
        Outlook { prospect, why, bind: Vec::new() }
    }
}

/// What can be done with the group of these members. `holder`: who has it open as a VFIO group.
pub(super) fn of(members: &[MemberSeen], noiommu: bool, holder: Option<&Process>) -> Outlook {
    let functions = || members.iter().filter_map(MemberSeen::pci).filter(|seen| !seen.device.bridge);
    if noiommu {
        return Outlook::new(Prospect::Cannot, vec!["no IOMMU confines it (VFIO's no-IOMMU mode)".into()]);
    }
    if functions().all(|seen| seen.is_of_the_board() && !seen.device.on_vfio()) {
        return Outlook::new(Prospect::Host, Vec::new());
    }
    if let Some(Process { pid, name }) = holder {
        return Outlook::new(Prospect::InUse, vec![format!("{name} (process {pid}) has it")]);
    }
    let vital: Vec<String> = functions()
        .filter(|seen| seen.blocks)
        .flat_map(|seen| seen.uses.iter().filter(|used| used.is_vital()).map(|used| reason(seen, used)))
        .collect();
    if !vital.is_empty() {
        return Outlook::new(Prospect::InUse, vital);
    }
    let other = members.iter().find_map(|member| match member {
        MemberSeen::Other { name, driver: Some(driver) } => Some(format!("{name}, no PCI device, is on {driver}")),
        _ => None,
    });
    let quarantined = functions().filter_map(|seen| seen.quarantine.clone());
    let why: Vec<String> = other.into_iter().chain(quarantined).collect();
    if !why.is_empty() {
        return Outlook::new(Prospect::Cannot, why);
    }
    let on_vfio = functions().any(|seen| seen.device.on_vfio());
    let bind: Vec<Bdf> = functions()
        .filter(|seen| seen.blocks || !on_vfio && !seen.is_of_the_board())
        .map(|seen| seen.device.bdf)
        .collect();
    if bind.is_empty() {
        return Outlook::new(Prospect::Ready, Vec::new());
    }
    Outlook { prospect: Prospect::AfterBind, why: Vec::new(), bind }
}

fn reason(seen: &Seen, used: &Use) -> String {
    format!("{}: {used}", seen.device.bdf.short())
}

impl Seen {
    /// Whether it belongs to the board and is of no use to a guest.
    pub fn is_of_the_board(&self) -> bool {
        let class = (self.device.class >> 8) as u16;
        let [base, _] = class.to_be_bytes();
        BOARD_BASES.contains(&base) || BOARD_CLASSES.contains(&class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    /// The members of group 1: address, class, driver ("": none).
    fn group(members: &[(&str, u32, &str)]) -> TestTree {
        let tree = TestTree::new();
        for (address, class, driver) in members {
            let function = tree.pci(address).class(*class).group(1);
            let function = if *class == 0x060400 { function.bridge() } else { function };
            if driver.is_empty() { function.add() } else { function.driver(driver).add() }
        }
        tree
    }

    fn seen(tree: &TestTree) -> (Prospect, Vec<String>) {
        let outlook = tree.host().survey().groups.remove(0).outlook;
        (outlook.prospect, outlook.bind.iter().map(|bdf| bdf.short().to_string()).collect())
    }

    #[test]
    fn members_and_drivers_give_the_prospect() {
        const GPU: u32 = 0x030000;
        const AUDIO: u32 = 0x040300;
        const BRIDGE: u32 = 0x060400;
        const LPC: u32 = 0x060100;
        type Row<'a> = (&'a [(&'a str, u32, &'a str)], Prospect, &'a [&'a str]);
        let (gpu, audio) = ("0000:01:00.0", "0000:01:00.1");
        let table: [Row; 10] = [
            (&[("0000:00:01.0", BRIDGE, "pcieport")], Prospect::Host, &[]),
            (&[("0000:00:00.0", 0x060000, ""), ("0000:00:1f.4", 0x0c0500, "i801_smbus")], Prospect::Host, &[]),
            (&[(gpu, GPU, "nouveau")], Prospect::AfterBind, &["01:00.0"]),
            (&[(gpu, GPU, "")], Prospect::AfterBind, &["01:00.0"]),
            (&[(gpu, GPU, "vfio-pci")], Prospect::Ready, &[]),
            (&[("0000:00:01.0", BRIDGE, "pcieport"), (gpu, GPU, "vfio-pci")], Prospect::Ready, &[]),
            (&[(gpu, GPU, "vfio-pci"), (audio, AUDIO, "snd_hda_intel")], Prospect::AfterBind, &["01:00.1"]),
            (&[(gpu, GPU, "vfio-pci"), (audio, AUDIO, "")], Prospect::Ready, &[]),
            (&[(gpu, GPU, "nouveau"), (audio, AUDIO, "")], Prospect::AfterBind, &["01:00.0", "01:00.1"]),
            (&[("0000:00:1f.0", LPC, ""), ("0000:00:1f.3", AUDIO, "")], Prospect::AfterBind, &["00:1f.3"]),
        ];
        for (members, prospect, bind) in table {
            assert_eq!(
                seen(&group(members)),
                (prospect, bind.iter().map(|&it| it.to_owned()).collect()),
                "{members:?}"
            );
        }
    }

    #[test]
    fn a_vital_use_and_a_quarantine_are_reasons() {
        let tree = group(&[("0000:01:00.0", 0x020000, "e1000e")]);
        tree.net("0000:01:00.0", "eth0");
        tree.route("eth0", "00000000", "00000000");
        let outlook = tree.host().survey().groups.remove(0).outlook;
        assert_eq!(
            (outlook.prospect, outlook.why),
            (Prospect::InUse, vec!["01:00.0: eth0 has the default route".into()])
        );

        let tree = group(&[("0000:01:00.0", 0x020000, "vfio-pci")]);
        tree.host().quarantine("0000:01:00.0".parse().unwrap(), "it is dead").unwrap();
        assert_eq!(seen(&tree).0, Prospect::Cannot);
    }
}
