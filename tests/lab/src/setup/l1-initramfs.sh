#!/bin/sh
# L1's initramfs: the Debian tree over 9p, read-only, with a tmpfs on top, or the machine's drive, which outlives a boot.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

modprobe -a 9pnet_virtio 9p overlay virtio_blk

# Those of the machine's modules that are here; process 1 loads the others.
# The first one, KVM, takes as long as the rest: both processors have work.
load() {
    for module in "$@"; do modprobe -q "$module"; done
}
set -- $(sed -n 's/.*lab_modules=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
first=$1
[ -z "$first" ] || shift
load $first &
loading=$!
load "$@"

mkdir -p /lower /upper /newroot
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 tree /lower || exec sh
if [ -b /dev/vda ]; then
    modprobe -a crc32c_generic ext4
    mount -t ext4 /dev/vda /upper || exec sh
else
    mount -t tmpfs -o size=75% upper /upper
fi
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot || exec sh

mkdir -p /newroot/images /newroot/share /newroot/lab/images
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 images /newroot/lab/images
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /newroot/share
# What guests boot from is copied to memory, the big and rare files stay where they are.
for file in /newroot/lab/images/*; do
    case ${file##*/} in
    bzImage | initramfs) dd if="$file" of="/newroot/images/${file##*/}" bs=500k 2>/dev/null ;;
    *) ln -sf "/lab/images/${file##*/}" /newroot/images/ ;;
    esac
done
wait $loading
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
mount --move /dev /newroot/dev
if grep -q lab_systemd /newroot/proc/cmdline; then
    # Nothing is older than it should be: no cache is made again, and no question of a first boot is asked.
    touch /newroot/etc/.updated /newroot/var/.updated
    mkdir -p /newroot/etc/systemd/system/multi-user.target.wants
    cp /lab-agent.service /newroot/etc/systemd/system/
    ln -sf ../lab-agent.service /newroot/etc/systemd/system/multi-user.target.wants/
    exec switch_root /newroot /lib/systemd/systemd
fi
cp /pid1 /newroot/lab/pid1
exec switch_root /newroot /bin/busybox sh /lab/pid1
