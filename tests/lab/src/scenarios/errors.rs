//! Every error that the kernel of L1 can be made to give (issue "The main job", section 5).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::lab::{bind_by_hand, release_by_hand};
use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::Guest;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("error-no-kvm", no_kvm),
    Scenario::new("error-device-absent", device_absent),
    Scenario::new("error-device-on-its-driver", own_driver),
    Scenario::new("error-device-busy", busy),
    Scenario::new("error-node-not-permitted", not_permitted),
    Scenario::new("error-memlock", memlock),
    Scenario::new("error-no-memory", no_memory),
    Scenario::new("error-kernel-is-none", no_kernel),
    Scenario::new("error-bind-in-use", bind_in_use),
    Scenario::new("explain-knows-every-code", explain),
    Scenario::new("error-no-iommu", no_iommu).on(&machines::NO_IOMMU),
    Scenario::new("error-no-interrupt-remapping", no_remapping).on(&machines::NO_INTREMAP),
    Scenario::new("error-group-not-viable", not_viable).on(&machines::SHARED_GROUP),
];

/// Addresses on the machine with a shared group.
const SHARED_NIC: &str = "02:01.0";
const SHARED_SOUND: &str = "02:02.0";

/// An ordinary user without capabilities.
const AS_USER: &str = "setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all";

/// The command must fail with `code`, and name all of `words`.
pub fn refused(lab: &mut Lab, command: &str, code: &str, words: &[&str]) -> Result<String> {
    let output = lab.l1.sh_within(command, Duration::from_secs(60))?;
    ensure!(output.code != 0 && !output.timed_out, "`{command}` should fail, but {}", crate::l1::describe(&output));
    let text = output.stdout + &output.stderr;
    ensure!(code_in(&text) == Some(code), "the code is not {code}:\n{text}");
    for word in words {
        ensure!(text.to_lowercase().contains(&word.to_lowercase()), "`{word}` is not in:\n{text}");
    }
    Ok(text)
}

/// The first word `PTnnn`.
fn code_in(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .find(|w| w.len() == 5 && w.starts_with("PT") && w[2..].bytes().all(|b| b.is_ascii_digit()))
}

fn nic_guest() -> Guest {
    Guest::new().device(&format!("vfio-pci,host={NIC}"))
}

fn no_kvm(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new())?;
    lab.l1.ok("mv /dev/kvm /dev/kvm.away")?;
    let result = refused(lab, &command, "PT001", &["/dev/kvm"]);
    lab.l1.ok("mv /dev/kvm.away /dev/kvm")?;
    result.map(drop)
}

fn device_absent(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new().device("vfio-pci,host=05:00.0"))?;
    refused(lab, &command, "PT004", &["05:00.0"])?;
    refused(lab, "passthru bind 05:00.0", "PT004", &["05:00.0"]).map(drop)
}

fn own_driver(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&nic_guest())?;
    refused(lab, &command, "PT005", &[NIC, "e1000e", "vfio-pci", "passthru bind"]).map(drop)
}

fn busy(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let job = lab.l1.start_guest(&nic_guest().script("sleep 1000"))?;
        lab.l1.expect(&job, "L2 UP", Duration::from_secs(120))?;
        let command = lab.l1.prepare(&nic_guest())?;
        refused(lab, &command, "PT008", &["busy", "passthru", &job.pid.to_string()])?;
        lab.l1.kill_all()
    })
}

fn not_permitted(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let command = as_user(lab, "ulimit -l unlimited; chmod 666 /dev/kvm")?;
        let result = refused(lab, &command, "PT007", &["/dev/vfio/", "permi"]);
        lab.l1.ok("chmod 600 /dev/kvm")?;
        result.map(drop)
    })
}

fn memlock(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let command = as_user(lab, "ulimit -l 65536; chmod 666 /dev/kvm; chmod 666 /dev/vfio/[0-9]*")?;
        // 256 MiB needed, 64 MiB allowed.
        let result = refused(lab, &command, "PT009", &["memlock", "256", "64"]);
        lab.l1.ok("chmod 600 /dev/kvm")?;
        result.map(drop)
    })
}

/// The NIC's guest, run by an ordinary user after `before` was run by root.
fn as_user(lab: &mut Lab, before: &str) -> Result<String> {
    let command = lab.l1.prepare(&nic_guest())?;
    let command = command.trim_start_matches("exec ").to_owned();
    Ok(format!("{before}; exec {AS_USER} {command}"))
}

