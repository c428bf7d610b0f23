#!/bin/sh
# shellcheck shell=dash
# Fills the shutdown ramfs with what unmounts the rest once nothing of the system is in use any more. NixOS has a program for it that knows its store.
set -eu
shutdown=/usr/lib/systemd/systemd-shutdown
# The loader says what it loads: «name => path (address)», and «path (address)» for itself.
libraries=$(LD_TRACE_LOADED_OBJECTS=1 $shutdown | sed -n 's/^.*[[:space:]]\(\/[^ ]*\) (0x[0-9a-f]*)$/\1/p')
cd /run/initramfs
# shellcheck disable=SC2086 # one word for each library
cp -L --parents $libraries /etc/os-release .
cp etc/os-release etc/initrd-release
# Last, and at once: it is what systemd looks for.
cp $shutdown shutdown.making
mv shutdown.making shutdown
