#!/bin/sh
# L1's initramfs: the Debian tree over 9p, read-only, with a tmpfs on top.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
modprobe -a 9pnet_virtio 9p overlay

mkdir -p /lower /upper /newroot
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 tree /lower || exec sh
mount -t tmpfs -o size=75% upper /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot || exec sh

mkdir -p /newroot/images /newroot/share /newroot/lab
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 images /newroot/images
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576 share /newroot/share
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
mount --move /dev /newroot/dev
cp /pid1 /newroot/lab/pid1
exec switch_root /newroot /bin/busybox sh /lab/pid1
