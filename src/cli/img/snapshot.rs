//! `passthru img snapshot`.

use clap::Args;
use serde::Serialize;

use super::{Image, Output, failed, open, text};
use crate::backends::block::chain::How;
use crate::backends::block::qcow2::snapshots::{self, Snapshot};
use crate::cli::output;
use crate::error::{Code, Error, Result};
use crate::host::limits::size_text;

/// Show the snapshots that QEMU has made inside an image
///
/// passthru makes snapshots as overlays instead, which need no second set of tables: `passthru img create -f qcow2 -b FILE -F
/// qcow2 OVERLAY`, and `passthru img commit OVERLAY` to go on without. An image with snapshots inside can be used, and keeps
/// them.
#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    #[command(flatten)]
    image: Image,
    /// List them, as it does anyway
    #[arg(short = 'l', long, group = "what")]
    list: bool,
    /// qemu-img makes one so
    #[arg(short = 'c', long, value_name = "NAME", group = "what", hide = true)]
    create: Option<String>,
    /// qemu-img goes back to one so
    #[arg(short = 'a', long, value_name = "NAME", group = "what", hide = true)]
    apply: Option<String>,
    /// qemu-img deletes one so
    #[arg(short = 'd', long, value_name = "NAME", group = "what", hide = true)]
    delete: Option<String>,
    /// Look at an image that is in use; what is shown may be changing
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    output: Output,
}

/// A snapshot, in the words of qemu-img.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    id: String,
    name: String,
    vm_state_size: u64,
    date_sec: u32,
    date_nsec: u32,
}

pub(super) fn execute(args: &SnapshotArgs) -> Result<()> {
    let path = &args.image.file;
    if args.create.is_some() || args.apply.is_some() || args.delete.is_some() {
        return Err(Error::new(Code::Usage, "passthru makes its snapshots as overlays, not inside of an image")
            .evidence(format!("image {}", path.display()))
            .fix(format!("`passthru img create -f qcow2 -b {} -F qcow2 OVERLAY` makes one", path.display())));
    }
    let how = How { locking: args.force_share.then_some(false), top_only: true, ..How::default() };
    let (top, _) = open(path, args.image.format, &how)?;
    let all = match &top.header {
        None => Vec::new(),
        Some(header) => snapshots::read(&*top.file, header).map_err(|error| failed(path, &error))?,
    };
    if args.output.is_json() {
        return output::print_json(&all.into_iter().map(shown).collect::<Vec<_>>());
    }
    if all.is_empty() {
        return output::print(&format!("{}: no snapshots inside\n", text(path)));
    }
    let line = |it: &Snapshot| format!("{:10} {:24} {}\n", it.id, it.name, size_text(it.vm_state_size));
    output::print(&format!("{:10} {:24} VM state\n{}", "id", "name", all.iter().map(line).collect::<String>()))
}

fn shown(it: Snapshot) -> Shown {
    let Snapshot { id, name, vm_state_size, date_sec, date_nsec, .. } = it;
    Shown { id, name, vm_state_size, date_sec, date_nsec }
}
