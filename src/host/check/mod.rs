//! Which error a failed open or VFIO request really is.
//!
//! The kernel answers with a handful of errnos that mean different things at different steps. The functions here take
//! the step, the errno and the facts, and give the error that names the cause and its cure; they touch nothing. The
//! methods of [`Host`] gather the facts and ask them.
//!
//! Sources: kernel drivers/vfio/{group,container,vfio_iommu_type1}.c and drivers/iommu/iommu.c
//! (`iommu_group_claim_dma_owner`), virt/kvm/kvm_main.c.

use std::io;

use super::busy::{Holders, busy_error};
use super::group::Group;
use super::viable::{Verdict, not_viable_error};
use super::{Host, PciDevice, read};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result, explain_io};

pub mod node;
pub mod token;

use node::{Node, not_permitted};

/// The step at which VFIO refused a device, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfioStep {
    /// open(2) of /dev/vfio/vfio.
    OpenContainer,
    /// open(2) of /dev/vfio/NUMBER.
    OpenGroup,
    /// VFIO_GROUP_GET_STATUS without the flag VIABLE; there is no errno.
    GroupStatus,
    /// VFIO_GROUP_SET_CONTAINER.
    SetContainer,
    /// VFIO_SET_IOMMU.
    SetIommu,
    /// VFIO_GROUP_GET_DEVICE_FD.
    GetDevice,
    /// open(2) of the device's own node, /dev/vfio/devices/vfioN.
    OpenNode,
    /// VFIO_DEVICE_BIND_IOMMUFD.
    BindIommufd,
    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
    AttachIoas,
}

impl VfioStep {
    /// The module that decides, by its parameter allow_unsafe_interrupts, whether an IOMMU must remap interrupts.
    pub fn judge(self) -> &'static str {
        match self {
            VfioStep::BindIommufd | VfioStep::AttachIoas => "iommufd",
            _ => "vfio_iommu_type1",
        }
    }

    fn request(self) -> &'static str {
        match self {
            VfioStep::OpenContainer => "open of /dev/vfio/vfio",
            VfioStep::OpenGroup => "open of the group's node",
            VfioStep::GroupStatus => "VFIO_GROUP_GET_STATUS",
            VfioStep::SetContainer => "VFIO_GROUP_SET_CONTAINER",
            VfioStep::SetIommu => "VFIO_SET_IOMMU",
            VfioStep::GetDevice => "VFIO_GROUP_GET_DEVICE_FD",
            VfioStep::OpenNode => "open of the device's node",
            VfioStep::BindIommufd => "VFIO_DEVICE_BIND_IOMMUFD",
            VfioStep::AttachIoas => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        }
    }
}

/// What is known about a device and the host when VFIO refuses it.
#[derive(Debug, Clone)]
pub struct VfioFacts {
    /// The device.
    pub device: PciDevice,
    /// The members of its group.
    pub verdicts: Vec<Verdict>,
    /// Who has its group open.
    pub holders: Holders,
    /// The node of its group, the container's for [`VfioStep::OpenContainer`], its own for [`VfioStep::OpenNode`].
    pub node: Node,
    /// Whether devices are accepted that could forge interrupts (allow_unsafe_interrupts of [`VfioStep::judge`]).
    pub unsafe_interrupts: bool,
    /// How many IOMMU groups there are.
    pub groups: usize,
}

