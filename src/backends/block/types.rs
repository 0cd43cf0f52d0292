//! The table of node types, and what a line of `--blockdev` becomes.

use std::sync::Arc;

use super::detect_zeroes::DetectZeroes;
use super::switch::Switch;
use super::{BlockNode, Child};
use crate::backends::BackendCx;
use crate::backends::table::Table;
use crate::error::Result;
use crate::object::{Args, Id, NodeRef, Props, Registry, props};

props! {
    /// What a node is called.
    pub struct Common {
        /// Unique name of the node
        node_name: Id,
        /// What becomes of a write of zeros: off, a write; on, a range that reads as zeros; unmap, that is given back, too
        detect_zeroes: DetectZeroes = "off",
    }
}

/// The node types of `--blockdev`.
pub static BLOCKDEVS: Registry<Arc<dyn BlockNode>, BackendCx> = Registry {
    what: "block driver",
    option: "--blockdev",
    key: KEY,
    common: Common::TABLE,
    on_bus: &[],
    aliases: &[],
    types: &[
        &super::file::FILE,
        &super::file::HOST_DEVICE,
        &super::raw::TYPE,
        &super::qcow2::TYPE,
        &super::copy_on_read::TYPE,
        &super::throttle::TYPE,
        &super::null::TYPE,
    ],
};

/// The key of a node's type.
const KEY: &str = "driver";
/// The key of a node's name.
const NAME: &str = "node-name";
/// Most nodes that one option nests in each other.
const MAX_NESTED: usize = 8;

/// The node called `name`, as a child of the one that is made with `cx`.
pub(super) fn claim(cx: &BackendCx, name: &NodeRef) -> Result<Child> {
    cx.backends.nodes.claim(name.as_str(), &cx.name).map(Child::claimed)
}

/// The node that was made, which can be exchanged while its user has it.
pub(super) fn made(node: impl BlockNode + 'static) -> Arc<dyn BlockNode> {
    Arc::new(Switch::new(Arc::new(node)))
}

/// The lines of `--blockdev` with a line of its own for each node that the user wrote inside another: `file.driver=file`
/// becomes a node before it, called `NAME.file` if it is not named, and `file=NAME.file`.
///
/// # Errors
/// [`crate::error::Code::BadProperty`] if more than a few are nested.
pub fn expand(lines: &[Args]) -> Result<Vec<Args>> {
    let mut all = Vec::new();
    for line in lines {
        unnest(line.clone(), 0, &mut all)?;
    }
    Ok(all)
}

fn unnest(mut line: Args, depth: usize, all: &mut Vec<Args>) -> Result<()> {
    for key in line.nested_keys(KEY) {
        if depth >= MAX_NESTED {
            return Err(line.error(format!("more than {MAX_NESTED} nodes are nested in each other")));
        }
        let inner = line.take_nested(&key);
        let name = match (inner.peek(NAME), line.peek(NAME)) {
            (Some(name), _) => name.to_owned(),
            (None, Some(outer)) => format!("{outer}.{key}"),
            // A node without a name is refused when its own line is read.
            (None, None) => key.clone(),
        };
        unnest(inner.with(NAME, &name), depth + 1, all)?;
        line = line.with(&key, &name);
    }
    all.push(line);
    Ok(())
}

