# mode = "standalone": an initrd of our own, with the agent as /init.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.boot.freshroot;
  fresh = cfg.lib;
  fileSystemModules =
    lib.filter
      (
        type:
        !lib.elem type [
          "auto"
          "none"
          "tmpfs"
        ]
      )
      (
        lib.unique (
          map (entry: entry.fsType) cfg.internal.neededForBoot ++ [ (cfg.settings.cache.fsType or "auto") ]
        )
      );
  cacheDevice = cfg.settings.cache.device or null;
  cacheType = cfg.settings.cache.fsType or "auto";
  # What is made on disks that are to be prepared, and by which programs.
  preparation = fresh.preparation (cfg.internal.configuration.disks or { });
  # «auto» is found out on the machine: then all that the agent mounts must be there.
  anyType =
    (cacheDevice != null && cacheType == "auto")
    || lib.any (entry: entry.fsType == "auto") cfg.internal.neededForBoot;
  types = lib.unique (
    fileSystemModules
    ++ lib.optionals anyType [
      "btrfs"
      "ext4"
      "vfat"
      "xfs"
    ]
  );
  # Exactly what the configuration needs, by program.
  tools = fresh.checkers checkedTypes // stacks.programs // preparation.programs;
  luks = config.boot.initrd.luks;
  stacks = fresh.stacks {
    devices = lib.filter (device: device != null) (
      map (entry: entry.device) cfg.internal.neededForBoot
      ++ lib.mapAttrsToList (_: entry: entry.device) luks.devices
      ++ [
        cacheDevice
        (cfg.settings.store.rwDevice or null)
      ]
    );
    luks = lib.attrNames luks.devices;
    lvm = config.boot.initrd.services.lvm.enable or false;
    md = config.boot.swraid.enable or false;
  };
  # Loaded at once: there is no program that the kernel could call for a cipher.
  ciphers = lib.optionals (luks.devices != { } || lib.elem "luks" preparation.formats) (luks.cryptoModules or [ ]);
  checkedTypes = lib.unique (
    lib.optional (cacheDevice != null) cacheType
    ++ map (entry: entry.fsType) (lib.filter (entry: !(entry.noCheck or false)) cfg.internal.neededForBoot)
    ++ lib.optionals anyType [
      "ext4"
      "vfat"
    ]
  );
  fatCodepages = lib.optionals (lib.elem "vfat" types) [
    "nls_cp437"
    "nls_iso8859_1"
  ];
  # NixOS has the likes of these only where it makes the initrd.
  diskModules = lib.optionals (config.boot.initrd.includeDefaultModules or true) (
    [
      "ahci"
      "ata_piix"
      "ehci_pci"
      "hid_generic"
      "mmc_block"
      "nvme"
      "sd_mod"
      "usbhid"
      "virtio_blk"
      "virtio_pci"
      "virtio_scsi"
      "xhci_pci"
    ]
    # The keyboard, for a shell by failure policy.
    ++ lib.optionals pkgs.stdenv.hostPlatform.isx86 [
      "atkbd"
      "i8042"
    ]
  );
  modules = pkgs.makeModulesClosure {
    kernel = config.system.modulesTree;
    firmware = config.hardware.firmware;
    allowMissing = config.boot.initrd.allowMissingModules or false;
    extraFirmwarePaths = config.boot.initrd.extraFirmwarePaths or [ ];
    rootModules = lib.unique (
      config.boot.initrd.availableKernelModules
      ++ config.boot.initrd.kernelModules
      ++ cfg.initrd.availableKernelModules
      ++ diskModules
      ++ cfg.internal.configuration.kernel.modules
      ++ types
      ++ fatCodepages
      ++ stacks.modules
      ++ ciphers
      ++ preparation.modules
    );
  };
  deviceNodes = pkgs.runCommand "freshroot-device-nodes.cpio" { preferLocalBuild = true; } ''
    sh ${./device-nodes.sh} > "$out"
  '';
  initrd = pkgs.makeInitrdNG {
    name = "freshroot-initrd";
    inherit (cfg.initrd) compressor compressorArgs;
    # Microcode first: the kernel looks for it at the very beginning.
    prepend = cfg.initrd.microcode ++ [ deviceNodes ];
    contents = [
      {
        source = "${cfg.package}/bin/freshroot";
        target = "/init";
      }
      {
        source = pkgs.writeText "freshroot-config.json" cfg.internal.configFile;
        target = "/etc/freshroot/config.json";
      }
      {
        # Modules, and the firmware that they name.
        source = "${modules}/lib";
        target = "/lib";
      }
    ]
    ++ lib.mapAttrsToList (program: package: {
      # With the libraries that it is linked with.
      source = "${lib.getBin pkgs.${package}}/bin/${program}";
      target = "/bin/${program}";
    }) tools
    ++ lib.mapAttrsToList (target: source: { inherit source target; }) cfg.initrd.extraFiles
    ++ lib.optional cfg.internal.https {
      source = cfg.initrd.caBundle;
      target = "/etc/freshroot/ca-bundle.crt";
    };
  };
in
{
  config = lib.mkIf (cfg.enable && cfg.mode == "standalone") {
    # Without NixOS's own initrd `init` of the toplevel does the activation and then starts systemd: the agent executes it.
    boot.initrd.enable = lib.mkDefault false;

    boot.freshroot.internal.modulesClosure = modules;
    boot.freshroot.internal.preparePrograms = lib.attrNames preparation.programs;
    boot.freshroot.internal.standaloneModules = lib.unique (
      [
        "loop"
        "overlay"
        "squashfs"
        # DHCP is spoken on packet sockets.
        "af_packet"
      ]
      ++ config.boot.initrd.kernelModules
      ++ types
      ++ ciphers
    );

    system.build.freshroot.initrd = initrd;
  };
}
