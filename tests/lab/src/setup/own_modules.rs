//! The kernel modules that Debian does not have, for the tree's own kernel: iommufd, and VFIO with device nodes
//! (CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV); and the lab's own driver of QEMU's teaching device.
//!
//! They are built in a Debian system of their own, with headers, sources and compiler, that mmdebstrap makes for the
//! purpose and removes again: the host may be an older Debian, and L1's tree stays small.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use super::{host, images, name, progress, recipe, sources, tree};

/// Builds the modules into the empty folder `to`: Linux' own below the paths that they have in /lib/modules/VERSION.
pub fn build(tree: &Path, to: &Path) -> Result<()> {
    host::provide()?;
    let release = images::kernel_version(tree)?;
    let status = std::fs::read_to_string(tree.join("var/lib/dpkg/status")).context("the tree has no dpkg status")?;
    let version = package_version(&status, &format!("linux-image-{release}"))
        .with_context(|| format!("the tree does not know the version of its kernel {release}"))?;
    let source = source_package(&release).with_context(|| format!("{release} is no Debian kernel"))?;
    progress(&format!("building iommufd, VFIO and a test's driver as modules of Linux {release} (about two minutes)"));

    let script = to.join("build.sh");
    std::fs::write(&script, recipe::OWN_MODULES)?;
    let driver = to.join("edu-msi.c");
    std::fs::write(&driver, recipe::EDU_MSI_SOURCE)?;
    let mirror = sources::find_mirror(Path::new("/etc/apt"))?;
    let packages = [
        vec![format!("linux-headers-{release}={version}"), format!("{source}={version}")],
        recipe::OWN_MODULES_PACKAGES.iter().map(|p| (*p).to_owned()).collect(),
    ];
    let output = tree::mmdebstrap("apt", &packages.concat())
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(format!("--customize-hook=copy-in {} {} /", script.display(), driver.display()))
        .arg("--customize-hook=chroot \"$1\" sh /build.sh >&2")
        .arg(format!("--customize-hook=sync-out /modules {}", to.display()))
        .args(["--format=null", recipe::SUITE, "/dev/null", &mirror.line()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start mmdebstrap")?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let moved_on =
            ["was not found", "Unable to locate", "no installation candidate"].iter().any(|w| log.contains(w));
        let cure = if moved_on {
            format!("\nthe mirror has gone on from {version}: delete {} and set up again", tree.display())
        } else {
            String::new()
        };
        bail!("the modules cannot be built: mmdebstrap: {}\n{}{cure}", output.status, crate::report::tail(&log, 30));
    }
    for file in [script, driver].iter().filter(|file| file.exists()) {
        std::fs::remove_file(file)?;
    }
    for module in ["kernel/drivers/iommu/iommufd/iommufd.ko", name::EDU_MSI] {
        ensure!(to.join(module).exists(), "the build made no {module}:\n{log}");
    }
    Ok(())
}

/// The version of an installed package (format of dpkg's status file: deb822).
fn package_version<'a>(status: &'a str, package: &str) -> Option<&'a str> {
    let stanza = status.split("\n\n").find(|s| s.lines().any(|l| l.strip_prefix("Package: ") == Some(package)))?;
    stanza.lines().find_map(|line| line.strip_prefix("Version: "))
}

/// The package with the sources of a kernel: `6.12.107+deb13-amd64` is of `linux-source-6.12`.
fn source_package(release: &str) -> Option<String> {
    let mut numbers = release.split('.');
    Some(format!("linux-source-{}.{}", numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_says_which_packages_are_needed() {
        let status = "Package: a\nVersion: 1\n\nPackage: linux-image-6.12.107+deb13-amd64\nStatus: install ok installed\n\
            Version: 6.12.107-1\nDepends: a\n\nPackage: z\nVersion: 2\n";
        assert_eq!(package_version(status, "linux-image-6.12.107+deb13-amd64"), Some("6.12.107-1"));
        assert_eq!(package_version(status, "linux-image-6.12"), None);
        assert_eq!(source_package("6.12.107+deb13-amd64").as_deref(), Some("linux-source-6.12"));
        assert_eq!(source_package("6"), None);
    }
}
