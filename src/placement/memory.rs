//! From which nodes the guest's memory comes. Ordinary memory needs no plan: the kernel takes each page from the node of
//! the CPU that touches it first, and all threads that do so run on the planned nodes. Huge pages are reserved by node.

use serde::Serialize;

use super::cores::distance;
use super::{Plan, Request};
use crate::host::limits::size_text;
use crate::host::topology::Topology;

/// Huge pages that a guest needs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NodePages {
    /// The node.
    pub node: u32,
    /// Bytes of one page.
    pub page: u64,
    /// How many the guest needs.
    pub needed: u64,
    /// How many are free now.
    pub free: u64,
}

impl NodePages {
    /// How many would have to be added.
    pub fn missing(&self) -> u64 {
        self.needed.saturating_sub(self.free)
    }
}

/// All nodes: first those of the CPUs, then the others by their distance from the first.
pub(super) fn order(nodes: &[u32], near: Option<u32>, topology: &Topology) -> Vec<u32> {
    let start = nodes.first().copied().or(near).filter(|node| topology.node(*node).is_some());
    let mut order: Vec<u32> = topology.nodes.iter().map(|node| node.id).collect();
    let far = |node: u32| start.map_or(0, |start| distance(topology, start, node));
    order.sort_by_key(|&node| (!nodes.contains(&node), far(node), node));
    order
}

/// Adds to `plan` what of the guest's memory comes from which node.
pub(super) fn plan(request: &Request, order: &[u32], topology: &Topology, plan: &mut Plan) {
    let nodes = || order.iter().filter_map(|node| topology.node(*node));
    let Some(page) = request.page.filter(|page| *page > 0) else {
        let own: Vec<_> = nodes().filter(|node| plan.nodes.contains(&node.id)).collect();
        let free = own.iter().fold(0, |sum: u64, node| sum.saturating_add(node.free));
        if !own.is_empty() && topology.nodes.len() > own.len() && free < request.memory {
            plan.notes.push(format!(
                "its memory nodes have {} free, and it needs {}: the rest comes from others",
                size_text(free),
                size_text(request.memory)
            ));
        }
        return;
    };
    let mut rest = request.memory.div_ceil(page);
    for node in nodes() {
        let free = node.pools.iter().find(|pool| pool.page == page).map_or(0, |pool| pool.free);
        let needed = rest.min(free.saturating_add(node.free / page));
        if needed > 0 {
            plan.pages.push(NodePages { node: node.id, page, needed, free });
            rest -= needed;
        }
    }
    if let (true, Some(node)) = (rest > 0, order.first()) {
        plan.notes.push(format!("{rest} huge pages of {} cannot come from anywhere", size_text(page)));
        match plan.pages.first_mut() {
            Some(first) => first.needed = first.needed.saturating_add(rest),
            None => plan.pages.push(NodePages { node: *node, page, needed: rest, free: 0 }),
        }
    }
    let foreign = plan.pages.iter().find(|pages| !plan.nodes.is_empty() && !plan.nodes.contains(&pages.node));
    if let Some(pages) = foreign {
        plan.notes.push(format!("{} of its huge pages come from node {}", pages.needed, pages.node));
    }
}
