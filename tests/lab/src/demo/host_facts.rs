//! What this machine does with a PCI device, read from sysfs and procfs. The roots are
//! parameters, so that tests read made-up trees.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where the kernel's files are.
pub struct Roots {
    pub sys: PathBuf,
    pub proc: PathBuf,
}

impl Roots {
    pub fn real() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }

    fn device(&self, bdf: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(bdf)
    }
}

/// One member of an IOMMU group.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// Address with its domain.
    pub bdf: String,
    /// PCI class code, 24 bits.
    pub class: u32,
    pub driver: Option<String>,
    /// Uses that forbid taking it away.
    pub uses: Vec<String>,
}

impl Member {
    /// Bridges stay with the host.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 6
    }

    pub fn is_nic(&self) -> bool {
        self.class >> 16 == 2
    }

    pub fn is_nvme(&self) -> bool {
        self.class == 0x01_08_02
    }
}

/// The address with its domain.
pub fn full_address(bdf: &str) -> String {
    if bdf.matches(':').count() == 1 { format!("0000:{bdf}") } else { bdf.to_owned() }
}

/// The device's IOMMU group and its members.
pub fn group(roots: &Roots, bdf: &str) -> Result<(String, Vec<Member>)> {
    let device = roots.device(bdf);
    ensure!(device.exists(), "there is no PCI device {bdf}");
    let group = fs::canonicalize(device.join("iommu_group"))
        .with_context(|| format!("{bdf} is in no IOMMU group: this host has no active IOMMU"))?;
    let number = group.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut names: Vec<String> =
        fs::read_dir(group.join("devices"))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let members = names.into_iter().map(|n| member(roots, n)).collect();
    Ok((number, members))
}

fn member(roots: &Roots, bdf: String) -> Member {
    let folder = roots.device(&bdf);
    let class = fs::read_to_string(folder.join("class")).unwrap_or_default();
    let driver = fs::canonicalize(folder.join("driver")).ok();
    let mut uses = drive_uses(roots, &folder);
    uses.extend(route_uses(roots, &folder));
    Member {
        class: u32::from_str_radix(class.trim().trim_start_matches("0x"), 16).unwrap_or(0),
        driver: driver.and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned())),
        uses,
        bdf,
    }
}

