//! `passthru img`: disk images, in the words of qemu-img.

mod check;
mod commit;
mod convert;
mod create;
mod info;
mod progress;
mod resize;
mod snapshot;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::backends::block::chain::{self, Format, How, Layer};
use crate::error::{Error, Result};
use crate::object::PropValue;

/// Make, inspect and convert disk images
///
/// The words are those of qemu-img, and its images and these are the same. docs/disks.md has examples.
#[derive(Debug, Args)]
pub(super) struct ImgArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::CreateArgs),
    Info(info::InfoArgs),
    Check(check::CheckArgs),
    Convert(convert::ConvertArgs),
    Resize(resize::ResizeArgs),
    Snapshot(snapshot::SnapshotArgs),
    Commit(commit::CommitArgs),
}

pub(super) fn execute(args: &ImgArgs) -> Result<u8> {
    match &args.command {
        Command::Create(args) => create::execute(args),
        Command::Info(args) => info::execute(args),
        Command::Check(args) => return check::execute(args),
        Command::Convert(args) => convert::execute(args),
        Command::Resize(args) => resize::execute(args),
        Command::Snapshot(args) => snapshot::execute(args),
        Command::Commit(args) => commit::execute(args),
    }
    .map(|()| 0)
}

/// How output is written: qemu-img's `--output`.
#[derive(Debug, Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The same by qemu-img's name: human or json
    #[arg(long, value_name = "FORM", value_parser = ["human", "json"])]
    output: Option<String>,
}

impl Output {
    fn is_json(&self) -> bool {
        self.json || self.output.as_deref() == Some("json")
    }
}

/// A value of a property, as an argument.
fn value<T: PropValue>(text: &str) -> Result<T, String> {
    T::parse(text).map_err(|invalid| invalid.to_string())
}

/// Opens an image with its chain; the top one first, which is there.
fn open(path: &Path, format: Option<Format>, how: &How) -> Result<(Layer, Vec<Layer>)> {
    let mut chain = chain::open(path, format, how)?;
    let top = chain.remove(0);
    Ok((top, chain))
}

/// An error of reading or writing an image.
fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(crate::error::Code::ImageFailed, format!("{} could not be read or written", path.display()))
        .evidence(crate::error::explain_io(error))
}

/// A disk has whole sectors.
fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(512).unwrap_or(size)
}

/// A file's name as JSON and headers have it.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The arguments that name an image.
#[derive(Debug, Args)]
struct Image {
    /// What the file holds: raw or qcow2; without it its first bytes say
    #[arg(short = 'f', long = "format", value_name = "FORMAT", value_parser = value::<Format>)]
    format: Option<Format>,
    /// The image
    #[arg(value_name = "FILE")]
    file: PathBuf,
}
