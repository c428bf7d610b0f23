#!/bin/sh
# shellcheck shell=dash
# Activation in the new root, as NixOS does it at the end of stage 1.
set -eu
export IN_NIXOS_SYSTEMD_STAGE1=true
exec chroot /sysroot "$(readlink /nixos-closure)/prepare-root"
