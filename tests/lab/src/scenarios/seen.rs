//! What `devices`, `check` and `inspect` say of L1 is true, for root and for a user without any right.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::steps::{self, NIC};
use crate::l0::machines;
use crate::l1::L1;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("seen-default", default_machine),
    Scenario::new("seen-no-iommu", no_iommu).on(&machines::NO_IOMMU),
    Scenario::new("seen-no-remapping", no_remapping).on(&machines::NO_INTREMAP),
    Scenario::new("seen-shared-group", shared_group).on(&machines::SHARED_GROUP),
];

/// Whoever this runs as may open no node.
const AS_NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all";

/// What `passthru devices --json` says, by root and by nobody: of groups and members the same, and what the kernel says.
fn survey(l1: &mut L1) -> Result<Value> {
    let seen: Value = serde_json::from_str(&l1.ok("passthru devices --json")?)?;
    let unprivileged: Value = serde_json::from_str(&l1.ok(&format!("{AS_NOBODY} passthru devices --json"))?)?;
    let groups = |seen: &Value| -> BTreeSet<String> {
        let groups = seen["groups"].as_array().into_iter().flatten();
        groups
            .flat_map(|group| {
                let id = group["id"].to_string();
                let members = group["members"].as_array().cloned().unwrap_or_default();
                members.into_iter().map(move |member| format!("{id}/devices/{}", member["bdf"].as_str().unwrap_or("?")))
            })
            .collect()
    };
    let kernel = l1.ok("cd /sys/kernel/iommu_groups && ls -d */devices/* 2>/dev/null || true")?;
    let kernel: BTreeSet<String> = kernel.lines().map(str::to_owned).collect();
    ensure!(groups(&seen) == kernel, "devices sees {:?}, the kernel {kernel:?}", groups(&seen));
    ensure!(groups(&unprivileged) == kernel, "nobody sees {:?}", groups(&unprivileged));
    ensure!(seen["hidden_processes"] == 0, "root does not see all");
    ensure!(unprivileged["hidden_processes"] != 0, "nobody sees all");
    let picture = l1.ok("passthru devices --svg -")?;
    ensure!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
    Ok(seen)
}

/// The group of a function.
fn group_of<'a>(survey: &'a Value, bdf: &str) -> Result<&'a Value> {
    let full = format!("0000:{bdf}");
    let has = |group: &&Value| {
        group["members"].as_array().is_some_and(|members| members.iter().any(|member| member["bdf"] == full.as_str()))
    };
    survey["groups"]
        .as_array()
        .and_then(|groups| groups.iter().find(has))
        .with_context(|| format!("{bdf} is in no group"))
}

/// The exit code of `check`, and the codes of what fails.
fn check(l1: &mut L1, prefix: &str, words: &str) -> Result<(i32, BTreeSet<String>)> {
    let output = l1.sh(&format!("{prefix} passthru check --json {words}"))?;
    let report: Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let failed = findings.iter().filter(|finding| finding["level"] == "fail");
    let codes = failed.map(|finding| finding["code"].as_str().unwrap_or_default().to_owned()).collect();
    for code in &codes {
        l1.ok(&format!("passthru explain {code}"))?;
    }
    Ok((output.code, codes))
}

fn codes(codes: &[&str]) -> BTreeSet<String> {
    codes.iter().map(|&code| code.to_owned()).collect()
}

/// A device before and after `bind`; a user who may open no node.
fn default_machine(lab: &mut Lab) -> Result<()> {
    let seen = survey(lab.l1)?;
    let group = group_of(&seen, NIC)?;
    ensure!(group["prospect"] == "after_bind" && group["bind"][0] == format!("0000:{NIC}"), "{group}");
    ensure!(check(lab.l1, "", "")? == (0, codes(&[])), "the host is ready: {:?}", check(lab.l1, "", "")?);
    let before = check(lab.l1, "", NIC)?;
    ensure!(before == (4, codes(&["PT005"])), "before bind: {before:?}");
    let to_do = lab.l1.ok(&format!("passthru inspect {NIC}"))?;
    ensure!(to_do.contains(&format!("`passthru bind 0000:{NIC}`")) && to_do.contains("MSI-X"), "{to_do}");
    steps::with_bound(lab, &[NIC], |lab| {
        let seen = survey(lab.l1)?;
        let group = group_of(&seen, NIC)?;
        ensure!(group["prospect"] == "ready", "{group}");
        let guest = format!("-m 256M --kernel /images/bzImage --initrd /images/initramfs --device vfio-pci,host={NIC}");
        let root = check(lab.l1, "", &guest)?;
        ensure!(root == (0, codes(&[])), "after bind: {root:?}");
        let nobody = check(lab.l1, AS_NOBODY, NIC)?;
        ensure!(nobody.0 == 3 && nobody.1.contains("PT007"), "nobody: {nobody:?}");
        let other = check(lab.l1, "", &format!("--user nobody {NIC}"))?;
        ensure!(other == nobody, "root as nobody: {other:?}, nobody: {nobody:?}");
        let inspected = lab.l1.ok(&format!("{AS_NOBODY} passthru inspect {NIC}"))?;
        ensure!(inspected.contains("  ready ") && !inspected.contains("  capability"), "{inspected}");
        Ok(())
    })
}

/// No group, and the reason.
fn no_iommu(lab: &mut Lab) -> Result<()> {
    let seen = survey(lab.l1)?;
    ensure!(seen["ungrouped"].as_array().is_some_and(|all| !all.is_empty()), "{seen}");
    let text = lab.l1.ok("passthru devices")?;
    ensure!(text.contains("PT002"), "{text}");
    let host = check(lab.l1, "", "")?;
    ensure!(host == (3, codes(&["PT002"])), "{host:?}");
    Ok(())
}

/// Interrupt remapping is missing, and everything else is there.
fn no_remapping(lab: &mut Lab) -> Result<()> {
    survey(lab.l1)?;
    let host = check(lab.l1, "", "")?;
    ensure!(host == (3, codes(&["PT003"])), "{host:?}");
    let nobody = check(lab.l1, AS_NOBODY, "")?;
    ensure!(nobody.0 == 3 && nobody.1.contains("PT003"), "{nobody:?}");
    Ok(())
}

/// A group of two devices is ready when both are bound.
fn shared_group(lab: &mut Lab) -> Result<()> {
    let (nic, sound) = ("02:01.0", "02:02.0");
    let seen = survey(lab.l1)?;
    let group = group_of(&seen, nic)?;
    let both = [nic, sound].map(|bdf| Value::from(format!("0000:{bdf}")));
    ensure!(
        group["prospect"] == "after_bind"
            && both.iter().all(|bdf| group["bind"].as_array().is_some_and(|all| all.contains(bdf))),
        "{group}"
    );
    steps::with_bound(lab, &[nic], |lab| {
        let one = check(lab.l1, "", nic)?;
        ensure!(one == (4, codes(&["PT006"])), "with one of two: {one:?}");
        Ok(())
    })?;
    steps::with_bound(lab, &[nic, sound], |lab| {
        let all = check(lab.l1, "", nic)?;
        ensure!(all == (0, codes(&[])), "with both: {all:?}");
        Ok(())
    })
}
