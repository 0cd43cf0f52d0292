#!/bin/sh
# Process 1 of L1: mounts what a booted system has, then runs the lab's agent and
# reaps every orphan. When the agent ends, so does the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LANG=C.UTF-8
mount -t devpts devpts /dev/pts 2>/dev/null || { mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; }
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
hostname lab
ip link set lo up
[ -z "$(busybox sed -n 's/.*lab_modules=\([^ ]*\).*/\1/p' /proc/cmdline)" ] ||
    modprobe -a $(busybox sed -n 's/.*lab_modules=\([^ ]*\).*/\1/p' /proc/cmdline | busybox tr , ' ')
cp /share/bin/* /usr/local/bin/
/usr/local/bin/lab agent &
wait
poweroff -f
