//! `passthru img convert`.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::create::{Options, make};
use super::progress::Progress;
use super::{failed, open, text, value, whole_sectors};
use crate::backends::block::BlockNode;
use crate::backends::block::chain::{self, Format, How};
use crate::backends::block::copy::{What, copy};
use crate::backends::block::host::{self, HostFile, Kind};
use crate::error::{Code, Error, Result};
use crate::host::limits::size_text;

/// Copy a disk into an image of another format, with all that it stands on
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// What the source holds: raw or qcow2; without it its first bytes say
    #[arg(short = 'f', long = "format", value_name = "FORMAT", value_parser = value::<Format>)]
    format: Option<Format>,
    /// What to make: raw or qcow2
    #[arg(short = 'O', long = "target-format", value_name = "FORMAT", default_value = "raw", value_parser = value::<Format>)]
    target_format: Format,
    /// More about the new image: cluster_size=SIZE, preallocation=off|metadata|falloc|full
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", default_value = "")]
    options: String,
    /// Write into an image that is there, whose other bytes are lost
    #[arg(short = 'n', long)]
    no_create: bool,
    /// Show how far it is
    #[arg(short = 'p', long)]
    progress: bool,
    /// Read an image that is in use; the copy may mix times
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Print nothing, as it does anyway
    #[arg(short = 'q', long, hide = true)]
    quiet: bool,
    /// The image to copy, or a disk
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The file to make, whose former content is lost; or a disk
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

pub(super) fn execute(args: &ConvertArgs) -> Result<()> {
    let how = How { locking: args.force_share.then_some(false), ..How::default() };
    let (source, _below) = open(&args.source, args.format, &how)?;
    let len = source.node.info().len;
    let (target, blank) = target(args, whole_sectors(len))?;
    let there = target.info().len;
    if there < len {
        let (path, there, len) = (text(&args.target), size_text(there), size_text(len));
        return Err(Error::new(Code::ImageFailed, format!("{path} is too small: it has {there}, the source {len}")));
    }
    let mut progress = Progress::new(len, args.progress);
    copy(&*source.node, &*target, 0..len, What::All, blank, &mut |at| progress.at(at))
        .and_then(|()| if blank { Ok(()) } else { target.write_zeroes(len..there, true) })
        .and_then(|()| target.flush())
        .map_err(|error| failed(&args.target, &error))?;
    progress.at(len);
    Ok(())
}

/// The disk to write to, and whether it reads as zeros.
fn target(args: &ConvertArgs, len: u64) -> Result<(Arc<dyn BlockNode>, bool)> {
    let path: &Path = &args.target;
    let options = Options::read(&args.options)?;
    let device = path.metadata().is_ok_and(|data| data.file_type().is_block_device());
    if device && args.target_format == Format::Raw {
        return Ok((Arc::new(HostFile::open(host::Options::plain(path, true), Kind::Device)?), false));
    }
    if !args.no_create {
        make(path, args.target_format, len, &options, None)?;
    }
    let chain = chain::open(path, Some(args.target_format), &How { writable: true, ..How::default() })?;
    let top = chain.first().map(|top| top.node.clone());
    let node = top.ok_or_else(|| failed(path, &std::io::ErrorKind::NotFound.into()))?;
    Ok((node, !args.no_create))
}
