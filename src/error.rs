//! What the user is told when something fails: one table of stable codes, and the error that carries one.
//!
//! Every failure that a user can cause or mend is an [`Error`] with a [`Code`], a cause in the user's words, the
//! evidence (which file, group, driver, process said so) and the command that mends it. `passthru explain PTnnn`
//! prints the table's entry. A guest's or a device's misbehaviour is never an `Error`: it is logged and ignored.

use std::fmt;
use std::io;

/// Who has to act, and with it the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The command line or the VM file is wrong: exit code 2.
    Usage,
    /// The host is not ready (KVM, IOMMU, permissions, memory): exit code 3.
    Host,
    /// A device is absent, taken or failing: exit code 4.
    Device,
    /// The guest, its kernel or its firmware is at fault: exit code 5.
    Guest,
}

impl Class {
    /// The process's exit code for errors of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Usage => 2,
            Class::Host => 3,
            Class::Device => 4,
            Class::Guest => 5,
        }
    }
}

/// One row of the table of codes.
#[derive(Debug)]
pub struct Entry {
    /// The number in `PTnnn`.
    pub number: u16,
    /// Who has to act.
    pub class: Class,
    /// One line: what is wrong.
    pub title: &'static str,
    /// A few sentences: why it happens and how it is mended, for `passthru explain`.
    pub text: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal, $class:ident, $title:literal, $text:literal;)*) => {
        /// A stable error code. The numbers never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code { $(#[doc = $title] $name = $number,)* }

        impl Code {
            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code's row of the table.
            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Code::$name => &Entry { number: $number, class: Class::$class, title: $title, text: $text },)*
                }
            }
        }
    };
}

