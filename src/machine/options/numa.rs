//! `--numa`: the guest's memory node, of which there is one.

use crate::backends::memory::MemoryRef;
use crate::error::{Code, Error, Result};
use crate::object::{Args, Int, Props, options_help, prop_enum, props};

props! {
    /// A memory node of the guest's.
    struct Numa {
        /// What is described: there are nodes alone
        kind: Described = "node",
        /// The object that is the node's memory
        memdev: Option<MemoryRef>,
        /// Its number; there is one node
        nodeid: Int<0, 0> = "0",
    }
}

prop_enum! {
    /// What QEMU's option describes.
    enum Described {
        /// A node.
        Node = "node",
    }
}

/// The key of the first value.
pub const IMPLIED: &str = "kind";
/// The property of the machine that says the same.
const MEMORY_BACKEND: &str = "memory-backend";

/// The machine's properties with what all of these options say.
///
/// # Errors
/// [`Code::BadProperty`]: more than one node, or another memory than the machine has already.
pub fn apply(machine: Args, nodes: Vec<Args>) -> Result<Args> {
    let mut nodes = nodes.into_iter();
    let Some(mut args) = nodes.next() else { return Ok(machine) };
    let numa = Numa::parse(&mut args)?;
    args.finish()?;
    if let Some(second) = nodes.next() {
        return Err(Error::new(Code::BadProperty, "a guest has one memory node")
            .evidence(second.written())
            .fix("write one --numa node,memdev=ID with all of the memory"));
    }
    let Some(memdev) = numa.memdev else { return Ok(machine) };
    match machine.peek(MEMORY_BACKEND) {
        Some(other) if other != memdev.as_str() => {
            Err(Error::new(Code::BadProperty, "-M and --numa name two objects for the guest's memory")
                .evidence(format!("{}, {}", machine.written(), args.written()))
                .fix("leave --numa out"))
        }
        _ => Ok(machine.with_default(MEMORY_BACKEND, memdev.as_str())),
    }
}

/// What the option takes.
pub fn help() -> String {
    options_help("--numa options", &[Numa::TABLE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_props;

    #[test]
    fn a_node_is_the_machines_memory() {
        check_props("--numa", Numa::TABLE);
        let machine = |text: &str| Args::parse("-M", Some("type"), text).unwrap();
        let node = |text: &str| Args::parse("--numa", Some(IMPLIED), text).unwrap();
        let named = |machine: &Args| machine.peek(MEMORY_BACKEND).map(str::to_owned);
        assert_eq!(named(&apply(machine("q35"), Vec::new()).unwrap()), None);
        for text in ["node,memdev=m0", "node,nodeid=0,memdev=m0"] {
            assert_eq!(named(&apply(machine("q35"), vec![node(text)]).unwrap()).as_deref(), Some("m0"), "{text}");
        }
        let same = apply(machine("q35,memory-backend=m0"), vec![node("node,memdev=m0")]).unwrap();
        assert_eq!(named(&same).as_deref(), Some("m0"));
        for nodes in [vec!["node,memdev=m1"], vec!["node", "node"], vec!["cpu"], vec!["node,nodeid=1"]] {
            let nodes = nodes.into_iter().map(node).collect();
            assert_eq!(apply(machine("q35,memory-backend=m0"), nodes).unwrap_err().code(), Code::BadProperty);
        }
    }
}
