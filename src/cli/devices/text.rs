//! The survey as a tree of text.

use super::fold::{Entry, fold};
use crate::cli::style::{Colour, Style};
use crate::host::reset::Verdict as Reset;
use crate::host::survey::{GroupSeen, MemberSeen, Outlook, Prospect, Seen, Survey};

/// The longest word of a prospect.
const WORD: usize = 6;

/// All groups, what is in none, and a summary.
pub(in crate::cli) fn survey(survey: &Survey, style: Style) -> String {
    let mut out = String::new();
    for entry in fold(&survey.groups) {
        match entry {
            Entry::One(group) => {
                heading(&mut out, &format!("group {}", group.id), group.outlook.prospect, &outlook(group), style);
                members(&mut out, &group.members, style);
            }
            Entry::Alike(groups) => alike(&mut out, groups, style),
        }
    }
    if !survey.ungrouped.is_empty() {
        heading(&mut out, "no group", Prospect::Cannot, "no IOMMU confines them (`passthru explain PT002`)", style);
        let last = survey.ungrouped.len() - 1;
        for (number, seen) in survey.ungrouped.iter().enumerate() {
            function(&mut out, seen, number == last, style);
        }
    }
    summary(&mut out, survey, style);
    out
}

/// `group 12  bind    passthru bind 01:00.0`.
fn heading(out: &mut String, name: &str, prospect: Prospect, rest: &str, style: Style) {
    let word = format!("{:WORD$}", prospect.word());
    let name = format!("{name:10} ");
    let column = name.chars().count() + WORD + 2;
    let word = style.paint(colour(prospect), &word);
    let indent = " ".repeat(column);
    *out += format!("{name}{word}  {}", style.wrap(column, &indent, rest)).trim_end();
    *out += "\n";
}

fn colour(prospect: Prospect) -> Colour {
    match prospect {
        Prospect::Ready => Colour::Good,
        Prospect::AfterBind => Colour::Possible,
        Prospect::InUse => Colour::Caution,
        Prospect::Host => Colour::Quiet,
        Prospect::Cannot => Colour::Bad,
    }
}

/// What the heading of a group says after the word.
pub(super) fn outlook(group: &GroupSeen) -> String {
    let Outlook { prospect, why, bind } = &group.outlook;
    match prospect {
        Prospect::Ready => {
            let ready = group.members.iter().filter_map(MemberSeen::pci).filter(|seen| seen.device.on_vfio());
            let ready: Vec<String> = ready.map(|seen| seen.device.bdf.short().to_string()).collect();
            format!("a guest can have {}", ready.join(", "))
        }
        Prospect::AfterBind => {
            let names: Vec<String> = bind.iter().map(|bdf| bdf.short().to_string()).collect();
            format!("passthru bind {}", names.join(" "))
        }
        Prospect::Host => "stays with the host".to_owned(),
        Prospect::InUse | Prospect::Cannot => why.join("; "),
    }
}

/// What is said of groups that are shown as one.
pub(super) struct Alike {
    pub prospect: Prospect,
    pub name: String,
    pub outlook: String,
    pub addresses: String,
    pub title: String,
    pub facts: String,
}

impl Alike {
    /// Virtual functions of one card, each in a group of its own; at least one group with one member.
    pub(super) fn of(groups: &[GroupSeen]) -> Alike {
        let functions: Vec<&Seen> =
            groups.iter().flat_map(|group| &group.members).filter_map(MemberSeen::pci).collect();
        let prospect = groups.first().map_or(Prospect::Cannot, |group| group.outlook.prospect);
        let ends =
            |text: &dyn Fn(&GroupSeen) -> String| groups.first().zip(groups.last()).map(|(a, b)| (text(a), text(b)));
        let (first, last) = ends(&|group| group.id.to_string()).unwrap_or_default();
        let address = |seen: &&Seen| seen.device.bdf.short().to_string();
        let card = functions.first().and_then(|seen| seen.device.physfn);
        let card = card.map_or_else(String::new, |card| format!(" of {}", card.short()));
        Alike {
            prospect,
            name: format!("groups {first}..{last}"),
            outlook: match prospect {
                Prospect::AfterBind => "passthru bind, with the address of each".to_owned(),
                Prospect::Ready => "guests can have them".to_owned(),
                _ => String::new(),
            },
            addresses: format!(
                "{} to {}",
                functions.first().map(address).unwrap_or_default(),
                functions.last().map(address).unwrap_or_default()
            ),
            title: format!(
                "{} virtual functions{card}: {}",
                functions.len(),
                functions.first().map(|seen| seen.device.short_name()).unwrap_or_default()
            ),
            facts: functions.first().map(|seen| facts(seen)).unwrap_or_default(),
        }
    }
}

fn alike(out: &mut String, groups: &[GroupSeen], style: Style) {
    let Alike { prospect, name, outlook, addresses, title, facts } = Alike::of(groups);
    heading(out, &name, prospect, &outlook, style);
    *out += &format!("└─ {}\n", style.cut(3, &format!("{addresses}, {title}")));
    *out += &format!("   {}\n", style.wrap(3, "   ", &facts));
}

