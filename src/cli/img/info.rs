//! `passthru img info`.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;

use clap::Args;
use serde::Serialize;

use super::{Image, Output, text};
use crate::backends::block::chain::{self, How, Layer};
use crate::cli::output;
use crate::error::Result;
use crate::host::limits::size_text;

/// Show what an image is, and what it stands on
#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    image: Image,
    #[command(flatten)]
    output: Output,
    /// Also each image below it
    #[arg(long)]
    backing_chain: bool,
    /// Look at an image that is in use; what is shown may be changing
    #[arg(short = 'U', long)]
    force_share: bool,
}

/// An image, in the words of qemu-img.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    filename: String,
    format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_size: Option<u64>,
    dirty_flag: bool,
    #[serde(flatten)]
    qcow2: Option<Qcow2Info>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2Info {
    cluster_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    format_specific: Specific,
}

#[derive(Debug, Serialize)]
struct Specific {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Data,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    compat: &'static str,
    compression_type: &'static str,
    lazy_refcounts: bool,
    refcount_bits: u32,
    corrupt: bool,
    extended_l2: bool,
}

pub(super) fn execute(args: &InfoArgs) -> Result<()> {
    let locking = args.force_share.then_some(false);
    let how = How { locking, top_only: !args.backing_chain, ..How::default() };
    let chain = chain::open(&args.image.file, args.image.format, &how)?;
    let mut all: Vec<Info> = chain.iter().map(info).collect();
    if !args.output.is_json() {
        let pages: Vec<String> = all.iter().map(page).collect();
        return output::print(&pages.join("\n"));
    }
    if args.backing_chain { output::print_json(&all) } else { output::print_json(&all.remove(0)) }
}

fn info(layer: &Layer) -> Info {
    let qcow2 = layer.header.as_ref().map(|header| {
        let full = header.backing.as_ref().and_then(|name| chain::backing_path(&layer.path, name).ok());
        Qcow2Info {
            cluster_size: header.cluster_size(),
            backing_filename: header.backing.clone(),
            full_backing_filename: full.map(|path| text(&path)),
            backing_filename_format: header.backing_format.clone(),
            format_specific: Specific {
                kind: "qcow2",
                data: Data {
                    compat: if header.version == 2 { "0.10" } else { "1.1" },
                    compression_type: "zlib",
                    lazy_refcounts: header.lazy_refcounts,
                    refcount_bits: 1 << header.refcount_order,
                    corrupt: false,
                    extended_l2: false,
                },
            },
        }
    });
    Info {
        virtual_size: layer.node.info().len,
        filename: text(&layer.path),
        format: layer.format.to_string(),
        actual_size: std::fs::metadata(&layer.path).ok().map(|data| data.blocks() * 512),
        dirty_flag: false,
        qcow2,
    }
}

fn page(info: &Info) -> String {
    let mut page = format!("image: {}\nfile format: {}\n", info.filename, info.format);
    // Writing to a String does not fail.
    let _ = writeln!(page, "virtual size: {} ({} bytes)", size_text(info.virtual_size), info.virtual_size);
    if let Some(size) = info.actual_size {
        let _ = writeln!(page, "disk size: {}", size_text(size));
    }
    let Some(qcow2) = &info.qcow2 else { return page };
    let _ = writeln!(page, "cluster_size: {}", qcow2.cluster_size);
    if let Some(name) = &qcow2.backing_filename {
        let full = qcow2.full_backing_filename.as_ref().filter(|full| *full != name);
        let _ = match full {
            Some(full) => writeln!(page, "backing file: {name} (actual path: {full})"),
            None => writeln!(page, "backing file: {name}"),
        };
    }
    if let Some(format) = &qcow2.backing_filename_format {
        let _ = writeln!(page, "backing file format: {format}");
    }
    let data = &qcow2.format_specific.data;
    let _ = write!(
        page,
        "Format specific information:\n    compat: {}\n    compression type: {}\n    lazy refcounts: {}\n    refcount bits: {}\n",
        data.compat, data.compression_type, data.lazy_refcounts, data.refcount_bits
    );
    page
}
