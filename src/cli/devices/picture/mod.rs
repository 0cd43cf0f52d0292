//! The survey as a picture (SVG 1.1): what can be given to a guest, at a glance. Every colour has its word beside it.
//!
//! Text of the host is put into text nodes only, which the crate escapes; attributes hold numbers and constants.

mod cards;

use svg::Document;
use svg::node::element::{Circle, Group, Path, Rectangle, Text, Title};

use crate::host::survey::{Prospect, Survey};
use cards::{Card, Row};

/// All sizes are in user units, which a browser shows as pixels.
const WIDTH: f64 = 1040.0;
const MARGIN: f64 = 32.0;
const INDENT: f64 = 30.0;
/// Cards of bridges behind bridges are not moved to the right any further than this.
const MAX_DEPTH: usize = 8;
const GAP: f64 = 12.0;
const BAND: f64 = 6.0;
const PADDING: f64 = 16.0;
/// From the top of one line to the next.
const LINE: f64 = 19.0;
const HEADING: f64 = 38.0;
const HEADER: f64 = 124.0;
const NOTE: f64 = 22.0;
/// Where the text of a member begins, after its address.
const ADDRESS: f64 = 74.0;
/// The average widths of letters, as parts of the size of the font: a line is cut so that it fits.
const SANS: f64 = 0.56;
const MONO: f64 = 0.61;
const BOLD: f64 = 0.58;
/// Room for the name of a group at least.
const NAME: f64 = 78.0;

const SANS_FONTS: &str = "Inter, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif";
const MONO_FONTS: &str = "'JetBrains Mono', 'Liberation Mono', 'DejaVu Sans Mono', monospace";
const PAPER: &str = "#f4f6f9";
const CARD: &str = "#ffffff";
const EDGE: &str = "#d5dbe3";
const WIRE: &str = "#aab4c1";
const INK: &str = "#1c2733";
const FAINT: &str = "#5b6876";

/// The survey as an SVG document.
pub(in crate::cli) fn picture(survey: &Survey) -> String {
    let cards = cards::cards(survey);
    let notes = notes(survey);
    let mut top = HEADER + NOTE * notes.len() as f64;
    let places: Vec<Place> = cards
        .iter()
        .map(|card| {
            let place = Place { left: MARGIN + INDENT * card.depth.min(MAX_DEPTH) as f64, top, height: height(card) };
            top += place.height + GAP;
            place
        })
        .collect();
    let bottom = top - GAP + MARGIN;
    let mut document = Document::new()
        .set("viewBox", (0, 0, WIDTH, bottom))
        .set("width", WIDTH)
        .set("height", bottom)
        .set("role", "img")
        .set("font-family", SANS_FONTS)
        .add(Title::new("Devices by IOMMU groups, and which of them a guest can have"))
        .add(Rectangle::new().set("width", WIDTH).set("height", bottom).set("fill", PAPER))
        .add(header(survey, &notes));
    for (card, place) in cards.iter().zip(&places) {
        if let Some(above) = card.above.and_then(|above| places.get(above)) {
            document = document.add(wire(above, place));
        }
    }
    for (card, place) in cards.iter().zip(&places) {
        document = document.add(draw(card, place));
    }
    format!("{document}\n")
}

/// Where a card is.
struct Place {
    left: f64,
    top: f64,
    height: f64,
}

fn height(card: &Card) -> f64 {
    let lines: usize = card.rows.iter().map(lines).sum();
    let gaps = card.rows.len().saturating_sub(1) as f64 * 5.0;
    HEADING + lines as f64 * LINE + gaps + 9.0
}

fn lines(row: &Row) -> usize {
    1 + usize::from(row.facts.is_some()) + row.uses.len()
}

/// The title, a legend with the number of groups of each kind, and what makes the picture incomplete.
fn header(survey: &Survey, notes: &[String]) -> Group {
    let mut group = Group::new()
        .add(sans("Devices by IOMMU groups", MARGIN, 48.0, 24.0, INK).set("font-weight", "700"))
        .add(sans("A group goes to one guest, or stays with the host.", MARGIN, 70.0, 13.0, FAINT));
    let mut left = MARGIN;
    for prospect in Prospect::ALL {
        let count = survey.count(prospect) + usize::from(prospect == Prospect::Cannot && !survey.ungrouped.is_empty());
        let word = format!("{count} {}", prospect.word());
        let width = pill_width(&word);
        let opacity = if count == 0 { 0.35 } else { 1.0 };
        group = group.add(pill(&word, left, 84.0, colour(prospect)).set("opacity", opacity));
        left += width + 10.0;
    }
    for (number, note) in notes.iter().enumerate() {
        let top = HEADER + NOTE * number as f64;
        group = group.add(sans(note, MARGIN, top + 8.0, 13.0, colour(Prospect::Cannot)).set("font-weight", "600"));
    }
    group
}

fn notes(survey: &Survey) -> Vec<String> {
    let no_iommu = survey.groups.is_empty().then(|| "The host has no active IOMMU (PT002).".to_owned());
    let not_real = survey.acs_override.as_ref().map(|option| format!("The groups are not real: {option} (PT056)."));
    no_iommu.into_iter().chain(not_real).collect()
}

fn colour(prospect: Prospect) -> &'static str {
    match prospect {
        Prospect::Ready => "#1a7f4b",
        Prospect::AfterBind => "#1f6fc4",
        Prospect::InUse => "#b4620a",
        Prospect::Host => "#7a8794",
        Prospect::Cannot => "#c22f3a",
    }
}