codes! {
    NoKvm = 1, Host, "KVM is not available",
        "passthru needs /dev/kvm. It is missing when the CPU's virtualisation extension (VT-x or AMD-V) is switched off \
         in the firmware setup, or when the module kvm_intel or kvm_amd is not loaded. Switch it on, then run \
         `modprobe kvm_intel` or `modprobe kvm_amd`.";
    NoIommu = 2, Host, "the host has no active IOMMU",
        "A device can only be given to a guest if the IOMMU confines its DMA to the guest's memory. \
         /sys/kernel/iommu_groups is empty: switch VT-d or AMD-Vi on in the firmware setup and, on Intel, add \
         `intel_iommu=on` to the kernel's command line, then reboot.";
    NoInterruptRemapping = 3, Host, "the host's IOMMU does not remap interrupts",
        "Without interrupt remapping a device could forge interrupts of other devices, so Linux refuses to attach it \
         (VFIO_SET_IOMMU fails with EPERM). Switch interrupt remapping or x2APIC on in the firmware setup. Where the \
         hardware has none and every guest is trusted: `vfio_iommu_type1.allow_unsafe_interrupts=1`.";
    DeviceAbsent = 4, Device, "there is no such device",
        "No PCI device answers at this address. `passthru devices` lists them; the domain may be left out \
         (01:00.0). They can change when cards are moved or firmware settings change.";
    DeviceNotBound = 5, Device, "the device is still on its host driver",
        "A device must be bound to vfio-pci before a guest can own it. `passthru bind ADDRESS` does it and remembers \
         the former driver, `passthru release ADDRESS` gives it back.";
    GroupNotViable = 6, Device, "the device's IOMMU group is not viable",
        "Devices of one IOMMU group cannot be isolated from each other, so Linux hands out the group only if every \
         member is on vfio-pci or has no driver at all (bridges excepted). Bind or unbind the members that are listed, \
         or move the card to a slot with a group of its own.";
    NotPermitted = 7, Host, "a device node may not be opened",
        "The user who runs passthru needs read and write access to /dev/kvm, /dev/vfio/vfio and the node of each \
         IOMMU group. `chgrp` and `chmod`, or a udev rule, give them to a group that the user is in.";
    Busy = 8, Device, "the device is already in use",
        "Another process holds the IOMMU group: usually another virtual machine. An IOMMU group has one owner at a time.";
    Memlock = 9, Host, "the limit of locked memory is too low",
        "All of the guest's memory is pinned, because a device may write to any page of it. The limit RLIMIT_MEMLOCK \
         of the process must allow that: `LimitMEMLOCK=infinity` in a systemd unit, `ulimit -l unlimited` in a shell.";
    NoMemory = 10, Host, "the host has not enough free memory for the guest",
        "All of the guest's memory is taken at the start, because a device may write to any page of it. Give the guest \
         less with -m, or free memory (or huge pages, where hugepages= asks for them).";
    NotAKernel = 11, Guest, "the file is not a kernel that can be booted",
        "--kernel takes a Linux bzImage (boot protocol 2.12 or newer, 64-bit) or an ELF vmlinux for x86-64.";
    OutOfAddressSpace = 12, Device, "the guest's address space is used up",
        "The BARs of all devices must fit in the guest's PCI windows. The list says who holds what. Remove a device, \
         or use a host whose CPU has more physical address bits.";
    InUse = 13, Device, "the host itself uses the device",
        "Taking this device away would pull a mounted file system, swap space, the way to the network or the screen from \
         under the host, or a device node from under a program that has it open. Stop that use first. `--force` takes the \
         device all the same.";
    Usage = 14, Usage, "the command line is not understood",
        "`passthru --help`, `passthru run --help`, `--device help` and `--device TYPE,help` list what there is.";
    UnknownType = 15, Usage, "there is no such type",
        "`--device help` lists the device types, `-M help` the machine types.";
    BadProperty = 16, Usage, "a property is unknown, missing or has a bad value",
        "`--device TYPE,help` lists the properties of a type with their kinds and default values.";
    BadBus = 17, Usage, "the device cannot be put on that bus",
        "A device goes to the next free address of the first bus of its kind, or where bus= and addr= say. The address \
         must be free and the bus must exist before the device that names it.";
    DuplicateId = 18, Usage, "an id is used twice",
        "The id= of every device is unique: it names the device, and the bus that the device adds.";
    ReservedIova = 19, Host, "guest memory would lie where the IOMMU cannot map it",
        "The host's IOMMU keeps some address ranges for itself (interrupt messages, firmware) and has a highest \
         address. The guest's memory must lie outside the former and below the latter.";
    DmaLimit = 20, Host, "the IOMMU mapping limit is reached",
        "The kernel limits the number of DMA mappings of a process (module parameter \
         vfio_iommu_type1.dma_entry_limit, 65535 by default).";
    DmaFailed = 21, Host, "guest memory could not be mapped for DMA",
        "The kernel refused to pin and map memory for the device. The evidence names the range and the kernel's answer.";
    BindFailed = 22, Device, "the device's driver could not be changed",
        "The kernel refused a step of the change of drivers. The evidence names the file that was written and the answer. \
         `passthru recover` brings back what was before.";
    FileUnusable = 23, Usage, "a file cannot be used",
        "A file named on the command line cannot be opened or read. The evidence has the system's answer.";
    BadTopology = 24, Usage, "the CPU topology is not possible",
        "sockets x cores x threads must make the number of CPUs of --smp, and the highest APIC id is 254: where cores \
         or threads are no power of two, ids have gaps.";
    UnknownCpu = 25, Usage, "a CPU model or feature is unknown or not offered by the host",
        "--cpu takes host or max, then +feature and -feature with the names of /proc/cpuinfo.";
    DeviceFailed = 26, Device, "the device or its driver refused a request",
        "A VFIO request failed. The evidence names the request and the kernel's answer; `dmesg` often says more.";
    KvmFailed = 27, Host, "KVM refused a request",
        "The evidence names the request and the kernel's answer. Old kernels lack features that passthru needs \
         (Linux 5.10 or newer).";
    GuestFailed = 28, Guest, "the guest could not go on",
        "The guest's processor stopped in a way that cannot be continued (KVM internal error or failed entry).";
    PhysBits = 29, Host, "the CPU has too few physical address bits",
        "Guest memory and large BARs must lie below the CPU's highest physical address.";
    NoVfio = 30, Host, "the kernel's VFIO driver is not loaded",
        "/dev/vfio/vfio is missing: run `modprobe vfio-pci` (and `modprobe vfio_iommu_type1`).";
    JournalUnusable = 31, Host, "the journal of driver changes cannot be used",
        "Before a device's driver is changed, its former driver is written to a journal under /run/passthru, so that \
         a crash loses nothing. That folder must be writable (bind and release need root).";
    NoReset = 32, Device, "the device did not come back from a reset",
        "After a reset the device reads all-ones: it has fallen off the bus. Powering the host off and on usually \
         brings it back.";
    SystemFailed = 33, Host, "the operating system refused a request",
        "A system call that normally succeeds has failed. The evidence has the call and the answer.";
    ControlSocket = 34, Host, "the control socket cannot be made",
        "--qmp makes a socket file, on which programs control the running guest. Its folder must be writable, its path \
         short (107 bytes), and no other process may listen there.";
    NoHotplug = 35, Usage, "the bus does not support hot-plug",
        "A device can be plugged into a running guest behind a pcie-root-port that has nothing behind it, and unplugged \
         from there. Bus pcie.0, and a port with hotplug=off, keep what the guest was started with.";
    UnplugPending = 36, Usage, "the device is being unplugged already",
        "The guest was asked for the device a moment ago: Linux waits 5 seconds before it begins, and a second press of \
         the button would cancel the first. Wait for DEVICE_DELETED, or take the device away with `force`.";
    DeviceError = 37, Device, "a device had an uncorrectable error",
        "The host's kernel was told of the error by PCI Express (AER). `dmesg` on the host says more. The property \
         on-error= of vfio-pci chooses what happens to the guest.";
    UnknownName = 38, Usage, "no device has this name",
        "Where an address is expected, a name may stand that a file of /etc/passthru/devices.d declares. PT044 has an example.";
    NameUnresolved = 39, Device, "a device's name means no device, or several",
        "A name of /etc/passthru/devices.d means the one device that has all that is declared. Twins have the same id: they \
         are told apart by path (the way from the root port), slot, serial (the PCI Express serial number), mac, address or \
         function, which `passthru inspect ADDRESS` shows. Nothing is chosen where several fit.";
    NoIommufd = 40, Host, "the kernel offers no iommufd",
        "iommu=iommufd and iommufd= open a device by a node of its own (/dev/vfio/devices/vfioN) and bind it to /dev/iommu. \
         The kernel needs CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV for that, which Debian's kernels do not have. \
         iommu=auto, the default, uses the device's group where they are missing.";
    MixedBackends = 41, Usage, "devices of one IOMMU group would be on iommufd and on type1",
        "Linux opens an IOMMU group either by its node or by the nodes of its devices, never both. Give all devices of the \
         group the same iommu=. Devices of different groups may differ, but all of the guest's memory is then pinned twice.";
    BadDescriptor = 42, Usage, "a descriptor is not what it is said to be",
        "fd=N names a descriptor that passthru was started with: of the device's node (/dev/vfio/devices/vfioN) for \
         vfio-pci, of /dev/iommu for the object iommufd, of a tap or macvtap for --netdev tap. Whoever starts passthru opens \
         it and lets it be inherited, as a shell does with `passthru run ... 5<>/dev/iommu`.";
    UnknownObject = 43, Usage, "there is no such object",
        "A property such as iommufd= names an object by the id that --object gave it. `--object help` lists the types.";
    NamesUnusable = 44, Usage, "a file of device names cannot be used",
        "A file of /etc/passthru/devices.d has a table for each device: `[[device]]`, `name = \"lan\"`, and at least one of \
         `address`, `id` (as in \"8086:1521\"), `subsystem`, `serial`, `path`, `slot`, `mac`. `function = 1` picks one function of \
         several, `all-functions = true` takes them all. `reserve = true` keeps the device for vfio-pci from the boot on, and \
         `start = \"router\"` starts that VM's service when it appears. A table `[[usb]]` with a `name` and any of `id`, `serial`, \
         `port` (as in \"1-4.2\") and `controller` claims a USB device for guests.";
    Stuck = 45, Device, "the kernel does not come to an end with a step",
        "Every step of a change of drivers is done by a process of its own, which is given 30 seconds. A driver that cannot let \
         go of its device keeps that process for as long, and nothing can end it (`ps` shows state D). passthru goes on without \
         it, does nothing more to that device, and keeps the step in its journal. `passthru recover` brings back what was \
         before once the driver has let go; if it never does, a reboot of the host will.";
    ResetMethod = 46, Device, "a device cannot be reset in that way",
        "`passthru bind --reset-method` lets the kernel reset a device by one method alone, for as long as it is bound: flr, \
         pm, bus, ... The kernel takes those that the device has, and `passthru inspect` lists them. A bus reset is taken only \
         where the function has its bus for itself.";
    NameTaken = 47, Usage, "a guest of this name runs already",
        "Every running guest has a control socket in a folder of its name (/run/passthru/vm/NAME, for users other than root \
         $XDG_RUNTIME_DIR/passthru/vm/NAME), so names are unique. The name is that of `--name`, or else of the VM file.";
    NoSuchGuest = 48, Usage, "no guest of this name runs",
        "`passthru list` shows the guests that run. Each user sees their own, root those of /run/passthru/vm, among them all \
         services. A guest without a name is called guest-PID.";
    Unconvertible = 49, Usage, "the guest's description cannot be read",
        "`passthru convert` takes a file with a QEMU command line as a shell takes it, or with a libvirt domain's XML as \
         `virsh dumpxml NAME` prints it.";
    RomUnusable = 50, Usage, "a file is no expansion ROM that can be used",
        "rom=file: takes the ROM of a card as tools read it: images with the signature 55h AAh and a PCI data structure, at \
         most 16 MiB. A header of NVIDIA's flash tools before the first image is left out. `passthru rom inspect FILE` \
         shows what is in a file.";
    VgaUnavailable = 51, Device, "the legacy VGA ranges cannot be had",
        "x-vga=on gives a device the memory at a0000h and the ports from 3b0h on. The kernel offers them for VGA controllers, \
         if it has CONFIG_VFIO_PCI_VGA and vfio-pci's parameter disable_vga is off. One device of a guest can have them, and \
         it must be there when the guest starts. Guests that need no VGA text do without.";
    Asleep = 52, Device, "the device has no power and does not wake",
        "A device that nothing uses may be in D3cold, where its power is off. It is woken before it is opened, and did not \
         answer. `echo on > /sys/bus/pci/devices/ADDRESS/power/control` and `echo 0 > .../d3cold_allowed` keep it awake; \
         vfio-pci's parameter disable_idle_d3=1 does so for all. If it stays away, power the host off and on.";
    TooManyDescriptors = 53, Host, "the limit of open files is too low",
        "Every interrupt vector of a device is an open descriptor of the process, and a device has up to 2048 of them. \
         passthru raises the soft limit RLIMIT_NOFILE to the hard one by itself. Raise the hard one: \
         `LimitNOFILE=65536` in a systemd unit, `ulimit -n 65536` as root in a shell.";
    VmFile = 54, Usage, "the VM file cannot be used",
        "`passthru run NAME` reads /etc/passthru/NAME.toml, whose keys are the options of `passthru run` without their \
         dashes: `memory = \"4G\"`, `no-reboot = true`, and for what may be repeated a list, \
         `device = [\"vfio-pci,host=01:00.0\"]`, or tables, `[[device]]`. The evidence has the line.";
    Quarantined = 55, Device, "the device did not come back from a reset and is quarantined",
        "After a reset the device no longer answered. It is kept from guests until the host is rebooted, better powered \
         off and on, or until `passthru recover --clear ADDRESS` says that it works again. `passthru inspect ADDRESS` \
         shows the reason and how the device would be reset.";
    AcsOverridden = 56, Host, "the host's IOMMU groups are not real",
        "A kernel with the option `pcie_acs_override=` takes devices apart that the hardware does not keep apart: they can \
         reach each other's registers and memory behind the IOMMU's back. Guests with devices of such groups are not \
         isolated from each other, nor from the host. Without the option the groups are larger and true.";
    VfRefused = 57, Device, "the virtual function's physical function refused a setting",
        "The address, the VLAN and the rights of a virtual function are set through the network interface of its physical \
         function (as `ip link set IFACE vf N ...` does). The evidence has the kernel's answer. Not every driver offers \
         every setting, and some want the interface to be up.";
    NotVirtual = 58, Usage, "the device is not a virtual function",
        "--vf-mac, --vlan, --trust and --spoofchk are for virtual functions, which `echo N > \
         /sys/bus/pci/devices/ADDRESS/sriov_numvfs` makes of a network card. A whole card's own driver sets its address.";
    NoPhysicalInterface = 59, Device, "the physical function has no network interface",
        "Only the driver of the physical function can set what its virtual functions are. It is unbound, is on vfio-pci \
         itself, or is no network driver. Leave the physical function on its host driver.";
    VfToken = 60, Device, "the function needs another token",
        "Its physical function is on vfio-pci, too: whoever has that must know whoever has the virtual function, by a token \
         that both give to VFIO. `vf-token=UUID` is set by the guest that gets the physical function, while no virtual function is \
         in use, and must be the same for each of them. `uuidgen` makes one. A physical function on its host driver needs \
         none.";
    BarSize = 61, Device, "a BAR cannot have that size",
        "--bar-size needs a device with resizable BARs, one of the sizes that it offers (they are listed), and room below \
         the bridges above it. The firmware's switch \"Above 4G decoding\" makes room.";
    BootConsole = 62, Device, "the host's boot console holds the device",
        "The host draws its console on the framebuffer that the firmware set up on this card. passthru takes the console \
         away at `bind` and gives it back at `release`; where the kernel refuses, `initcall_blacklist=sysfb_init` on its \
         command line keeps the console off the card.";
    VfTokenUnused = 63, Usage, "the device has no token",
        "vf-token= is for a physical function with SR-IOV, and for a virtual function whose physical function is on vfio-pci, \
         too. The kernel refuses it for everything else.";
    VfTokenIommufd = 64, Device, "the kernel's iommufd takes no token",
        "A device's own node takes vf-token= since Linux 6.17; its group has always taken it. iommu=auto, the default, uses the \
         group by itself where the kernel has both.";
    KernelOld = 65, Host, "the kernel lacks something that passthru can use",
        "passthru needs Linux 5.10. From 5.15 on the kernel says how a device is reset; from 6.12 on it maps BARs of many GiB by \
         large pages, without which the start of a guest with such a card takes seconds to minutes longer.";
    NoResetMethod = 66, Device, "the device cannot be reset",
        "Neither the function alone nor its slot or bus can be reset without hitting devices that are not on vfio-pci. The \
         device then keeps the state of its last use: its next guest, or its host driver, may find it unusable, and may see \
         what the guest before left in it. `passthru inspect ADDRESS` shows the plan, and binding the devices that it names \
         often makes a reset of the bus possible.";
    KnownQuirk = 67, Device, "devices of this kind do not do what their registers say",
        "passthru knows what is wrong with them and works around it. `passthru inspect ADDRESS` has the sources.";
    LinkSlow = 68, Device, "the device's PCI Express link is slower than it could be",
        "Many cards slow their link down while they are idle, which is as it should be. If it stays slow under load: the slot \
         has fewer lanes than the card, shares them with another slot, or is limited by the firmware setup. Nothing that a \
         virtual machine does changes it.";
    GrantFailed = 69, Host, "the access to a node cannot be changed",
        "`passthru bind --vm NAME --grant USER` lets a user without any rights open exactly the nodes of one VM: /dev/kvm, the \
         IOMMU groups or device nodes, /dev/vfio/vfio and /dev/iommu. An access control list (`getfacl NODE`) says so, and \
         `passthru release --vm NAME` takes it back.";
    NotReserved = 70, Host, "a reserved device is on a host driver",
        "`reserve = true` in /etc/passthru/devices.d keeps a device for vfio-pci: udev sets its driver_override when the kernel \
         announces it. A driver that is built into the kernel, or was loaded in an initramfs without passthru's rules, has it \
         before that. So has a device that is plugged in, and a virtual function, while its driver is loaded. `passthru bind` \
         takes it from there.";
    UsbNotClaimed = 71, Host, "a claimed USB device is still the host's",
        "A `[[usb]]` in /etc/passthru/devices.d claims a USB device for guests: udev gives its node to the group passthru and takes \
         the host's drivers off it, whenever it is plugged in. What the host itself needs (a mounted disk, a network interface \
         with a route) is left alone.";
    ChardevFailed = 72, Host, "a character back end cannot be made",
        "A socket's address may be taken, its server may not be there, or the system may have no pseudo-terminals; standard \
         input and output serve one back end (mux=on lets several front ends share it). The evidence has the system's answer.";
    ServiceTooNarrow = 73, Host, "the service does not let the VM reach what it uses",
        "passthru@.service gives its guest the nodes of KVM and VFIO and files to read, and no network. A VM with `--netdev tap` \
         needs the host's network and /dev/net/tun: a drop-in allows both (/usr/share/passthru/tap.conf), and the tap has to be \
         made for the service's user before. Disks of the host (/dev/sdb), /dev/vhost-net and other nodes, and files that are \
         written, such as images, need a drop-in that names them. Who may open a node, `passthru bind --vm NAME --grant` sees \
         to. Started by hand, the VM needs none of that.";
    ControlFailed = 75, Host, "a running guest does not answer",
        "`passthru ctl` and `passthru list` speak with the process of the guest by its control socket. It refused the \
         connection, closed it, or did not answer in time: it may be ending, or stuck in the kernel with a device. Its own \
         messages say more (`journalctl -u passthru@NAME` for a service).";
    CommandRefused = 76, Usage, "the guest's process refused a command",
        "The evidence has its words. `passthru ctl NAME --help` lists the commands, and `passthru ctl NAME status` what \
         there is.";
    BalloonBesideDevice = 77, Usage, "a balloon and a passed-through device exclude each other",
        "A passed-through device reaches the guest's memory through the IOMMU, which has every page pinned. A page that the \
         balloon gives back to the host would stay with the device, while the guest gets another one when it takes the page \
         out of the balloon: what the device writes there is lost, and no memory is saved. Leave virtio-balloon-pci out, or \
         the device.";
    GuestPanicked = 78, Device, "the guest has panicked",
        "The guest's kernel has stopped itself and said so by its pvpanic-pci. Its console has the reason. `--action panic=` \
         says what is done: with exit-failure the process ends with this error.";
    NoPlace = 80, Host, "the guest's CPUs have no place on the host",
        "--cpu-placement=auto gives each virtual CPU a CPU of the host for itself, in whole cores, and takes none that is \
         isolated (isolcpus=), that another virtual machine is pinned to, or that this process may not use. A list names CPUs \
         that are online, one for each virtual CPU at least. `passthru plan` shows what there is; without --cpu-placement \
         the kernel's scheduler finds places by itself.";
    HugePages = 81, Host, "huge pages cannot be reserved",
        "-m SIZE,hugepages=2M,grow-pool=on adds the huge pages that are missing to the pool of the guest's memory node, and \
         takes them away again at the end; that needs root. For a guest of another user `passthru bind --vm NAME` adds them, and \
         `passthru release --vm NAME` takes them away, as the service does. The kernel makes them of free memory that lies together, and moves \
         things to find some. After a long time of use it may not find enough, of pages of 1 GiB in particular: those are \
         best reserved on the host's command line, `hugepagesz=1G hugepages=N`.";
    InterruptsStay = 82, Host, "interrupts cannot be moved to other CPUs",
        "With --cpu-placement the interrupts of a guest's devices go to CPUs beside those of the guest, through \
         /proc/irq/N/smp_affinity_list. Only root may write there. Where they are not moved, or irqbalance moves them back, \
         the guest works and its virtual CPUs are stopped by them now and then.";
    DisplayService = 83, Host, "the display's service cannot be stopped or started",
        "`passthru bind --profile single-gpu` stops the display manager, and every other service that has the graphics card \
         open, before it takes the card; `release` starts them again. systemd must know them. A desktop that was started by \
         hand from a console is none of its services: log out of it first.";
    NotADisplay = 84, Usage, "the device is no display device",
        "`passthru bind --profile single-gpu` is for the graphics card that shows the host's desktop. The other functions of its \
         IOMMU group are taken with it, and need no profile.";
    FarMemory = 85, Host, "the device's memory node has too little room for the guest",
        "Hosts with several sockets, and some with one, have several memory nodes, and each device is near to one of them. What \
         of the guest's memory lies on another node its device and its CPUs reach through the link between them, which is \
         slower. Free memory or huge pages on that node, or use a slot of the other one. `passthru plan` shows CPUs and nodes.";
    NoIoUring = 86, Host, "io_uring cannot be used",
        "aio=io_uring, and aio=native which is done in the same way, have the kernel's io_uring do a disk's requests. The kernel \
         may have it switched off (`sysctl kernel.io_uring_disabled`: 1 leaves it to root and a group, 2 to nobody), may be \
         built without it, or a filter of system calls refuses it, as those of containers do. aio=threads, the default, does \
         without.";
    VhostUserFailed = 90, Host, "the daemon of a vhost-user device cannot be used",
        "A vhost-user device is a program at a unix socket: it must be started before the guest (or --chardev has \
         reconnect-ms=), be of the device's type, know virtio 1.0, serve as many queues as the device has, and answer within \
         10 seconds. Its own messages say more; the evidence has what it did not do.";
    MemoryNotShared = 91, Usage, "the guest's memory is not shared",
        "Another process can serve a device of the guest only if it can map the guest's memory. That is so by itself where a \
         vhost-user device is on the command line; for one that is plugged later, start the guest with `-m SIZE,share=on`, or \
         with an object as its memory: `--object memory-backend-memfd,id=mem,size=4G,share=on -M q35,memory-backend=mem`.";
    VhostNetFailed = 92, Host, "vhost-net cannot be used",
        "With vhost=on the kernel moves a tap's packets itself. It needs the module vhost_net and the right to open \
         /dev/vhost-net, which root and members of its group have. Without vhost=on a thread of passthru does the same.";
    ImageUnusable = 95, Usage, "the disk image cannot be used",
        "A qcow2 image is refused if its header contradicts itself or the file's length, and if it needs what passthru does \
         not have: encryption, an external data file, compression by zstd, extended L2 entries. `qemu-img convert` makes an \
         image without them. One that was not closed and says so is mended by `qemu-img check -r all`.";
    BackingChain = 96, Usage, "a backing file cannot be opened",
        "An overlay names the image below it in its header, relative to its own folder, with that one's format. Each image \
         of the chain must be there, must not come twice, and must be of the format that is written. `passthru img info \
         --backing-chain FILE` shows the chain.";
    DiskInUse = 97, Device, "the disk or image is in use",
        "Two programs that write one disk damage it. Files are locked as QEMU locks them, so that each sees the other; disks and \
         partitions of the host that are mounted, swap or part of another device are refused. Stop the other use first. \
         `fuser -v FILE` shows who has a file open.";
    ImageFailed = 98, Host, "an image could not be read or written",
        "The host's file system or disk refused a request; the evidence has its answer. A full file system is the usual reason: \
         images grow as they are written. What was written before stays whole.";
    ImageDamaged = 99, Device, "the image is damaged",
        "Tables of the image contradict each other: parts are used twice, or lie where nothing is. Copy what can be read with \
         `passthru img convert` to a new image, or mend it with `qemu-img check -r all`. A leak is harmless: room in the file \
         that nothing uses any more.";
    UnknownBackend = 100, Usage, "there is no such back end",
        "A property such as chardev=, drive= or netdev= names a back end by the name that `--chardev` (id=), `--blockdev` \
         (node-name=) or `--netdev` (id=) gave it. Each kind has names of its own; `--chardev help` and so on list the types.";
    WrongBackend = 101, Usage, "the name is that of another kind of back end",
        "A device's character, block and network back ends come from different options, and some properties take objects of \
         certain types only. The name is one that there is, but of another kind than the property takes.";
    BackendInUse = 102, Usage, "the back end has its user already",
        "A back end serves one device, or is the child of one other node, at a time: two would mix their data up. What may \
         have several users says so in its help (a character back end with mux=on).";
    NetdevFailed = 103, Host, "a network back end cannot be made",
        "A tap needs /dev/net/tun and, unless root made it for this user before (`ip tuntap add tap0 mode tap user USER`), \
         CAP_NET_ADMIN. `user` needs the program passt and no privilege. The other ends of sockets must be there first.";
    BootindexTaken = 106, Usage, "two devices have one place in the order of booting",
        "bootindex= orders the devices that firmware boots from, so each place in it is one device's. Give each its own \
         number, or leave bootindex= out: a guest that boots --kernel does not look at it.";
    NoMemoryRoom = 107, Usage, "there is no room for a memory device",
        "The memory of a virtio-mem-pci has addresses behind that of -m, which are kept free for it by -m SIZE,maxmem=MOST: \
         MOST is the size and the sizes of the objects of all memory devices. It cannot change while the guest runs.";
    MemoryDeviceApart = 108, Usage, "a memory device excludes another device",
        "Memory that comes and goes is not for all: a balloon knows the memory of -m alone, and the daemon of a vhost-user \
         device is given few pieces of memory, while each block of a virtio-mem-pci is one. Leave one of the two out.";
    BadNuma = 109, Usage, "the guest's memory nodes contradict each other",
        "Nodes are numbered from 0 on. Each has its memory by an object of its own, whose sizes make that of -m, and each \
         processor is in one node. `passthru run --numa help` lists what the option takes.";
}

