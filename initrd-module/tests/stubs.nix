# The options of NixOS that the module touches, with NixOS's names and loose types, for evaluation with nixpkgs' lib alone.
{ lib, config, ... }:
let
  inherit (lib) mkOption types;
  any =
    default:
    mkOption {
      type = types.anything;
      inherit default;
    };
  attrs = mkOption {
    type = types.attrsOf types.anything;
    default = { };
  };
  list = mkOption {
    type = types.listOf types.anything;
    default = [ ];
  };
  bool =
    default:
    mkOption {
      type = types.bool;
      inherit default;
    };
  unit = mkOption {
    type = types.attrsOf (types.submodule { freeformType = types.attrsOf types.anything; });
    default = { };
  };
in
{
  options = {
    assertions = list;
    warnings = list;
    boot = {
      initrd = {
        enable = bool true;
        availableKernelModules = list;
        kernelModules = list;
        supportedFilesystems = list;
        prepend = list;
        secrets = attrs;
        allowMissingModules = bool false;
        extraFirmwarePaths = list;
        includeDefaultModules = bool true;
        luks.devices = attrs;
        luks.cryptoModules = list;
        services.lvm.enable = bool false;
        systemd = {
          enable = bool false;
          root = any "fstab";
          emergencyAccess = any false;
          network.enable = bool false;
          storePaths = list;
          contents = unit;
          extraBin = attrs;
          managerEnvironment = attrs;
          services = unit;
          targets = unit;
          units = unit;
        };
      };
      kernelPackages = any { kernel = "/nix/store/00000000000000000000000000000000-linux-6.18.1"; };
      kernelParams = list;
      resumeDevice = any "";
      loader.grub.enable = bool true;
    };
    environment = {
      systemPackages = list;
      etc = unit;
    };
    fileSystems = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              mountPoint = any name;
              device = any null;
              fsType = mkOption {
                type = types.str;
                default = "auto";
              };
              options = mkOption {
                type = types.listOf types.str;
                default = [ "defaults" ];
              };
              depends = list;
              neededForBoot = bool false;
              noCheck = bool false;
            };
          }
        )
      );
    };
    hardware.firmware = list;
    swapDevices = list;
    networking.hostName = any "";
    nix = {
      enable = bool true;
      package = any {
        type = "derivation";
        outPath = "/nix/store/00000000000000000000000000000000-nix";
      };
    };
    nixpkgs.hostPlatform = any null;
    system = {
      boot.loader.kernelFile = any "bzImage";
      modulesTree = any null;
      nixos-init.enable = bool false;
      etc.overlay.enable = bool false;
      stateVersion = any "";
    };
    system.build = mkOption {
      type = types.submodule { freeformType = types.lazyAttrsOf types.raw; };
      default = { };
    };
    systemd = {
      services = unit;
      shutdownRamfs.enable = bool false;
      targets = unit;
      timers = unit;
      units = unit;
    };
  };

  config = {
    system.build = {
      fileSystems = lib.sort (a: b: a.mountPoint < b.mountPoint) (lib.attrValues config.fileSystems);
      kernel = "/nix/store/00000000000000000000000000000000-linux-6.18.1";
      initialRamdisk = "/nix/store/00000000000000000000000000000000-initrd";
      toplevel = "/nix/store/00000000000000000000000000000000-nixos-system-x";
    };
    _module.args.pkgs = rec {
      inherit lib;
      stdenv.hostPlatform = {
        isx86 = true;
        isAarch64 = false;
      };
      # What a build would be, as a text: enough to see what would go into it.
      writeText = name: text: {
        inherit name text;
        outPath = "/nix/store/00000000000000000000000000000000-${name}";
      };
      runCommand = name: _: script: {
        inherit name script;
        outPath = "/nix/store/00000000000000000000000000000000-${name}";
        type = "derivation";
      };
      makeModulesClosure =
        arguments: arguments // { outPath = "/nix/store/00000000000000000000000000000000-modules"; };
      makeInitrdNG =
        arguments:
        arguments
        // {
          outPath = "/nix/store/00000000000000000000000000000000-initrd";
          type = "derivation";
        };
      closureInfo = _: "/nix/store/00000000000000000000000000000000-closure-info";
      cacert = "/nix/store/00000000000000000000000000000000-cacert";
      coreutils = program "coreutils";
      cryptsetup = program "cryptsetup";
      dosfstools = program "dosfstools";
      e2fsprogs = program "e2fsprogs";
      exfatprogs = program "exfatprogs";
      f2fs-tools = program "f2fs-tools";
      lvm2 = program "lvm2";
      mdadm = program "mdadm";
      btrfs-progs = program "btrfs-progs";
      util-linux = program "util-linux";
      emptyDirectory = "/nix/store/00000000000000000000000000000000-empty";
      hello = "/nix/store/00000000000000000000000000000000-hello";
      squashfsTools = "/nix/store/00000000000000000000000000000000-squashfs";
      program = name: {
        type = "derivation";
        inherit name;
        outPath = "/nix/store/00000000000000000000000000000000-${name}";
      };
      pkgsStatic.callPackage = _: _: program "freshroot";
      buildPackages.callPackage = _: _: program "freshroot-publish";
    };
  };
}
