//! `passthru img check`.

use clap::Args;
use serde::Serialize;

use super::{Image, Output, failed, open, text};
use crate::backends::block::chain::How;
use crate::backends::block::qcow2::check::{Report, check};
use crate::cli::output;
use crate::error::{Code, Error, Result};

/// Look whether the tables of an image agree
///
/// Nothing is changed; `qemu-img check -r all` mends an image. Exit codes, as qemu-img has them: 0 all is well, 2 the image is
/// damaged, 3 there are leaks, which are harmless.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    image: Image,
    #[command(flatten)]
    output: Output,
    /// Look at an image that is in use; what changes meanwhile is taken for damage
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Print nothing but what is wrong
    #[arg(short = 'q', long)]
    quiet: bool,
}

/// What was found, in the words of qemu-img.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Found {
    filename: String,
    format: String,
    check_errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    corruptions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaks: Option<u64>,
    image_end_offset: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    compressed_clusters: u64,
}

pub(super) fn execute(args: &CheckArgs) -> Result<u8> {
    let path = &args.image.file;
    let how = How { locking: args.force_share.then_some(false), top_only: true, ..How::default() };
    let (top, _) = open(path, args.image.format, &how)?;
    let Some(header) = &top.header else {
        return Err(Error::new(
            Code::ImageUnusable,
            format!("{} has the format {}, which has no tables", text(path), top.format),
        ));
    };
    let report = check(&*top.file, header).map_err(|error| failed(path, &error))?;
    if args.output.is_json() {
        output::print_json(&found(text(path), &report))?;
    } else if !args.quiet || report.corruptions + report.leaks > 0 {
        output::print(&page(&report))?;
    }
    if report.corruptions > 0 {
        let error = Error::new(Code::ImageDamaged, format!("{} is damaged", path.display()));
        output::report(&report.words.iter().fold(error, |error, words| error.evidence(words)));
    }
    Ok(match (report.corruptions, report.leaks) {
        (0, 0) => 0,
        (0, _) => 3,
        _ => 2,
    })
}

fn found(filename: String, report: &Report) -> Found {
    let some = |count: u64| Some(count).filter(|count| *count > 0);
    Found {
        filename,
        format: "qcow2".to_owned(),
        check_errors: 0,
        corruptions: some(report.corruptions),
        leaks: some(report.leaks),
        image_end_offset: report.end,
        total_clusters: report.total,
        allocated_clusters: report.allocated,
        compressed_clusters: report.compressed,
    }
}

fn page(report: &Report) -> String {
    let found = match (report.corruptions, report.leaks) {
        (0, 0) => "No errors were found on the image.\n".to_owned(),
        (0, leaks) => format!("{leaks} leaked clusters were found on the image: they waste room and do no harm.\n"),
        (corruptions, leaks) => format!("{corruptions} errors and {leaks} leaked clusters were found on the image.\n"),
    };
    let percent = report.allocated as f64 * 100.0 / report.total.max(1) as f64;
    format!(
        "{found}{}/{} = {percent:.2}% allocated, {} compressed clusters\nImage end offset: {}\n",
        report.allocated, report.total, report.compressed, report.end
    )
}
