# boot.freshroot.persist with what its options are by default, for an initrd and a system that NixOS did not make: those of the boot tests.
persist:
builtins.mapAttrs (
  mountPoint: entry:
  {
    inherit mountPoint;
    device = null;
    source = null;
    fsType = "auto";
    options = [ "defaults" ];
    depends = [ ];
    need = "required";
    timeout = 30;
    create = null;
    services = [ ];
  }
  // entry
) persist
