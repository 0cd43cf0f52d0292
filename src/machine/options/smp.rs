//! `--smp`: the number of CPUs and their topology.

use crate::cpu::{SmpRequest, Topology};
use crate::error::Result;
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

/// Reads the option. What is not given follows from the rest by QEMU's rules.
pub fn parse(mut args: Args) -> Result<Topology> {
    let given = Given::parse(&mut args)?;
    args.finish()?;
    let number = |count: Option<Count>| count.map(|count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let Given { cpus, sockets, cores, threads } = given;
    let cpus = number(cpus).or_else(|| (sockets, cores, threads).eq(&(None, None, None)).then_some(1));
    let request = SmpRequest { cpus, sockets: number(sockets), cores: number(cores), threads: number(threads) };
    Topology::plan(request).map_err(|error| error.evidence(args.written()))
}

/// What the option takes.
pub fn help() -> String {
    options_help("--smp options", &[Given::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::object::testing::check_props;

    fn smp(text: &str) -> Result<Topology> {
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
            ("8,sockets=2,cores=2", 8, 2, 2, 2),
            ("sockets=2,cores=3", 6, 2, 3, 1),
        ] {
            let made = smp(text).unwrap();
            let counts = (made.cpus(), made.sockets(), made.cores(), made.threads());
            assert_eq!(counts, (cpus, sockets, cores, threads), "{text}");
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        for (text, code, cause) in [
            ("8,sockets=1,cores=2,threads=2", Code::BadTopology, "make 4 CPUs, not 8"),
            ("sockets=16,cores=16", Code::BadTopology, "need APIC ids above 254"),
            ("0", Code::BadProperty, "`--smp` cannot have cpus=`0`: expected a number from 1 to 255"),
            ("2,maxcpu=2", Code::BadProperty, "`--smp` has no property `maxcpu`"),
        ] {
            let error = smp(text).unwrap_err();
            assert_eq!(error.code(), code, "{text}");
            assert!(error.cause().contains(cause), "{text}: {error}");
            assert!(error.evidence_lines().iter().any(|line| line.contains(text)), "{text}: {error}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        check_props("--smp", Given::TABLE);
    }
}
