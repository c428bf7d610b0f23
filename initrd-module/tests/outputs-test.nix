# What system.build.freshroot and fleet build, built for real by way of machine-pkgs.nix, from a toplevel that has the shape of NixOS's: the scripts in them
# run, freshroot-publish takes what they give it, and what comes out is looked at; the agent reads the configuration of every example, and plans a boot.
# The result is a file of lines that begin with «ok» or «FAILED».
{
  lib,
  # The two programs.
  agent,
  publish,
}:
let
  pkgs = import ./machine-pkgs.nix { inherit lib publish; };
  kernel = pkgs.runCommand "linux-6.18.1" { } ''
    mkdir -p "$out"
    # An x86 kernel's header, as far as it names the release.
    { head -c 514 /dev/zero; printf 'HdrS'; head -c 8 /dev/zero; printf '\000\001'; head -c 240 /dev/zero; printf '6.18.1 (nobody) #1\000'; head -c 512 /dev/zero; } >"$out/bzImage"
  '';
  toplevel =
    name: extra:
    pkgs.runCommand "nixos-system-${name}" { inherit extra; } ''
      mkdir -p "$out/modules/lib/modules/6.18.1"
      printf '#!/bin/sh\n' >"$out/init"
      cp "$out/init" "$out/prepare-root"
      chmod +x "$out/init" "$out/prepare-root"
      ln -s ${kernel}/bzImage "$out/kernel"
      ln -s "$out/modules" "$out/kernel-modules"
      echo ${name} >"$out/nixos-version"
      echo x86_64-linux >"$out/system"
      echo "$extra" >"$out/extra"
    '';
  host =
    name: extra: modules:
    (lib.evalModules {
      modules = [
        ./stubs.nix
        ../default.nix
        {
          _module.args.pkgs = lib.mkForce pkgs;
          boot.kernelPackages = { inherit kernel; };
          boot.kernelParams = [
            "root=fstab"
            "console=ttyS0"
          ];
          boot.initrd.systemd.enable = true;
          boot.freshroot = {
            enable = true;
            mode = "standalone";
            internal.modes = [ "standalone" ];
            url = "http://images.lan/freshroot";
            trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
            channel = name;
            image.compressionLevel = 1;
            image.extraPaths = [ pkgs.hello ];
            image.servedUrl = "http://images.lan/freshroot";
            initrd.microcode = [
              (pkgs.runCommand "microcode.img" { } ''
                echo microcode >microcode
                touch -d @1 microcode
                echo microcode | cpio --quiet -o -H newc --reproducible >"$out"
              '')
            ];
            raspberryPi4.firmware = pkgs.runCommand "firmware" { } ''mkdir "$out" && echo UEFI >"$out/RPI_EFI.fd"'';
          };
          networking.hostName = name;
          system.build = {
            kernel = lib.mkForce kernel;
            toplevel = lib.mkForce (toplevel name extra);
          };
        }
      ]
      ++ modules;
    });
  first = host "one" "1" [
    {
      boot.freshroot.netboot = {
        macAddresses = [ "00:1F:29:12:34:56" ];
        ids = [ "4C4C4544-0042" ];
      };
    }
  ];
  second = host "two" "2" [ { boot.freshroot.netboot.macAddresses = [ "00:1f:29:12:34:57" ]; } ];
  # The same system with another file in it.
  later = host "one" "3" [ { boot.freshroot.image.followChannel = true; } ];
  of = host: host.config.system.build.freshroot;
  # What the agent is given by each example.
  examples =
    map
      (
        name:
        let
          config =
            (lib.evalModules {
              modules = [
                ./stubs.nix
                (../examples + "/${name}.nix")
              ];
            }).config;
        in
        {
          inherit name;
          inherit (config.boot.freshroot) mode;
          file = pkgs.writeText "config.json" config.boot.freshroot.internal.configFile;
        }
      )
      [
        "diskless"
        "home-staker"
        "homestakeros-migration"
        "minimal"
        "netboot-migration"
        "raspberry-pi-4"
      ];
  fleet = import ../fleet.nix {
    inherit lib;
    inherit (pkgs) runCommand writeText;
  };
