# The server: nginx with the served folder, for machines of the LAN, and as a cache in front of a slow or metered line. It does not boot by freshroot.
{
  services.nginx = {
    enable = true;
    # The router. Without a resolver nginx asks for the server's name when it starts, and does not start while the line is down.
    resolver.addresses = [ "192.0.2.1" ];
    appendHttpConfig = ''
      proxy_cache_path /var/cache/nginx/freshroot levels=1:2 keys_zone=freshroot:1m max_size=40g inactive=90d use_temp_path=off;
    '';
    virtualHosts."images.lan" = {
      # Published here: nix run .#publish -- /srv/freshroot --key lab-1.secret
      locations."/freshroot/" = {
        alias = "/srv/freshroot/";
        extraConfig = ''
          add_header Cache-Control no-cache;
        '';
      };
      # Leftovers of an interrupted publication begin with a dot.
      locations."~ /\\.".extraConfig = "deny all;";

      # Images are named by their digest, so they never change: slices keep Range requests, and two machines share one download.
      locations."~ ^/mirror/(images|deltas|kernels|initrds|manifests)/" = {
        extraConfig = ''
          set $server https://images.example.org;
          rewrite ^/mirror/(.*)$ /$1 break;
          slice 8m;
          proxy_pass $server;
          proxy_ssl_server_name on;
          proxy_cache freshroot;
          proxy_cache_key $uri$slice_range;
          proxy_set_header Range $slice_range;
          proxy_cache_valid 200 206 90d;
          proxy_cache_lock on;
          proxy_cache_use_stale error timeout;
        '';
      };
      # What changes is asked for each time; when the line is down the last answer is as good as the machine's own.
      locations."/mirror/".extraConfig = ''
        set $server https://images.example.org;
        rewrite ^/mirror/(.*)$ /$1 break;
        proxy_pass $server;
        # It says no-cache, and means: ask. That is what the one second does, while it can be asked.
        proxy_ignore_headers Cache-Control Expires;
        proxy_ssl_server_name on;
        proxy_cache freshroot;
        proxy_cache_valid 200 1s;
        proxy_cache_revalidate on;
        proxy_cache_use_stale error timeout updating;
      '';
    };
  };
  networking.firewall.allowedTCPPorts = [ 80 ];

  boot.loader.grub.device = "/dev/vda";
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  networking.hostName = "images";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
