#!/bin/sh
# Written by freshroot-publish; do not edit.
# kexec-boot [OPTIONS] [URL or folder]: fetches kernel and initrd of what was published, checks them by their digests, and starts them in place
# of the running kernel. Where systemd runs, services are shut down first.
#   --load          only load them: «systemctl kexec» or «kexec -e» then starts them
#   --now           start them at once, without shutting anything down
#   --append WORDS  add words to the kernel command line; may be repeated
#   --save FOLDER   start nothing: put kernel, initrd, cmdline and grub.cfg into FOLDER, for a local boot loader
# Needs a POSIX shell, kexec (package kexec-tools), sha256sum, and curl or wget.
set -eu
# «su» without a dash leaves root without these.
PATH=$PATH:/usr/sbin:/sbin
base=@base@
kernel=@kernel@
initrd=@initrd@
# Of the two together, in bytes.
size=@size@
# Of the kernel, as uname -m says it; empty if the publisher could not tell.
machine=@machine@
line=@line@

fail() {
  echo "kexec-boot: $1" >&2
  exit 1
}
usage="usage: kexec-boot [--load | --now | --save FOLDER] [--append WORDS]… [URL or folder]"

then=start
save=
while [ $# -gt 0 ]; do
  case $1 in
    --load) then=load ;;
    --now) then=now ;;
    --append | --save)
      [ $# -gt 1 ] || fail "$1 needs a value; $usage"
      if [ "$1" = --append ]; then line="$line $2"; else then=save save=$2; fi
      shift ;;
    -h | --help)
      echo "$usage"
      exit 0 ;;
    -*) fail "unknown option $1; $usage" ;;
    *) base=$1 ;;
  esac
  shift
done

here=$(dirname "$0")
if [ -z "$base" ]; then
  for folder in "$here" "$here/.."; do
    if [ -e "$folder/kernels/$kernel" ]; then base=$folder; fi
  done
  [ -n "$base" ] || fail "where from? give the URL or the folder that was published, such as: kexec-boot http://server"
fi
base=${base%/}

need() {
  command -v "$1" >/dev/null || fail "$1 is missing: install the package $2"
}
need sha256sum coreutils
need mktemp coreutils
fetch=
case $base in
  http://* | https://*)
    for tool in curl wget; do
      if [ -z "$fetch" ] && command -v "$tool" >/dev/null; then fetch=$tool; fi
    done
    [ -n "$fetch" ] || fail "neither curl nor wget is here to fetch from $base: install one of them, or copy the folder here and name it" ;;
esac
if [ "$then" != save ]; then
  [ "$(id -u)" = 0 ] || fail "only root can start another kernel: run it with sudo or as root"
  kexec=$here/kexec
  if command -v kexec >/dev/null; then kexec=kexec; fi
  [ "$kexec" = kexec ] || [ -x "$kexec" ] || fail "kexec is missing: install the package kexec-tools"
  [ -z "$machine" ] || [ "$(uname -m)" = "$machine" ] || fail "the published kernel is for $machine, this machine is $(uname -m)"
  [ -e /sys/kernel/kexec_loaded ] || fail "the running kernel was built without kexec (CONFIG_KEXEC, CONFIG_KEXEC_FILE)"
  if [ "$(cat /proc/sys/kernel/kexec_load_disabled 2>/dev/null)" = 1 ]; then
    fail "kexec is switched off until the next reboot (sysctl kernel.kexec_load_disabled; NixOS: security.protectKernelImage)"
  fi
  # Once as files, once where the kernel keeps them until they start.
  free=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  wanted=$((size / 512))
  [ -z "$free" ] || [ "$free" -ge "$wanted" ] || fail "kernel and initrd take $((wanted / 1024)) MiB of memory, $((free / 1024)) MiB are free: stop something first"
fi

if [ "$then" = save ]; then
  mkdir -p "$save"
  folder=$(mktemp -d "$save/.new.XXXXXX")
else
  folder=$(mktemp -d)
fi
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

get() {
  tries=1 limit='-T 60'
  # shellcheck disable=SC2086 # the limit is two words, or none
  until case $fetch in
    curl) curl --fail --silent --show-error --location --connect-timeout 20 --speed-limit 100 --speed-time 60 --output "$2" "$base/$1" ;;
    wget) wget -q $limit -O "$2" "$base/$1" ;;
    *) cp "$base/$1" "$2" ;;
  esac; do
    { [ -n "$fetch" ] && [ $tries -lt 3 ]; } || fail "fetching $base/$1 failed"
    tries=$((tries + 1))
    # The wget of Debian 12's busybox-static dies of the option; without it, wget itself gives up after 15 minutes of silence.
    limit=
    sleep 2
  done
}
check() {
  echo "$1  $2" | sha256sum -c >/dev/null 2>&1 || fail "the $3 from $base is not what was published: its digest differs"
}
get "kernels/$kernel" "$folder/kernel"
get "initrds/$initrd" "$folder/initrd"
check "$kernel" "$folder/kernel" kernel
check "$initrd" "$folder/initrd" initrd

if [ "$then" = save ]; then
  case $line in
    *"'"* | *'$'* | *'\'* | *'{'* | *';'*) fail "the command line holds a character that GRUB would change: $line" ;;
  esac
  printf '%s\n' "$line" >"$folder/cmdline"
  # Files named by their digests: a power cut in between leaves the old entry with its old files.
  cat >"$folder/grub.cfg" <<GRUB
# Written by kexec-boot --save. In GRUB's own configuration: «set freshroot=(\$root)/path/of/this/folder», then «source \$freshroot/grub.cfg».
menuentry 'freshroot' {
  linux \$freshroot/$kernel $line
  initrd \$freshroot/$initrd
}
GRUB
  mv "$folder/kernel" "$save/$kernel"
  mv "$folder/initrd" "$save/$initrd"
  sync
  mv "$folder/cmdline" "$save/cmdline"
  mv "$folder/grub.cfg" "$save/grub.cfg"
  sync
  for file in "$save"/*; do
    name=${file##*/}
    case $name in
      *[!0-9a-f]* | "$kernel" | "$initrd") ;;
      *) [ ${#name} -ne 64 ] || rm -f "$file" ;;
    esac
  done
  exit 0
fi

# A kernel that was kexeced never does it again by itself: no loops.
line="$line freshroot.kexec=1"
load() {
  "$kexec" "$@" "$folder/kernel" --initrd="$folder/initrd" --command-line="$line"
}
# By the system call that checks signatures (the only one under lockdown), else by the old one, which knows more kinds of kernels.
if ! load -s -l 2>"$folder/why" && ! load -l; then
  cat "$folder/why" >&2
  fail "kexec could not load the kernel; under Secure Boot it must be signed"
fi
case $then in
  load) exit 0 ;;
  start)
    if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then
      systemctl kexec || fail "systemctl kexec failed: the kernel is loaded, «kexec-boot --now» starts it without systemd"
      exit 0
    fi ;;
esac
sync
"$kexec" -e
