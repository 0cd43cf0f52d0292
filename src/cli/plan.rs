//! `passthru plan`: which CPUs and memory nodes of the host a guest would get.

use clap::Args;

use super::run::{self, RunArgs};
use super::style::Style;
use super::sysroot::Sysroot;
use super::{Platform, output};
use crate::error::Result;
use crate::host::limits::size_text;
use crate::placement::{Choice, Plan};

/// Show which CPUs and memory nodes of the host a guest would get
///
/// The options are those of `passthru run`, as many of them as are known: `passthru plan NAME`, `passthru plan --smp 8
/// --device vfio-pci,host=01:00.0`. Without --cpu-placement it shows what `--cpu-placement auto` would do: whole cores on the
/// memory node of the devices, below one third-level cache where they fit, none of them another guest's, isolated or, where
/// there is a choice, CPU 0's.
///
/// Nothing is opened and nothing is changed. A guest that runs with --cpu-placement holds its CPUs already: the plan for a
/// second one goes around them.
#[derive(Debug, Args)]
#[command(after_long_help = "")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Print JSON
    #[arg(long, help_heading = LOOK)]
    json: bool,
    #[command(flatten, next_help_heading = LOOK)]
    sysroot: Sysroot,
}

const LOOK: &str = "What is looked at";
/// Columns before what is planned.
const COLUMN: usize = 15;

pub(super) fn execute(args: PlanArgs, platform: &dyn Platform) -> Result<()> {
    let host = args.sysroot.host(platform.host());
    let (mut options, _) = run::described(args.run, platform)?;
    if options.placement == Choice::Off {
        options.placement = Choice::Auto;
    }
    let plan = platform.place(&options, &host)?;
    if args.json { output::print_json(&plan) } else { output::print(&text(&plan, Style::of_stdout())) }
}

/// One line for each kind of thread, then memory, then what is worth knowing.
pub(super) fn text(plan: &Plan, style: Style) -> String {
    let mut out = String::new();
    let indent = " ".repeat(COLUMN);
    let mut line = |name: &str, what: &str| {
        out += &format!("{name:COLUMN$}{}\n", style.wrap(COLUMN, &indent, what));
    };
    let vcpus = plan.vcpus.iter().enumerate().map(|(number, cpu)| format!("vcpu{number}:{cpu}"));
    line("virtual CPUs", &vcpus.collect::<Vec<_>>().join(" "));
    if !plan.idle.is_empty() {
        line("idle threads", &plan.idle.to_string());
    }
    line("other threads", &plan.emulator.to_string());
    line("interrupts", &plan.interrupts.to_string());
    line("memory nodes", &plan.nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
    for pages in &plan.pages {
        let missing = match pages.missing() {
            0 => String::new(),
            missing => format!(", of which {missing} are missing"),
        };
        line("huge pages", &format!("{} of {} on node {}{missing}", pages.needed, size_text(pages.page), pages.node));
    }
    for note in &plan.notes {
        line("note", note);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::cpus;
    use crate::placement::{self, Request};

    #[test]
    fn a_plan_reads_well() {
        let request =
            Request { choice: Choice::Auto, vcpus: 3, threads: 1, near: vec![1], memory: 4 << 30, page: Some(1 << 30) };
        let plan = placement::plan(&request, &cpus::two_xeons().host().topology()).unwrap();
        assert_eq!(
            text(&plan, Style::of_width(80)),
            "virtual CPUs   vcpu0:20 vcpu1:60 vcpu2:21\n\
             idle threads   61\n\
             other threads  22-39,62-79\n\
             interrupts     22-39,62-79\n\
             memory nodes   1\n\
             huge pages     4 of 1 GiB on node 1, of which 4 are missing\n\
             note           the guest takes the threads of 2 cores for 3 cores\n"
        );
    }
}
