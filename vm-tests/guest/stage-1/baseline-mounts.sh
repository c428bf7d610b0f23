#!/bin/sh
# shellcheck shell=dash
# In the agent's place: makes the same mounts below /sysroot as the agent in a warm boot, verifies nothing and recovers from nothing. See ../baseline-init.sh.
set -eu
word() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
cache=/sysroot/run/freshroot/cache
mkdir -p $cache /sysroot/nix/.ro-store /sysroot/nix/.rw-store /sysroot/nix/store
mount -t ext4 /dev/disk/by-label/CACHE $cache
mount -t squashfs -o loop,ro "$cache/freshroot/images/$(word baseline.image)" /sysroot/nix/.ro-store
mount -t tmpfs -o mode=0755 rw /sysroot/nix/.rw-store
mkdir /sysroot/nix/.rw-store/store /sysroot/nix/.rw-store/work
mount -t overlay -o lowerdir=/sysroot/nix/.ro-store,upperdir=/sysroot/nix/.rw-store/store,workdir=/sysroot/nix/.rw-store/work overlay /sysroot/nix/store
ln -s "$(word freshroot.system)" /sysroot/nix/.freshroot