impl Code {
    /// The code that `PT012`, `pt12` or `12` names.
    pub fn parse(text: &str) -> Option<Code> {
        let digits = text.trim().trim_start_matches(['P', 'T', 'p', 't']);
        let number: u16 = digits.parse().ok()?;
        Code::ALL.iter().copied().find(|code| code.entry().number == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PT{:03}", self.entry().number)
    }
}

/// A failure that the user can understand and mend.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    cause: String,
    evidence: Vec<String>,
    fix: Option<String>,
}

/// The result of everything that a user can cause to fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this code; `cause` is a sentence in the user's words, without a full stop.
    pub fn new(code: Code, cause: impl Into<String>) -> Self {
        Error(Box::new(Inner { code, cause: cause.into(), evidence: Vec::new(), fix: None }))
    }

    /// A failed system call that nothing better is known about: `doing` is what was tried ("open /dev/net/tun").
    pub fn system(doing: impl fmt::Display, error: &io::Error) -> Self {
        Error::new(Code::SystemFailed, format!("could not {doing}")).evidence(explain_io(error))
    }

    /// Adds a line of evidence: which file, group, driver or process says so.
    #[must_use]
    pub fn evidence(mut self, line: impl Into<String>) -> Self {
        self.0.evidence.push(line.into());
        self
    }

    /// Sets the command or step that mends it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = Some(fix.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What is wrong, in one sentence.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// Who says so.
    pub fn evidence_lines(&self) -> &[String] {
        &self.0.evidence
    }

    /// What mends it.
    pub fn fix_text(&self) -> Option<&str> {
        self.0.fix.as_deref()
    }
}

