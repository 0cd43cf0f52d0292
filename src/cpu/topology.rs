//! Which processors there are: `--smp N[,sockets=,cores=,threads=]` becomes a list of APIC ids.
//!
//! An APIC id is three bit fields, socket | core | thread, each just wide enough for its count (Intel SDM volume 3,
//! section 10.9.1 "Hierarchical Mapping of Shared Resources"; AMD APM volume 3, appendix E.5). Where a count is no power
//! of two the ids have gaps. The id is also the number of the KVM vCPU, of the MADT entry, and what CPUID tells.

use crate::error::{Code, Error, Result};

/// The highest APIC id that the MADT's 8-bit entries and an IOAPIC without remapping can address; 255 is the broadcast.
pub const MAX_APIC_ID: u32 = 254;

/// The values of `--smp` as the user gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SmpRequest {
    /// Number of processors; if absent, the product of the others.
    pub cpus: Option<u32>,
    /// Sockets; if absent 1.
    pub sockets: Option<u32>,
    /// Cores in a socket; if absent, what makes the product right.
    pub cores: Option<u32>,
    /// Threads in a core; if absent 1.
    pub threads: Option<u32>,
}

/// A checked arrangement of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Topology {
    /// Completes and checks a request. What is absent is chosen as QEMU does: cores before sockets before threads.
    ///
    /// # Errors
    /// [`Code::BadTopology`] if a count is 0, if the product is not the number of processors, or if the highest APIC id
    /// would be above [`MAX_APIC_ID`].
    pub fn plan(request: SmpRequest) -> Result<Topology> {
        let SmpRequest { cpus, sockets, cores, threads } = request;
        for (name, count) in [("cpus", cpus), ("sockets", sockets), ("cores", cores), ("threads", threads)] {
            if count == Some(0) {
                return Err(Error::new(Code::BadTopology, format!("{name}=0 is no possible number")));
            }
        }
        let one = |count: Option<u32>| count.unwrap_or(1);
        let topology = match (cpus, sockets, cores) {
            (Some(cpus), sockets, None) => Topology {
                sockets: one(sockets),
                cores: share(cpus, one(sockets), one(threads)),
                threads: one(threads),
            },
            (Some(cpus), None, Some(cores)) => {
                Topology { sockets: share(cpus, cores, one(threads)), cores, threads: one(threads) }
            }
            (Some(cpus), Some(sockets), Some(cores)) => {
                Topology { sockets, cores, threads: threads.unwrap_or_else(|| share(cpus, sockets, cores)) }
            }
            (None, sockets, cores) => Topology { sockets: one(sockets), cores: one(cores), threads: one(threads) },
        };
        topology.check(cpus)
    }

    fn check(self, cpus: Option<u32>) -> Result<Topology> {
        let Topology { sockets, cores, threads } = self;
        let product = u64::from(sockets).saturating_mul(u64::from(cores)).saturating_mul(u64::from(threads));
        let shape = format!("{sockets} sockets x {cores} cores x {threads} threads");
        if let Some(cpus) = cpus
            && product != u64::from(cpus)
        {
            return Err(Error::new(Code::BadTopology, format!("{shape} make {product} CPUs, not {cpus}"))
                .fix("leave one of sockets=, cores= and threads= out: it is then calculated"));
        }
        // With few processors the widths of all fields together are small: the id cannot overflow.
        if product > u64::from(MAX_APIC_ID) + 1 || self.highest_apic_id() > MAX_APIC_ID {
            let mut error = Error::new(
                Code::BadTopology,
                format!("{shape} need APIC ids above {MAX_APIC_ID}, the highest that passthru gives"),
            );
            if product <= u64::from(MAX_APIC_ID) + 1 {
                error = error
                    .evidence("ids have gaps where cores or threads are no power of two")
                    .fix("choose numbers of cores and threads that are powers of two");
            }
            return Err(error);
        }
        Ok(self)
    }

    /// Number of processors, 1 to 255.
    pub fn cpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// Number of sockets.
    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    /// Cores in each socket.
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// Threads in each core.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Logical processors in each socket.
    pub fn per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// How far an APIC id is shifted right to get a number of the core.
    pub fn core_shift(&self) -> u32 {
        width(self.threads)
    }

    /// How far an APIC id is shifted right to get the number of the socket.
    pub fn socket_shift(&self) -> u32 {
        width(self.threads) + width(self.cores)
    }

    /// The APIC id of processor number `index`; threads of a core are neighbours. Meaningless at `cpus()` and above.
    pub fn apic_id(&self, index: u32) -> u32 {
        let thread = index % self.threads;
        let core = index / self.threads % self.cores;
        let socket = index / self.per_socket();
        socket << self.socket_shift() | core << self.core_shift() | thread
    }

    /// The number of the core in its socket, from an APIC id.
    pub fn core_of(&self, apic_id: u32) -> u32 {
        apic_id >> self.core_shift() & ((1 << width(self.cores)) - 1)
    }

    /// The number of the socket, from an APIC id.
    pub fn socket_of(&self, apic_id: u32) -> u32 {
        apic_id >> self.socket_shift()
    }

    /// All APIC ids, ascending; the first, 0, is the bootstrap processor's.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.cpus()).map(|index| self.apic_id(index))
    }

    fn highest_apic_id(&self) -> u32 {
        self.apic_id(self.cpus() - 1)
    }
}

