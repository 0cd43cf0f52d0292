//! `passthru recover`: what a crash left on vfio-pci, or half-way to it, goes back to the host.

use clap::Args;
use serde::Serialize;

use super::{output, release};
use crate::bdf::Bdf;
use crate::error::Result;
use crate::host::lease::Returned;
use crate::host::limits::size_text;
use crate::host::names::DeviceRef;
use crate::host::release::Recovered;
use crate::host::{self, Host};

/// Give back every device that no running guest has, whatever a crash left it at
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Only forget that these devices did not come back from a reset, so that guests can have them again
    #[arg(long, value_name = "DEVICE", num_args = 1..)]
    clear: Vec<DeviceRef>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &RecoverArgs, host: &Host) -> Result<()> {
    if !args.clear.is_empty() {
        let devices = output::functions(&args.clear, host, |addr| host.functions(addr))?;
        return output::each(&devices, args.json, |&bdf| clear(host, bdf), cleared_text);
    }
    let mut recovered = host::recover(host)?;
    if args.json {
        output::print_json(&recovered)?;
    } else {
        output::print(&text(&recovered))?;
    }
    // The last failure decides the exit code; none is passed over in silence.
    let last = recovered.failed.pop();
    recovered.failed.iter().for_each(|failure| output::report(&failure.error));
    last.map_or(Ok(()), |failure| Err(failure.error))
}

/// What `--clear` did with one device.
#[derive(Debug, Serialize)]
struct Cleared {
    bdf: Bdf,
    /// `false`: there was nothing to forget.
    cleared: bool,
}

fn clear(host: &Host, bdf: Bdf) -> Result<Cleared> {
    Ok(Cleared { bdf, cleared: host.clear_quarantine(bdf)? })
}

fn cleared_text(cleared: &Cleared) -> String {
    let what = if cleared.cleared { "no longer quarantined" } else { "was not quarantined" };
    format!("{}: {what}\n", cleared.bdf)
}

fn text(recovered: &Recovered) -> String {
    let mut text: String = recovered.released.iter().map(release::text).collect();
    for vm in &recovered.taken_back {
        text += &format!("{vm}: its user has its nodes no more\n");
    }
    for kept in &recovered.kept {
        let holders: Vec<String> = kept.holders.processes.iter().map(ToString::to_string).collect();
        text += &format!("{}: left on vfio-pci, in use by {}\n", kept.bdf, holders.join(", "));
    }
    text.extend(recovered.returned.iter().map(returned));
    if text.is_empty() && recovered.failed.is_empty() {
        text.push_str("nothing to recover\n");
    }
    text
}

/// A line about what a guest that is gone had changed.
pub(super) fn returned(returned: &Returned) -> String {
    match returned {
        Returned::Interrupt { number, cpus } => format!("interrupt {number}: goes to CPUs {cpus} again\n"),
        Returned::Pages { node, page, count } => {
            format!("node {node}: {count} huge pages of {} are ordinary memory again\n", size_text(*page))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bind::BindOptions;
    use crate::host::busy::{Holders, Process};
    use crate::host::release::Kept;
    use crate::host::testtree::{TestTree, bdf};

    #[test]
    fn everything_that_was_bound_is_told() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").driver("e1000e").group(1).add();
        assert_eq!(text(&host::recover(&tree.host()).unwrap()), "nothing to recover\n");
        host::bind(&tree.host(), bdf("01:00.0"), &BindOptions::default()).unwrap();
        assert_eq!(text(&host::recover(&tree.host()).unwrap()), "0000:01:00.0: given back to e1000e\n");
    }

    #[test]
    fn who_has_a_device_is_told() {
        let processes =
            vec![Process { pid: 7, name: "passthru".to_owned() }, Process { pid: 8, name: "qemu".to_owned() }];
        let kept = Kept { bdf: bdf("01:00.0"), holders: Holders { processes, hidden: 0 } };
        let recovered = Recovered { kept: vec![kept], ..Recovered::default() };
        assert_eq!(
            text(&recovered),
            "0000:01:00.0: left on vfio-pci, in use by process 7 (passthru), process 8 (qemu)\n"
        );
    }
}
