#!/bin/sh
# Process 1 of L1: mounts what a booted system has, then runs the lab's agent and
# reaps every orphan. When the agent ends, so does the machine.
# Busybox does all the work here: every other program would come over 9p first.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LANG=C.UTF-8
b=/usr/bin/busybox
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
$b mount -t tmpfs run /run
$b mount -t tmpfs tmp /tmp
$b mount -t debugfs debugfs /sys/kernel/debug
$b mount -t tracefs tracefs /sys/kernel/tracing
$b hostname lab
$b ip link set lo up
for module in $($b sed -n 's/.*lab_modules=\([^ ]*\).*/\1/p' /proc/cmdline | $b tr , ' '); do
    [ -d "/sys/module/$(echo "$module" | $b tr - _)" ] || modprobe "$module"
done
for file in /share/bin/*; do
    # Large blocks: each one is a round trip to L0.
    $b dd if="$file" of="/usr/local/bin/${file##*/}" bs=512k status=none
    $b chmod 755 "/usr/local/bin/${file##*/}"
done
/usr/local/bin/lab agent &
wait
$b poweroff -f
