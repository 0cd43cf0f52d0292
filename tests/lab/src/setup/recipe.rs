//! What the lab image is made of. The names of the cache folders are hashes of
//! this, so that a change here makes a new image and an old one is never mistaken for it.

use sha2::{Digest, Sha256};

/// The Debian release of the tree. 13 has kernel 6.12 and QEMU 10.0.
pub const SUITE: &str = "trixie";

/// Packages on top of mmdebstrap's `minbase`.
pub const PACKAGES: &[&str] = &[
    "acl",
    "alsa-utils",
    "busybox-static",
    "e2fsprogs",
    "ethtool",
    "fio",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-amd64",
    "netcat-openbsd",
    "nvme-cli",
    "ovmf",
    "passt",
    "pciutils",
    "procps",
    "psmisc",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "socat",
    "strace",
    "systemd-sysv",
    "udev",
    "usbutils",
    "util-linux",
    "virtiofsd",
    "xz-utils",
    "zstd",
];

/// Files of packages that nobody reads in the lab.
pub const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/i18n/*",
    "/usr/share/bash-completion/*",
    "/usr/share/qemu/*.lid",
    "/usr/share/qemu/hppa*",
    "/usr/share/qemu/openbios*",
    "/usr/share/qemu/u-boot*",
];

/// Runs in the unpacked tree before the kernel package is configured: keeps
/// initramfs-tools, which the kernel depends on, from making an image that nobody boots.
pub const NO_INITRAMFS_HOOK: &str = "mkdir -p \"$1/etc/initramfs-tools\" \
     && echo update_initramfs=no > \"$1/etc/initramfs-tools/update-initramfs.conf\"";

/// Modules of L1's initramfs: what it takes to reach the tree over 9p and a drive of L1's own, and those that
/// machines load at start, which take seconds when xz has to unpack them under emulation.
pub const L1_MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "kvm-amd",
    "vfio-pci",
    "vfio_iommu_type1",
    "e1000e",
    "nvme",
];

/// Modules of the plain L2 initramfs.
pub const L2_MODULES: &[&str] = &["e1000e", "nvme"];

/// Modules that the fat L2 initramfs has besides.
pub const L2_FAT_MODULES: &[&str] = &[
    "8139cp",
    "8139too",
    "ahci",
    "bochs",
    "button",
    "cirrus",
    "crc32c_generic",
    "e1000",
    "evdev",
    "ext4",
    "i6300esb",
    "igb",
    "igbvf",
    "nd_pmem",
    "pvpanic-pci",
    "sd_mod",
    "snd-hda-codec-generic",
    "snd-hda-intel",
    "sr_mod",
    "uio_pci_generic",
    "usb-storage",
    "virtio-rng",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_input",
    "virtio_mem",
    "virtio_net",
    "virtio_pci",
    "virtio_pmem",
    "virtio_scsi",
    "vmw_vsock_virtio_transport",
    "xhci-pci",
];

/// Programs that the fat L2 initramfs has besides busybox, with their libraries.
pub const L2_FAT_PROGRAMS: &[&str] =
    &["/usr/bin/aplay", "/usr/bin/ip", "/usr/bin/lsblk", "/usr/bin/lspci", "/usr/sbin/ethtool"];

/// Other files of the tree that the fat L2 initramfs has: what those programs read, and the library that the lab's own
/// binary needs when a scenario adds it.
pub const L2_FAT_FILES: &[&str] =
    &["/usr/lib/x86_64-linux-gnu/libgcc_s.so.1", "/usr/share/alsa/alsa.conf", "/usr/share/misc/pci.ids"];

/// Programs on the disk of tools that guests may have ([`super::name::TOOLS`]): too large for an initramfs.
pub const TOOLS: &[&str] = &["/usr/bin/fio", "/usr/bin/iperf3"];

/// QEMU's own client of QMP, from Python's package index.
pub const QEMU_QMP: &str = "qemu.qmp==0.0.3";

/// First program of L1's initramfs.
pub const L1_INIT: &str = include_str!("l1-initramfs.sh");
/// Process 1 of L1 once it stands on the tree.
pub const L1_PID1: &str = include_str!("l1-pid1.sh");
/// Unit of the lab's agent, where systemd is process 1 instead.
pub const L1_AGENT_UNIT: &str = include_str!("lab-agent.service");
/// First program of L2.
pub const L2_INIT: &str = include_str!("l2-init.sh");

/// Packages that the modules of [`OWN_MODULES`] are built with, besides the kernel's headers (which bring the
/// compiler) and sources.
pub const OWN_MODULES_PACKAGES: &[&str] = &["make", "xz-utils"];
/// What builds them, in a Debian system that has these packages.
pub const OWN_MODULES: &str = include_str!("own-modules.sh");
/// The one of them whose source is the lab's.
pub const EDU_MSI_SOURCE: &str = include_str!("edu-msi.c");

/// Raised when the code that assembles the tree changes its outcome.
const TREE_VERSION: u32 = 1;
/// Raised when the code that assembles the images changes their outcome.
const IMAGES_VERSION: u32 = 5;

/// Daemons of vhost-user devices: crates and their versions.
pub const DAEMONS: &[&str] = &["vhost-device-rng@0.1.0"];

/// Key of the daemons.
pub fn daemons_key() -> String {
    key(&[DAEMONS])
}

/// Key of the Debian tree.
pub fn tree_key() -> String {
    key(&[&[&TREE_VERSION.to_string(), SUITE, NO_INITRAMFS_HOOK], PACKAGES, EXCLUDED])
}

/// Key of the modules that are built for the tree's kernel.
pub fn own_modules_key() -> String {
    key(&[&[&tree_key(), OWN_MODULES, EDU_MSI_SOURCE], OWN_MODULES_PACKAGES])
}

/// Key of the kernels and initramfs images, which are made from the tree and the modules.
pub fn images_key() -> String {
    key(&[
        &[&own_modules_key(), &IMAGES_VERSION.to_string(), L1_INIT, L1_PID1, L1_AGENT_UNIT, L2_INIT],
        L1_MODULES,
        L2_MODULES,
        L2_FAT_MODULES,
        L2_FAT_PROGRAMS,
        L2_FAT_FILES,
        TOOLS,
        &[QEMU_QMP],
    ])
}

/// 16 hexadecimal digits that depend on every word and on where each one ends.
fn key(parts: &[&[&str]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        for word in *part {
            hash.update(u64::try_from(word.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(word.as_bytes());
        }
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_every_word_and_its_borders() {
        let base = key(&[&["ab", "c"], &["d"]]);
        assert_eq!(base.len(), 16);
        assert_eq!(base, key(&[&["ab", "c"], &["d"]]));
        for other in [key(&[&["a", "bc"], &["d"]]), key(&[&["ab"], &["c", "d"]]), key(&[&["ab", "c"], &["e"]])] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_keys_differ() {
        assert_ne!(tree_key(), images_key());
        assert_ne!(tree_key(), own_modules_key());
        assert_ne!(own_modules_key(), images_key());
    }

    #[test]
    fn packages_are_sorted_and_unique() {
        assert!(PACKAGES.windows(2).all(|w| w[0] < w[1]));
    }
}