/// The error for a device that VFIO refused at `step` with `answer`.
pub fn vfio_error(step: VfioStep, answer: &io::Error, facts: &VfioFacts) -> Error {
    let VfioFacts { device, verdicts, holders, node, .. } = facts;
    let errno = answer.raw_os_error().unwrap_or(0);
    let not_viable = || device.iommu_group.and_then(|id| not_viable_error(id, verdicts));
    let error = match (step, errno) {
        (_, libc::EACCES) => Some(not_permitted(node, answer)),
        (VfioStep::OpenContainer, libc::ENOENT | libc::ENODEV | libc::ENXIO) => Some(no_vfio(node, answer)),
        // VFIO makes a group's node when its first device is bound, and refuses the open once the last is unbound.
        (VfioStep::OpenGroup | VfioStep::OpenNode, libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            match usable(device, facts.groups) {
                Err(error) => Some(error),
                Ok(()) => Some(node_missing(node, answer)),
            }
        }
        (VfioStep::OpenContainer | VfioStep::OpenGroup | VfioStep::OpenNode, libc::EPERM) => {
            Some(not_permitted(node, answer))
        }
        (VfioStep::GroupStatus, _) => not_viable(),
        // Since Linux 5.19 a group that is not viable is refused here, with EPERM or EBUSY.
        (VfioStep::OpenGroup | VfioStep::SetContainer, libc::EBUSY) | (VfioStep::SetContainer, libc::EPERM) => {
            not_viable().or_else(|| Some(busy_error(device, holders, Some(answer))))
        }
        (VfioStep::SetContainer, libc::EINVAL) => not_viable(),
        (VfioStep::BindIommufd, libc::EBUSY) => {
            not_viable().or_else(|| Some(busy_error(device, holders, Some(answer))))
        }
        (VfioStep::SetIommu | VfioStep::BindIommufd | VfioStep::AttachIoas, libc::EPERM)
            if !facts.unsafe_interrupts =>
        {
            Some(no_remapping(device, step, answer))
        }
        // A node can be opened by many processes and bound by one; the kernel does not say EBUSY to the others.
        (VfioStep::BindIommufd, libc::EINVAL) if holders.processes.is_empty() => Some(not_taken(device, answer)),
        (VfioStep::BindIommufd, libc::EINVAL) => Some(busy_error(device, holders, Some(answer))),
        (VfioStep::AttachIoas, libc::EADDRINUSE) => Some(reserved(device, answer)),
        (VfioStep::SetIommu, libc::ENODEV | libc::EINVAL) => Some(no_type1(answer)),
        (VfioStep::GetDevice, libc::EBUSY) => Some(busy_error(device, holders, Some(answer))),
        (VfioStep::GetDevice | VfioStep::BindIommufd, libc::ENODEV) => usable(device, facts.groups).err(),
        _ => None,
    };
    error.unwrap_or_else(|| {
        Error::new(Code::DeviceFailed, format!("VFIO refused {}", device.bdf))
            .evidence(format!("{}: {}", step.request(), explain_io(answer)))
            .fix("`dmesg | tail` says more")
    })
}

/// The error for /dev/kvm that could not be opened. `flag`: whether /proc/cpuinfo lists `vmx` or `svm`.
pub fn kvm_error(node: &Node, answer: &io::Error, flag: bool) -> Error {
    if matches!(answer.raw_os_error(), Some(libc::EACCES | libc::EPERM)) {
        return not_permitted(node, answer);
    }
    let error = Error::new(Code::NoKvm, "KVM is not available").evidence(node.answer(answer));
    if flag {
        return error
            .evidence("the CPU has the extension (vmx or svm in /proc/cpuinfo)")
            .fix("as root, `modprobe kvm_intel` or `modprobe kvm_amd`; if that fails, `dmesg` says why");
    }
    error
        .evidence("/proc/cpuinfo lists neither vmx nor svm")
        .fix("switch VT-x or AMD-V (SVM) on in the firmware setup; in a virtual machine, switch nesting on in its host")
}

/// `Code::NoIommu`: nothing confines the device's DMA. `groups`: how many groups the host has.
pub fn no_iommu_error(device: &PciDevice, groups: usize) -> Error {
    if device.iommu_group.is_some() {
        return Error::new(Code::NoIommu, format!("no IOMMU confines {}", device.bdf))
            .evidence("its group is one of VFIO's no-IOMMU mode (enable_unsafe_noiommu_mode)")
            .fix(
                "switch VT-d or AMD-Vi on in the firmware setup; passthru does not hand out devices without an IOMMU",
            );
    }
    if groups > 0 {
        return Error::new(Code::NoIommu, format!("{} is not behind an IOMMU", device.bdf))
            .evidence(format!("the host has {groups} IOMMU groups, and the device is in none of them"))
            .fix("put the card into another slot: this one is not behind the host's IOMMU");
    }
    no_iommu_at_all()
}

/// `Code::NoIommu` for a host without any group.
pub fn no_iommu_at_all() -> Error {
    Error::new(Code::NoIommu, "the host has no active IOMMU").evidence("/sys/kernel/iommu_groups is empty").fix(
        "switch VT-d or AMD-Vi on in the firmware setup; on Intel add `intel_iommu=on` to the kernel's command line",
    )
}