fn no_memory(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new().memory("64G"))?;
    refused(lab, &command, "PT010", &["memory", "64"]).map(drop)
}

fn no_kernel(lab: &mut Lab) -> Result<()> {
    for (file, code) in [
        ("/etc/passwd", "PT011"),
        ("/images/initramfs", "PT011"),
        ("/usr/bin/true", "PT011"),
        ("/dev/null", "PT023"),
        ("/no/such/file", "PT023"),
    ] {
        refused(lab, &format!("passthru run -m 64M --kernel {file}"), code, &[file])?;
    }
    Ok(())
}

/// `passthru bind` refuses what the host itself is using.
fn bind_in_use(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("mkfs.ext4 -q -F /dev/nvme0n1 && mkdir -p /mnt/drive && mount /dev/nvme0n1 /mnt/drive")?;
    let mounted = refused(lab, &format!("passthru bind {DRIVE}"), "PT013", &["/mnt/drive"]);
    lab.l1.ok("umount /mnt/drive && mkswap /dev/nvme0n1 && swapon /dev/nvme0n1")?;
    let swap = refused(lab, &format!("passthru bind {DRIVE}"), "PT013", &["swap"]);
    lab.l1.ok("swapoff /dev/nvme0n1 && dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=1 2>/dev/null")?;
    let interface = lab.l1.ok(&format!("ls /sys/bus/pci/devices/0000:{NIC}/net"))?;
    let interface = interface.trim();
    lab.l1.ok(&format!("ip link set {interface} up && ip addr add 10.0.2.15/24 dev {interface}"))?;
    let mend = format!("ip link set {interface} down");
    let address = refused(lab, &format!("passthru bind {NIC}"), "PT013", &[&format!("`{mend}`")]);
    lab.l1.ok("ip route add default via 10.0.2.2")?;
    let route = refused(lab, &format!("passthru bind {NIC}"), "PT013", &[interface, "route"]);
    ensure!(steps::driver(lab.l1, DRIVE)? == "nvme", "the drive has lost its driver");
    ensure!(steps::driver(lab.l1, NIC)? == "e1000e", "the NIC has lost its driver");
    mounted.and(swap).and(address).and(route)?;
    // What the error names is all that is to be done.
    lab.l1.ok(&format!("{mend} && passthru bind {NIC} && passthru release {NIC}")).map(drop)
}

fn explain(lab: &mut Lab) -> Result<()> {
    let mut known = 0;
    for number in 1..=12 {
        let output = lab.l1.sh(&format!("passthru explain PT{number:03}"))?;
        if output.code == 0 {
            known += 1;
            ensure!(output.stdout.len() > 80, "PT{number:03} is hardly explained: {}", output.stdout);
        }
    }
    ensure!(known >= 12, "only {known} of PT001 to PT012 are explained");
    lab.l1.fails("passthru explain PT999", 2).map(drop)
}

fn no_iommu(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&nic_guest())?;
    // Whichever of the two says it first.
    let bind = lab.l1.sh(&format!("passthru bind {NIC}"))?;
    if bind.code == 0 {
        let result = refused(lab, &command, "PT002", &["iommu"]);
        lab.l1.ok(&format!("passthru release {NIC}"))?;
        return result.map(drop);
    }
    refused(lab, &format!("passthru bind {NIC}"), "PT002", &["iommu"])?;
    refused(lab, &command, "PT002", &["iommu"]).map(drop)
}

fn no_remapping(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&nic_guest())?;
    bind_by_hand(lab.l1, NIC)?;
    let result = refused(lab, &command, "PT003", &["interrupt remapping"]);
    release_by_hand(lab.l1, NIC)?;
    result.map(drop)
}

/// One function of a group on vfio-pci, another on its driver: the error names both.
fn not_viable(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new().device(&format!("vfio-pci,host={SHARED_NIC}")))?;
    bind_by_hand(lab.l1, SHARED_NIC)?;
    let result = refused(lab, &command, "PT006", &[SHARED_NIC, SHARED_SOUND, "snd_hda_intel"]);
    release_by_hand(lab.l1, SHARED_NIC)?;
    result.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_in_text() {
        assert_eq!(code_in("error[PT012]: busy"), Some("PT012"));
        assert_eq!(code_in("passthru: PT1234 PTabc OPT001"), None);
    }
}
