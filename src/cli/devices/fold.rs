//! Virtual functions come by the dozen, each in a group of its own: where they are all alike, one entry stands for them.

use crate::host::survey::{GroupSeen, Seen};

/// Fewer are shown one by one.
const FEWEST: usize = 3;

/// Groups that are shown as one.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    /// A group.
    One(&'a GroupSeen),
    /// Virtual functions that differ in their addresses only, by their groups.
    Alike(&'a [GroupSeen]),
}

/// The groups as they are to be shown.
pub(super) fn fold(groups: &[GroupSeen]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    for run in groups.chunk_by(alike) {
        if run.len() >= FEWEST {
            entries.push(Entry::Alike(run));
        } else {
            entries.extend(run.iter().map(Entry::One));
        }
    }
    entries
}

fn alike(one: &GroupSeen, other: &GroupSeen) -> bool {
    let (Some(a), Some(b)) = (only_virtual_function(one), only_virtual_function(other)) else { return false };
    let kind = |seen: &Seen| (seen.device.physfn, seen.device.device, seen.device.driver.clone());
    one.outlook.prospect == other.outlook.prospect && kind(a) == kind(b)
}

/// The one member of a group, if it is a virtual function of which there is nothing else to say.
fn only_virtual_function(group: &GroupSeen) -> Option<&Seen> {
    let [member] = group.members.as_slice() else { return None };
    member.pci().filter(|seen| seen.device.physfn.is_some() && seen.uses.is_empty() && group.outlook.why.is_empty())
}