fn members(out: &mut String, members: &[MemberSeen], style: Style) {
    for (number, member) in members.iter().enumerate() {
        let last = number + 1 == members.len();
        match member {
            MemberSeen::Pci(seen) => function(out, seen, last, style),
            MemberSeen::Other { name, driver } => {
                let driver = driver.as_deref().unwrap_or("no driver");
                *out += &format!("{} {}\n", branch(last), style.cut(3, &format!("{name}, no PCI device, {driver}")));
            }
        }
    }
}

fn branch(last: bool) -> &'static str {
    if last { "└─" } else { "├─" }
}

/// A function: what it is, facts, and a line for each use.
fn function(out: &mut String, seen: &Seen, last: bool, style: Style) {
    let device = &seen.device;
    let class = device.class_name.unwrap_or("device of unknown class");
    let address = format!("{} {} ", branch(last), device.bdf.short());
    let column = address.chars().count();
    let name = format!("{class}: {} [{:04x}:{:04x}]", device.short_name(), device.vendor, device.device);
    if seen.is_of_the_board() && seen.uses.is_empty() {
        *out += &format!("{address}{}\n", style.cut(column, &format!("{name}, {}", device.driver_text())));
        return;
    }
    *out += &format!("{address}{}\n", style.cut(column, &name));
    let indent = format!("{}{}", if last { " " } else { "│" }, " ".repeat(column - 1));
    let mut line = |text: &str| *out += &format!("{indent}{}\n", style.wrap(column, &indent, text));
    line(&facts(seen));
    for used in &seen.uses {
        line(&format!("used: {used}"));
    }
    if let Some(why) = &seen.quarantine {
        line(&format!("quarantined: {why}"));
    }
}

/// Driver, place, role and reset in one line.
pub(super) fn facts(seen: &Seen) -> String {
    let device = &seen.device;
    let mut facts = vec![match &device.driver_override {
        Some(only) if device.driver.as_ref() != Some(only) => {
            format!("{}, and only {only} may bind", device.driver_text())
        }
        _ => device.driver_text().to_owned(),
    }];
    if !seen.names.is_empty() {
        let names: Vec<String> = seen.names.iter().map(ToString::to_string).collect();
        facts.push(format!("called {}", names.join(" and ")));
    }
    if device.boot_display {
        facts.push("boot display".to_owned());
    }
    if let Some(card) = device.physfn {
        facts.push(format!("virtual function of {}", card.short()));
    }
    if device.max_virtual_functions > 0 {
        let (on, most) = (device.virtual_functions, device.max_virtual_functions);
        facts.push(format!("SR-IOV, {on} of {most} virtual functions on"));
    }
    if let Some(above) = seen.bridge_above {
        facts.push(format!("behind {}", above.short()));
    }
    if let Some(node) = device.numa_node {
        facts.push(format!("NUMA node {node}"));
    }
    facts.push(reset(&seen.reset));
    facts.join(", ")
}

/// The reset plan in a few words; `inspect` has all of them.
fn reset(plan: &Reset) -> String {
    match plan {
        Reset::Function { method: Some(method) } => format!("reset {method}"),
        Reset::Function { method: None } => "reset by the kernel's choice".to_owned(),
        Reset::Hot { scope, with } if with.is_empty() => format!("reset by its {scope}"),
        Reset::Hot { with, .. } => {
            let names: Vec<String> = with.iter().map(|bdf| bdf.short().to_string()).collect();
            format!("reset together with {}", names.join(", "))
        }
        Reset::None { blockers } if blockers.is_empty() => "no reset".to_owned(),
        Reset::None { blockers } => {
            let names: Vec<String> = blockers.iter().map(|other| other.bdf.short().to_string()).collect();
            format!("no reset unless {} is bound as well", names.join(", "))
        }
    }
}

/// How many groups there are of each kind, and what makes the picture incomplete.
fn summary(out: &mut String, survey: &Survey, style: Style) {
    let counts = Prospect::ALL.iter().filter(|&&prospect| survey.count(prospect) > 0);
    let counts: Vec<String> =
        counts.map(|&prospect| format!("{} {}", survey.count(prospect), prospect.word())).collect();
    *out += "\n";
    match survey.groups.len() {
        0 => {}
        1 => *out += &format!("1 IOMMU group: {}\n", counts.join(", ")),
        many => *out += &format!("{}\n", style.wrap(0, "", &format!("{many} IOMMU groups: {}", counts.join(", ")))),
    }
    let mut note = |text: String| *out += &format!("{}\n", style.wrap(0, "  ", &text));
    if survey.groups.is_empty() {
        note(
            "The host has no active IOMMU, so no device can be given to a guest: `passthru explain PT002`.".to_owned(),
        );
    }
    if let Some(option) = &survey.acs_override {
        note(format!("The groups are not real: {option} (`passthru explain PT056`)."));
    }
    if survey.hidden_processes > 0 {
        note(format!(
            "What {} processes of other users have open is not known: root sees it.",
            survey.hidden_processes
        ));
    }
}
