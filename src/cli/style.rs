//! What the terminal offers: its width, and whether it may be coloured. Colours only ever repeat what words say.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};

/// How text for a person is written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// Columns; `None`: lines are as long as they are (a file, a pipe).
    width: Option<usize>,
    colour: bool,
}

/// A colour, by what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Good,
    Possible,
    Caution,
    Bad,
    Quiet,
}

impl Colour {
    /// The SGR parameter (ECMA-48, 8.3.117).
    fn parameter(self) -> &'static str {
        match self {
            Colour::Good => "32",
            Colour::Possible => "36",
            Colour::Caution => "33",
            Colour::Bad => "31",
            Colour::Quiet => "2",
        }
    }
}

impl Style {
    /// For standard output as it is.
    pub(super) fn of_stdout() -> Style {
        if !io::stdout().is_terminal() {
            return Style::default();
        }
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_none_or(|term| term == OsStr::new("dumb"));
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        Style { width: width.filter(|width| *width > 0), colour: !forbidden }
    }

    /// For a terminal of `width` columns without colours.
    #[cfg(test)]
    pub(super) fn of_width(width: usize) -> Style {
        Style { width: Some(width), colour: false }
    }

    /// For a terminal with colours and any width.
    #[cfg(test)]
    pub(super) fn coloured() -> Style {
        Style { width: None, colour: true }
    }

    /// `text` in a colour, if there are colours.
    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour.parameter()) } else { text.to_owned() }
    }

    /// As much of `text` as fits into a line from `column` on; what is cut off is shown by an ellipsis.
    pub(super) fn cut(self, column: usize, text: &str) -> String {
        let Some(room) = self.width.map(|width| width.saturating_sub(column).max(1)) else { return text.to_owned() };
        if text.chars().count() <= room {
            return text.to_owned();
        }
        text.chars().take(room - 1).chain(['…']).collect()
    }

    /// `text` in lines that end before the last column; each after the first begins with `indent`.
    pub(super) fn wrap(self, column: usize, indent: &str, text: &str) -> String {
        let Some(room) = self.width.map(|width| width.saturating_sub(column).max(MIN_ROOM)) else {
            return text.to_owned();
        };
        super::output::wrap(text, room).replace('\n', &format!("\n{indent}"))
    }
}

/// Text is wrapped into no less than this many columns: a narrower terminal breaks the lines by itself.
const MIN_ROOM: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit() {
        let style = Style::of_width(40);
        assert_eq!(style.cut(36, "12345"), "123…");
        assert_eq!(style.cut(35, "12345"), "12345");
        assert_eq!(Style::default().cut(36, "12345"), "12345");
        assert_eq!(style.cut(99, "12345"), "…");
        assert_eq!(
            style.wrap(4, "    ", "one two three four five six seven eight"),
            "one two three four five six seven\n    eight"
        );
    }

    #[test]
    fn colours_are_only_where_they_may_be() {
        assert_eq!(Style::coloured().paint(Colour::Good, "ready"), "\x1b[32mready\x1b[0m");
        assert_eq!(Style::default().paint(Colour::Good, "ready"), "ready");
    }
}
