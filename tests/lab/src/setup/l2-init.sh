#!/bin/sh
# First program of a guest in the lab: says that it is up, runs the scenario's
# script, and switches the machine off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
echo "L2 UP"
[ -f /script ] && sh /script
poweroff -f
