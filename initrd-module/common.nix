# What both modes share: settings from options, and what outlives the boot.
{ config, lib, ... }:
let
  cfg = config.boot.freshroot;
  fresh = cfg.lib;
  urls = lib.toList (if cfg.url == null then [ ] else cfg.url);
  persist = lib.filterAttrs (_: entry: entry.enable) cfg.persist;
  etcOverlay = cfg.mode == "systemd" && (config.system.etc.overlay.enable or false);
in
{
  options.boot.freshroot.internal = lib.mkOption {
    type = lib.types.lazyAttrsOf lib.types.raw;
    internal = true;
    description = "What the files of this module tell one another.";
  };

  config = lib.mkIf cfg.enable {
    boot.freshroot = {
      settings = lib.mkMerge [
        # As defaults, so that what a user writes into settings wins over the option of the same name.
        (lib.mapAttrsRecursive (_: lib.mkDefault) (fresh.settingsOf cfg))
        # Where keys are pinned, authorities have no say unless they are named.
        (lib.mkIf (cfg.internal.https && cfg.http.pinnedPublicKeys == null) { http.caFile = lib.mkDefault "/etc/freshroot/ca-bundle.crt"; })
      ];

      internal = {
        modes = lib.mkDefault (
          cfg.package.modes or [
            "standalone"
            "systemd"
          ]
        );
        https = lib.any (lib.hasPrefix "https://") urls;
        inherit persist;
        # In the order in which they are mounted: NixOS has sorted them.
        neededForBoot = lib.filter (
          entry: entry.neededForBoot || lib.elem entry.mountPoint fresh.pathsNeededForBoot
        ) config.system.build.fileSystems;
        # With an etc overlay, /sysroot/etc is mounted when the agent is done, over all that it could mount there: systemd mounts what lies below /etc.
        late = lib.filter (
          entry: etcOverlay && (entry.mountPoint == "/etc" || lib.hasPrefix "/etc/" entry.mountPoint)
        ) cfg.internal.neededForBoot;
        agents = lib.subtractLists cfg.internal.late cfg.internal.neededForBoot;
        bound = lib.intersectLists (map (entry: entry.mountPoint) cfg.internal.agents) (
          lib.attrNames (lib.filterAttrs (_: entry: entry.source != null) persist)
        );
        # Not among the settings, which fileSystems."/" depends on in turn.
        configuration = lib.recursiveUpdate {
          # The image's modules belong to this kernel. Only its name: the initrd must not hold the kernel.
          kernel.storeName = builtins.unsafeDiscardStringContext (
            baseNameOf (toString config.boot.kernelPackages.kernel)
          );
          kernel.modules = if cfg.mode == "standalone" then cfg.internal.standaloneModules else null;
          fileSystems = fresh.agentFileSystems cfg.internal.agents persist // fresh.symlinks persist;
          luks =
            if cfg.mode == "standalone" && config.boot.initrd.luks.devices != { } then
              fresh.agentLuks config.boot.initrd.luks.devices
            else
              null;
          swapDevices =
            let
              found = fresh.agentSwapDevices config.swapDevices;
            in
            if cfg.mode == "standalone" && found != { } then found else null;
        } cfg.settings;
        configFile = fresh.configJson cfg.internal.configuration;
      };
    };

    fileSystems = lib.mkMerge [
      {
        # NixOS wants a root in its configuration. In standalone mode the agent makes it.
        "/" = {
          device = lib.mkDefault "tmpfs";
          fsType = lib.mkDefault "tmpfs";
          options = [
            "mode=0755"
            "size=${cfg.settings.root.tmpfsSize or "50%"}"
          ];
        };
      }
      # A symlink is no file system: the agent alone knows of it.
      (lib.mapAttrs' (
        _: entry:
        lib.nameValuePair entry.mountPoint (
          # The type of a disk that is declared elsewhere. If it is declared nowhere, that is for the assertions to say.
          { fsType = lib.mkDefault "auto"; } // fresh.persistFileSystem entry
        )
      ) (lib.filterAttrs (_: entry: !fresh.isSymlink entry) persist))
    ];

    # The kernel and initrd are not installed anywhere: machines get them over the network, or from a medium.
    boot.loader.grub.enable = lib.mkDefault false;
  };
}