/// `Code::NoInterruptRemapping`, seen before any device is opened.
pub fn no_remapping_at_all() -> Error {
    Error::new(Code::NoInterruptRemapping, "the host's IOMMU does not remap interrupts")
        .evidence("no interrupt of /proc/interrupts goes through it (IR-)")
        .fix(REMAPPING_FIX)
}

const REMAPPING_FIX: &str = "switch interrupt remapping (or x2APIC) on in the firmware setup";

/// `Code::DeviceNotBound`: the device is on a driver of the host, or on none.
pub fn not_bound_error(device: &PciDevice) -> Error {
    let cause = match &device.driver {
        Some(driver) => format!("{} is on its host driver {driver}", device.bdf),
        None => format!("{} has no driver and is not on vfio-pci", device.bdf),
    };
    Error::new(Code::DeviceNotBound, cause)
        .evidence(format!("{}: {}", device.bdf, device.name()))
        .fix(format!("as root, `passthru bind {}`", device.bdf))
}

/// Whether a device is one that VFIO can hand out.
fn usable(device: &PciDevice, groups: usize) -> Result<()> {
    if device.iommu_group.is_none() {
        return Err(no_iommu_error(device, groups));
    }
    if device.on_vfio() { Ok(()) } else { Err(not_bound_error(device)) }
}

fn no_vfio(node: &Node, answer: &io::Error) -> Error {
    Error::new(Code::NoVfio, "the kernel's VFIO driver is not loaded")
        .evidence(node.answer(answer))
        .fix("as root, `modprobe vfio-pci`")
}

/// The error for /dev/iommu that could not be opened.
pub fn iommufd_error(node: &Node, answer: &io::Error) -> Error {
    if matches!(answer.raw_os_error(), Some(libc::EACCES | libc::EPERM)) {
        return not_permitted(node, answer);
    }
    Error::new(Code::NoIommufd, "the kernel offers no iommufd")
        .evidence(node.answer(answer))
        .fix("as root, `modprobe iommufd`; where there is no such module, use iommu=auto or iommu=type1")
}

fn no_type1(answer: &io::Error) -> Error {
    Error::new(Code::NoVfio, "the kernel's VFIO driver for this IOMMU is not loaded")
        .evidence(format!("VFIO_SET_IOMMU: {}", explain_io(answer)))
        .fix("as root, `modprobe vfio_iommu_type1`")
}

fn node_missing(node: &Node, answer: &io::Error) -> Error {
    Error::new(Code::NotPermitted, format!("the device is on vfio-pci, but {} is not there", node.path.display()))
        .evidence(node.answer(answer))
        .fix("in a container, pass that node in; else `udevadm settle`, and see that devtmpfs is mounted on /dev")
}

/// A bind that is refused as a wrong request, although it was none.
fn not_taken(device: &PciDevice, answer: &io::Error) -> Error {
    Error::new(Code::DeviceFailed, format!("iommufd does not take {}", device.bdf))
        .evidence(format!("VFIO_DEVICE_BIND_IOMMUFD: {}", explain_io(answer)))
        .evidence("another process has bound it, or its IOMMU does not keep DMA coherent with caches")
        .fix("try iommu=type1")
}

fn reserved(device: &PciDevice, answer: &io::Error) -> Error {
    Error::new(Code::ReservedIova, format!("the IOMMU of {} reserves addresses at which guest memory lies", device.bdf))
        .evidence(format!("VFIO_DEVICE_ATTACH_IOMMUFD_PT: {}", explain_io(answer)))
        .fix("pass it through from the start, or give the guest less memory, so that it ends below the range")
}

fn no_remapping(device: &PciDevice, step: VfioStep, answer: &io::Error) -> Error {
    Error::new(Code::NoInterruptRemapping, format!("the IOMMU of {} does not remap interrupts", device.bdf))
        .evidence(format!("{}: {}", step.request(), explain_io(answer)))
        .evidence(format!("{}.allow_unsafe_interrupts is off", step.judge()))
        .fix(REMAPPING_FIX)
}

