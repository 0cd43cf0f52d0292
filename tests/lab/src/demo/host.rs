//! The demo on this host, which needs a real IOMMU: the same steps with a device of
//! the user's choice. Drives are only read.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::guard::{Interrupts, Taken, run_guest};
use super::host_facts::{self, Member, Roots};
use super::{output, shows, step, summary};
use crate::l1::Guest;
use crate::setup::{Image, name};

/// Exit code of a refusal.
pub const EXIT_REFUSED: u8 = 3;
/// Limit of the guest's life.
const LIMIT: Duration = Duration::from_secs(300);

/// Said when the device must stay with the host.
#[derive(Debug)]
pub struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Runs the demo with the device `bdf`; `yes` answers the question beforehand.
pub fn run(image: &Image, passthru: &Path, folder: &Path, bdf: &str, yes: bool) -> Result<()> {
    let interrupts = Interrupts::catch()?;
    let bdf = host_facts::full_address(bdf);
    step(1, "The device's IOMMU group");
    let (group, members) = host_facts::group(&Roots::real(), &bdf)?;
    show_group(&group, &members);
    refuse_used(&members)?;
    let taken: Vec<&Member> = members.iter().filter(|m| !m.is_bridge()).collect();
    ensure!(taken.iter().any(|m| m.bdf == bdf), "{bdf} is a bridge: bridges stay with the host");
    if !yes {
        confirm(&taken)?;
    }
    if interrupts.came() {
        bail!(Refused("interrupted: nothing was done".into()));
    }

    step(2, "Take the group from the host");
    let mut held = Taken::none(passthru);
    for member in &taken {
        held.take(&member.bdf)?;
    }

    step(3, "Boot a guest that owns it (Debian's kernel, 512 MiB)");
    let guest = guest(&taken);
    std::fs::create_dir_all(folder)?;
    let initrd = folder.join("initrd");
    let mut archive = std::fs::read(image.images.join(name::L2_FAT_INITRAMFS))?;
    archive.extend(guest.archive());
    std::fs::write(&initrd, archive)?;
    let kernel = image.images.join(name::KERNEL);
    let text = guest
        .command(&initrd.display().to_string())
        .replace(&format!("/images/{}", name::KERNEL), &kernel.display().to_string());
    let text = text.trim_start_matches("exec ");
    shows(text);
    let text = text.strip_prefix("passthru").context("not passthru's command")?;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\"{text}")]).arg(passthru).stdin(Stdio::null());
    let code = run_guest(&mut command, &interrupts, LIMIT)?;
    ensure!(code == 0, "passthru ended with {code}");

    step(4, "Give it back to the host");
    held.give_back()?;
    let (_, after) = host_facts::group(&Roots::real(), &bdf)?;
    show_group(&group, &after);
    for (was, is) in members.iter().zip(&after) {
        ensure!(was.driver == is.driver, "{} is on {:?}, it was on {:?}", is.bdf, is.driver, was.driver);
    }
    summary(&[
        format!("a stock Debian kernel booted in a guest that owned {bdf} of this host"),
        "the guest's own driver worked with it (see its output above)".into(),
        "every device is back on the driver that it had".into(),
    ]);
    Ok(())
}

fn show_group(group: &str, members: &[Member]) {
    output(&format!("group {group}:"));
    for member in members {
        let driver = member.driver.as_deref().unwrap_or("no driver");
        let uses = match member.uses.as_slice() {
            [] => "not in use".to_owned(),
            uses => uses.join(", "),
        };
        output(&format!("  {}  class {:06x}  {driver}  {uses}", member.bdf, member.class));
    }
}

fn refuse_used(members: &[Member]) -> Result<()> {
    let uses: Vec<String> = members
        .iter()
        .filter(|m| !m.is_bridge())
        .flat_map(|m| m.uses.iter().map(move |u| format!("{}: {u}", m.bdf)))
        .collect();
    if !uses.is_empty() {
        bail!(Refused(format!("the host needs this group:\n  {}", uses.join("\n  "))));
    }
    Ok(())
}

fn confirm(taken: &[&Member]) -> Result<()> {
    let names: Vec<&str> = taken.iter().map(|m| m.bdf.as_str()).collect();
    print!("\nThe host will be without {} for about a minute. Type yes to go on: ", names.join(", "));
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!(Refused("nothing was done".into()));
    }
    Ok(())
}

/// A guest that shows its devices and reads from its drives.
fn guest(taken: &[&Member]) -> Guest {
    let mut guest = Guest::new().whole_start().memory("512M").fat();
    for member in taken {
        guest = guest.passes(&member.bdf);
    }
    guest = guest.script("echo '# lspci'; lspci -nn");
    if taken.iter().any(|m| m.is_nic()) {
        guest = guest.script(NIC_SCRIPT);
    }
    if taken.iter().any(|m| m.is_nvme()) {
        guest = guest.script(DRIVE_SCRIPT);
    }
    guest.script("echo '# interrupts'; grep -E 'CPU0|MSI' /proc/interrupts")
}

/// Address by DHCP, then a ping of the gateway that it names.
const NIC_SCRIPT: &str = r#"
echo '# the NIC: link, address, ping of the gateway'
modprobe -a e1000e igb igbvf 8139cp 2>/dev/null
cat > /tmp/dhcp <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/${mask:-24} dev $interface
ip route add default via $router dev $interface
END
chmod 755 /tmp/dhcp
for n in /sys/class/net/*; do
    [ -e $n/device ] || continue
    ip link set ${n##*/} up
    sleep 5
    udhcpc -i ${n##*/} -s /tmp/dhcp -n -q -t 5 && break
done
ip addr
ping -c 4 $(ip route | sed -n 's/default via \([^ ]*\).*/\1/p')
"#;

/// Reads, never writes.
const DRIVE_SCRIPT: &str = r#"
echo '# the drive: 64 MiB, read twice'
modprobe nvme
i=0; until [ -b /dev/nvme0n1 ] || [ $i -ge 100 ]; do sleep 0.1; i=$((i+1)); done
for i in 1 2; do dd if=/dev/nvme0n1 bs=1M count=64 iflag=direct | sha256sum; done
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn member(class: u32, uses: &[&str]) -> Member {
        Member { bdf: "0000:01:00.0".into(), class, driver: None, uses: uses.iter().map(|u| (*u).to_owned()).collect() }
    }

    #[test]
    fn a_group_in_use_is_refused_with_the_reason() {
        assert!(refuse_used(&[member(0x01_08_02, &[])]).is_ok());
        let error = refuse_used(&[member(0x01_08_02, &["/dev/nvme0n1 is swap"])]).unwrap_err();
        assert!(error.is::<Refused>());
        assert!(error.to_string().contains("is swap"), "{error}");
    }

    #[test]
    fn drives_are_only_read() {
        let drive = member(0x01_08_02, &[]);
        let script = String::from_utf8_lossy(&guest(&[&drive]).archive()).into_owned();
        assert!(script.contains("if=/dev/nvme0n1"));
        assert!(!script.contains("of=/dev/nvme0n1"));
    }
}
