# mode = "systemd": one unit in NixOS's systemd stage 1, and what happens when it fails.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.boot.freshroot;
  fresh = cfg.lib;
  agent = "${cfg.package}/bin/freshroot";
  # What is configured in settings counts, whichever way it came there.
  cacheDevice = cfg.settings.cache.device or null;
  rwDevice = cfg.settings.store.rwDevice or null;
  devices = lib.unique (
    lib.filter (device: device != null) [
      cacheDevice
      rwDevice
    ]
  );
  disks = cfg.settings.disks or { };
  prepared = fresh.touchedDisks disks != [ ];
  preparation = fresh.preparation disks;
  makesLuks = lib.elem "luks" preparation.formats;
  systemdMounts = lib.filter (
    entry:
    entry.mountPoint != "/" && !lib.elem entry.mountPoint (fresh.ownMountPoints ++ cfg.internal.bound)
  ) cfg.internal.agents;
  # What the agent finds out on the machine must be there. NixOS brings what the configuration names.
  anyType =
    (cacheDevice != null && cfg.settings.cache.fsType or "auto" == "auto")
    || rwDevice != null
    || lib.any (entry: entry.fsType == "auto") cfg.internal.neededForBoot;
  asDropIns = lib.mapAttrs (
    _: text: {
      overrideStrategy = "asDropin";
      inherit text;
    }
  );
  # systemd mounts everything but what the agent fills. Two owners of one mount would race.
  initrdFstab = pkgs.writeText "initrd-fstab" (
    fresh.initrdFstab {
      entries = cfg.internal.neededForBoot;
      owned = cfg.internal.bound;
      extras = cfg.internal.persist;
    }
  );
in
{
  config = lib.mkIf (cfg.enable && cfg.mode == "systemd") {
    boot.initrd = {
      availableKernelModules =
        cfg.initrd.availableKernelModules
        ++ [
          "squashfs"
        ]
        # Without its tools, which are of no use before a mount.
        ++ lib.optional anyType "btrfs"
        ++ preparation.modules
        ++ lib.optionals makesLuks (config.boot.initrd.luks.cryptoModules or [ ]);
      # cryptsetup waits for udev's rules of the device mapper, which NixOS brings with this.
      services.lvm.enable = lib.mkIf makesLuks true;
      # Loaded at once: no device announces them.
      kernelModules = [
        "loop"
        "overlay"
        # Where the agent brings the network up itself (network.by = "agent"), it speaks DHCP on packet sockets.
        "af_packet"
      ];
      supportedFilesystems =
        lib.optional (cfg.settings.cache.fsType or "auto" != "auto") cfg.settings.cache.fsType
        ++ lib.optionals anyType [
          "ext4"
          "vfat"
          "xfs"
        ];

      systemd = {
        storePaths = [
          agent
          initrdFstab
        ];
        extraBin = lib.mapAttrs (
          program: package: "${lib.getBin pkgs.${package}}/bin/${program}"
        ) preparation.programs;
        contents = {
          "/etc/freshroot/config.json".text = cfg.internal.configFile;
        }
        // lib.optionalAttrs cfg.internal.https {
          "/etc/freshroot/ca-bundle.crt".source = cfg.initrd.caBundle;
        };

        managerEnvironment.SYSTEMD_SYSROOT_FSTAB = lib.mkForce initrdFstab;

        services = {
          freshroot = fresh.bootUnit {
            inherit agent devices;
            mounts = map (entry: entry.mountPoint) systemdMounts;
            luks = lib.attrNames config.boot.initrd.luks.devices;
            nixosInit = config.system.nixos-init.enable or false;
            etcOverlay = config.system.etc.overlay.enable or false;
          };
          freshroot-failure = fresh.failureUnit { inherit agent; };
          freshroot-last-resort = fresh.lastResortUnit {
            # From the initrd's own /bin, which is there without any shell.
            sleep = "/bin/sleep";
          };
          emergency = fresh.emergencyOverride { inherit agent; };
          initrd-parse-etc.environment.SYSTEMD_SYSROOT_FSTAB = lib.mkForce initrdFstab;
        }
        // lib.optionalAttrs prepared {
          freshroot-prepare = fresh.prepareUnit {
            inherit agent disks;
            # NixOS has all of systemd's programs there.
            udevadm = "/bin/udevadm";
          };
        };

        targets.initrd.unitConfig = fresh.deadline cfg.onFailure.deadline;

        units = lib.mkMerge [
          # The check of a disk waits for its device; the agent's limit holds for that too.
          (asDropIns (
            fresh.deviceDropIns {
              own = devices;
              wait = cfg.settings.cache.wait or "20s";
              used =
                lib.filter (device: device != null) (map (entry: entry.device) systemdMounts)
                ++ lib.mapAttrsToList (_: entry: entry.device) config.boot.initrd.luks.devices;
              inherit prepared;
            }
          ))
          (asDropIns (
            lib.listToAttrs (
              lib.concatMap (
                device:
                let
                  before = fresh.mountsBeforeCheck device systemdMounts;
                in
                lib.optional (before != [ ]) (
                  lib.nameValuePair (fresh.fsckUnit device) "[Unit]\nAfter=${toString before}\n"
                )
              ) devices
            )
          ))
          (lib.mkIf prepared (asDropIns {
            "systemd-makefs@.service" = fresh.unitText fresh.makefsOverride;
          }))
          (asDropIns (fresh.unlockLimits (lib.attrNames config.boot.initrd.luks.devices) systemdMounts))
        ];
      };
    };

    boot.freshroot.settings = lib.mkIf config.boot.initrd.systemd.network.enable {
      network.by = lib.mkDefault "system";
    };
  };
}