impl Host {
    /// The device, if a guest can have it as far as can be seen before anything is opened.
    ///
    /// Errors: `DeviceAbsent`, `Quarantined`, `NoIommu`, `DeviceNotBound`, `GroupNotViable`.
    pub fn ready(&self, bdf: Bdf) -> Result<PciDevice> {
        let device = self.device(bdf)?;
        self.refuse_quarantined(&device)?;
        let Group { id, .. } = self.real_group(&device)?;
        usable(&device, self.group_ids().len())?;
        match not_viable_error(id, &self.verdicts(&self.group(id))) {
            Some(error) => Err(error),
            None => Ok(device),
        }
    }

    /// The device's group; `Code::NoIommu` if it has none, or one that confines nothing.
    pub fn real_group(&self, device: &PciDevice) -> Result<Group> {
        match device.iommu_group.map(|id| self.group(id)) {
            Some(group) if !group.noiommu => Ok(group),
            _ => Err(no_iommu_error(device, self.group_ids().len())),
        }
    }

    /// The error for a device that VFIO refused at `step` with `answer`; gathers the facts.
    pub fn vfio_error(&self, bdf: Bdf, step: VfioStep, answer: &io::Error) -> Error {
        let device = match self.device(bdf) {
            Ok(device) => device,
            Err(absent) => return absent.evidence(format!("{}: {}", step.request(), explain_io(answer))),
        };
        let node = match (step, device.iommu_group) {
            (VfioStep::OpenNode, _) => self.device_node(bdf).unwrap_or_else(|| self.dev("vfio/devices")),
            (VfioStep::OpenContainer, _) | (_, None) => self.dev("vfio/vfio"),
            (_, Some(id)) => self.group_node(id),
        };
        let parameter = self.sys(format!("module/{}/parameters/allow_unsafe_interrupts", step.judge()));
        let facts = VfioFacts {
            verdicts: device.iommu_group.map(|id| self.verdicts(&self.group(id))).unwrap_or_default(),
            holders: self.holders(&device),
            node: Node::read(&node),
            unsafe_interrupts: read::text(parameter).is_some_and(|value| value == "Y"),
            groups: self.group_ids().len(),
            device,
        };
        vfio_error(step, answer, &facts)
    }

    /// The error for /dev/iommu that could not be opened; gathers the facts.
    pub fn iommufd_error(&self, answer: &io::Error) -> Error {
        iommufd_error(&Node::read(&self.dev("iommu")), answer)
    }

    /// The error for a device that has no node of its own.
    pub fn no_device_node(&self, bdf: Bdf) -> Error {
        let folder = self.device_path(bdf).join("vfio-dev");
        self.ready(bdf).err().unwrap_or_else(|| {
            Error::new(Code::NoIommufd, format!("the kernel's VFIO has made no node for {bdf}"))
                .evidence(format!("{} is not there", folder.display()))
                .fix("use a kernel with CONFIG_VFIO_DEVICE_CDEV, or iommu=auto or iommu=type1")
        })
    }

