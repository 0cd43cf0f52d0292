//! Block nodes: what there is, snapshots as overlays, commits.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::message::Failure;
use super::{Command, Kind, nothing, optional, param};
use crate::backends::block::chain::Format;
use crate::backends::block::{self, BlockNode, overlay};
use crate::backends::table::{Listed, Table};
use crate::error::{Code, Error};
use crate::object::{self, Args};

/// The unit in which the host counts what a file takes (stat(2)).
const SECTOR: u64 = 512;

/// The commands of this file.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "query-block",
        doc: "The disks of the guest, each with the node that it has",
        params: &[],
        open: false,
        run: |control, _| {
            let all = control.nodes().list();
            let nodes: Vec<Arc<str>> = all.iter().map(|node| node.name.clone()).collect();
            // A node whose user is a node is not the guest's.
            let disks = all.iter().flat_map(|node| {
                let users = node.users.iter().filter(|user| !nodes.contains(user));
                users.map(move |user| {
                    json!({ "device": "", "qdev": &**user, "type": "unknown", "locked": false, "removable": false,
                            "io-status": "ok", "inserted": described(node) })
                })
            });
            Ok(disks.collect::<Value>().into())
        },
    },
    Command {
        name: "query-named-block-nodes",
        doc: "All nodes of `--blockdev`",
        params: &[optional("flat", Kind::Boolean, "QEMU's; the list is flat in any case")],
        open: false,
        run: |control, _| Ok(control.nodes().list().iter().map(described).collect::<Value>().into()),
    },
    Command {
        name: "blockdev-add",
        doc: "Makes a block node; the arguments are the properties of `--blockdev`, and a node inside it is an object of its \
              own",
        params: &[
            param("driver", Kind::String, "Type of the node"),
            param("node-name", Kind::String, "Name of the node"),
        ],
        open: true,
        run: |control, arguments| {
            let text = arguments.into_json().to_string();
            control.add_back_end(object::Kind::Node, Args::parse("--blockdev", Some("driver"), &text)?)?;
            Ok(nothing())
        },
    },
    Command {
        name: "blockdev-del",
        doc: "Removes a block node that no device and no other node has, with the nodes that were made inside it",
        params: &[param("node-name", Kind::String, "Name of the node")],
        open: false,
        run: |control, arguments| {
            block::remove(&control.nodes(), arguments.text("node-name"))?;
            Ok(nothing())
        },
    },
    Command {
        name: "blockdev-snapshot-sync",
        doc: "Puts a new qcow2 image on top of a node's, while the guest runs: it takes what is written from now on, and \
              the one below stays as it is. The node keeps its name",
        params: &[
            optional("device", Kind::String, "The node, by its name, or by the device that has it"),
            optional("node-name", Kind::String, "The node, by its name"),
            param("snapshot-file", Kind::String, "The image to make, which must not be there"),
            optional("snapshot-node-name", Kind::String, "QEMU's; the node keeps its name"),
            optional("format", Kind::String, "qcow2, which it is in any case"),
            optional("mode", Kind::String, "absolute-paths, which it is in any case"),
        ],
        open: false,
        run: |control, arguments| {
            for (name, only) in [("format", "qcow2"), ("mode", "absolute-paths")] {
                if !matches!(arguments.text(name), "" | "absolute-paths" | "qcow2") {
                    return Err(Failure::generic(format!("'{name}' can only be {only}")));
                }
            }
            let named =
                [arguments.text("node-name"), arguments.text("device")].into_iter().find(|name| !name.is_empty());
            let node = find(&control.nodes(), named.unwrap_or_default())?;
            let Some(switch) = node.back.switch() else { return Err(fixed(&node.name)) };
            let is_image = node.of_type == "qcow2" || switch.backing().is_some();
            let format = if is_image { Format::Qcow2 } else { Format::Raw };
            overlay::snapshot(switch, &node.name, Path::new(arguments.text("snapshot-file")), format)?;
            Ok(nothing())
        },
    },
    Command {
        name: "block-commit",
        doc: "Copies what a node's overlay has into the image below it, while the guest runs, and goes on with that one. \
              The event BLOCK_JOB_COMPLETED says that it is done; the overlay's file is no longer used then",
        params: &[
            optional("job-id", Kind::String, "Name of the job in its event; without it the node's"),
            param("device", Kind::String, "The node, by its name, or by the device that has it"),
        ],
        open: false,
        run: |control, arguments| {
            let node = find(&control.nodes(), arguments.text("device"));
            let node = node.map_err(|_| Failure::no_device(arguments.text("device")))?;
            let job = Some(arguments.text("job-id")).filter(|id| !id.is_empty()).unwrap_or(&node.name).to_owned();
            control.block_commit(node.back, job)?;
            Ok(nothing())
        },
    },
];

