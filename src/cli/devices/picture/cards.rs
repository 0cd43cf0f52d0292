//! What is on the picture: a card for each group, hung below the card of the bridge that leads to it. Pure.

use std::collections::HashMap;

use crate::bdf::Bdf;
use crate::cli::devices::fold::{Entry, fold};
use crate::cli::devices::text;
use crate::host::survey::{GroupSeen, MemberSeen, Prospect, Seen, Survey};

/// A card.
#[derive(Debug)]
pub(super) struct Card {
    /// The card of the bridge above, by its place in the list, which is before this one.
    pub above: Option<usize>,
    /// How many cards are above it.
    pub depth: usize,
    pub prospect: Prospect,
    /// `group 14`.
    pub name: String,
    /// What can be done, or what is in the way.
    pub outlook: String,
    pub rows: Vec<Row>,
}

/// A member of a group.
#[derive(Debug)]
pub(super) struct Row {
    /// Its address, or its name in sysfs.
    pub address: String,
    /// What it is.
    pub title: String,
    /// Driver, place, reset; `None`: all is said.
    pub facts: Option<String>,
    /// What the host uses it for.
    pub uses: Vec<String>,
}

/// All cards, each after the one that it hangs below.
pub(super) fn cards(survey: &Survey) -> Vec<Card> {
    let entries = fold(&survey.groups);
    let mut group_of = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        group_of.extend(groups(entry).iter().flat_map(functions).map(|seen| (seen.device.bdf, number)));
    }
    let parents: Vec<Option<usize>> =
        entries.iter().enumerate().map(|(number, entry)| parent(number, entry, &group_of)).collect();
    let mut cards = Vec::new();
    // Kept in the order of the groups among those that hang below the same card.
    let mut waiting: Vec<(usize, Option<usize>)> = roots(&parents).rev().map(|number| (number, None)).collect();
    let mut placed = vec![false; entries.len()];
    while let Some((number, above)) = waiting.pop() {
        // Bridges cannot be in a circle, but files can say so.
        if std::mem::replace(&mut placed[number], true) {
            continue;
        }
        let depth = above.map_or(0, |above: usize| cards_depth(&cards, above) + 1);
        let at = cards.len();
        cards.push(card(&entries[number], above, depth));
        let below = (0..entries.len()).rev().filter(|&other| parents[other] == Some(number));
        waiting.extend(below.map(|other| (other, Some(at))));
    }
    if !survey.ungrouped.is_empty() {
        cards.push(Card {
            above: None,
            depth: 0,
            prospect: Prospect::Cannot,
            name: "no group".to_owned(),
            outlook: "no IOMMU confines them".to_owned(),
            rows: survey.ungrouped.iter().map(row).collect(),
        });
    }
    cards
}

fn cards_depth(cards: &[Card], number: usize) -> usize {
    cards.get(number).map_or(0, |card| card.depth)
}

fn roots(parents: &[Option<usize>]) -> impl DoubleEndedIterator<Item = usize> {
    parents.iter().enumerate().filter(|(_, parent)| parent.is_none()).map(|(number, _)| number)
}

fn groups<'a>(entry: &'a Entry<'a>) -> &'a [GroupSeen] {
    match entry {
        Entry::One(group) => std::slice::from_ref(group),
        Entry::Alike(groups) => groups,
    }
}

fn functions(group: &GroupSeen) -> impl Iterator<Item = &Seen> {
    group.members.iter().filter_map(MemberSeen::pci)
}

/// The entry that holds the bridge above this one.
fn parent(number: usize, entry: &Entry, group_of: &HashMap<Bdf, usize>) -> Option<usize> {
    let above = groups(entry).iter().flat_map(functions).filter_map(|seen| seen.bridge_above);
    above.filter_map(|bridge| group_of.get(&bridge).copied()).find(|&other| other != number)
}

fn card(entry: &Entry, above: Option<usize>, depth: usize) -> Card {
    match entry {
        Entry::One(group) => Card {
            above,
            depth,
            prospect: group.outlook.prospect,
            name: format!("group {}", group.id),
            outlook: text::outlook(group),
            rows: group.members.iter().map(member).collect(),
        },
        Entry::Alike(groups) => {
            let alike = text::Alike::of(groups);
            Card {
                above,
                depth,
                prospect: alike.prospect,
                name: alike.name,
                outlook: alike.outlook,
                rows: vec![Row {
                    address: alike.addresses,
                    title: alike.title,
                    facts: Some(alike.facts),
                    uses: vec![],
                }],
            }
        }
    }
}

fn member(member: &MemberSeen) -> Row {
    match member {
        MemberSeen::Pci(seen) => row(seen),
        MemberSeen::Other { name, driver } => {
            Row { address: name.clone(), title: "no PCI device".to_owned(), facts: driver.clone(), uses: Vec::new() }
        }
    }
}

fn row(seen: &Seen) -> Row {
    let class = seen.device.class_name.unwrap_or("device of unknown class");
    let own = seen.is_of_the_board() && seen.uses.is_empty();
    Row {
        address: seen.device.bdf.short().to_string(),
        title: format!("{class}: {}", seen.device.short_name()),
        facts: (!own).then(|| text::facts(seen)),
        uses: seen.uses.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::TestTree;

    #[test]
    fn cards_hang_below_their_bridges() {
        let tree = TestTree::new();
        tree.pci("0000:00:01.0").bridge().driver("pcieport").group(5).add();
        tree.pci("0000:01:00.0").below("0000:00:01.0").bridge().driver("pcieport").group(2).add();
        tree.pci("0000:02:00.0").below("0000:01:00.0").driver("e1000e").group(1).add();
        tree.pci("0000:03:00.0").driver("e1000e").group(3).add();
        let cards = cards(&tree.host().survey());
        let shape: Vec<_> = cards.iter().map(|card| (card.name.as_str(), card.depth, card.above)).collect();
        assert_eq!(
            shape,
            [("group 3", 0, None), ("group 5", 0, None), ("group 2", 1, Some(1)), ("group 1", 2, Some(2))]
        );
    }
}
