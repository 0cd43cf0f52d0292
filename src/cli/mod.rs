//! The command line: one file per subcommand. Parsing and printing are here, what the commands do is behind
//! [`Platform`].

mod argv;
mod bind;
mod check;
mod complete;
mod convert;
mod ctl;
mod devices;
mod explain;
mod generate;
mod img;
mod inspect;
mod list;
mod output;
mod place_interrupts;
mod plan;
mod platform;
mod recover;
pub mod reference;
mod release;
mod rom;
pub mod run;
mod set_vf;
mod style;
mod sysroot;
mod udev_claim;
mod udev_reserve;
mod vm_file;
mod write_attribute;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use platform::{Platform, ThisHost};

use crate::error::Result;

/// Runs virtual machines that own devices of this host
///
/// A guest gets whole PCI devices: `passthru bind` takes them from their host drivers, `passthru run` starts a guest
/// with them, `passthru release` gives them back.
///
/// Exit codes: 0 all went well, 2 the command line is wrong, 3 the host is not ready, 4 a device is at fault, 5 the guest
/// is at fault.
#[derive(Debug, Parser)]
#[command(name = "passthru", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Bind(bind::BindArgs),
    Release(release::ReleaseArgs),
    Recover(recover::RecoverArgs),
    Rom(rom::RomArgs),
    Devices(devices::DevicesArgs),
    Inspect(inspect::InspectArgs),
    Check(Box<check::CheckArgs>),
    Plan(Box<plan::PlanArgs>),
    Convert(convert::ConvertArgs),
    Img(img::ImgArgs),
    List(list::ListArgs),
    Ctl(ctl::CtlArgs),
    Explain(explain::ExplainArgs),
    UdevReserve(udev_reserve::UdevReserveArgs),
    UdevClaim(udev_claim::UdevClaimArgs),
    WriteAttribute(write_attribute::WriteAttributeArgs),
    SetVf(set_vf::SetVfArgs),
    Complete(complete::CompleteArgs),
    PlaceInterrupts(place_interrupts::PlaceInterruptsArgs),
    Generate(generate::GenerateArgs),
}

/// Does what the command line `argv` (with the program's name first) says, and gives the exit code of the process.
pub fn main(argv: impl IntoIterator<Item = OsString>, platform: &dyn Platform) -> u8 {
    match dispatch(argv.into_iter().collect(), platform) {
        Ok(code) => code,
        Err(error) => {
            output::report(&error);
            error.code().entry().class.exit_code()
        }
    }
}

/// The exit code of what was done.
fn dispatch(argv: Vec<OsString>, platform: &dyn Platform) -> Result<u8> {
    let mut syntax = Cli::command();
    syntax.build();
    let argv = argv::rewrite(argv, &syntax);
    let subcommand = argv.get(1).and_then(|name| syntax.find_subcommand(name)).map(clap::Command::get_name);
    let command = subcommand.map_or("passthru".to_owned(), |name| format!("passthru {name}"));
    let mut parsed = syntax.try_get_matches_from_mut(&argv);
    if let Ok(given) = &parsed
        && let Some(argv) = vm_file::expand(&argv, given, &syntax, platform.host())?
    {
        parsed = syntax.try_get_matches_from_mut(argv);
    }
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => return output::print(&error.render().to_string()).map(|()| 0),
        Err(error) => return Err(output::usage_error(&error, &command)),
    };
    let done = match cli.command {
        Command::WriteAttribute(args) => return Ok(write_attribute::execute(&args)),
        Command::SetVf(args) => return Ok(set_vf::execute(&args)),
        Command::Check(args) => return check::execute(*args, platform),
        Command::Run(args) => run::execute(*args, platform),
        Command::Bind(args) => bind::execute(&args, &syntax, platform),
        Command::UdevReserve(args) => udev_reserve::execute(&args, platform.host()),
        Command::UdevClaim(args) => udev_claim::execute(&args, platform.host()),
        Command::Complete(args) => complete::execute(&args, platform),
        Command::PlaceInterrupts(args) => place_interrupts::execute(&args, platform.host()),
        Command::Release(args) => release::execute(&args, &syntax, platform),
        Command::Recover(args) => recover::execute(&args, platform.host()),
        Command::Rom(args) => rom::execute(&args, platform.host()),
        Command::Devices(args) => devices::execute(&args, platform.host()),
        Command::Inspect(args) => inspect::execute(&args, platform.host()),
        Command::Plan(args) => plan::execute(*args, platform),
        Command::Convert(args) => convert::execute(&args, &syntax, platform),
        Command::Img(args) => return img::execute(&args),
        Command::List(args) => list::execute(&args, platform.host()),
        Command::Ctl(args) => ctl::execute(&args, platform.host()),
        Command::Explain(args) => explain::execute(&args),
        Command::Generate(args) => generate::execute(&args, Cli::command()),
    };
    done.map(|()| 0)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