/// An operating system's error in words and with its name: `Permission denied (EACCES)`.
pub fn explain_io(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let errno = nix::errno::Errno::from_raw(number);
            format!("{} ({errno:?})", errno.desc())
        }
        None => error.to_string(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.cause())?;
        for line in self.evidence_lines() {
            write!(f, "\n  seen: {line}")?;
        }
        if let Some(fix) = self.fix_text() {
            write!(f, "\n  mend: {fix}")?;
        }
        write!(f, "\n  more: passthru explain {}", self.code())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_ascending() {
        let numbers: Vec<u16> = Code::ALL.iter().map(|code| code.entry().number).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    }

    #[test]
    fn every_code_can_be_named_and_has_a_text() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(&code.to_string()), Some(code));
            assert!(code.entry().text.len() > 40, "{code} needs a text");
        }
        assert_eq!(Code::parse("PT999"), None);
        assert_eq!(Code::parse(""), None);
    }

    #[test]
    fn display_has_code_cause_evidence_and_fix() {
        let error = Error::new(Code::Busy, "group 7 is in use").evidence("process 12 (qemu)").fix("stop it");
        assert_eq!(
            error.to_string(),
            "PT008: group 7 is in use\n  seen: process 12 (qemu)\n  mend: stop it\n  more: passthru explain PT008"
        );
    }
}
