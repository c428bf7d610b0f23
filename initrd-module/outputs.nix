# system.build.freshroot: what machines boot from. Nothing here is signed: there are no keys in the Nix sandbox, see docs/publishing.md.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.boot.freshroot;
  fresh = cfg.lib;
  build = config.system.build.freshroot;
  toplevel = config.system.build.toplevel;
  channel = cfg.image.channel;
  kernelParams = lib.concatStringsSep " " config.boot.kernelParams;
  publish = "${cfg.publishPackage}/bin/freshroot-publish";
  wanted =
    if cfg.image.followChannel then
      { inherit channel; }
    else
      { system = builtins.unsafeDiscardStringContext (toString toplevel); };

  # Options of freshroot-publish that say how this system is published.
  publishing = lib.escapeShellArgs (
    [
      "--channel"
      channel
      "--kernel-params"
      kernelParams
    ]
    ++ lib.optional cfg.image.followChannel "--channel-mode"
    ++ lib.optionals (cfg.image.servedUrl != null) [
      "--url"
      cfg.image.servedUrl
    ]
  );

  # A derivation that only holds what it was made from: the image names thousands of store paths that it does not need.
  selfContained =
    name: attributes: script:
    pkgs.runCommand name (
      {
        __structuredAttrs = true;
        unsafeDiscardReferences.out = true;
        preferLocalBuild = true;
        # Times in what is published.
        env.SOURCE_DATE_EPOCH = "1";
      }
      // attributes
    ) script;

  # One row of shell for each MAC address or id.
  byMac = lib.concatMapStrings (mac: ''
    cp ${pkgs.writeText "by-mac.ipxe" (fresh.ipxeByMac channel)} "$out/netboot/by-mac/${fresh.macName mac}.ipxe"
  '') cfg.netboot.macAddresses;
  hosts = lib.genAttrs (cfg.netboot.macAddresses ++ cfg.netboot.ids) (_: channel);
  hasHosts = hosts != { };

  # Digests are in file names: a boot script for something else than freshroot-publish is written where they are known.
  digests = ''
    kernel=$(basename "$(echo ${build.served}/kernels/*)")
    initrd=$(basename "$(echo ${build.served}/initrds/*)")
    manifest=$(basename "$(echo ${build.served}/manifests/*)" .json)
  '';
  substituted =
    text: builtins.replaceStrings [ "@kernel@" "@initrd@" ] [ "'$kernel'" "'$initrd'" ] text;
