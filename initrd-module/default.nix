# boot.freshroot: boots this system from a verified, locally cached image of its Nix store.
{
  imports = [
    ./options.nix
    ./assertions.nix
    ./common.nix
    ./systemd.nix
    ./standalone.nix
    ./stage-2.nix
    ./outputs.nix
  ];
}
