# A program that publishes a small system, serves it on this machine and boots it in QEMU: kernel and initrd by QEMU, the image over HTTP, and the next
# time from the disk.
{ pkgs, freshroot-publish }:
let
  system = import (pkgs.path + "/nixos/lib/eval-config.nix") {
    inherit pkgs;
    system = null;
    modules = [
      ./default.nix
      (pkgs.path + "/nixos/modules/profiles/minimal.nix")
      ./tests/guest.nix
    ];
  };
  build = system.config.system.build;
  fresh = import ./lib.nix;
  cmdline = fresh.commandLine { system = toString build.toplevel; } system.config.boot.kernelParams;
in
pkgs.writeShellScript "freshroot-demo" ''
  set -eu
  export PATH=${
    pkgs.lib.makeBinPath [
      freshroot-publish
      pkgs.coreutils
      pkgs.e2fsprogs
      pkgs.qemu_kvm
    ]
  }
  folder=''${1:-freshroot-demo}
  mkdir -p "$folder"
  if ! [ -e "$folder/cache.img" ]; then
    truncate -s 4G "$folder/cache.img"
    mkfs.ext4 -q -L freshroot-cache "$folder/cache.img"
  fi
  freshroot-publish serve ${build.freshroot.served} --listen 127.0.0.1:8080 &
  server=$!
  trap 'kill "$server"' EXIT
  echo "The cache is $folder/cache.img: the next demo boots from it. Leave QEMU with Ctrl-a x."
  qemu-system-${pkgs.stdenv.hostPlatform.qemuArch} -M ${pkgs.lib.optionalString pkgs.stdenv.hostPlatform.isAarch64 "virt,"}accel=kvm:tcg -cpu max -m 2048 -nographic -no-reboot \
    -kernel ${build.freshroot.kernel} -initrd ${build.freshroot.initrd}/initrd -append ${pkgs.lib.escapeShellArg cmdline} \
    -drive file="$folder/cache.img",format=raw,if=virtio -nic user,model=virtio-net-pci
''
