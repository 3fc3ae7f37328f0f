#!/bin/busybox sh
# /init of the lab's initramfs: loads what the disks need, lays the system out of them, and goes there.
set -eu
busybox=/bin/busybox
for place in proc sys dev lower upper root; do $busybox mkdir -p /$place; done
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $busybox insmod "$module"
done </lib/modules/load-order

# A disk is known by its serial, whatever letter it got.
$busybox mkdir /dev/lab
for disk in /sys/block/vd*; do
    read -r serial <"$disk/serial" || [ -n "$serial" ]
    $busybox ln -s "/dev/${disk##*/}" "/dev/lab/$serial"
done

$busybox mount -o ro /dev/lab/system /lower
$busybox mount -t tmpfs -o mode=755 tmpfs /upper
$busybox mkdir /upper/new /upper/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work overlay /root
$busybox mkdir -p /root/opt/packages /root/opt/prepared /root/scratch /root/project
$busybox mount -o ro /dev/lab/packages /root/opt/packages
$busybox mount -o ro /dev/lab/prepared /root/opt/prepared
$busybox mount -t xfs -o noatime /dev/lab/scratch /root/scratch
$busybox tar -xf /dev/lab/cargo -C /root/project
for place in proc sys dev; do $busybox mount --move /$place /root/$place; done
exec $busybox switch_root /root /project/tools/lab/init.sh
