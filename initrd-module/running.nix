# What the module puts into the running system for boot.freshroot.persist, as text by path, for a system that NixOS did not make: that of the boot tests.
# The same functions of lib.nix as in stage-2.nix, with the same arguments.
{
  agent,
  persist,
  settings ? { },
}:
let
  fresh = import ./lib.nix;
  entries = import ./persist-defaults.nix persist;
  services = fresh.persistServices {
    inherit agent;
    persist = entries;
  };
  units = "/etc/systemd/system";
  named = name: value: { inherit name value; };
in
builtins.listToAttrs (
  map (name: named "${units}/${name}.service" (fresh.unitText services.${name})) (
    builtins.attrNames services
  )
  ++ builtins.concatMap (
    entry:
    map (
      unit:
      named "${units}/${unit}.d/overrides.conf" "[Unit]\nAfter=${fresh.checkUnitName entry.mountPoint}.service\n"
    ) entry.services
  ) (fresh.guardedEntries entries)
  ++ map (
    path: named "${units}/${fresh.mountUnit path}.d/overrides.conf" (fresh.unitText fresh.keptMountOverride)
  ) fresh.keptMounts
  ++ [
    (named "${units}/freshroot-persist-ok.target" (fresh.unitText fresh.persistOkTarget))
    (named "/etc/fstab" (fresh.runningFstab entries))
    (named "/etc/freshroot/config.json" (
      fresh.configJson (
        {
          fileSystems = fresh.agentFileSystems (map (
            mountPoint: fresh.persistFileSystem entries.${mountPoint} // { inherit mountPoint; }
          ) (builtins.attrNames entries)) entries;
        }
        // settings
      )
    ))
  ]
)
