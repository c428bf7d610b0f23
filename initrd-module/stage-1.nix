# All that the module puts into systemd's stage 1, as text by path, for an initrd that NixOS did not make: that of the boot tests. Below /running stands
# what goes to the running system's /run. The same functions of lib.nix as in systemd.nix and common.nix, with the same arguments. entries and persist are
# as NixOS's fileSystems (a list, in the order of mounting) and boot.freshroot.persist have them: what is left out has the default of its option. luks: names of
# mappings; encrypted: the devices that they are on.
{
  agent ? "/bin/freshroot",
  sleep ? "/bin/sleep",
  settings ? { },
  entries ? [ ],
  persist ? { },
  luks ? [ ],
  encrypted ? [ ],
  deadline ? "30min",
}:
let
  fresh = import ./lib.nix;
  inherit (builtins)
    attrNames
    elem
    filter
    listToAttrs
    map
    ;
  persistEntries = import ./persist-defaults.nix persist;
  root = {
    mountPoint = "/";
    device = "tmpfs";
    fsType = "tmpfs";
    options = [
      "mode=0755"
      "size=${settings.root.tmpfsSize or "50%"}"
    ];
  };
  # NixOS adds the word to what stage 1 needs; without it systemd's generator takes no line.
  needed =
    entry:
    entry
    // {
      options = (entry.options or [ "defaults" ]) ++ [ "x-initrd.mount" ];
    };
  neededForBoot = map needed (
    [ root ]
    ++ entries
    ++ map (
      mountPoint: fresh.persistFileSystem persistEntries.${mountPoint} // { inherit mountPoint; }
    ) (attrNames persistEntries)
  );
  bound = filter (mountPoint: persistEntries.${mountPoint}.source != null) (attrNames persistEntries);
  disks = settings.disks or { };
  devices = fresh.unique (
    filter (device: device != null) [
      (settings.cache.device or null)
      (settings.store.rwDevice or null)
    ]
  );
  systemdMounts = filter (
    entry: entry.mountPoint != "/" && !elem entry.mountPoint (fresh.ownMountPoints ++ bound)
  ) neededForBoot;
  units = import ./units.nix {
    inherit
      agent
      sleep
      devices
      luks
      deadline
      ;
    mounts = map (entry: entry.mountPoint) systemdMounts;
    # The initrd of the tests has a find-etc, as NixOS's has with an etc overlay.
    etcOverlay = true;
    inherit disks;
  };
  dropIn = unit: text: {
    name = "/etc/systemd/system/${unit}.d/overrides.conf";
    value = text;
  };
  deviceDropIns = fresh.deviceDropIns {
    own = devices;
    wait = settings.cache.wait or "20s";
    used = filter (device: device != null) (map (entry: entry.device) systemdMounts) ++ encrypted;
    prepared = fresh.touchedDisks disks != [ ];
  };
  # As in systemd.nix.
  dropInsOf =
    device:
    let
      before = fresh.mountsBeforeCheck device systemdMounts;
    in
    if before == [ ] then
      [ ]
    else
      [ (dropIn (fresh.fsckUnit device) "[Unit]\nAfter=${toString before}\n") ];
  limits = fresh.unlockLimits luks systemdMounts;
  unit = name: {
    name = "/etc/systemd/system/${name}";
    value = units.${name};
  };
in
listToAttrs (
  map unit (attrNames units)
  ++ map (unit: dropIn unit deviceDropIns.${unit}) (attrNames deviceDropIns)
  ++ builtins.concatMap dropInsOf devices
  ++ map (unit: dropIn unit limits.${unit}) (attrNames limits)
  # What the running system needs of it, see stage-2.nix.
  ++ map (path: {
    name = "/running/systemd/system/${fresh.mountUnit path}.d/overrides.conf";
    value = fresh.unitText fresh.keptMountOverride;
  }) fresh.keptMounts
  ++ [
    {
      name = "/etc/initrd-fstab";
      value = fresh.initrdFstab {
        entries = neededForBoot;
        owned = bound;
        extras = persistEntries;
      };
    }
    {
      name = "/etc/freshroot/config.json";
      value = fresh.configJson (
        {
          fileSystems = fresh.agentFileSystems neededForBoot persistEntries;
        }
        // settings
      );
    }
  ]
)
