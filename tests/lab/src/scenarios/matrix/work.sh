# What a device of the matrix has to do: the same text in the guest and, with the host's own driver, in L1.
# $1 is always the device's folder in sysfs, $2 its driver; modules come last. Results are lines KEY=VALUE.

# The device behind the guest's root port in slot $1.
behind() { echo /sys/bus/pci/devices/0000:00:$1.0/0000:??:??.?; }

# Waits for a condition, 20 s at most.
await() {
    tries=0
    until eval "$1"; do
        tries=$((tries + 1))
        [ $tries -le 200 ] || { echo "in vain: $1"; return 1; }
        sleep 0.1
    done
}

# Loads modules and waits until the driver has the device.
load() {
    dev=$(readlink -f $1) driver=$2
    shift 2
    for module; do modprobe $module || return; done
    await '[ "$(basename "$(readlink $dev/driver)")" = $driver ]'
}

# Interrupts that the system has counted for lines with $1 in them.
interrupts() { awk -v name="$1" '$0 ~ name { for (i = 2; $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }

# $3: port of the lab's server. Pings, and fetches what the server sends.
nic() {
    port=$3
    dev=$1 driver=$2
    shift 3
    load $dev $driver "$@" || return
    await 'name=$(ls $dev/net $dev/virtio*/net 2> /dev/null | grep -v : | tail -n 1); [ -n "$name" ]' || return
    ip link set $name up
    ip addr add 10.0.2.15/24 dev $name
    await '[ "$(cat /sys/class/net/$name/carrier)" = 1 ]' || return
    busybox ping -c 4 -i 0.2 -W 5 10.0.2.2 > /tmp/ping
    echo ping=$(sed -n 's/.* \([0-9]*\) packets received.*/\1/p' /tmp/ping)
    echo tcp=$(busybox timeout 60 busybox nc 10.0.2.2 $port < /dev/null | sha256sum | cut -d ' ' -f 1)
    ip addr flush dev $name
    ip link set $name down
}

sum() { dd if=$1 bs=1M skip=$2 count=$3 iflag=direct 2> /dev/null | sha256sum | cut -d ' ' -f 1; }

# Reads the drive's pattern and what was written last; writes other data behind it and reads that back.
drive() {
    load "$@" || return
    # A namespace with several ways to it has a hidden block device for each, such as nvme0c1n1 for nvme0n1.
    await 'for b in /sys/block/*; do case $(readlink -f $b/device) in $dev/*) node=/dev/${b##*/} ;; esac; done
        node=$(echo $node | sed "s/nvme\\([0-9]*\\)c[0-9]*n/nvme\\1n/"); [ -b "$node" ]' || return
    echo read=$(sum $node 0 4)
    echo again=$(sum $node 128 2)
    dd if=/dev/urandom of=/tmp/data bs=1M count=2 2> /dev/null
    dd if=/tmp/data of=$node bs=1M seek=128 oflag=direct conv=notrunc,fsync 2> /dev/null
    echo wrote=$(sha256sum < /tmp/data | cut -d ' ' -f 1)
    echo reread=$(sum $node 128 2)
}

# Plays $3 as 16-bit stereo. The whole of it fits into the buffer: no emulation is too slow for that.
sound() {
    file=$3
    dev=$1 driver=$2
    shift 3
    load $dev $driver "$@" || return
    await 'card=$(ls $dev/sound 2> /dev/null | grep card); [ -n "$card" ] && [ -e /dev/snd/pcmC${card#card}D0p ]' || return
    card=${card#card}
    before=$(interrupts snd_hda)
    aplay -q -D hw:$card,0 -t raw -f S16_LE -c 2 -r 44100 --buffer-size=16384 --period-size=1024 $file || return
    echo interrupts=$(($(interrupts snd_hda) - before))
}

# Shows a picture on the console of the display, alone: $3 turns its colours. Eight bars of 40 cells, then a word.
display() {
    turn=$3
    dev=$1 driver=$2
    shift 3
    load $dev $driver "$@" || return
    # The console goes to the first display that there is.
    : > /tmp/displays
    for other in /sys/class/drm/card*/device; do
        [ -e $other/driver ] || continue
        other=$(readlink -f $other)
        case $other in */virtual/*) continue ;; esac
        echo "$(readlink -f $other/driver) ${other##*/}" >> /tmp/displays
    done
    while read -r folder name; do echo $name > $folder/unbind; done < /tmp/displays
    echo ${dev##*/} > /sys/bus/pci/drivers/$driver/bind
    await '[ -e $dev/graphics/fb0 ] && grep -q "frame buffer" /sys/class/vtconsole/vtcon1/name' || return
    cat $dev/graphics/fb0/virtual_size
    {
        printf '\033[0m\033[9;0]\033[?25l\033[2J\033[H'
        for row in 0 1 2 3 4 5 6 7; do printf '\033[4%dm%40s\033[0m\n' $(((row + turn) % 8)) ''; done
        echo PASS
    } > /dev/tty1
}

# Gives the other displays back to their drivers.
display_end() {
    while read -r folder name; do echo $name > $folder/unbind; done 2> /dev/null < /tmp/displays
    while read -r folder name; do echo $name > $folder/bind; done < /tmp/displays
}

# First the lab's own program is the driver, with the pin; $3: its options. Then $2 is, a module that uses MSI.
edu() {
    dev=$(readlink -f $1)
    edu_pin "$3" && edu_msi $2
}

edu_pin() {
    modprobe uio_pci_generic || return
    echo uio_pci_generic > $dev/driver_override
    echo ${dev##*/} > /sys/bus/pci/drivers/uio_pci_generic/bind
    await 'uio=$(ls $dev/uio 2> /dev/null) && [ -e /dev/$uio ]' && lab edu $1 $dev /dev/$uio
    code=$?
    echo ${dev##*/} > /sys/bus/pci/drivers/uio_pci_generic/unbind
    echo > $dev/driver_override
    return $code
}

# Each write returns when its interrupt has come. The kernel's own count is taken as well.
edu_msi() {
    insmod $1 && await '[ -e $dev/raise ]' || return
    for cause in $(seq 1 20); do echo $cause > $dev/raise || break; done
    echo msi=$(cat $dev/interrupts)
    echo counted=$(awk '/edu-msi/ && /MSI/ { for (i = 2; $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts)
    rmmod edu_msi
}
