#!/bin/sh
# make-iso.sh SERVED CMDLINE OUT: an ISO that boots by UEFI and, where BIOS_MODULES is given, by BIOS, from disc and from a USB stick.
#   SERVED        the served folder: one kernel, one initrd, one image
#   CMDLINE       the kernel command line
#   EFI_TARGET    GRUB's platform, such as x86_64-efi;  EFI_MODULES, BIOS_MODULES: the folders that hold <platform>/*.mod
set -eu
served=$1 cmdline=$2 out=$3
: "${EFI_TARGET:?}" "${EFI_MODULES:?}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/iso
# The same bytes every time.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1}
export SOURCE_DATE_EPOCH

one() {
  # shellcheck disable=SC2086 # the pattern is meant to be expanded
  set -- $served/$1/*
  if [ $# -ne 1 ] || ! [ -e "$1" ]; then
    echo "make-iso: $served must hold exactly one generation" >&2
    exit 1
  fi
  basename "$1"
}
# Double quotes are GRUB's too: it takes them off and puts them back around words with blanks. The rest it would change.
# shellcheck disable=SC1003 # a backslash is meant
case $cmdline in *"'"* | *'$'* | *'\'* | *'{'* | *';'*) echo "make-iso: the command line holds a character that GRUB would change: $cmdline" >&2; exit 1 ;; esac

mkdir -p "$root/boot" "$root/freshroot"
# Everything under the names of the served folder: the agent reads the medium as it reads a server.
cp -RL "$served/." "$root/freshroot/"
chmod -R u+w "$root"

cat >"$work/grub.cfg" <<CFG
search --no-floppy --set=root --label FRESHROOT
set timeout=5
menuentry 'freshroot' {
  linux /freshroot/kernels/$(one kernels) $cmdline
  initrd /freshroot/initrds/$(one initrds)
}
CFG

# GRUB finds its configuration in a memory disk of its own. Not grub-mkstandalone: it packs the time of the run.
mkdir -p "$work/memdisk/boot/grub"
mv "$work/grub.cfg" "$work/memdisk/boot/grub/"
tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$work/memdisk" -cf "$work/memdisk.tar" boot
# image FOLDER PLATFORM OUT [modules…]
image() {
  folder=$1/$2 platform=$2 to=$3
  shift 3
  grub-mkimage -d "$folder" -O "$platform" -o "$to" -p "(memdisk)/boot/grub" -m "$work/memdisk.tar" "$@" \
    memdisk tar normal linux search search_label iso9660 part_gpt part_msdos fat all_video echo configfile test
}

# UEFI: a program on a small FAT file system.
case $EFI_TARGET in
x86_64-efi) name=BOOTX64.EFI ;;
arm64-efi) name=BOOTAA64.EFI ;;
*) echo "make-iso: $EFI_TARGET is none of x86_64-efi, arm64-efi" >&2; exit 1 ;;
esac
image "$EFI_MODULES" "$EFI_TARGET" "$work/$name"
size=$(($(stat -c %s "$work/$name") / 1024 + 512))
truncate -s "${size}K" "$root/boot/efi.img"
mkfs.vfat --invariant -i 46524553 -n EFI "$root/boot/efi.img" >/dev/null
mmd -i "$root/boot/efi.img" ::/EFI ::/EFI/BOOT
# The file's own time, not that of now.
touch -d "@$SOURCE_DATE_EPOCH" "$work/$name"
mcopy -m -i "$root/boot/efi.img" "$work/$name" ::/EFI/BOOT/

set --
if [ -n "${BIOS_MODULES:-}" ]; then
  image "$BIOS_MODULES" i386-pc "$work/core.img" biosdisk
  cat "$BIOS_MODULES/i386-pc/cdboot.img" "$work/core.img" >"$root/boot/bios.img"
  set -- -b boot/bios.img -no-emul-boot -boot-load-size 4 -boot-info-table --grub2-boot-info \
    --grub2-mbr "$BIOS_MODULES/i386-pc/boot_hybrid.img" -eltorito-alt-boot
fi
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
# Level 3: files of 4 GiB and more.
xorriso -as mkisofs -quiet -iso-level 3 -r -V FRESHROOT "$@" -e boot/efi.img -no-emul-boot -isohybrid-gpt-basdat -o "$out" "$root"
