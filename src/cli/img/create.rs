//! `passthru img create`.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::{failed, text, value, whole_sectors};
use crate::backends::block::chain::{self, Format, How};
use crate::backends::block::overlay::{new_file, new_image};
use crate::backends::block::qcow2::create::{New, Preallocation};
use crate::cli::output;
use crate::error::{Code, Error, Result};
use crate::host::limits::size_text;
use crate::object::{Args, Props, Size, props};

/// Make a disk image
///
/// A raw image is a file with holes. A qcow2 image grows as it is written; with -b it is an overlay of another image, which is
/// no longer written then.
#[derive(Debug, ClapArgs)]
pub(super) struct CreateArgs {
    /// What to make: raw or qcow2
    #[arg(short = 'f', long = "format", value_name = "FORMAT", default_value = "raw", value_parser = value::<Format>)]
    format: Format,
    /// The image that the new one stands on
    #[arg(short = 'b', long = "backing", value_name = "FILE")]
    backing: Option<String>,
    /// What the backing file holds: raw or qcow2
    #[arg(short = 'F', long = "backing-format", value_name = "FORMAT", value_parser = value::<Format>)]
    backing_format: Option<Format>,
    /// Do not look at the backing file, which need not be there
    #[arg(short = 'u', long = "backing-unsafe", requires = "backing")]
    unchecked: bool,
    /// More about the new image: cluster_size=SIZE, preallocation=off|metadata|falloc|full
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", default_value = "")]
    options: String,
    /// Print nothing
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The file to make; what it held before is lost
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Length of the disk, such as 20G; with a backing file the default is its length
    #[arg(value_name = "SIZE", value_parser = value::<Size>)]
    size: Option<Size>,
}

props! {
    /// What `-o` says of a new image, in qemu-img's words.
    pub(super) struct Options {
        /// Bytes of a cluster: a power of two, 512 to 2M
        #[name = "cluster_size"]
        cluster_size: Size = "64K",
        /// What is taken of the file system at once
        preallocation: Preallocation = "off",
        /// The backing file, as -b
        #[name = "backing_file"]
        backing_file: Option<String>,
        /// Its format, as -F
        #[name = "backing_fmt"]
        backing_fmt: Option<Format>,
    }
}

impl Options {
    /// What the user wrote after `-o`.
    pub(super) fn read(words: &str) -> Result<Options> {
        let mut args = Args::parse("-o", None, words)?;
        let options = Options::parse(&mut args)?;
        args.finish()?;
        Ok(options)
    }
}

/// What was made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Made {
    filename: String,
    format: String,
    virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
}

pub(super) fn execute(args: &CreateArgs) -> Result<()> {
    let options = Options::read(&args.options)?;
    let backing = args.backing.clone().or(options.backing_file.clone());
    let backing = match backing {
        None => None,
        Some(name) => Some(of_backing(args, &options, name)?),
    };
    let asked = args.size.map(|size| size.0).or(backing.as_ref().and_then(|backing| backing.len));
    let Some(size) = asked.map(whole_sectors) else {
        return Err(Error::new(Code::Usage, "the length of the disk is missing").fix("add it, such as 20G"));
    };
    let backing = backing.map(|backing| (backing.name, backing.format.to_string()));
    make(&args.file, args.format, size, &options, backing.clone())?;
    let filename = text(&args.file);
    if args.json {
        let backing_filename = backing.map(|(name, _)| name);
        let format = args.format.to_string();
        return output::print_json(&Made { filename, format, virtual_size: size, backing_filename });
    }
    if args.quiet {
        return Ok(());
    }
    let on = backing.map_or(String::new(), |(name, format)| format!(", on {name} ({format})"));
    output::print(&format!("made {filename}: {}, {} ({size} bytes){on}\n", args.format, size_text(size)))
}

/// Makes an image, instead of what the file held.
pub(super) fn make(
    path: &Path,
    format: Format,
    size: u64,
    options: &Options,
    backing: Option<(String, String)>,
) -> Result<()> {
    let file = new_file(path, true)?;
    let done = match format {
        Format::Raw => match options.preallocation {
            Preallocation::Off | Preallocation::Metadata => file.resize(size),
            Preallocation::Falloc => file.resize(size).and_then(|()| file.write_zeroes(0..size, false)),
            Preallocation::Full => {
                file.resize(size).and_then(|()| crate::backends::block::io::write_plain_zeroes(&*file, 0..size))
            }
        },
        Format::Qcow2 => {
            let (cluster_size, preallocation) = (options.cluster_size.0, options.preallocation);
            return new_image(&file, path, &New { size, cluster_size, preallocation, backing });
        }
    };
    done.and_then(|()| file.flush()).map_err(|error| failed(path, &error))
}

/// A backing file, as the header will name it.
struct Backing {
    name: String,
    format: Format,
    /// Its length, if it was looked at.
    len: Option<u64>,
}

fn of_backing(args: &CreateArgs, options: &Options, name: String) -> Result<Backing> {
    if args.format == Format::Raw {
        return Err(Error::new(Code::Usage, "a raw image stands on no other").fix("add `-f qcow2`"));
    }
    let Some(format) = args.backing_format.or(options.backing_fmt) else {
        return Err(
            Error::new(Code::Usage, "the format of the backing file is missing").fix("add `-F raw` or `-F qcow2`")
        );
    };
    // The header's name counts from the folder of the new image, here and whenever it is opened.
    let path = chain::backing_path(&args.file, &name)?;
    if args.unchecked {
        return Ok(Backing { name, format, len: None });
    }
    let chain = chain::open(&path, Some(format), &How::default())?;
    let len = chain.first().map(|top| top.node.info().len);
    Ok(Backing { name, format, len })
}
