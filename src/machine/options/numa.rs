//! `--numa`: the guest's memory nodes, which processors and which memory each has, and how far they are from each other.
//! Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::backends::memory::MemoryRef;
use crate::error::{Code, Error, Result};
use crate::object::{Args, Int, Invalid, PropValue, Props, options_help, prop_enum, props};

/// The most nodes, as in QEMU.
pub const MAX_NODES: u64 = 128;
/// The number of a node.
type NodeId = Int<0, { MAX_NODES - 1 }>;
/// How far a node is from itself, and from another that nothing is said of (ACPI 6.5, section 5.2.17).
pub const HERE: u8 = 10;
const AWAY: u8 = 20;

props! {
    /// A memory node of the guest's.
    struct NodeProps {
        /// The object that is the node's memory
        memdev: Option<MemoryRef>,
        /// Its number; by default the next one
        nodeid: Option<NodeId>,
        /// Its processors, by their numbers: 2 or 0-3; by default sockets are dealt out to the nodes
        cpus: Option<CpuRange>,
    }
}

props! {
    /// How far a node is from another.
    struct DistProps {
        /// Who reaches for memory
        src: NodeId,
        /// Whose memory it is
        dst: NodeId,
        /// How far: 10 is the node itself, 255 out of reach
        val: Int<10, 255>,
    }
}

prop_enum! {
    /// What is described.
    enum Described {
        /// A node.
        Node = "node",
        /// How far one is from another.
        Dist = "dist",
    }
}

/// Numbers of processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuRange(pub Range<u32>);

impl PropValue for CpuRange {
    const KIND: &'static str = "cpus";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < u32::from(u16::MAX) => Ok(CpuRange(first..last + 1)),
            _ => Err(Invalid::expected("the number of a processor or FIRST-LAST")),
        }
    }
}

/// What the options say together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Numa {
    /// The nodes, by their numbers, which are those from 0 on.
    pub nodes: Vec<Node>,
    /// For each node its distances to all, if any was given.
    pub distances: Option<Vec<Vec<u8>>>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The object that is its memory.
    pub memdev: Option<String>,
    /// The numbers of its processors, where the user says them.
    pub cpus: Vec<Range<u32>>,
}

/// The key of the first value.
pub const IMPLIED: &str = "kind";

/// Reads all of the options. A node may be named several times, each time with more of its processors.
///
/// # Errors
/// [`Code::BadNuma`]: numbers that are left out, or what contradicts itself.
pub fn parse(options: Vec<Args>) -> Result<Numa> {
    let mut nodes: BTreeMap<u64, Node> = BTreeMap::new();
    let mut distances = Vec::new();
    for mut args in options {
        let word = args.take(IMPLIED).unwrap_or_else(|| "node".to_owned());
        let kind = Described::parse(&word).map_err(|error| args.bad_value(IMPLIED, &word, error))?;
        match kind {
            Described::Node => {
                let given = NodeProps::parse(&mut args)?;
                args.finish()?;
                let next = nodes.last_key_value().map_or(0, |(last, _)| last + 1);
                let node = nodes.entry(given.nodeid.map_or(next, Int::get)).or_default();
                if let Some(memdev) = given.memdev
                    && let Some(other) = node.memdev.replace(memdev.as_str().to_owned())
                {
                    return Err(bad(format!("a node has two objects for its memory: {other}")).evidence(args.written()));
                }
                node.cpus.extend(given.cpus.map(|CpuRange(range)| range));
            }
            Described::Dist => {
                let given = DistProps::parse(&mut args)?;
                args.finish()?;
                distances.push((given, args));
            }
        }
    }
    if let Some(missing) = (0..nodes.len() as u64).find(|id| !nodes.contains_key(id)) {
        return Err(bad(format!("there is no node {missing}")).fix("number the nodes from 0 on"));
    }
    let nodes: Vec<Node> = nodes.into_values().collect();
    let distances = matrix(nodes.len(), &distances)?;
    Ok(Numa { nodes, distances })
}

/// All distances of which some are given. One that is given for one direction holds for the other.
fn matrix(nodes: usize, given: &[(DistProps, Args)]) -> Result<Option<Vec<Vec<u8>>>> {
    if given.is_empty() {
        return Ok(None);
    }
    let mut rows: Vec<Vec<u8>> =
        (0..nodes).map(|row| (0..nodes).map(|at| if at == row { HERE } else { AWAY }).collect()).collect();
    let of = |dist: &DistProps| (dist.src.get() as usize, dist.dst.get() as usize, dist.val.get() as u8);
    for (dist, args) in given {
        let (src, dst, val) = of(dist);
        if src >= nodes || dst >= nodes {
            return Err(bad("a distance names a node that there is not").evidence(args.written()));
        }
        if (src == dst) != (val == HERE) {
            let cause = format!("a node is {HERE} away from itself, and further from all others");
            return Err(bad(cause).evidence(args.written()));
        }
        rows[src][dst] = val;
        if !given.iter().any(|(other, _)| of(other).0 == dst && of(other).1 == src) {
            rows[dst][src] = val;
        }
    }
    Ok(Some(rows))
}

fn bad(cause: impl Into<String>) -> Error {
    Error::new(Code::BadNuma, cause.into())
}

