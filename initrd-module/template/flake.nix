{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    freshroot.url = "github:freshroot/freshroot";
  };

  outputs =
    {
      self,
      nixpkgs,
      freshroot,
    }:
    {
      nixosConfigurations.host = nixpkgs.lib.nixosSystem {
        modules = [
          freshroot.nixosModules.default
          {
            boot.freshroot = {
              enable = true;
              url = "http://images.lan/freshroot";
              channel = "host";
              # mkdir keys, nix run github:freshroot/freshroot#publish -- keygen lab-1 --out keys
              trustedPublicKeys = [ "lab-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ];
              # mkfs.ext4 -L freshroot-cache /dev/…, on the host.
              cache.device = "LABEL=freshroot-cache";
            };
            boot.initrd.systemd.enable = true;
            networking.hostName = "host";
            nixpkgs.hostPlatform = "x86_64-linux";
            system.stateVersion = "26.05";
          }
        ];
      };
      packages.x86_64-linux = {
        # nix run .#publish -- /srv/freshroot --key keys/lab-1.secret
        inherit (self.nixosConfigurations.host.config.system.build.freshroot) publish kexecTree isoImage;
      };
    };
}
