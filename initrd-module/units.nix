# The units of stage 1 as text, for an initrd that NixOS did not make: nix eval --raw -f units.nix 'freshroot.service' --argstr agent /bin/freshroot
{
  agent ? "/bin/freshroot",
  sleep ? "/bin/sleep",
  udevadm ? "/bin/udevadm",
  devices ? [ ],
  mounts ? [ ],
  luks ? [ ],
  nixosInit ? false,
  etcOverlay ? false,
  deadline ? "30min",
  disks ? { },
}:
let
  fresh = import ./lib.nix;
in
{
  "freshroot.service" = fresh.unitText (
    fresh.bootUnit {
      inherit
        agent
        devices
        etcOverlay
        luks
        mounts
        nixosInit
        ;
    }
  );
  "freshroot-failure.service" = fresh.unitText (fresh.failureUnit { inherit agent; });
  "freshroot-last-resort.service" = fresh.unitText (fresh.lastResortUnit { inherit sleep; });
  "emergency.service.d/overrides.conf" = fresh.unitText (fresh.emergencyOverride { inherit agent; });
  "initrd.target.d/overrides.conf" = fresh.unitText { unitConfig = fresh.deadline deadline; };
}
// (
  if fresh.touchedDisks disks == [ ] then
    { }
  else
    {
      "freshroot-prepare.service" = fresh.unitText (fresh.prepareUnit { inherit agent udevadm disks; });
      "systemd-makefs@.service.d/overrides.conf" = fresh.unitText fresh.makefsOverride;
    }
)
