//! `passthru explain`: the table of error codes.

use clap::Args;
use serde::Serialize;

use super::output;
use crate::error::{Class, Code, Error, Result};

/// Explain an error code, or list all of them
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The code of an error message, such as PT012; without it every code is listed
    code: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A code as `--json` shows it.
#[derive(Serialize)]
struct Row {
    code: String,
    class: &'static str,
    exit_code: u8,
    title: &'static str,
    text: &'static str,
}

/// Columns of the explanation's text.
const WIDTH: usize = 80;

pub(super) fn execute(args: &ExplainArgs) -> Result<()> {
    match (&args.code, args.json) {
        (None, false) => output::print(&list()),
        (None, true) => output::print_json(&Code::ALL.iter().copied().map(row).collect::<Vec<_>>()),
        (Some(text), json) => {
            let code = find(text)?;
            if json { output::print_json(&row(code)) } else { output::print(&page(code)) }
        }
    }
}

pub(super) fn find(text: &str) -> Result<Code> {
    Code::parse(text).ok_or_else(|| {
        Error::new(Code::Usage, format!("there is no error code `{text}`")).fix("`passthru explain` lists the codes")
    })
}

fn list() -> String {
    Code::ALL.iter().map(|code| format!("{code}  {}\n", code.entry().title)).collect()
}

pub(super) fn page(code: Code) -> String {
    let entry = code.entry();
    let text = output::wrap(entry.text, WIDTH);
    let (_, who) = meaning(entry.class);
    format!("{code}: {}\n\n{text}\n\nExit code {}: {who}.\n", entry.title, entry.class.exit_code())
}

fn row(code: Code) -> Row {
    let entry = code.entry();
    Row {
        code: code.to_string(),
        class: meaning(entry.class).0,
        exit_code: entry.class.exit_code(),
        title: entry.title,
        text: entry.text,
    }
}

/// A class's word in JSON, and what it means.
pub(super) fn meaning(class: Class) -> (&'static str, &'static str) {
    match class {
        Class::Usage => ("usage", "the command line is wrong"),
        Class::Host => ("host", "the host is not ready"),
        Class::Device => ("device", "a device is at fault"),
        Class::Guest => ("guest", "the guest is at fault"),
    }
}
