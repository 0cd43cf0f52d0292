//! `--smp`: the number of CPUs and their topology.

use crate::error::{Code, Error, Result};
use crate::object::{Args, Int, Props, options_help, props};

/// More CPUs than there are APIC ids below 255 can never be, whatever the topology.
type Count = Int<1, 255>;

props! {
    /// The guest's CPUs.
    struct Given {
        /// Number of CPUs; sockets x cores x threads must make it
        cpus: Option<Count>,
        /// Number of sockets
        sockets: Option<Count>,
        /// Number of cores of a socket
        cores: Option<Count>,
        /// Number of threads of a core
        threads: Option<Count>,
    }
}

/// The number of CPUs (1 to 255) and how they are grouped: `cpus` is the product of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmpOptions {
    /// CPUs in all.
    pub cpus: u32,
    /// Sockets of the machine.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Reads the option.
pub fn parse(mut args: Args) -> Result<SmpOptions> {
    let given = Given::parse(&mut args)?;
    args.finish()?;
    let number = |count: Option<Count>| count.map(|count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    plan(number(given.cpus), number(given.sockets), number(given.cores), number(given.threads))
        .map_err(|error| error.evidence(args.written()))
}

/// Works out the counts that were not given, by QEMU's rules: missing CPUs go to cores before they go to sockets and to
/// sockets before they go to threads.
fn plan(cpus: Option<u32>, sockets: Option<u32>, cores: Option<u32>, threads: Option<u32>) -> Result<SmpOptions> {
    let one = |count: Option<u32>| count.unwrap_or(1);
    // The parser's limit on each count keeps the products far from the limits of u32.
    let smp = match (cpus, sockets, cores, threads) {
        (None, ..) => {
            let (sockets, cores, threads) = (one(sockets), one(cores), one(threads));
            SmpOptions { cpus: sockets * cores * threads, sockets, cores, threads }
        }
        (Some(cpus), _, None, _) => {
            let (sockets, threads) = (one(sockets), one(threads));
            SmpOptions { cpus, sockets, cores: (cpus / (sockets * threads)).max(1), threads }
        }
        (Some(cpus), None, Some(cores), _) => {
            let threads = one(threads);
            SmpOptions { cpus, sockets: (cpus / (cores * threads)).max(1), cores, threads }
        }
        (Some(cpus), Some(sockets), Some(cores), threads) => {
            let threads = threads.unwrap_or((cpus / (sockets * cores)).max(1));
            SmpOptions { cpus, sockets, cores, threads }
        }
    };
    let made = smp.sockets * smp.cores * smp.threads;
    if made != smp.cpus || made > 255 {
        let SmpOptions { cpus, sockets, cores, threads } = smp;
        let limit =
            if made == cpus { ", more than the 255 that there can be".to_owned() } else { format!(", not {cpus}") };
        return Err(Error::new(
            Code::BadTopology,
            format!("sockets={sockets} x cores={cores} x threads={threads} makes {made} CPUs{limit}"),
        )
        .fix("`passthru run --smp help` lists the properties"));
    }
    Ok(smp)
}

/// What the option takes.
pub fn help() -> String {
    options_help("--smp options", &[Given::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;
    use proptest::prelude::*;

    fn smp(text: &str) -> Result<SmpOptions> {
        parse(Args::parse("--smp", Some("cpus"), text)?)
    }

    #[test]
    fn missing_counts_follow_from_the_others() {
        for (text, cpus, sockets, cores, threads) in [
            ("", 1, 1, 1, 1),
            ("4", 4, 1, 4, 1),
            ("cpus=6,threads=2", 6, 1, 3, 2),
            ("8,sockets=2", 8, 2, 4, 1),
            ("8,cores=2", 8, 4, 2, 1),
            ("8,cores=2,threads=2", 8, 2, 2, 2),
            ("8,sockets=2,cores=2", 8, 2, 2, 2),
            ("4,sockets=1,cores=2,threads=2", 4, 1, 2, 2),
            ("sockets=2,cores=3", 6, 2, 3, 1),
        ] {
            assert_eq!(smp(text).unwrap(), SmpOptions { cpus, sockets, cores, threads }, "{text}");
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        for (text, code, cause) in [
            ("8,sockets=1,cores=2,threads=2", Code::BadTopology, "sockets=1 x cores=2 x threads=2 makes 4 CPUs, not 8"),
            ("3,threads=2", Code::BadTopology, "sockets=1 x cores=1 x threads=2 makes 2 CPUs, not 3"),
            ("1,sockets=2", Code::BadTopology, "sockets=2 x cores=1 x threads=1 makes 2 CPUs, not 1"),
            (
                "sockets=16,cores=16",
                Code::BadTopology,
                "sockets=16 x cores=16 x threads=1 makes 256 CPUs, more than the 255 that there can be",
            ),
            ("0", Code::BadProperty, "`--smp` cannot have cpus=`0`: expected a number from 1 to 255"),
            ("2,maxcpu=2", Code::BadProperty, "`--smp` has no property `maxcpu`"),
        ] {
            let error = smp(text).unwrap_err();
            assert_eq!((error.code(), error.cause()), (code, cause), "{text}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        check_props("--smp", Given::TABLE);
    }

    proptest! {
        #[test]
        fn what_is_accepted_multiplies_up(
            cpus in prop::option::of(1u32..=255), sockets in prop::option::of(1u32..=255),
            cores in prop::option::of(1u32..=255), threads in prop::option::of(1u32..=255),
        ) {
            if let Ok(smp) = plan(cpus, sockets, cores, threads) {
                prop_assert_eq!(smp.sockets * smp.cores * smp.threads, smp.cpus);
                prop_assert!(cpus.is_none_or(|given| given == smp.cpus));
                prop_assert!((1..=255).contains(&smp.cpus));
            }
        }
    }
}