/// The line from the card of a bridge to one behind it.
fn wire(above: &Place, place: &Place) -> Path {
    let (x, from) = (above.left + INDENT / 2.0, above.top + above.height);
    let (to, end) = (place.top + HEADING / 2.0, place.left);
    Path::new()
        .set("d", format!("M{x} {from}V{}q0 8 8 8H{end}", to - 8.0))
        .set("fill", "none")
        .set("stroke", WIRE)
        .set("stroke-width", 2)
}

fn draw(card: &Card, place: &Place) -> Group {
    let Place { left, top, height } = *place;
    let width = WIDTH - MARGIN - left;
    let colour = colour(card.prospect);
    let pill_left = WIDTH - MARGIN - PADDING - pill_width(card.prospect.word());
    let name_width = (card.name.chars().count() as f64 * 14.0 * BOLD + 14.0).max(NAME);
    let room = pill_left - left - PADDING - name_width - 12.0;
    let at = (left + PADDING + name_width, top + 25.0);
    // A command is to be typed as it stands.
    let outlook = match card.prospect {
        Prospect::AfterBind => mono(&cut(&card.outlook, room, 12.5, MONO), at.0, at.1, 12.5, colour),
        _ => sans(&cut(&card.outlook, room, 13.0, SANS), at.0, at.1, 13.0, colour),
    };
    let mut group = Group::new()
        .add(rounded(left, top, width, height, 9.0).set("fill", CARD).set("stroke", EDGE).set("stroke-width", 1))
        .add(
            Path::new()
                .set(
                    "d",
                    format!(
                        "M{} {top}h-{}q-9 0 -9 9v{}q0 9 9 9h{}z",
                        left + BAND + 3.0,
                        BAND + 3.0 - 9.0,
                        height - 18.0,
                        BAND + 3.0 - 9.0
                    ),
                )
                .set("fill", colour),
        )
        .add(sans(&card.name, left + PADDING, top + 25.0, 14.0, INK).set("font-weight", "700"))
        .add(outlook)
        .add(pill(card.prospect.word(), pill_left, top + 9.0, colour));
    let mut line = top + HEADING + 13.0;
    for row in &card.rows {
        group = draw_row(group, row, left + PADDING, &mut line);
        line += 5.0;
    }
    group
}

/// A member's lines; `line` is the base line of the next.
fn draw_row(group: Group, row: &Row, left: f64, line: &mut f64) -> Group {
    let room = WIDTH - MARGIN - PADDING - left;
    let long = row.address.chars().count() as f64 * 12.5 * MONO + 12.0;
    let indent = ADDRESS.max(long);
    let mut group = group.add(mono(&row.address, left, *line, 12.5, FAINT)).add(sans(
        &cut(&row.title, room - indent, 13.5, SANS),
        left + indent,
        *line,
        13.5,
        INK,
    ));
    *line += LINE;
    if let Some(facts) = &row.facts {
        group = group.add(sans(&cut(facts, room - indent, 12.0, SANS), left + indent, *line - 1.0, 12.0, FAINT));
        *line += LINE;
    }
    for used in &row.uses {
        let colour = colour(Prospect::InUse);
        group = group
            .add(Circle::new().set("cx", left + indent + 4.0).set("cy", *line - 5.0).set("r", 3.5).set("fill", colour))
            .add(sans(&cut(used, room - indent - 14.0, 12.5, SANS), left + indent + 14.0, *line - 1.0, 12.5, colour));
        *line += LINE;
    }
    group
}

fn rounded(left: f64, top: f64, width: f64, height: f64, radius: f64) -> Rectangle {
    Rectangle::new().set("x", left).set("y", top).set("width", width).set("height", height).set("rx", radius)
}

fn pill_width(word: &str) -> f64 {
    word.chars().count() as f64 * 7.2 + 22.0
}

/// A word on its colour.
fn pill(word: &str, left: f64, top: f64, colour: &str) -> Group {
    let width = pill_width(word);
    Group::new().add(rounded(left, top, width, 22.0, 11.0).set("fill", colour)).add(
        sans(word, left + width / 2.0, top + 15.5, 12.5, "#ffffff")
            .set("text-anchor", "middle")
            .set("font-weight", "600"),
    )
}

fn sans(text: &str, x: f64, y: f64, size: f64, colour: &str) -> Text {
    Text::new(printable(text)).set("x", x).set("y", y).set("font-size", size).set("fill", colour)
}

fn mono(text: &str, x: f64, y: f64, size: f64, colour: &str) -> Text {
    sans(text, x, y, size, colour).set("font-family", MONO_FONTS)
}

/// As much of `text` as fits into `room` at this size of a font with letters of this average width.
fn cut(text: &str, room: f64, size: f64, letter: f64) -> String {
    let most = (room / (size * letter)).max(1.0) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// `text` without the characters that XML 1.0 forbids (section 2.2): a process can call itself anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_cannot_break_the_document() {
        assert_eq!(printable("a\u{1b}[31m\u{0}b\u{ffff}"), "a\u{fffd}[31m\u{fffd}b\u{fffd}");
        let text = sans("<script>&\"", 0.0, 0.0, 1.0, INK).to_string();
        assert!(text.contains("&lt;script&gt;&amp;"), "{text}");
    }

    #[test]
    fn text_is_cut_to_its_room() {
        assert_eq!(cut("12345", 100.0, 10.0, 0.5), "12345");
        assert_eq!(cut("12345", 20.0, 10.0, 0.5), "123…");
        assert_eq!(cut("12345", -5.0, 10.0, 0.5), "…");
    }
}