/// `cpus` divided by both counts, rounded up so that a remainder is refused by the check, not hidden.
fn share(cpus: u32, a: u32, b: u32) -> u32 {
    cpus.div_ceil(a.saturating_mul(b))
}

/// Bits that numbers below `count` need.
fn width(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(cpus: u32, sockets: u32, cores: u32, threads: u32) -> SmpRequest {
        let some = |count| (count != 0).then_some(count);
        SmpRequest { cpus: some(cpus), sockets: some(sockets), cores: some(cores), threads: some(threads) }
    }

    fn shape(request: SmpRequest) -> Option<(u32, u32, u32)> {
        Topology::plan(request).ok().map(|it| (it.sockets, it.cores, it.threads))
    }

    #[test]
    fn absent_counts_are_chosen() {
        // cpus, sockets, cores, threads; 0: absent
        let table = [
            ((0, 0, 0, 0), Some((1, 1, 1))),
            ((4, 0, 0, 0), Some((1, 4, 1))),
            ((4, 2, 0, 0), Some((2, 2, 1))),
            ((4, 0, 2, 0), Some((2, 2, 1))),
            ((4, 0, 0, 2), Some((1, 2, 2))),
            ((8, 2, 2, 0), Some((2, 2, 2))),
            ((0, 2, 3, 2), Some((2, 3, 2))),
            ((12, 2, 3, 2), Some((2, 3, 2))),
            ((4, 3, 0, 0), None),
            ((4, 0, 3, 0), None),
            ((4, 2, 2, 2), None),
            ((2, 4, 0, 0), None),
            ((5, 2, 2, 0), None),
        ];
        for ((cpus, sockets, cores, threads), expected) in table {
            assert_eq!(shape(request(cpus, sockets, cores, threads)), expected, "{cpus} {sockets} {cores} {threads}");
        }
    }

    #[test]
    fn ids_have_gaps_where_counts_are_no_powers_of_two() {
        let ids = |request| Topology::plan(request).unwrap().apic_ids().collect::<Vec<_>>();
        assert_eq!(ids(request(4, 0, 0, 0)), [0, 1, 2, 3]);
        assert_eq!(ids(request(6, 2, 3, 1)), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(request(12, 2, 2, 3)), [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]);
    }

    #[test]
    fn zero_and_too_high_ids_are_refused_with_the_reason() {
        let cause = |request| {
            let error = Topology::plan(request).unwrap_err();
            assert_eq!(error.code(), Code::BadTopology);
            error.to_string()
        };
        assert!(cause(SmpRequest { cores: Some(0), ..SmpRequest::default() }).contains("cores=0"));
        assert!(cause(request(256, 0, 0, 0)).contains("above 254"));
        assert_eq!(shape(request(255, 0, 0, 0)), Some((1, 255, 1)));
        // 3 threads take the room of 4, so the 65th core's ids begin at 256.
        assert!(cause(request(195, 0, 65, 3)).contains("power of two"));
        assert!(cause(request(u32::MAX, 0, 0, 0)).contains("above 254"));
        assert!(cause(request(0, u32::MAX, u32::MAX, u32::MAX)).contains("above 254"));
    }

    proptest! {
        #[test]
        fn ids_are_unique_ascending_and_made_of_their_fields(sockets in 1u32..9, cores in 1u32..40, threads in 1u32..5) {
            let Ok(topology) = Topology::plan(request(0, sockets, cores, threads)) else {
                let field = |count: u32| count.next_power_of_two();
                prop_assert!(sockets * field(cores) * field(threads) > MAX_APIC_ID);
                return Ok(());
            };
            let ids: Vec<u32> = topology.apic_ids().collect();
            prop_assert_eq!(ids.len() as u32, sockets * cores * threads);
            prop_assert_eq!(ids[0], 0);
            prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(ids.iter().all(|&id| id <= MAX_APIC_ID));
            for (index, &id) in ids.iter().enumerate() {
                let index = index as u32;
                prop_assert_eq!(id & ((1 << topology.core_shift()) - 1), index % threads);
                prop_assert_eq!(topology.core_of(id), index / threads % cores);
                prop_assert_eq!(topology.socket_of(id), index / (threads * cores));
            }
            // No field is wider than its count needs.
            prop_assert!(1 << topology.core_shift() < 2 * threads);
            prop_assert!(1 << (topology.socket_shift() - topology.core_shift()) < 2 * cores);
        }

        #[test]
        fn no_request_panics(cpus: Option<u32>, sockets: Option<u32>, cores: Option<u32>, threads: Option<u32>) {
            let request = SmpRequest { cpus, sockets, cores, threads };
            if let Ok(topology) = Topology::plan(request) {
                prop_assert!(topology.highest_apic_id() <= MAX_APIC_ID);
            }
        }
    }
}