in
{
  options.system.build.freshroot = lib.mkOption {
    type = lib.types.lazyAttrsOf (lib.types.either lib.types.package lib.types.path);
    default = { };
    description = "What boot.freshroot builds.";
  };

  config = lib.mkIf cfg.enable {
    system.build.freshroot = {
      kernel = "${config.system.build.kernel}/${config.system.boot.loader.kernelFile}";

      # The file «initrd» in it is the initrd, in both modes.
      initrd = lib.mkIf (cfg.mode == "systemd") config.system.build.initialRamdisk;

      image =
        selfContained "freshroot-image"
          {
            preferLocalBuild = false;
            nativeBuildInputs = [
              cfg.publishPackage
              pkgs.squashfsTools
            ];
          }
          ''
            mkdir -p "$out"
            ${publish} closure ${toplevel} ${lib.escapeShellArgs cfg.image.extraPaths} \
              --registration ${
                pkgs.closureInfo { rootPaths = [ toplevel ] ++ cfg.image.extraPaths; }
              }/registration \
              --level ${toString cfg.image.compressionLevel} --unsigned --out "$NIX_BUILD_TOP/served"
            mv "$NIX_BUILD_TOP"/served/images/*.squashfs "$out/store.squashfs"
          '';

      served =
        selfContained "freshroot-served"
          {
            nativeBuildInputs = [ cfg.publishPackage ];
          }
          ''
            ${publish} image ${build.image}/store.squashfs --out "$out" --unsigned \
              --kernel ${build.kernel} --initrd ${build.initrd}/initrd ${publishing}
            cp ${
              pkgs.writeText "netboot.ipxe" (
                fresh.ipxeEntry {
                  inherit channel;
                  url = cfg.image.servedUrl;
                }
              )
            } "$out/netboot.ipxe"
            ${lib.optionalString hasHosts ''
              mkdir -p "$out/netboot/by-mac"
              ${byMac}
              cp ${pkgs.writeText "hosts.json" (fresh.hostsJson hosts)} "$out/hosts.json"
            ''}
          '';

      # Publishes into a folder that is being served: signed at once, the serial of the channel one higher, and whole at every moment.
      publish =
        pkgs.runCommand "freshroot-publish-${channel}"
          {
            preferLocalBuild = true;
            meta.mainProgram = "publish";
          }
          ''
            mkdir -p "$out/bin"
            cat > "$out/bin/publish" <<'END'
            #!/bin/sh
            # publish FOLDER --key FILE [more options of «freshroot-publish image»]
            set -eu
            folder=''${1:?which folder is served? publish FOLDER --key FILE}
            shift
            ${publish} image ${build.image}/store.squashfs --out "$folder" \
              --kernel ${build.kernel} --initrd ${build.initrd}/initrd ${publishing} "$@"
            ${lib.optionalString hasHosts "${publish} hosts \"$folder\" ${
              lib.escapeShellArgs (map (host: "${host}=${channel}") (lib.attrNames hosts))
            }"}
            END
            chmod +x "$out/bin/publish"
          '';

      manifest = pkgs.runCommand "freshroot-manifest.json" { preferLocalBuild = true; } ''
        cp ${build.served}/manifests/*.json "$out"
      '';

      ipxe = pkgs.runCommand "freshroot-${channel}.ipxe" { preferLocalBuild = true; } ''
        cp ${build.served}/netboot/${channel}.ipxe "$out"
      '';

      # kexec-boot finds kernel and initrd beside itself. The image comes from boot.freshroot.url, or is in the cache.
      kexecTree = pkgs.runCommand "freshroot-kexec-tree" { preferLocalBuild = true; } ''
        mkdir "$out"
        cp -r ${build.served}/kernels ${build.served}/initrds ${build.served}/kexec-boot "$out/"
        # As nixpkgs' kexecTree and HomestakerOS name them.
        cd "$out"
        ln -s kernels/* bzImage
        ln -s initrds/* initrd
        cp ${build.served}/netboot/${channel}.ipxe "$out/netboot.ipxe"
      '';

      # An ISO with the agent and the image. Its command line pins the manifest that stands beside it: nothing else on it needs a signature, and
      # whoever can change the command line can change the initrd.
      isoImage =
        selfContained "freshroot-${channel}.iso"
          {
            nativeBuildInputs = [
              pkgs.dosfstools
              pkgs.grub2_efi
              pkgs.mtools
              pkgs.xorriso
            ];
            efiTarget = if pkgs.stdenv.hostPlatform.isAarch64 then "arm64-efi" else "x86_64-efi";
            efiModules = "${pkgs.grub2_efi}/lib/grub";
            biosModules = lib.optionalString pkgs.stdenv.hostPlatform.isx86 "${pkgs.grub2}/lib/grub";
          }
          ''
            ${digests}
            cmdline=${
              lib.escapeShellArg (fresh.isoCommandLine wanted [ kernelParams ])
            }
            EFI_TARGET=$efiTarget EFI_MODULES=$efiModules BIOS_MODULES=$biosModules \
              sh ${./make-iso.sh} ${build.served} "$cmdline freshroot.manifest-sha256=$manifest" "$out"
          '';

      # `run` starts Pixiecore for any machine; v1/boot/<mac> are the answers of its API, as static files.
      pixiecore = pkgs.runCommand "freshroot-pixiecore" { preferLocalBuild = true; } ''
        ${digests}
        mkdir -p "$out/v1/boot"
        printf '#!/bin/sh\nexec pixiecore boot %s %s --cmdline=%s "$@"\n' \
          ${build.served}/kernels/$kernel ${build.served}/initrds/$initrd ${
            lib.escapeShellArg (lib.escapeShellArg (fresh.commandLine wanted [ kernelParams ]))
          } > "$out/run"
        chmod +x "$out/run"
        ${lib.optionalString (cfg.image.servedUrl != null) ''
          printf '%s\n' '${
            substituted (
              builtins.replaceStrings [ "'" ] [ "'\\''" ] (
                fresh.pixiecoreAnswer {
                  url = cfg.image.servedUrl;
                  kernel = "@kernel@";
                  initrd = "@initrd@";
                  cmdline = fresh.commandLine wanted [ kernelParams ];
                }
              )
            )
          }' > "$out/pixiecore.json"
          ${lib.concatMapStrings (mac: ''
            ln -s ../../pixiecore.json "$out/v1/boot/${fresh.toLower mac}"
          '') cfg.netboot.macAddresses}
        ''}
      '';

      # For a TFTP server: the UEFI firmware, and the iPXE that it boots, which goes on with the served folder.
      raspberryPi4 =
        assert lib.assertMsg (cfg.raspberryPi4.firmware != null)
          "set boot.freshroot.raspberryPi4.firmware to an unpacked release of the Raspberry Pi 4's UEFI firmware";
        assert lib.assertMsg (cfg.image.servedUrl != null)
          "set boot.freshroot.image.servedUrl to the URL where system.build.freshroot.served will be: iPXE starts from TFTP here";
        pkgs.runCommand "freshroot-raspberry-pi-4" { preferLocalBuild = true; } ''
          mkdir "$out"
          cp -r ${cfg.raspberryPi4.firmware}/. "$out/"
          chmod -R u+w "$out"
          cp ${pkgs.ipxe}/ipxe.efi "$out/ipxe.efi"
          cp ${
            pkgs.writeText "autoexec.ipxe" (
              fresh.ipxeEntry {
                inherit channel;
                url = cfg.image.servedUrl;
              }
            )
          } "$out/autoexec.ipxe"
        '';
    };
  };
}
