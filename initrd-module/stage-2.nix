# The running system: registration of the image's store paths, blessing, refreshing, guards of persistent mounts, and a clean shutdown.
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
  guarded = fresh.guardedEntries cfg.internal.persist;
  # A unit in the list may be named with or without «.service».
  serviceName = lib.removeSuffix ".service";
in
{
  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    # The same configuration as in the initrd, for fetch, plan and status.
    environment.etc."freshroot/config.json".text = cfg.internal.configFile;
    environment.etc."freshroot/ca-bundle.crt" = lib.mkIf cfg.internal.https {
      source = cfg.initrd.caBundle;
    };

    systemd.services = lib.mkMerge [
      {
        freshroot-register-store = lib.mkIf config.nix.enable {
          description = "Register the store paths of the image";
          wantedBy = [ "sysinit.target" ];
          # Without it nix-daemon takes every path of the image for rubbish.
          before = [
            "nix-daemon.service"
            "nix-daemon.socket"
            "shutdown.target"
            "sysinit.target"
          ];
          after = [ "local-fs.target" ];
          conflicts = [ "shutdown.target" ];
          restartIfChanged = false;
          unitConfig = {
            DefaultDependencies = false;
            # Not below /nix/store: there it can be garbage-collected.
            ConditionPathExists = "/nix/.ro-store/nix-path-registration";
          };
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            StandardInput = "file:/nix/.ro-store/nix-path-registration";
            ExecStart = [
              (lib.getExe' config.nix.package "nix-store" + " --load-db")
              # nixos-rebuild wants both.
              (lib.getExe' pkgs.coreutils "touch" + " /etc/NIXOS")
              (
                lib.getExe' config.nix.package "nix-env"
                + " --profile /nix/var/nix/profiles/system --set /run/current-system"
              )
            ];
          };
        };

        freshroot-bless = lib.mkIf cfg.bless.enable {
          description = "Mark this boot as good";
          documentation = [ "man:freshroot(8)" ];
          # As systemd-bless-boot.service: what says whether a boot is good orders itself before boot-complete.target.
          requires = [ "boot-complete.target" ];
          after = [
            "boot-complete.target"
            "local-fs.target"
          ];
          wantedBy = [ "multi-user.target" ];
          restartIfChanged = false;
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            ExecStart = "${agent} bless";
          };
        };

        freshroot-fetch = lib.mkIf cfg.refresh.enable {
          description = "Refresh the cache of Nix store images";
          documentation = [ "man:freshroot(8)" ];
          wants = [ "network-online.target" ];
          after = [ "network-online.target" ];
          restartIfChanged = false;
          serviceConfig = {
            Type = "oneshot";
            ExecStart = "${agent} fetch";
            # What the machine is there for comes first.
            Nice = 10;
            IOSchedulingClass = "idle";
          };
        };
      }
      (lib.mapAttrs
        (
          _: unit:
          # A switch to another configuration does not end the wait for a disk.
          unit // lib.optionalAttrs (unit ? wantedBy) { restartIfChanged = false; }
        )
        (
          fresh.persistServices {
            inherit agent;
            inherit (cfg.internal) persist;
          }
        )
      )
      (lib.mkMerge (
        lib.concatMap (
          entry:
          map (unit: {
            ${serviceName unit} = {
              after = [ "${fresh.checkUnitName entry.mountPoint}.service" ];
            };
          }) (lib.filter (unit: lib.hasSuffix ".service" unit) entry.services)
        ) guarded
      ))
    ];

    systemd.targets = {
      freshroot-persist-ok = lib.mkIf (guarded != [ ]) fresh.persistOkTarget;
      boot-complete = lib.mkIf (cfg.bless.enable && cfg.bless.requires != [ ]) {
        requires = cfg.bless.requires;
        after = cfg.bless.requires;
      };
    };

    systemd.timers.freshroot-fetch = lib.mkIf cfg.refresh.enable {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.refresh.dates;
        RandomizedDelaySec = cfg.refresh.randomizedDelay;
        # The first one soon: with cache-first the boot has not asked.
        OnBootSec = "2min";
      };
    };

    # See keptMounts.
    systemd.shutdownRamfs.enable = lib.mkDefault true;
    systemd.units = lib.listToAttrs (
      map (
        path:
        lib.nameValuePair (fresh.mountUnit path) {
          overrideStrategy = "asDropin";
          text = fresh.unitText fresh.keptMountOverride;
        }
      ) fresh.keptMounts
    );
  };
}