/// Mounted file systems, swap, and what else stands on the device's drives.
fn drive_uses(roots: &Roots, device: &Path) -> Vec<String> {
    let Ok(device) = fs::canonicalize(device) else {
        return Vec::new();
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(roots.sys.join("class/block")).into_iter().flatten().flatten() {
        let below = fs::canonicalize(entry.path()).is_ok_and(|p| p.starts_with(&device));
        if below {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let is_ours = |source: &str| {
        let real = fs::canonicalize(source).unwrap_or_else(|_| source.into());
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        names.contains(name.as_ref())
    };
    let mut uses = Vec::new();
    for line in read(&roots.proc.join("self/mounts")).lines() {
        let mut words = line.split_whitespace();
        if let (Some(source), Some(at)) = (words.next(), words.next())
            && source.starts_with("/dev/")
            && is_ours(source)
        {
            uses.push(format!("{source} is mounted at {at}"));
        }
    }
    for line in read(&roots.proc.join("swaps")).lines().skip(1) {
        if let Some(source) = line.split_whitespace().next()
            && is_ours(source)
        {
            uses.push(format!("{source} is swap"));
        }
    }
    for name in &names {
        let holders = roots.sys.join("class/block").join(name).join("holders");
        for holder in fs::read_dir(holders).into_iter().flatten().flatten() {
            let holder = holder.file_name();
            uses.push(format!("{name} carries {}", holder.to_string_lossy()));
        }
    }
    uses
}

/// The default route over the device's interfaces, IPv4 and IPv6.
fn route_uses(roots: &Roots, device: &Path) -> Vec<String> {
    let mut uses = Vec::new();
    for entry in fs::read_dir(device.join("net")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let v4 = read(&roots.proc.join("net/route")).lines().any(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            words.first() == Some(&name.as_str())
                && words.get(1) == Some(&"00000000")
                && words.get(7) == Some(&"00000000")
        });
        let v6 = read(&roots.proc.join("net/ipv6_route")).lines().any(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            words.last() == Some(&name.as_str())
                && words.get(1) == Some(&"00")
                && words.first().is_some_and(|d| d.bytes().all(|b| b == b'0'))
        });
        if v4 || v6 {
            uses.push(format!("{name} has the default route"));
        }
    }
    uses
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with a NIC at 0000:01:00.0 (eth9) and a drive at 0000:02:00.0 (nvme9n1), one group.
    fn made_up(mounts: &str, swaps: &str, route: &str) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc") };
        let put = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let link = |from: PathBuf, to: PathBuf| {
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(to, from).unwrap();
        };
        let group = roots.sys.join("kernel/iommu_groups/7");
        for (bdf, class) in [("0000:01:00.0", "0x020000\n"), ("0000:02:00.0", "0x010802\n")] {
            put(roots.device(bdf).join("class"), class);
            link(group.join("devices").join(bdf), roots.device(bdf));
            link(roots.device(bdf).join("iommu_group"), group.clone());
        }
        let driver = roots.sys.join("bus/pci/drivers/e1000e");
        fs::create_dir_all(&driver).unwrap();
        link(roots.device("0000:01:00.0").join("driver"), driver);
        fs::create_dir_all(roots.device("0000:01:00.0").join("net/eth9")).unwrap();
        let block = roots.device("0000:02:00.0").join("nvme/nvme9/nvme9n1");
        fs::create_dir_all(block.join("holders")).unwrap();
        link(roots.sys.join("class/block/nvme9n1"), block);
        put(roots.proc.join("self/mounts"), mounts);
        put(roots.proc.join("swaps"), swaps);
        put(roots.proc.join("net/route"), route);
        (dir, roots)
    }

    const SWAPS: &str = "Filename Type Size Used Priority\n";

    #[test]
    fn an_idle_group_has_no_uses() {
        let (_dir, roots) = made_up("tmpfs /tmp tmpfs rw 0 0\n", SWAPS, "Iface Destination\n");
        let (number, members) = group(&roots, "0000:01:00.0").unwrap();
        assert_eq!(number, "7");
        assert_eq!(members.len(), 2);
        assert!(members[0].is_nic() && members[1].is_nvme());
        assert_eq!(members[0].driver.as_deref(), Some("e1000e"));
        assert_eq!(members[1].driver, None);
        assert!(members.iter().all(|m| m.uses.is_empty()));
    }

    #[test]
    fn every_kind_of_use_is_named() {
        let (_dir, roots) = made_up(
            "/dev/nvme9n1 /srv ext4 rw 0 0\n",
            &format!("{SWAPS}/dev/nvme9n1 partition 1 0 -2\n"),
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
             eth9 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n",
        );
        let (_, members) = group(&roots, "0000:02:00.0").unwrap();
        assert_eq!(members[0].uses, ["eth9 has the default route"]);
        assert_eq!(members[1].uses, ["/dev/nvme9n1 is mounted at /srv", "/dev/nvme9n1 is swap"]);
    }

    #[test]
    fn absent_devices_and_hosts_without_iommu_are_errors() {
        let (_dir, roots) = made_up("", "", "");
        assert!(group(&roots, "0000:09:00.0").is_err());
        fs::remove_file(roots.device("0000:01:00.0").join("iommu_group")).unwrap();
        let error = group(&roots, "0000:01:00.0").unwrap_err().to_string();
        assert!(error.contains("no active IOMMU"), "{error}");
    }

    #[test]
    fn addresses_get_their_domain() {
        assert_eq!(full_address("01:00.0"), "0000:01:00.0");
        assert_eq!(full_address("0001:01:00.0"), "0001:01:00.0");
    }
}
