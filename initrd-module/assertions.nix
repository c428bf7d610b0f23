# What cannot work, said at evaluation, with what to do.
{ config, lib, ... }:
let
  cfg = config.boot.freshroot;
  fresh = cfg.lib;
  settings = cfg.settings;
  standalone = cfg.mode == "standalone";
  forSystemd = ''set boot.freshroot.mode = "systemd", or neededForBoot = false if it is not needed before the system is up'';
  disks = lib.filter (
    entry: !lib.elem entry.mountPoint ([ "/" ] ++ fresh.ownMountPoints)
  ) cfg.internal.neededForBoot;
  cachePath = lib.mapNullable fresh.devicePath (settings.cache.device or null);
  sharing = lib.filter (
    entry: cachePath != null && entry.device != null && fresh.devicePath entry.device == cachePath
  ) disks;
  conflicting =
    entry:
    fresh.conflictingOptions {
      fsType = settings.cache.fsType or "auto";
      options = settings.cache.options or [ ];
    } entry;
in
{
  config = lib.mkIf cfg.enable {
    warnings =
      lib.optional
        (
          !standalone
          && !lib.elem config.boot.initrd.systemd.emergencyAccess [
            false
            null
          ]
        )
        ''boot.initrd.systemd.emergencyAccess has no effect: emergency mode of the initrd leads into the failure policy. For a shell, with a time limit, set boot.freshroot.onFailure.action = "shell".''
      ++ lib.optional (!standalone && config.boot.initrd.secrets != { }) ''
      boot.initrd.secrets: whoever can fetch the initrd of system.build.freshroot can read these, because it is served to all machines: ${lib.concatStringsSep ", " (lib.attrNames config.boot.initrd.secrets)}.
      Keep keys on a disk of the machine, in boot.freshroot.persist, which is mounted before activation.
    ''
      ++ map (place: ''
        boot.freshroot.persist."${place}" lies on a disk that may be missing, and then it is an empty folder that takes no writes. NixOS's activation writes the users' ids to /var/lib/nixos before it makes users and groups, and makes none when it cannot: nobody could log in.
        Put it on a disk with need = "required", such as the cache's, or leave it out and give users and groups fixed ids.
      '') (
        lib.intersectLists [
          "/var"
          "/var/lib"
          "/var/lib/nixos"
        ] (fresh.mayBeMissing cfg.internal.persist)
      );

    assertions = [
      {
        assertion = lib.elem cfg.mode cfg.internal.modes;
        message = ''boot.freshroot.mode is "${cfg.mode}", which the agent of boot.freshroot.package cannot be yet: set it to ${
          lib.concatMapStringsSep " or " (mode: "\"${mode}\"") cfg.internal.modes
        }.'';
      }
      {
        assertion = cfg.mode == "systemd" -> config.boot.initrd.systemd.enable;
        message = ''boot.freshroot.mode is "systemd", and boot.initrd.systemd.enable is false: set it to true, or boot.freshroot.mode to "standalone".'';
      }
      {
        assertion = cfg.mode == "systemd" -> config.boot.initrd.systemd.root or "fstab" == "fstab";
        message = "boot.freshroot makes the root file system: remove boot.initrd.systemd.root.";
      }
      {
        assertion = settings.policy.mode or "wait" == "offline" || settings ? url || settings ? media;
        message = ''boot.freshroot has no source of images: set boot.freshroot.url to the URL of a served folder (or boot.freshroot.policy.mode to "offline").'';
      }
      {
        assertion =
          settings.trustedPublicKeys or [ ] != [ ]
          || settings.allowUnsigned or false
          || settings ? manifestSha256;
        message = "boot.freshroot trusts nobody: put the key that `freshroot-publish keygen` printed into boot.freshroot.trustedPublicKeys.";
      }
      {
        assertion = config.fileSystems."/".fsType == "tmpfs";
        message = ''fileSystems."/" is ${config.fileSystems."/".fsType}: with boot.freshroot the root is a tmpfs. Move that disk to another mount point, and list what shall outlive the boot in boot.freshroot.persist.'';
      }
      {
        assertion =
          settings.policy.mode or "wait" == "cache-first" -> settings.cache.device or null != null;
        message = ''boot.freshroot.policy.mode is "cache-first", and there is no cache: set boot.freshroot.cache.device.'';
      }
      {
        assertion = settings.policy.tries or 0 != 0 -> cfg.bless.enable;
        message = "boot.freshroot.policy.tries counts boots that are not blessed, and nothing blesses them: set boot.freshroot.bless.enable = true, or policy.tries = 0.";
      }
      {
        assertion = settings.cache.device or null != null -> config.systemd.shutdownRamfs.enable;
        message = "The cache can only be unmounted from the shutdown ramfs: leave systemd.shutdownRamfs.enable at true.";
      }
      {
        assertion =
          cfg.onFailure.retries == null
          || cfg.onFailure.retries == 0
          || cfg.onFailure.action != "shell"
          || cfg.onFailure.shellTimeout != "0";
        message = "boot.freshroot.onFailure.shellTimeout must not be 0: nobody may be there to leave the shell.";
      }
    ]
    ++ lib.mapAttrsToList (name: entry: {
      assertion = entry.device == null || entry.source == null;
      message = ''boot.freshroot.persist."${name}": set either device (a disk) or source (a folder on one), not both.'';
    }) cfg.internal.persist
    ++ lib.mapAttrsToList (name: entry: {
      assertion = entry.source != null || config.fileSystems.${entry.mountPoint}.device != null;
      message = ''boot.freshroot.persist."${name}": set device (a disk) or source (a folder on one), or have fileSystems."${entry.mountPoint}" declared, as disko does.'';
    }) cfg.internal.persist
    ++ lib.mapAttrsToList (name: entry: {
      assertion = entry.source != null || entry.device != null || entry.fsType == "auto";
      message = ''boot.freshroot.persist."${name}".fsType is for a device that is named here: remove it, since fileSystems."${entry.mountPoint}" has the type.'';
    }) cfg.internal.persist
    ++ lib.mapAttrsToList (name: entry: {
      assertion = !(fresh.isSymlink entry && cfg.mode == "systemd" && (config.system.etc.overlay.enable or false) && lib.hasPrefix "/etc/" entry.mountPoint);
      message = ''boot.freshroot.persist."${name}": with system.etc.overlay what lies below /etc is mounted over it later: set how = "bind".'';
    }) cfg.internal.persist
    ++ lib.mapAttrsToList (name: entry: {
      assertion = entry.how == "bind" || (entry.source != null && entry.services == [ ] && lib.elem entry.options [ [ ] [ "defaults" ] ]);
      message = ''boot.freshroot.persist."${name}": how = "symlink" goes with source alone, and without options and services: name the entry of the disk in services' place.'';
    }) cfg.internal.persist
    # Disks are prepared after a resume, and LUKS is opened after disks are prepared.
    ++ lib.optional (!standalone && fresh.touchedDisks (settings.disks or { }) != [ ]) {
      assertion =
        fresh.luksUnits (lib.attrNames config.boot.initrd.luks.devices) config.boot.resumeDevice == [ ];
      message = "boot.resumeDevice is ${config.boot.resumeDevice}, which is opened only when the disks of boot.freshroot.disks are prepared, and that waits for the resume: set prepare = grow = false, or resume from a device without LUKS.";
    }
    ++ map (entry: {
      assertion =
        !lib.elem entry.mountPoint (
          [
            "/nix"
            "/run"
          ]
          ++ fresh.ownMountPoints
        );
      message = ''fileSystems."${entry.mountPoint}": boot.freshroot mounts this itself. Remove the entry; a disk for writes to the store is boot.freshroot.store.rwDevice.'';
    }) (lib.filter (entry: entry.mountPoint != "/") cfg.internal.neededForBoot)
    ++ map (entry: {
      assertion = conflicting entry == [ ];
      message = ''fileSystems."${entry.mountPoint}" and the cache are one file system, which is mounted once: remove ${lib.concatStringsSep ", " (conflicting entry)} from boot.freshroot.cache.options, or add it to fileSystems."${entry.mountPoint}".options.'';
    }) sharing
    ++ map (entry: {
      assertion = cfg.internal.persist.${entry.mountPoint}.create or null == null;
      message = ''boot.freshroot.persist."${entry.mountPoint}".create: with system.etc.overlay it is systemd that mounts below /etc, and it makes a missing folder with 0755, root. Remove create, and make ${toString entry.device} with its mode by hand, once.'';
    }) cfg.internal.late
    ++ lib.optionals standalone (
      [
        {
          assertion = config.boot.initrd.secrets == { };
          message = ''boot.initrd.secrets is set, and NixOS's initrd is not used in standalone mode: keep keys on a disk, in boot.freshroot.persist, or set boot.freshroot.mode = "systemd".'';
        }
        {
          assertion =
            config.boot.resumeDevice == ""
            && !lib.any (lib.hasPrefix "resume=") config.boot.kernelParams;
          message = ''boot.resumeDevice (or resume= in boot.kernelParams) is set, and standalone mode resumes no hibernated system: remove it, or set boot.freshroot.mode = "systemd".'';
        }
        {
          assertion = !(config.system.etc.overlay.enable or false);
          message = ''system.etc.overlay is mounted by NixOS's own initrd: set system.etc.overlay.enable = false, or boot.freshroot.mode = "systemd".'';
        }
        {
          assertion = !(config.system.nixos-init.enable or false);
          message = ''system.nixos-init works from NixOS's own initrd: set system.nixos-init.enable = false, or boot.freshroot.mode = "systemd".'';
        }
      ]
      ++ map (entry: {
        assertion = lib.elem entry.fsType fresh.standaloneTypes;
        message = ''fileSystems."${entry.mountPoint}" is ${entry.fsType}, which the agent does not mount by itself: ${forSystemd}.'';
      }) disks
      ++ lib.mapAttrsToList (name: entry: {
        assertion = fresh.refusedLuksOptions entry == [ ];
        message = ''boot.initrd.luks.devices."${name}": ${lib.concatStringsSep ", " (fresh.refusedLuksOptions entry)} is not known in standalone mode, which opens by a key file, a key on a device, or a passphrase: remove it, or set boot.freshroot.mode = "systemd".'';
      }) config.boot.initrd.luks.devices
    );
  };
}
