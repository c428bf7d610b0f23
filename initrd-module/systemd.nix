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
  systemdMounts = lib.filter (
    entry:
    entry.mountPoint != "/" && !lib.elem entry.mountPoint (fresh.ownMountPoints ++ cfg.internal.bound)
  ) cfg.internal.agents;
  # What the agent finds out on the machine must be there. NixOS brings what the configuration names.
  anyType =
    (cacheDevice != null && cfg.settings.cache.fsType or "auto" == "auto")
    || rwDevice != null
    || lib.any (entry: entry.fsType == "auto") cfg.internal.neededForBoot;
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
        ++ lib.optional anyType "btrfs";
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
        };

        targets.initrd.unitConfig = fresh.deadline cfg.onFailure.deadline;

        units = lib.mkMerge (
          lib.concatMap (
            device:
            let
              before = fresh.mountsBeforeCheck device systemdMounts;
            in
            [
              {
                # The check of a disk waits for its device; the agent's limit holds for that too.
                ${fresh.deviceUnit device} = {
                  overrideStrategy = "asDropin";
                  text = ''
                    [Unit]
                    JobRunningTimeoutSec=${cfg.settings.cache.wait or "20s"}
                  '';
                };
              }
              (lib.mkIf (before != [ ]) {
                ${fresh.fsckUnit device} = {
                  overrideStrategy = "asDropin";
                  text = ''
                    [Unit]
                    After=${toString before}
                  '';
                };
              })
            ]
          ) devices
        );
      };
    };

    boot.freshroot.settings = lib.mkIf config.boot.initrd.systemd.network.enable {
      network.by = lib.mkDefault "system";
    };
  };
}
