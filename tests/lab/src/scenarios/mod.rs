//! All scenarios. A new one is a function and a line in its file's table; a new file
//! is a line here.

mod bars;
mod console;
mod control;
mod daemons;
mod disks;
mod errors;
mod faults;
mod groups;
mod host;
mod hotplug;
mod hotplug_each;
mod interrupts;
pub mod iommufd;
pub mod lab;
mod lifecycle;
mod main_job;
pub mod matrix;
mod memory;
mod netdevs;
mod package;
mod placement;
mod prepared;
mod resets;
mod rom;
mod same_line;
mod seen;
mod service;
mod sigterm;
mod small;
mod sriov;
mod start;
pub mod steps;
mod vga;
mod virtio;

use crate::scenario::Scenario;

static TABLES: &[&[Scenario]] = &[
    lab::SCENARIOS,
    service::SCENARIOS,
    main_job::SCENARIOS,
    bars::SCENARIOS,
    console::SCENARIOS,
    control::SCENARIOS,
    disks::SCENARIOS,
    hotplug::SCENARIOS,
    hotplug_each::SCENARIOS,
    faults::SCENARIOS,
    lifecycle::SCENARIOS,
    start::SCENARIOS,
    placement::SCENARIOS,
    errors::SCENARIOS,
    groups::SCENARIOS,
    host::SCENARIOS,
    seen::SCENARIOS,
    sigterm::SCENARIOS,
    small::SCENARIOS,
    memory::SCENARIOS,
    package::SCENARIOS,
    prepared::SCENARIOS,
    resets::SCENARIOS,
    sriov::SCENARIOS,
    iommufd::SCENARIOS,
    matrix::SCENARIOS,
    interrupts::SCENARIOS,
    rom::SCENARIOS,
    same_line::SCENARIOS,
    vga::SCENARIOS,
    virtio::SCENARIOS,
    daemons::SCENARIOS,
    netdevs::SCENARIOS,
];

/// Every scenario, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    TABLES.iter().flat_map(|table| table.iter())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = super::all().map(|s| s.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
