//! `passthru devices`: what the host has, and what of it a guest can have.

mod fold;
mod picture;
mod text;
mod usb;

use std::path::PathBuf;

use clap::Args;

pub(in crate::cli) use picture::picture;
pub(in crate::cli) use text::survey as text;
pub(in crate::cli) use usb::usb;

use super::output;
use super::style::Style;
use super::sysroot::Sysroot;
use crate::error::{Code, Error, Result, explain_io};
use crate::host::Host;

/// Show the devices of this host by IOMMU groups, what each is used for, and whether a guest can have it
///
/// A group goes to one guest or stays with the host. Its line says: ready (a guest can have it now), bind (it can after
/// that command), in use (something uses it now: what), host (bridges and parts of the board, which stay with the host),
/// cannot (why).
///
/// Nothing is opened and nothing is changed. Without root it is not known what other users' programs have open.
#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw groups, bridges and what can be done with them, as SVG, into FILE (-: standard output)
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Show the USB devices instead: ports, names, drivers, speeds, and what each is used for
    #[arg(long, conflicts_with = "svg")]
    usb: bool,
    #[command(flatten)]
    sysroot: Sysroot,
}

pub(super) fn execute(args: &DevicesArgs, host: &Host) -> Result<()> {
    let host = args.sysroot.host(host);
    if args.usb {
        let devices = host.usb_devices();
        let text = |devices: &[_]| usb(devices, Style::of_stdout());
        return if args.json { output::print_json(&devices) } else { output::print(&text(&devices)) };
    }
    let survey = host.survey();
    if args.json {
        return output::print_json(&survey);
    }
    match &args.svg {
        None => output::print(&text(&survey, Style::of_stdout())),
        Some(file) if file.as_os_str() == "-" => output::print(&picture(&survey)),
        Some(file) => std::fs::write(file, picture(&survey)).map_err(|error| {
            Error::new(Code::FileUnusable, format!("the picture cannot be written to {}", file.display()))
                .evidence(explain_io(&error))
                .fix("name a file in a folder that you may write to")
        }),
    }
}
