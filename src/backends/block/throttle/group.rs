//! The object `throttle-group`: rates that the nodes which name it keep to together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::bucket::Bucket;
use crate::device::ObjectCx;
use crate::error::Result;
use crate::object::{Create, Int, Kind, Refers, TypeInfo, props, reference};

/// The name of the type.
const NAME: &str = "throttle-group";
/// Longest time that a request waits: a device must be able to end.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Requests in a second.
type Requests = Int<1, 1_000_000_000>;
/// Bytes in a second; no less than a small request.
type Bytes = Int<65536, 1_000_000_000_000>;

props! {
    /// Rates for block nodes that name it with throttle-group=.
    pub struct GroupProps {
        /// Most requests in a second
        x_iops_total: Option<Requests>,
        /// Most reads in a second
        x_iops_read: Option<Requests>,
        /// Most writes in a second
        x_iops_write: Option<Requests>,
        /// Most bytes in a second
        x_bps_total: Option<Bytes>,
        /// Most bytes read in a second
        x_bps_read: Option<Bytes>,
        /// Most bytes written in a second
        x_bps_write: Option<Bytes>,
    }
}

reference! {
    /// The id of a throttle-group, which nodes share.
    pub struct GroupRef(Refers { kind: Kind::Object, types: &[NAME], shared: true });
}

/// The row of the table of objects.
pub static GROUP: TypeInfo<(), ObjectCx> = TypeInfo::of::<GroupType>();

struct GroupType;

impl Create<(), ObjectCx> for GroupType {
    const NAME: &'static str = NAME;
    const GROUP: &'static str = "Back ends";
    type Props = GroupProps;

    fn create(props: GroupProps, cx: &ObjectCx) -> Result<()> {
        cx.backends.throttles.add(cx.id.clone(), NAME, Arc::new(Group::new(&props)), true)
    }
}

/// Which way a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// Requests and bytes of one way, or of both.
#[derive(Debug)]
struct Rates {
    requests: Bucket,
    bytes: Bucket,
}

impl Rates {
    fn new(requests: Option<Requests>, bytes: Option<Bytes>) -> Rates {
        Rates { requests: Bucket::new(requests.map_or(0, Int::get)), bytes: Bucket::new(bytes.map_or(0, Int::get)) }
    }

    fn spend(&mut self, bytes: u64, now: Duration) -> Duration {
        self.requests.spend(1, now).max(self.bytes.spend(bytes, now))
    }
}

#[derive(Debug)]
struct Limits {
    all: Rates,
    reads: Rates,
    writes: Rates,
}

/// Rates, and what is spent of them.
pub struct Group {
    since: Instant,
    /// Held to reckon, not to wait. Innermost.
    limits: Mutex<Limits>,
}

impl Group {
    /// One that nobody waits for.
    #[cfg(test)]
    pub(crate) fn unlimited() -> Group {
        let (x_iops_total, x_iops_read, x_iops_write) = (None, None, None);
        let (x_bps_total, x_bps_read, x_bps_write) = (None, None, None);
        Group::new(&GroupProps { x_iops_total, x_iops_read, x_iops_write, x_bps_total, x_bps_read, x_bps_write })
    }

    fn new(props: &GroupProps) -> Group {
        let limits = Limits {
            all: Rates::new(props.x_iops_total, props.x_bps_total),
            reads: Rates::new(props.x_iops_read, props.x_bps_read),
            writes: Rates::new(props.x_iops_write, props.x_bps_write),
        };
        Group { since: Instant::now(), limits: Mutex::new(limits) }
    }

    /// Waits until a request of so many bytes may go.
    pub(super) fn wait(&self, way: Way, bytes: u64) {
        let wait = {
            let mut limits = self.limits.lock();
            let now = self.since.elapsed();
            let all = limits.all.spend(bytes, now);
            let one = match way {
                Way::Read => &mut limits.reads,
                Way::Write => &mut limits.writes,
            };
            all.max(one.spend(bytes, now))
        };
        if !wait.is_zero() {
            std::thread::sleep(wait.min(MAX_WAIT));
        }
    }
}