/// The node of this name, or that the device of this id has.
fn find(nodes: &Table<dyn BlockNode>, name: &str) -> Result<Listed<dyn BlockNode>, Failure> {
    let mut all = nodes.list();
    let by_name = all.iter().position(|node| &*node.name == name);
    let at = by_name.or_else(|| all.iter().position(|node| node.users.iter().any(|user| &**user == name)));
    match at {
        Some(at) => Ok(all.swap_remove(at)),
        None => Err(Failure::generic(format!("Cannot find device='{name}' nor node-name='{name}'"))),
    }
}

fn fixed(name: &str) -> Failure {
    Error::new(Code::BackingChain, format!("what is below `{name}` cannot be exchanged")).into()
}

/// A node as QEMU describes one. A node that is throttled is one of its own, so there are no limits here, and nothing is
/// encrypted.
fn described(node: &Listed<dyn BlockNode>) -> Value {
    let info = node.back.info();
    let file = node.back.filename().map(|file| file.display().to_string()).unwrap_or_default();
    let on_disk = node.back.filename().and_then(|file| file.metadata().ok()).map_or(0, |file| file.blocks() * SECTOR);
    let depth = std::iter::successors(node.back.backing(), |below| below.backing()).count();
    json!({
        "node-name": &*node.name, "drv": node.of_type, "ro": info.read_only, "file": file, "backing_file_depth": depth,
        "image": { "filename": file, "format": node.of_type, "virtual-size": info.len, "actual-size": on_disk },
        "active": true, "encrypted": false, "write_threshold": 0, "detect_zeroes": node.back.detect_zeroes().to_string(),
        "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        // Only a file without the host's cache has blocks that cost less than others.
        "cache": { "writeback": info.write_back, "direct": info.block_size > 1, "no-flush": false },
        "children": node.back.children().iter().map(|child| json!({ "node-name": &**child })).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, run};
    use super::*;
    use crate::backends::block::host::{HostFile, Kind as What, Options};
    use crate::backends::block::switch::Switch;

    #[test]
    fn nodes_are_listed_and_get_overlays() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, top) = (folder.path().join("disk.raw"), folder.path().join("top.qcow2"));
        std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
        let file = HostFile::open(Options::plain(&disk, true), What::File).unwrap();
        let mut fake = Fake::default();
        fake.backends.nodes.add("d0".into(), "file", Arc::new(Switch::new(Arc::new(file))), false).unwrap();
        let claim = fake.backends.nodes.claim("d0", "disk0").unwrap();
        let listed = run(&mut fake, "query-block", json!({})).unwrap();
        assert_eq!(listed[0]["qdev"], "disk0");
        assert_eq!(listed[0]["inserted"]["image"]["virtual-size"], 1 << 20);
        let words = json!({ "device": "disk0", "snapshot-file": top.to_str(), "format": "qcow2" });
        run(&mut fake, "blockdev-snapshot-sync", words.clone()).unwrap();
        let nodes = run(&mut fake, "query-named-block-nodes", json!({})).unwrap();
        assert_eq!((&nodes[0]["backing_file_depth"], &nodes[0]["file"]), (&json!(1), &json!(top.to_str())));
        assert!(run(&mut fake, "blockdev-snapshot-sync", words).is_err(), "the file is there");
        let absent = json!({ "node-name": "d1", "snapshot-file": "/x" });
        assert!(run(&mut fake, "blockdev-snapshot-sync", absent).is_err());
        run(&mut fake, "block-commit", json!({ "device": "d0" })).unwrap();
        assert_eq!(fake.calls, ["commit d0"]);
        drop(claim);
    }
}
