# lib.nix, with builtins only: golden outputs, and its settings against the table in docs/settings.md.
let
  fresh = import ../lib.nix;
  support = import ./support.nix;
  inherit (support) check equal throws;
  golden = import ./golden.nix;
  folder = builtins.readDir ./golden;

  rows =
    let
      lines = fresh.cut "\n" (builtins.readFile ../../docs/settings.md);
      names = map (line: builtins.match "\\| `([A-Za-z0-9.]+)` \\| (`freshroot\\.|never).*" line) lines;
    in
    map builtins.head (builtins.filter (found: found != null) names);
  rendered = fresh.settingNames ++ fresh.computedNames;
  # As in a fleet whose chain data may be missing.
  degraded = import ../persist-defaults.nix {
    "/data" = {
      device = "LABEL=data";
      need = "degraded";
      services = [ "validator.service" ];
    };
    "/data/more" = {
      device = "LABEL=more";
      need = "optional";
      services = [ "more.service" ];
    };
    "/database" = {
      device = "LABEL=database";
      services = [ "database.service" ];
    };
    "/etc/keys" = {
      source = "/var/keys/own";
      services = [ "keys.service" ];
    };
    "/var/keys".source = "/data/keys";
  };
  missing = from: names: builtins.filter (name: !(builtins.elem name from)) names;
in
support.lines (
  map (
    name:
    if folder ? ${name} then
      equal "golden ${name}" golden.${name} (builtins.readFile (./golden + "/${name}"))
    else
      check "golden ${name}" false "tests/golden/${name} is not there: UPDATE_GOLDEN=1 writes it"
  ) (builtins.attrNames golden)
  ++ [
    (equal "every golden file has its output" (missing (builtins.attrNames golden) (
      builtins.attrNames folder
    )) [ ])
    (check "docs/settings.md has a table that can be read" (
      builtins.length rows > 30
    ) "found ${toString (builtins.length rows)} rows")
    (equal "every key that is rendered is a row in docs/settings.md" (missing rows rendered) [ ])
    (equal "every row of docs/settings.md is rendered, or given on command lines" (missing (
      rendered ++ fresh.commandLineNames
    ) rows) [ ])
    # Once the agent knows a setting it moves to settingNames.
    (equal "no pending setting is in docs/settings.md already" (builtins.filter (
      name: builtins.elem name rows
    ) fresh.pendingNames) [ ])
    (equal "names on the command line are those of docs/settings.md" (builtins.filter (
      name:
      builtins.match ".*\\| `${name}` \\| (`freshroot\\.${fresh.kebab name}=`|never).*" (
        builtins.readFile ../../docs/settings.md
      ) == null
    ) rendered) [ ])
    (equal "Pixiecore, which takes the command line for a template, gives braces as they are"
      (builtins.fromJSON (
        fresh.pixiecoreAnswer {
          url = "http://x";
          kernel = "k";
          initrd = "i";
          cmdline = "a={{b}}";
        }
      )).cmdline
      "a={{\"{{\"}}b}}"
    )
    (equal "words that one mount of the cache's disk and the data's cannot follow are named"
      (map
        (
          one:
          fresh.conflictingOptions
            {
              fsType = one.cacheType or "ext4";
              options = one.cache;
            }
            {
              fsType = one.type or "auto";
              options = one.entry or [ ];
            }
        )
        [
          {
            cache = [ "noatime,nosuid" "nofail" "x-systemd.device-timeout=5s" "rw" ];
          }
          {
            cache = [ "ro,noatime" ];
            entry = [ "defaults" ];
          }
          {
            cache = [ "rw" ];
            entry = [ "ro" ];
          }
          {
            cache = [ "discard,data=writeback" ];
            entry = [ "noatime,discard" ];
          }
          {
            cache = [ "subvol=cache" ];
            entry = [ "subvol=data" ];
          }
          {
            cache = [ "compress=zstd" ];
            type = "btrfs";
          }
        ]
      )
      [
        [ ]
        [ "ro" ]
        [ "rw" ]
        [ "data=writeback" ]
        [ ]
        [ ]
      ]
    )
    (check "a value with a double quote has no place on a command line" (throws (
      fresh.parameter "url" "a\"b"
    )) "it was rendered")
    (check "a file system without a device is refused by name" (throws (
      fresh.initrdFstab {
        entries = [
          {
            mountPoint = "/x";
            device = null;
            fsType = "auto";
            options = [ "defaults" ];
          }
        ];
      }
    )) "it was rendered")
    (equal "what lies on a disk that may be missing may be missing too" (fresh.mayBeMissing degraded) [
      "/data"
      "/data/more"
      "/etc/keys"
      "/var/keys"
    ])
    (equal "a late disk starts what needs it, what lies on it and what is bound from it"
      (fresh.persistServices {
        agent = "/freshroot";
        persist = degraded;
      })."freshroot-persist-retry-data".serviceConfig.ExecStart
      "/freshroot persist-retry /data freshroot-persist-data.service freshroot-persist-ok.target validator.service more.service keys.service"
    )
    (check "a device name with a character that udev would encode by bytes is refused" (throws (
      fresh.deviceUnit "LABEL=für"
    )) "it was rendered")
  ]
)
