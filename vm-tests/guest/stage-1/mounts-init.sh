#!/bin/sh
# shellcheck shell=dash
# Measures how long mounts take; /mounts is the example of that name of the agent.
PATH=/bin:/sbin
export PATH
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /run/lock /sysroot /mnt
for module in virtio_pci virtio_blk ahci sd_mod xhci_pci usb_storage ext4 xfs btrfs f2fs vfat nls_cp437 nls_ascii exfat; do modprobe $module; done
# The peer finds disks by udev's links, as it does in a running system.
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle

measure() {
    # Disks behind SATA and USB come when they come: each try ends when udev has nothing to do.
    while read -r link place; do
        tries=0
        until [ -e "$link" ]; do
            tries=$((tries + 1))
            [ $tries -lt 60 ] || { echo "$link for $place is not there"; return 1; }
            sleep 1
            udevadm settle
        done
        mkdir -p "/mnt$place"
    done </links
    mount -t tmpfs sysroot /sysroot
    pairs=$(cat /pairs)
    # One pair that does not count: what is done once after a start is done by it.
    /mounts compare /unchecked.json /fstab 1 | sed 's/PAIR/FIRST/' || return 1
    /mounts compare /unchecked.json /fstab "$pairs" || return 1
    /mounts compare /checked.json /fstab "$pairs" check
}
if measure; then echo MOUNTS-DONE; fi
sync
busybox poweroff -f