/// Removes a node that nobody has, with the nodes that [`expand`] has named after it.
///
/// # Errors
/// [`crate::error::Code::UnknownBackend`], [`crate::error::Code::BackendInUse`].
pub fn remove(nodes: &Table<dyn BlockNode>, name: &str) -> Result<()> {
    // The node goes at the end of this line, and with it its claims on the others.
    let children = nodes.remove(name)?.children();
    let inside = children.iter().filter(|child| child.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
    inside.into_iter().try_for_each(|child| remove(nodes, child))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::block::io::{read_into, write_from};
    use crate::backends::block::testing::graph;
    use crate::error::Code;
    use crate::object::testing::check_registry;

    #[test]
    fn the_table_is_sound() {
        check_registry(&BLOCKDEVS);
    }

    fn line(text: &str) -> Args {
        Args::parse("--blockdev", Some(KEY), text).unwrap()
    }

    fn written(lines: &[&str]) -> Vec<String> {
        let lines: Vec<Args> = lines.iter().map(|text| line(text)).collect();
        let all = expand(&lines).unwrap();
        all.iter()
            .map(|line| {
                let mut words: Vec<String> = line.entries().map(|(key, value)| format!("{key}={value}")).collect();
                words.sort();
                words.join(",")
            })
            .collect()
    }

    #[test]
    fn nested_nodes_become_lines() {
        assert_eq!(
            written(&["raw,node-name=a,file.driver=file,file.filename=x,file.cache.direct=on"]),
            ["cache.direct=on,driver=file,filename=x,node-name=a.file", "driver=raw,file=a.file,node-name=a",]
        );
        let json = r#"{"driver":"qcow2","node-name":"a","file":{"driver":"raw","node-name":"r","file":{"driver":"file","filename":"x"}},
            "backing":{"driver":"null-co"}}"#;
        let mut lines = written(&[json, "null-co,node-name=b"]);
        lines.sort();
        assert_eq!(
            lines,
            [
                "backing=a.backing,driver=qcow2,file=r,node-name=a",
                "driver=file,filename=x,node-name=r.file",
                "driver=null-co,node-name=a.backing",
                "driver=null-co,node-name=b",
                "driver=raw,file=r.file,node-name=r",
            ]
        );
        let deep = (0..20).map(|depth| format!("{}driver=raw", "file.".repeat(depth))).collect::<Vec<_>>().join(",");
        assert_eq!(expand(&[line(&deep)]).unwrap_err().code(), Code::BadProperty);
    }

    #[test]
    fn a_node_goes_with_what_was_made_inside_it() {
        let nodes = graph(&["null-co,node-name=n", "raw,node-name=a,file.driver=raw,file.file=n"]).unwrap();
        assert_eq!(remove(&nodes, "a.file").unwrap_err().code(), Code::BackendInUse);
        remove(&nodes, "a").unwrap();
        let left: Vec<_> = nodes.list().into_iter().map(|node| (node.name.to_string(), node.users.len())).collect();
        assert_eq!(left, [("n".to_owned(), 0)], "what has a name of its own stays");
    }

    #[test]
    fn a_graph_is_made_and_each_node_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::write(&disk, [7; 8192]).unwrap();
        let disk = disk.display();
        let nodes = graph(&[
            &format!("file,node-name=f,filename={disk}"),
            "raw,node-name=r,file=f,offset=4096,size=512",
            "copy-on-read,node-name=c,file=r",
        ])
        .unwrap();
        let top = nodes.claim("c", "disk0").unwrap();
        assert_eq!(top.info().len, 512);
        write_from(&**top.back(), 0, &mut [1]).unwrap();
        let mut bytes = [0; 2];
        read_into(&**top.back(), 0, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 7]);
        assert_eq!(nodes.claim("r", "disk1").map(drop).unwrap_err().code(), Code::BackendInUse);
        for (lines, code) in [
            (&["raw,node-name=r,file=f"][..], Code::UnknownBackend),
            (&["null-co,node-name=n", "raw,node-name=a,file=n", "raw,node-name=b,file=n"], Code::BackendInUse),
            (&["null-co,node-name=n,size=512", "raw,node-name=a,file=n,size=513"], Code::BadProperty),
            (&["null-co"], Code::BadProperty),
            (&["qcow2,node-name=q,file.driver=null-co"], Code::ImageUnusable),
            (&["file,node-name=f,filename=/nothing/there"], Code::FileUnusable),
        ] {
            assert_eq!(graph(lines).map(drop).unwrap_err().code(), code, "{lines:?}");
        }
        graph(&["null-co,node-name=n,read-only=on", "raw,node-name=a,file=n", "raw,node-name=b,file=n"]).unwrap();
    }
}
