//! Network interfaces of a PCI function: which of them the host reaches the network by.
//!
//! Routes are those of /proc/net/route and /proc/net/ipv6_route: the main tables. An interface counts for whatever
//! is built on it (links `upper_*`: bond, bridge, VLAN), since its loss takes those down as well.

use std::collections::BTreeSet;

use super::{Use, leads_through};
use crate::host::{Host, read};

/// Flags of a route (kernel: include/uapi/linux/route.h): up, and one that refuses what it matches.
const RTF_UP: u32 = 0x0001;
const RTF_REJECT: u32 = 0x0200;
/// Flag of an interface that is up (kernel: include/uapi/linux/if.h).
const IFF_UP: u32 = 0x1;
/// Scope of a global address in /proc/net/if_inet6.
const SCOPE_GLOBAL: &str = "00";
/// How many interfaces may be stacked; the kernel's limit is 8 (MAX_NEST_DEV).
const MAX_STACK: usize = 8;

/// The uses of the network interfaces of a function, or of a USB device, by its name in sysfs.
pub(super) fn uses(host: &Host, routes: &Routes, of: &str) -> Vec<Use> {
    let own = read::names(host.sys("class/net"))
        .into_iter()
        .filter(|name| read::real(host.sys("class/net").join(name)).is_some_and(|path| leads_through(&path, of)));
    own.filter_map(|interface| use_of(host, routes, interface)).collect()
}

fn use_of(host: &Host, routes: &Routes, interface: String) -> Option<Use> {
    let mut addressed = false;
    for stack in stacks(host, &interface) {
        let top = stack.last().unwrap_or(&interface);
        if routes.default.contains(top) {
            return Some(Use::DefaultRoute { interface, through: stack });
        }
        addressed |= routes.addressed.contains(top);
    }
    let up = read::hex(host.sys("class/net").join(&interface).join("flags")).is_some_and(|flags| flags & IFF_UP != 0);
    (up && addressed).then_some(Use::InterfaceUp { interface })
}

/// Every way up from an interface, the empty one first; each way names what lies on top, outermost last.
fn stacks(host: &Host, interface: &str) -> Vec<Vec<String>> {
    let mut seen = BTreeSet::from([interface.to_owned()]);
    let mut all = vec![Vec::new()];
    let mut next = 0;
    while let Some(stack) = all.get(next).cloned() {
        next += 1;
        let top = stack.last().map_or(interface, String::as_str);
        let uppers = read::names(host.sys("class/net").join(top));
        let uppers = uppers.iter().filter_map(|name| name.strip_prefix("upper_"));
        for upper in uppers.filter(|_| stack.len() < MAX_STACK) {
            if seen.insert(upper.to_owned()) {
                all.push(stack.iter().cloned().chain([upper.to_owned()]).collect());
            }
        }
    }
    all
}

/// Which interfaces have routes and addresses.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Those that a default route leaves by.
    default: BTreeSet<String>,
    /// Those with an address: any IPv4 route shows one, link-local IPv6 addresses do not count.
    addressed: BTreeSet<String>,
}

impl Routes {
    pub(super) fn read(host: &Host) -> Routes {
        let mut routes = Routes::default();
        for line in read::lines(host.proc("net/route")).iter().skip(1) {
            if let Some((interface, default)) = ipv4(line) {
                routes.add(interface, default);
                routes.addressed.insert(interface.to_owned());
            }
        }
        for line in &read::lines(host.proc("net/ipv6_route")) {
            if let Some((interface, default)) = ipv6(line) {
                routes.add(interface, default);
            }
        }
        for line in &read::lines(host.proc("net/if_inet6")) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, SCOPE_GLOBAL, _, interface] = fields[..] {
                routes.addressed.insert(interface.to_owned());
            }
        }
        routes
    }

    fn add(&mut self, interface: &str, default: bool) {
        if default {
            self.default.insert(interface.to_owned());
        }
    }
}

/// A line of /proc/net/route: the interface, and whether it is a default route.
fn ipv4(line: &str) -> Option<(&str, bool)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, destination, _, flags, _, _, _, mask, ..] = fields[..] else { return None };
    usable(flags).then_some((interface, all_zero(destination) && all_zero(mask)))
}

/// A line of /proc/net/ipv6_route: the interface, and whether it is a default route.
fn ipv6(line: &str) -> Option<(&str, bool)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [destination, length, _, _, _, _, _, _, flags, interface] = fields[..] else { return None };
    usable(flags).then_some((interface, all_zero(destination) && all_zero(length)))
}

fn usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_UP != 0 && flags & RTF_REJECT == 0)
}

fn all_zero(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    const NIC: &str = "0000:03:00.0";

    fn nic() -> TestTree {
        let tree = TestTree::new();
        tree.pci(NIC).driver("e1000e").add();
        tree.net(NIC, "eth0");
        tree
    }

    fn texts(tree: &TestTree) -> Vec<String> {
        tree.host().uses(bdf(NIC)).iter().map(Use::to_string).collect()
    }

    #[test]
    fn an_idle_interface_has_no_use() {
        let tree = nic();
        tree.route("eth1", "00000000", "00000000");
        assert!(texts(&tree).is_empty());
    }

    #[test]
    fn default_routes_of_both_families() {
        let tree = nic();
        tree.route("eth0", "00000000", "00000000");
        assert_eq!(texts(&tree), ["eth0 has the default route"]);

        let tree = nic();
        let zero = "0".repeat(32);
        let gateway = "fe800000000000000000000000000001";
        let line = |flags: &str, name: &str| {
            format!("{zero} 00 {zero} 00 {gateway} 00000400 00000001 00000000 {flags} {name}\n")
        };
        tree.file("proc/net/ipv6_route", &line("00200200", "lo"));
        assert!(texts(&tree).is_empty());
        tree.file("proc/net/ipv6_route", &line("00000003", "eth0"));
        assert_eq!(texts(&tree), ["eth0 has the default route"]);
    }

    #[test]
    fn a_route_through_a_bond_and_a_bridge() {
        let tree = nic();
        tree.upper("eth0", "bond0");
        tree.upper("bond0", "br0");
        tree.route("br0", "00000000", "00000000");
        assert_eq!(texts(&tree), ["eth0 under bond0 under br0 has the default route"]);
        assert!(tree.host().uses(bdf(NIC))[0].is_vital());
    }

    #[test]
    fn an_interface_that_is_up_with_an_address_is_in_use() {
        let tree = nic();
        tree.route("eth0", "0000A8C0", "00FFFFFF");
        let uses = tree.host().uses(bdf(NIC));
        assert_eq!(uses, [Use::InterfaceUp { interface: "eth0".into() }]);
        assert!(uses[0].is_vital());
        std::fs::write(tree.sys("class/net/eth0/flags"), "0x1002\n").unwrap();
        assert!(texts(&tree).is_empty(), "it is down");

        let tree = nic();
        tree.file("proc/net/if_inet6", "fe80000000000000021b21fffe3f11aa 02 40 20 80     eth0\n");
        assert!(texts(&tree).is_empty());
        tree.append("proc/net/if_inet6", "20010db8000000000000000000000001 02 40 00 80     eth0\n");
        assert_eq!(texts(&tree), ["eth0 is up and has an address"]);
    }
}
