//! `passthru list`: the guests that run.

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::ctl::client::{Client, LIMIT};
use super::ctl::{QUERY, status};
use super::output;
use crate::error::Result;
use crate::host::Host;
use crate::monitor::folder::{Folders, SOCKET};
use crate::monitor::message;

/// List the guests that run
///
/// Users see their own guests, root those of /run/passthru/vm, among them all services.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A guest as `--json` shows it.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row {
    name: String,
    pid: Option<u64>,
    /// QMP's word; `unknown`: it does not answer.
    state: String,
    /// Seconds since 1970.
    since: Option<u64>,
    /// Addresses of its devices on the host.
    devices: Vec<String>,
}

pub(super) fn execute(args: &ListArgs, host: &Host) -> Result<()> {
    let folders = Folders::of_process(host);
    let rows: Vec<Row> = folders
        .all()
        .into_iter()
        .filter_map(|(name, folder)| match Client::connect(&name, &folder.join(SOCKET)) {
            // What a killed process has left, or another user's.
            Ok(None) => None,
            Ok(Some(mut guest)) => Some(row(name, &guest.run(QUERY, &json!({}), Some(LIMIT)).unwrap_or_default())),
            Err(_) => Some(row(name, &Value::Null)),
        })
        .collect();
    if args.json { output::print_json(&rows) } else { output::print(&table(&rows, message::now().as_secs())) }
}

fn row(name: String, vm: &Value) -> Row {
    let devices = vm["devices"].as_array().into_iter().flatten();
    Row {
        name,
        pid: vm["pid"].as_u64(),
        state: vm["status"].as_str().unwrap_or("unknown").to_owned(),
        since: vm["since"].as_u64(),
        devices: devices.filter_map(|device| device["host"].as_str().map(str::to_owned)).collect(),
    }
}

/// Columns of equal width, as many as there are guests in lines.
fn table(rows: &[Row], now: u64) -> String {
    if rows.is_empty() {
        return "no guest runs that you may reach\n".to_owned();
    }
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let header = ["NAME", "PID", "STATE", "UP", "DEVICES"].map(str::to_owned);
    let lines = rows.iter().map(|row| {
        let up = row.since.map_or("-".to_owned(), |since| status::duration(now.saturating_sub(since)));
        let devices = if row.devices.is_empty() { "-".to_owned() } else { row.devices.join(" ") };
        [row.name.clone(), number(row.pid), row.state.clone(), up, devices]
    });
    let cells: Vec<[String; 5]> = std::iter::once(header).chain(lines).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ctl::tests::vm;
    use super::*;

    #[test]
    fn a_line_for_each_guest() {
        let rows = [row("router".into(), &vm()), row("stuck".into(), &Value::Null)];
        assert_eq!(
            table(&rows, 1_700_000_300),
            "NAME    PID  STATE    UP     DEVICES\n\
             router  77   running  5 min  0000:01:00.0\n\
             stuck   -    unknown  -      -\n"
        );
        assert_eq!(table(&[], 0), "no guest runs that you may reach\n");
    }
}