impl Numa {
    /// The objects of the nodes that have one, in the order of the nodes.
    pub fn memdevs(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| node.memdev.as_deref())
    }

    /// Whether the nodes' memory is that of `-m`: each node has an object of its own, or there is one node. `backend`: the
    /// object that -M names.
    ///
    /// # Errors
    /// [`Code::BadNuma`].
    pub fn check(&self, backend: Option<&str>) -> Result<()> {
        if let Some(backend) = backend
            && (self.nodes.len() > 1 || self.memdevs().any(|memdev| memdev != backend))
        {
            return Err(bad("-M memory-backend= and --numa both say what the guest's memory is")
                .evidence(format!("memory-backend={backend}"))
                .fix("leave memory-backend= out"));
        }
        if self.nodes.len() > 1 && self.memdevs().next().is_none() {
            return Err(bad("no node has memory").fix(
                "write --object memory-backend-ram,id=m0,size=SIZE --numa node,memdev=m0, and so for each node with memory",
            ));
        }
        Ok(())
    }

    /// The node of each processor. What the user does not say is as in QEMU: sockets are dealt out to the nodes.
    ///
    /// # Errors
    /// [`Code::BadNuma`]: a processor that is in two nodes, or is not there, or is left out while others are not.
    pub fn of_cpus(&self, sockets: &[u32]) -> Result<Vec<u32>> {
        let nodes = (self.nodes.len() as u32).max(1);
        if self.nodes.iter().all(|node| node.cpus.is_empty()) {
            return Ok(sockets.iter().map(|socket| socket % nodes).collect());
        }
        let mut of: Vec<Option<u32>> = vec![None; sockets.len()];
        for (id, node) in (0..).zip(&self.nodes) {
            for cpu in node.cpus.iter().cloned().flatten() {
                match of.get_mut(cpu as usize) {
                    None => return Err(bad(format!("there is no processor {cpu} for node {id}"))),
                    Some(Some(other)) if *other != id => {
                        return Err(bad(format!("processor {cpu} is in node {other} and in node {id}")));
                    }
                    Some(of) => *of = Some(id),
                }
            }
        }
        let missing = of.iter().position(Option::is_none);
        match missing {
            Some(cpu) => {
                Err(bad(format!("processor {cpu} is in no node")).fix("give each processor its node by cpus="))
            }
            None => Ok(of.into_iter().flatten().collect()),
        }
    }
}

/// What the option takes.
pub fn help() -> String {
    options_help("--numa node options", &[NodeProps::TABLE]) + &options_help("--numa dist options", &[DistProps::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    fn numa(lines: &[&str]) -> Result<Numa> {
        parse(lines.iter().map(|text| Args::parse("--numa", Some(IMPLIED), text).unwrap()).collect())
    }

    #[test]
    fn nodes_have_memory_processors_and_distances() {
        check_props("--numa", NodeProps::TABLE);
        check_props("--numa", DistProps::TABLE);
        assert_eq!(numa(&[]).unwrap(), Numa::default());
        let two = numa(&[
            "node,nodeid=1,cpus=2-3,memdev=m1",
            "node,nodeid=0,cpus=0,memdev=m0",
            "node,nodeid=0,cpus=1",
            "node,nodeid=2",
            "dist,src=0,dst=1,val=21",
            "dist,src=2,dst=0,val=40",
            "dist,src=0,dst=2,val=41",
        ]);
        let two = two.unwrap();
        assert_eq!(two.memdevs().collect::<Vec<_>>(), ["m0", "m1"]);
        assert_eq!(two.of_cpus(&[0, 0, 0, 0]).unwrap(), [0, 0, 1, 1]);
        assert_eq!(two.distances.unwrap(), [[10, 21, 41], [21, 10, 20], [40, 20, 10]]);
        let dealt = numa(&["node,memdev=a", "node,memdev=b"]).unwrap();
        assert_eq!(dealt.of_cpus(&[0, 0, 1, 1, 2]).unwrap(), [0, 0, 1, 1, 0]);
        assert_eq!((dealt.distances.clone(), dealt.check(None).is_ok()), (None, true));
        let one = numa(&["node,memdev=m0"]).unwrap();
        assert!(one.check(None).is_ok() && one.check(Some("m0")).is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_said() {
        for lines in [
            &["node,nodeid=1"][..],
            &["node,memdev=a", "node,nodeid=0,memdev=b"],
            &["node", "dist,src=0,dst=1,val=20"],
            &["node", "node", "dist,src=0,dst=1,val=10"],
            &["node", "dist,src=0,dst=0,val=11"],
        ] {
            assert_eq!(numa(lines).unwrap_err().code(), Code::BadNuma, "{lines:?}");
        }
        for lines in [&["cpu"][..], &["node,cpus=3-1"], &["node,nodeid=128"], &["node,mem=1G"], &["dist,src=0,dst=1"]] {
            assert_eq!(numa(lines).unwrap_err().code(), Code::BadProperty, "{lines:?}");
        }
        for (lines, backend) in
            [(&["node", "node"][..], None), (&["node,memdev=a"], Some("b")), (&["node,memdev=a", "node"], Some("a"))]
        {
            assert_eq!(numa(lines).unwrap().check(backend).unwrap_err().code(), Code::BadNuma, "{lines:?}");
        }
        for lines in [&["node,cpus=0"][..], &["node,cpus=0-2"], &["node,cpus=0-1", "node,cpus=1"]] {
            assert_eq!(numa(lines).unwrap().of_cpus(&[0, 0]).unwrap_err().code(), Code::BadNuma, "{lines:?}");
        }
    }
}