in
{
  inherit (of first)
    image
    initrd
    isoImage
    kexecTree
    pixiecore
    served
    ;
  results = pkgs.runCommand "outputs-test" { } ''
    out_file=$out
    : >"$out_file"
    # is NAME COMMAND…: one test.
    is() {
      name=$1
      shift
      if "$@" >said 2>&1; then echo "ok built: $name"; else echo "FAILED built: $name: $(tr '\n' ' ' <said)"; fi >>"$out_file"
    }
    one() { set -- $1; [ $# -eq 1 ] && [ -e "$1" ] && printf '%s' "$1"; }
    digest() { [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$(basename "$1" | sed 's/\..*//')" ]; }
    has() { grep -qF -- "$1" "$2" || { echo "no «$1» in:"; cat "$2"; return 1; }; }
    hasnt() { ! grep -qF -- "$1" "$2"; }

    served=${(of first).served}
    image=$(one "$served/images/*.squashfs")
    kernel=$(one "$served/kernels/*")
    initrd=$(one "$served/initrds/*")
    manifest=$(one "$served/manifests/*.json")
    is "the image is the one that is served" cmp "$image" ${(of first).image}/store.squashfs
    for file in "$image" "$kernel" "$initrd" "$manifest"; do is "$(basename "$(dirname "$file")") are named by their digest" digest "$file"; done
    unsquashfs -l -d "" "$image" >listed 2>/dev/null
    is "the image holds the system" has "/$(basename ${toString first.config.system.build.toplevel})/init" listed
    is "the image holds extra paths" has "$(basename ${pkgs.hello})" listed
    is "the image holds its registration" has /nix-path-registration listed
    is "the kernel is the system's" cmp "$kernel" ${kernel}/bzImage
    is "the initrd is the agent's" cmp "$initrd" ${(of first).initrd}/initrd
    is "the manifest names the system" has ${toString first.config.system.build.toplevel} "$manifest"
    is "the manifest alone is an output" cmp "$manifest" ${(of first).manifest}

    script=$served/netboot/one.ipxe
    is "the iPXE script selects the system" has "freshroot.system=${toString first.config.system.build.toplevel}" "$script"
    is "the iPXE script has NixOS's parameters" has "root=fstab console=ttyS0" "$script"
    is "the iPXE script names init as the agent links it" has "init=/nix/.freshroot/init" "$script"
    is "the iPXE script alone is an output" cmp "$script" ${(of first).ipxe}
    is "followChannel names the channel" has "freshroot.channel=one" ${(of later).served}/netboot/one.ipxe
    is "followChannel selects no system" hasnt "freshroot.system=" ${(of later).served}/netboot/one.ipxe
    is "a MAC address has a script" has "one.ipxe" "$served/netboot/by-mac/00-1f-29-12-34-56.ipxe"
    is "hosts.json has the MAC address" has '"00:1f:29:12:34:56":{"channel":"one"}' "$served/hosts.json"
    is "hosts.json has the id" has '"4c4c4544-0042":{"channel":"one"}' "$served/hosts.json"
    is "netboot.ipxe goes on with the channel" has "http://images.lan/freshroot/netboot/one.ipxe" "$served/netboot.ipxe"
    is "kexec-boot is a shell script" sh -n "$served/kexec-boot"
    is "kexec-boot can be executed" test -x "$served/kexec-boot"

    is "the initrd of another generation is the same" cmp "$initrd" "$(one "${(of later).served}/initrds/*")"
    is "the image of another generation is not" sh -c '! cmp -s "$1" "$2"' sh "$image" "$(one "${(of later).served}/images/*.squashfs")"

    # What stands in front is as long as the kernel wants it: each archive is found behind the one before.
    is "microcode is first in the initrd" sh -c 'head -c 512 "$1" | grep -qa microcode' sh "$initrd"
    (cat "$initrd"; head -c 512 /dev/zero) >padded
    { cpio --quiet -itv; cpio --quiet -itv; cpio --quiet -itv; } <padded >archives
    for what in dev/console dev/null init etc/freshroot/config.json; do is "the initrd holds $what" grep -qE "[ /]$what( ->.*)?$" archives; done

    # As an administrator does it: a key, the first generation, a later one into the same folder.
    ${publish} keygen lab-1 --out . >keygen
    serial() { sed 's/.*"payload":"\([^"]*\)".*/\1/' live/channels/one.json | head -n 1 | base64 -d; }
    is "a generation is published and signed" ${(of first).publish}/bin/publish live --key lab-1.secret
    serial >serial-1
    is "its serial is 1" has '"serial":1,' serial-1
    is "a later one goes into the same folder" ${(of later).publish}/bin/publish live --key lab-1.secret
    serial >serial-2
    is "its serial is 2" has '"serial":2,' serial-2
    is "publishing says which machines boot it" has '"00:1f:29:12:34:56"' live/hosts.json
    # Two programs write the same scripts: but for the line that says which of them did.
    for file in netboot.ipxe netboot/by-mac/00-1f-29-12-34-56.ipxe; do
      sed 2d "live/$file" >theirs
      sed 2d "$served/$file" >ours
      is "$file is the publisher's own" cmp theirs ours
    done
    # JSON, in whatever order.
    tr -d ' \n' <live/hosts.json | tr ',{}' '\n\n\n' | sort >theirs
    tr -d ' \n' <"$served/hosts.json" | tr ',{}' '\n\n\n' | sort >ours
    is "hosts.json says what the publisher's own says" cmp theirs ours
    is "both images are there" test "$(ls live/images/*.squashfs | wc -l)" = 2
    is "without a folder it says what it wants" sh -c '! "$1" 2>said && grep -q "which folder" said' sh ${(of first).publish}/bin/publish
    # What the sandbox made can be signed as well.
    cp -r --no-preserve=mode "$served" copied
    is "the folder that Nix built can be copied and signed" ${publish} sign copied --key lab-1.secret

    tree=${(of first).kexecTree}
    is "kexecTree has the kernel" cmp "$tree/bzImage" "$kernel"
    is "kexecTree has the initrd" cmp "$tree/initrd" "$initrd"
    is "kexecTree's links stay inside it" sh -c 'case $(readlink "$1/bzImage") in /*) exit 1 ;; esac' sh "$tree"
    is "kexecTree has a script" test -x "$tree/kexec-boot"
    is "kexecTree has an iPXE script" cmp "$tree/netboot.ipxe" "$script"

    iso=${(of first).isoImage}
    on_iso() { xorriso -indev "$iso" -osirrox on -extract "$1" "$2" >said.xorriso 2>&1 || { cat said.xorriso; return 1; }; }
    is "the ISO holds the image" on_iso "/freshroot/images/$(basename "$image")" image.iso
    is "the image on the ISO is the one that is served" cmp image.iso "$image"
    is "the ISO holds a GRUB for UEFI" on_iso /boot/efi.img efi.img
    mcopy -i efi.img ::/EFI/BOOT/BOOTX64.EFI grub.efi
    for what in "freshroot.manifest-sha256=$(basename "$manifest" .json)" freshroot.media.device=LABEL=FRESHROOT freshroot.media.path=freshroot root=fstab "/freshroot/kernels/$(basename "$kernel")"; do
      is "the ISO's command line has $what" grep -qaF -- "$what" grub.efi
    done
    is "the ISO boots by BIOS" sh -c 'xorriso -indev "$1" -report_el_torito plain 2>/dev/null | grep -q "BIOS .*/boot/bios.img\|BIOS"' sh "$iso"

    pixie=${(of first).pixiecore}
    is "pixiecore's script is one" sh -n "$pixie/run"
    is "pixiecore's script starts it with the kernel" has "/kernels/$(basename "$kernel")" "$pixie/run"
    answer=$pixie/v1/boot/00:1f:29:12:34:56
    is "pixiecore's answer names the kernel" has "\"kernel\":\"http://images.lan/freshroot/kernels/$(basename "$kernel")\"" "$answer"
    is "pixiecore's answer names the initrd" has "\"initrd\":[\"http://images.lan/freshroot/initrds/$(basename "$initrd")\"]" "$answer"
    is "pixiecore's answer has the command line" has "init=/nix/.freshroot/init" "$answer"
    is "pixiecore's answer is the publisher's own" cmp "$answer" "$served/netboot/one.pixiecore.json"

    pi=${(of first).raspberryPi4}
    is "the Raspberry Pi's folder has firmware" test -s "$pi/RPI_EFI.fd"
    is "the Raspberry Pi's folder has iPXE" test -s "$pi/ipxe.efi"
    is "the Raspberry Pi's script goes on with the channel" has "netboot/one.ipxe" "$pi/autoexec.ipxe"

    # Refusals have exit code 1; a word of ours that the agent does not know is a warning.
    mkdir -p machine/proc/sys/kernel
    echo 6.18.1 >machine/proc/sys/kernel/osrelease
    plan() {
      ${agent} plan --mode "$1" --root machine --config "$2" --cmdline "$cmdline" >planned 2>&1 || { cat planned; return 1; }
      if grep -i warning planned; then return 1; fi
    }
    cmdline=${
      lib.escapeShellArg (
        (import ../lib.nix).commandLine
          { system = "/nix/store/00000000000000000000000000000000-nixos-system-x"; }
          [ "console=ttyS0" ]
      )
    }
    ${lib.concatMapStrings (example: ''
      is "the agent plans a boot of ${example.name}" plan ${example.mode} ${example.file}
    '') examples}
    cmdline="$cmdline freshroot.no.such=1"
    unseen() { ! plan "$@"; }
    is "a word that the agent does not know would be seen" unseen systemd ${(lib.head examples).file}

    all=${
      fleet [
        first
        second
      ]
    }
    for file in netboot/one.ipxe netboot/two.ipxe netboot/one.kexec-boot netboot/two.kexec-boot netboot/by-mac/00-1f-29-12-34-56.ipxe netboot/by-mac/00-1f-29-12-34-57.ipxe; do
      is "a fleet has $file" test -s "$all/$file"
    done
    is "a fleet has the images of all" test "$(ls "$all"/images/*.squashfs | wc -l)" = 2
    is "a fleet's hosts.json has the first" has '"00:1f:29:12:34:56":{"channel":"one"}' "$all/hosts.json"
    is "a fleet's hosts.json has the second" has '"00:1f:29:12:34:57":{"channel":"two"}' "$all/hosts.json"
  '';
}
