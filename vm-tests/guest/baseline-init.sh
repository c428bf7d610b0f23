#!/bin/busybox sh
# shellcheck shell=dash
# The yardstick: makes the same mounts as the agent in a warm boot, verifies nothing and recovers from nothing.
# Cache disk: ext4, label CACHE, image at images/<name of baseline.image=>; the system is that of freshroot.system=.
set -eu
/bin/busybox mkdir -p /bin /proc /sys /dev /run /sysroot /cache
/bin/busybox --install -s /bin
PATH=/bin
export PATH
mount -t devtmpfs dev /dev
# The kernel log has the time: see vm-tests/src/bench/boot.rs.
echo "<6>baseline: start" >/dev/kmsg
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=0755 run /run
word() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
for module in virtio_pci virtio_blk loop squashfs overlay; do modprobe $module; done
system=$(word freshroot.system)
mount -t ext4 "$(findfs LABEL=CACHE)" /cache
mount -t tmpfs -o mode=0755 root /sysroot
mkdir -p /sysroot/nix/.ro-store /sysroot/nix/.rw-store /sysroot/nix/store /sysroot/dev /sysroot/proc /sysroot/sys /sysroot/run
mount -t squashfs -o loop,ro "/cache/freshroot/images/$(word baseline.image)" /sysroot/nix/.ro-store
mount -t tmpfs -o mode=0755 rw /sysroot/nix/.rw-store
mkdir /sysroot/nix/.rw-store/store /sysroot/nix/.rw-store/work
mount -t overlay -o lowerdir=/sysroot/nix/.ro-store,upperdir=/sysroot/nix/.rw-store/store,workdir=/sysroot/nix/.rw-store/work overlay /sysroot/nix/store
mkdir -p /run/freshroot/cache
mount -o move /cache /run/freshroot/cache
for folder in dev proc sys run; do mount -o move /$folder /sysroot/$folder; done
echo "<6>baseline: mounted" >/sysroot/dev/kmsg
if [ -x "/sysroot$system/prepare-root" ]; then
    IN_NIXOS_SYSTEMD_STAGE1=true chroot /sysroot "$system/prepare-root"
fi
echo "<6>baseline: prepared" >/sysroot/dev/kmsg
exec switch_root -c /dev/console /sysroot "$system/init"