    /// The error for /dev/kvm that could not be opened; gathers the facts.
    pub fn kvm_error(&self, answer: &io::Error) -> Error {
        let flags = read::lines(self.proc("cpuinfo")).into_iter().find(|line| line.starts_with("flags"));
        let has = |name: &str| flags.as_ref().is_some_and(|line| line.split_whitespace().any(|flag| flag == name));
        kvm_error(&Node::read(&self.dev("kvm")), answer, has("vmx") || has("svm"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testtree::{TestTree, bdf};

    const NIC: &str = "0000:01:00.0";

    type Make = fn() -> TestTree;

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    fn bound() -> TestTree {
        let tree = TestTree::new();
        tree.pci(NIC).driver("vfio-pci").group(2).add();
        tree
    }

    fn not_bound() -> TestTree {
        let tree = TestTree::new();
        tree.pci(NIC).driver("e1000e").group(2).add();
        tree
    }

    fn with_companion() -> TestTree {
        let tree = bound();
        tree.pci("0000:01:00.1").driver("snd_hda_intel").group(2).add();
        tree
    }

    fn held() -> TestTree {
        let tree = bound();
        tree.process(42, "qemu-system-x86", &[&tree.host().group_node(2)]);
        tree
    }

    /// With a node of its own, which another process has open.
    fn with_node() -> TestTree {
        let tree = bound();
        tree.file("sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3/dev", "243:3\n");
        tree.process(43, "qemu-system-x86", &[&tree.host().dev("vfio/devices/vfio3")]);
        tree
    }

    fn no_group() -> TestTree {
        let tree = TestTree::new();
        tree.pci(NIC).driver("e1000e").add();
        tree
    }

    #[test]
    fn each_answer_at_each_step() {
        use VfioStep::*;
        type Row = (Make, VfioStep, i32, Code, &'static str);
        let table: &[Row] = &[
            (bound, OpenContainer, libc::ENOENT, Code::NoVfio, "modprobe vfio-pci"),
            (bound, OpenContainer, libc::ENODEV, Code::NoVfio, "(ENODEV)"),
            (bound, OpenContainer, libc::EACCES, Code::NotPermitted, "dev/vfio/vfio"),
            (not_bound, OpenGroup, libc::ENOENT, Code::DeviceNotBound, "is on its host driver e1000e"),
            (not_bound, OpenGroup, libc::ENODEV, Code::DeviceNotBound, "`passthru bind 0000:01:00.0`"),
            (no_group, OpenGroup, libc::ENOENT, Code::NoIommu, "iommu_groups is empty"),
            (bound, OpenGroup, libc::ENOENT, Code::NotPermitted, "on vfio-pci, but"),
            (bound, OpenGroup, libc::EACCES, Code::NotPermitted, "dev/vfio/2"),
            (bound, OpenGroup, libc::EPERM, Code::NotPermitted, "(EPERM)"),
            (held, OpenGroup, libc::EBUSY, Code::Busy, "process 42 (qemu-system-x86)"),
            (with_companion, GroupStatus, 0, Code::GroupNotViable, "driver snd_hda_intel, blocks"),
            (with_companion, SetContainer, libc::EPERM, Code::GroupNotViable, "`passthru bind 0000:01:00.1`"),
            (with_companion, SetContainer, libc::EBUSY, Code::GroupNotViable, "0000:01:00.1"),
            (with_companion, SetContainer, libc::EINVAL, Code::GroupNotViable, "0000:01:00.1"),
            (held, SetContainer, libc::EBUSY, Code::Busy, "process 42"),
            (bound, SetIommu, libc::EPERM, Code::NoInterruptRemapping, "allow_unsafe_interrupts is off"),
            (bound, SetIommu, libc::ENODEV, Code::NoVfio, "modprobe vfio_iommu_type1"),
            (held, GetDevice, libc::EBUSY, Code::Busy, "process 42"),
            (not_bound, GetDevice, libc::ENODEV, Code::DeviceNotBound, "e1000e"),
            (with_node, OpenNode, libc::EACCES, Code::NotPermitted, "dev/vfio/devices/vfio3"),
            (with_node, OpenNode, libc::EPERM, Code::NotPermitted, "dev/vfio/devices/vfio3"),
            (with_node, OpenNode, libc::ENOENT, Code::NotPermitted, "on vfio-pci, but"),
            (not_bound, OpenNode, libc::ENOENT, Code::DeviceNotBound, "e1000e"),
            (with_node, BindIommufd, libc::EBUSY, Code::Busy, "process 43 (qemu-system-x86)"),
            (with_companion, BindIommufd, libc::EBUSY, Code::GroupNotViable, "0000:01:00.1"),
            (bound, BindIommufd, libc::EPERM, Code::NoInterruptRemapping, "iommufd.allow_unsafe_interrupts is off"),
            (bound, BindIommufd, libc::EINVAL, Code::DeviceFailed, "iommu=type1"),
            (with_node, BindIommufd, libc::EINVAL, Code::Busy, "process 43 (qemu-system-x86)"),
            (not_bound, BindIommufd, libc::ENODEV, Code::DeviceNotBound, "e1000e"),
            (bound, AttachIoas, libc::EADDRINUSE, Code::ReservedIova, "less memory"),
            (bound, AttachIoas, libc::ENOMEM, Code::DeviceFailed, "VFIO_DEVICE_ATTACH_IOMMUFD_PT"),
            (bound, GetDevice, libc::EIO, Code::DeviceFailed, "VFIO_GROUP_GET_DEVICE_FD: I/O error (EIO)"),
            (TestTree::new, OpenGroup, libc::ENOENT, Code::DeviceAbsent, "passthru devices"),
        ];
        for (make, step, number, code, words) in table {
            let error = make().host().vfio_error(bdf(NIC), *step, &errno(*number));
            assert_eq!(error.code(), *code, "{step:?} {number}: {error}");
            assert!(error.to_string().contains(words), "{step:?} {number}: {words:?} is not in {error}");
            assert!(error.fix_text().is_some(), "{error}");
            for dump in ["Error(", "Some(", "None", "Os {"] {
                assert!(!error.to_string().contains(dump), "{error}");
            }
        }
    }

    #[test]
    fn a_whole_error_reads_well() {
        let tree = TestTree::new();
        tree.pci("0000:01:00.0").ids(0x10de, 0x2206).class(0x030000).driver("vfio-pci").group(1).add();
        tree.pci("0000:01:00.1").ids(0x10de, 0x1aef).class(0x040300).driver("snd_hda_intel").group(1).add();
        let error = tree.host().ready(bdf("01:00.0")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "PT006: IOMMU group 1 cannot be given to a guest: 1 of its 2 members has a host driver\n  \
             seen: 0000:01:00.0 NVIDIA Corporation GA102 [GeForce RTX 3080] [10de:2206]: driver vfio-pci, fine\n  \
             seen: 0000:01:00.1 NVIDIA Corporation GA102 High Definition Audio Controller [10de:1aef]: \
             driver snd_hda_intel, blocks\n  \
             mend: `passthru bind 0000:01:00.1`\n  \
             more: passthru explain PT006"
        );
    }

    #[test]
    fn what_iommufd_needs_is_missing_or_forbidden() {
        let tree = bound();
        let error = tree.host().iommufd_error(&errno(libc::ENOENT));
        assert_eq!(error.code(), Code::NoIommufd);
        assert!(error.to_string().contains("modprobe iommufd"), "{error}");
        assert_eq!(tree.host().iommufd_error(&errno(libc::EACCES)).code(), Code::NotPermitted);
        assert_eq!(tree.host().no_device_node(bdf(NIC)).code(), Code::NoIommufd);
        assert_eq!(not_bound().host().no_device_node(bdf(NIC)).code(), Code::DeviceNotBound);
    }

    #[test]
    fn eperm_with_unsafe_interrupts_allowed_is_something_else() {
        let tree = bound();
        tree.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
        let error = tree.host().vfio_error(bdf(NIC), VfioStep::SetIommu, &errno(libc::EPERM));
        assert_eq!(error.code(), Code::DeviceFailed);
    }

    #[test]
    fn kvm_is_missing_for_one_of_two_reasons_or_forbidden() {
        let tree = TestTree::new();
        tree.file("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse2\n");
        let error = tree.host().kvm_error(&errno(libc::ENOENT));
        assert_eq!(error.code(), Code::NoKvm);
        assert!(error.to_string().contains("firmware setup"), "{error}");
        tree.file("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu svm sse2\n");
        let error = tree.host().kvm_error(&errno(libc::ENODEV));
        assert!(error.to_string().contains("modprobe kvm_amd"), "{error}");
        tree.file("dev/kvm", "");
        assert_eq!(tree.host().kvm_error(&errno(libc::EACCES)).code(), Code::NotPermitted);
    }

    #[test]
    fn ready_finds_out_before_anything_is_opened() {
        let table: [(Make, Option<Code>); 5] = [
            (bound, None),
            (not_bound, Some(Code::DeviceNotBound)),
            (no_group, Some(Code::NoIommu)),
            (with_companion, Some(Code::GroupNotViable)),
            (TestTree::new, Some(Code::DeviceAbsent)),
        ];
        for (make, code) in table {
            assert_eq!(make().host().ready(bdf(NIC)).err().map(|error| error.code()), code);
        }
        let tree = bound();
        tree.file("sys/kernel/iommu_groups/2/name", "vfio-noiommu\n");
        let error = tree.host().ready(bdf(NIC)).unwrap_err();
        assert!(error.to_string().contains("no-IOMMU mode"), "{error}");
        let tree = no_group();
        tree.pci("0000:02:00.0").group(5).add();
        let error = tree.host().ready(bdf(NIC)).unwrap_err();
        assert!(error.to_string().contains("another slot"), "{error}");
    }
}
