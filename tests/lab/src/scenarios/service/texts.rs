//! What the machine with the router is given: the guest's script, the host's ends of the wires, names and VM file.

/// The guest: a router between its two cards, which powers off when its button is pressed.
/// Where the machine has a tap, the guest is 10.9.0.2 on it.
pub const ROUTER: &str = r#"
modprobe -a e1000e button evdev virtio_net
card() { grep -l "$1" /sys/class/net/*/address | cut -d / -f 5; }
i=0; until [ -n "$(card 00:01)" ] && [ -n "$(card 00:02)" ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done
ip addr add 10.1.0.1/24 dev $(card 00:01); ip link set $(card 00:01) up
ip addr add 10.2.0.1/24 dev $(card 00:02); ip link set $(card 00:02) up
if [ -n "$(card 00:09)" ]; then ip addr add 10.9.0.2/24 dev $(card 00:09); ip link set $(card 00:09) up; fi
echo 1 > /proc/sys/net/ipv4/ip_forward
echo LAB routes=1
head -c 24 /dev/input/event0 > /dev/null
echo LAB button=1
"#;

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

/// The machine gets a tap, which the host makes for the service's user.
pub const TAP: &str = r#"cat >> /etc/passthru/router.toml << 'END'

[[netdev]]
type = "tap"
id = "lan0"
ifname = "lan0"

[[device]]
driver = "virtio-net-pci"
netdev = "lan0"
mac = "52:54:00:00:00:09"
END
ip tuntap add lan0 mode tap user passthru
ip addr add 10.9.0.1/24 dev lan0; ip link set lan0 up"#;
