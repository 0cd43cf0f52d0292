//! passthru.toml(5), the page about VM files: the keys are the options of `passthru run`, and so is what is said of them.

use clap::{Arg, ArgAction, Command};
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::cli::vm_file::{has_properties, options};

/// The file.
pub(super) const NAME: &str = "passthru.toml.5";
/// Installed with the package.
const EXAMPLE: &str = include_str!("../../../packaging/examples/router.toml");

/// The page; `run` is the declaration of that command.
pub(super) fn page(run: &Command) -> String {
    let mut page = Roff::new();
    page.control("TH", ["passthru.toml", "5"]);
    page.control("SH", ["NAME"]);
    page.text([roman("passthru.toml - VM files of passthru(1)")]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman("/etc/passthru/"), italic("NAME"), roman(".toml")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([
        roman("A guest as a file in TOML: "),
        bold("passthru run "),
        italic("NAME"),
        roman(
            " starts it in a terminal, and the service passthru@NAME as a service. The keys are the options of passthru-run(1) \
             without their dashes, which also says what the values may be. Devices are added in the order in which they stand.",
        ),
    ]);
    page.control("SH", ["KEYS"]);
    let heading = run.get_arguments().find(|arg| arg.get_id() == "nodefaults").and_then(Arg::get_help_heading);
    let is_key = |arg: &&Arg| !arg.is_hide_set() && (heading.is_none() || arg.get_help_heading() != heading);
    for arg in options(run).filter(is_key) {
        let Some(name) = arg.get_long() else { continue };
        page.control("TP", []);
        page.text([bold(name), roman(format!(" = {}", kind(arg)))]);
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        page.text(paragraphs(&help));
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("nf", []);
    page.text(EXAMPLE.lines().flat_map(|line| [roman(line), roman("\n")]).collect::<Vec<Inline>>());
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text([roman("passthru-run(1), passthru-convert(1), passthru-check(1)")]);
    page.render()
}

/// What kind of value an option's key has.
fn kind(arg: &Arg) -> &'static str {
    let many = matches!(arg.get_action(), ArgAction::Append);
    match (arg.get_action().takes_values(), has_properties(arg), many) {
        (false, ..) => "true or false",
        (true, true, true) => "texts or tables, one for each",
        (true, true, false) => "a text, or a table of its properties",
        (true, false, true) => "texts, one for each",
        (true, false, false) => "a text or a number",
    }
}

fn paragraphs(text: &str) -> Vec<Inline> {
    vec![roman(text.split_whitespace().collect::<Vec<_>>().join(" "))]
}
