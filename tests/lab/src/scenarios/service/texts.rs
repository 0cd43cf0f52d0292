//! What the machine with the router is given: the guest's script, the host's ends of the wires, names and VM file.

/// The guest: a router between its two cards, which powers off when its button is pressed.
/// Where the machine has a tap, the guest is 10.9.0.2 on it.
pub const ROUTER: &str = r#"
for module in /more/*; do insmod $module; done
modprobe e1000e
card() { grep -l "$1" /sys/class/net/*/address | cut -d / -f 5; }
i=0; until [ -n "$(card 00:01)" ] && [ -n "$(card 00:02)" ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done
ip addr add 10.1.0.1/24 dev $(card 00:01); ip link set $(card 00:01) up
ip addr add 10.2.0.1/24 dev $(card 00:02); ip link set $(card 00:02) up
if [ -n "$(card 00:09)" ]; then ip addr add 10.9.0.2/24 dev $(card 00:09); ip link set $(card 00:09) up; fi
[ ! -b /dev/vda ] || echo LAB disk=$(head -c 11 /dev/vda)
echo 1 > /proc/sys/net/ipv4/ip_forward
echo LAB routes=1
head -c 24 /dev/input/event0 > /dev/null
echo LAB button=1
"#;

/// What the guest needs besides the small initramfs, which starts faster than the one that has all.
pub const MODULES: &str = r#"
mkdir -p /tmp/modules/more
for module in button evdev virtio_pci virtio_net virtio_blk; do modprobe --show-depends $module; done | grep ^insmod |
    cut -d ' ' -f 2 | awk '!seen[$0]++' | nl -w 2 -n rz |
    while read number file; do xz -dc $file > /tmp/modules/more/$number-$(basename $file .xz); done
cd /tmp/modules && find more | cpio -o -H newc --quiet > /tmp/modules.cpio && [ -e more/*-button.ko ]"#;

/// The host's ends of the wires, each in a network of its own.
pub const ENDS: &str = r"
end() {
    card=$(grep -l 00:0$2 /sys/class/net/*/address | cut -d / -f 5)
    ip netns add $1; ip link set $card netns $1
    ip -n $1 addr add 10.$3.0.2/24 dev $card; ip -n $1 link set $card up
    ip -n $1 route add default via 10.$3.0.1
}
end a 3 1; end b 4 2";

/// Both cards and one of the keyboards have a name, and are kept for guests.
pub const NAMES: &str = r#"mkdir -p /etc/passthru/devices.d
cat > /etc/passthru/devices.d/cards.toml << 'END'
[[device]]
name = "wan"
address = "01:00.0"
reserve = true

[[device]]
name = "lan"
path = "0000:00:03.0/00.0"
reserve = true

[[usb]]
name = "keys"
id = "0627:0001"
serial = "lab-a"
END"#;

pub const VM_FILE: &str = r#"cat > /etc/passthru/router.toml << 'END'
kernel = "/srv/router/vmlinuz"
initrd = "/srv/router/initrd.img"
append = "console=ttyS0 quiet"
memory = "256M"

[[device]]
driver = "pcie-root-port"
id = "rp1"

[[device]]
driver = "vfio-pci"
host = "wan"
bus = "rp1"

[[device]]
driver = "pcie-root-port"
id = "rp2"

[[device]]
driver = "vfio-pci"
host = "lan"
bus = "rp2"
END"#;

/// The machine gets what the unit alone does not let it reach: a tap, which the host makes for the service's user and whose
/// packets the kernel moves, a disk of the host, and a file to write.
pub const MORE: &str = r#"cat >> /etc/passthru/router.toml << 'END'

[[netdev]]
type = "tap"
id = "lan0"
ifname = "lan0"
vhost = true

[[device]]
driver = "virtio-net-pci"
netdev = "lan0"
mac = "52:54:00:00:00:09"

[[blockdev]]
driver = "host_device"
node-name = "data"
filename = "/dev/loop0"
read-only = true

[[device]]
driver = "virtio-blk-pci"
drive = "data"
END
sed -i '1i serial = "file:/srv/log/router"' /etc/passthru/router.toml
mkdir /srv/log && chown passthru /srv/log
truncate -s 1M /srv/disk && echo -n of-the-host | dd of=/srv/disk conv=notrunc status=none
modprobe -a vhost_net loop && losetup /dev/loop0 /srv/disk
ip tuntap add lan0 mode tap user passthru
ip addr add 10.9.0.1/24 dev lan0; ip link set lan0 up"#;

/// What [`MORE`] made is no more.
pub const NO_MORE: &str = "ip link del lan0; losetup -d /dev/loop0; rm -r /srv/log /srv/disk /etc/systemd/system/passthru@router.service.d; \
    systemctl daemon-reload; mv /etc/passthru/router.toml.orig /etc/passthru/router.toml";
