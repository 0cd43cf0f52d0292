//! `passthru img commit`.

use clap::Args;

use super::progress::Progress;
use super::{Image, failed, open, text};
use crate::backends::block::chain::How;
use crate::backends::block::overlay::commit;
use crate::cli::output;
use crate::error::Result;

/// Copy what an overlay has into the image that it stands on
///
/// No guest may have either of them; the image below must stand under no other overlay, which would change with it. The
/// overlay is empty afterwards.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    #[command(flatten)]
    image: Image,
    /// Leave the overlay as it is, for it to be deleted
    #[arg(short = 'd', long = "drop")]
    keep: bool,
    /// Show how far it is
    #[arg(short = 'p', long)]
    progress: bool,
    /// Print nothing
    #[arg(short = 'q', long)]
    quiet: bool,
}

pub(super) fn execute(args: &CommitArgs) -> Result<()> {
    let path = &args.image.file;
    let (top, _below) = open(path, args.image.format, &How { writable: !args.keep, ..How::default() })?;
    let mut progress = Progress::new(top.node.info().len, args.progress);
    commit(&*top.node, &text(path), &mut |at| progress.at(at))?;
    if !args.keep
        && let Some(image) = &top.image
    {
        image.empty().map_err(|error| failed(path, &error))?;
    }
    if args.quiet { Ok(()) } else { output::print("Image committed.\n") }
}
