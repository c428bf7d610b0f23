# What the module computes, as plain functions on plain values: nothing but builtins, so that any nix evaluates it, the tests without nixpkgs
# included. Wiring is in the other files of this folder.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    fromJSON
    hasAttr
    head
    isAttrs
    isBool
    isList
    isString
    length
    listToAttrs
    map
    match
    replaceStrings
    split
    stringLength
    substring
    tail
    toJSON
    ;

  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  removePrefix =
    prefix: text: substring (stringLength prefix) (stringLength text - stringLength prefix) text;
  cut = separator: text: filter isString (split separator text);
  unique = foldl' (seen: one: if elem one seen then seen else seen ++ [ one ]) [ ];
  characters = text: filter (c: c != "") (map (at: substring at 1 text) (range (stringLength text)));
  range = n: builtins.genList (at: at) n;
  concatMapStrings = f: list: concatStringsSep "" (map f list);

  getPath =
    path: set:
    if path == [ ] then
      set
    else if isAttrs set && hasAttr (head path) set then
      getPath (tail path) set.${head path}
    else
      null;

  setPath =
    path: value: set:
    if length path == 1 then
      set // { ${head path} = value; }
    else
      set // { ${head path} = setPath (tail path) value (set.${head path} or { }); };

  # Printable ASCII by its code; what is not in it has no place in a device name here.
  printable = " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";
  hexDigits = "0123456789abcdef";
  hexOf = listToAttrs (
    map (at: {
      name = substring at 1 printable;
      value =
        substring ((at + 32) / 16) 1 hexDigits + substring (at + 32 - (at + 32) / 16 * 16) 1 hexDigits;
    }) (range (stringLength printable))
  );
  escapeAllBut =
    pattern: text:
    concatMapStrings (
      c:
      if match pattern c != null then
        c
      else
        "\\x${
          hexOf.${c} or (throw "freshroot: «${text}» holds a character that has no place in a device name")
        }"
    ) (characters text);
in
rec {
  # --- Settings -------------------------------------------------------------------------------------------------------------------

  # The rows of docs/settings.md that a configuration file may hold and that have an option of the same name below boot.freshroot.
  settingNames = [
    "url"
    "channel"
    "trustedPublicKeys"
    "allowUnsigned"
    "verify"
    "policy.mode"
    "policy.wait"
    "policy.fetchWait"
    "policy.maxAge"
    "policy.countdown"
    "policy.tries"
    "transfer.stall"
    "transfer.connect"
    "transfer.minRate"
    "transfer.minRateWindow"
    "transfer.maxTime"
    "transfer.rateLimit"
    "transfer.budget"
    "transfer.budgetPerDay"
    "transfer.parallel"
    "http.caFile"
    "http.pinnedPublicKeys"
    "http.clientCertFile"
    "http.clientKeyFile"
    "http.credentialsFile"
    "http.proxy"
    "http.noProxy"
    "cache.device"
    "cache.fsType"
    "cache.options"
    "cache.path"
    "cache.wait"
    "cache.keep"
    "media.device"
    "media.path"
    "root.tmpfsSize"
    "store.tmpfsSize"
    "store.rwDevice"
    "disks"
    "network.by"
    "network.interface"
    "network.dns"
    "network.ipv6"
    "network.wait"
    "network.keep"
    "kernel.modules"
    "kernel.autoload"
    "kernel.settle"
    "onFailure.action"
    "onFailure.delay"
    "onFailure.maxDelay"
    "onFailure.shellTimeout"
    "onFailure.retries"
    "log"
    "commandLineMay"
  ];

  # Computed by the module: no option sets them.
  computedNames = [
    "fileSystems"
    "kernel.storeName"
    "luks"
    "swapDevices"
  ];

  # In docs/settings.md, but of no use in an initrd that is to stay the same from generation to generation: these belong on command lines.
  # They can still be given by boot.freshroot.settings.
  commandLineNames = [
    "system"
    "manifestSha256"
    "resetFloor"
  ];

  # Agreed with the agent and not in docs/settings.md yet. Rendered only where set, because an agent that does not know them refuses them.
  pendingNames = [ ];

  # The values of the options, by the names of the JSON file; what is null is left out. No empty list is left out: it may override a default.
  settingsOf =
    options:
    foldl' (
      done: name:
      let
        path = cut "\\." name;
        value = getPath path options;
      in
      if value == null then done else setPath path value done
    ) { } (settingNames ++ pendingNames);

  # The text of /etc/freshroot/config.json. Fields that are null are as if absent.
  configJson = settings: toJSON ({ version = 1; } // withoutNull settings);

  withoutNull =
    set:
    listToAttrs (
      map (name: {
        inherit name;
        value = if isAttrs set.${name} then withoutNull set.${name} else set.${name};
      }) (filter (name: set.${name} != null) (attrNames set))
    );

  # A setting's name as the command line spells it: policy.fetchWait → policy.fetch-wait.
  kebab =
    name:
    concatMapStrings (c: if match "[A-Z]" c != null then "-${toLower c}" else c) (characters name);

  toLower = replaceStrings (characters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (
    characters "abcdefghijklmnopqrstuvwxyz"
  );

  # freshroot.<kebab-name>=<value>, in double quotes where the kernel needs them.
  parameter =
    name: value:
    let
      text =
        if isBool value then
          (if value then "true" else "false")
        else if isList value then
          concatStringsSep " " (map toString value)
        else
          toString value;
      word = "freshroot.${kebab name}=${text}";
    in
    if match ".*\".*" text != null then
      throw "freshroot: the value of ${name} holds a double quote, which no kernel command line can carry"
    else if match ".*[ \t].*" text != null then
      "\"${word}\""
    else
      word;

  # --- Command lines --------------------------------------------------------------------------------------------------------------

  # wanted: { system = toplevel; } or { channel = name; }. The same words as freshroot-publish writes into its boot scripts.
  commandLine =
    wanted: params:
    concatStringsSep " " (
      [ "init=/nix/.freshroot/init" ]
      ++ map (name: parameter name wanted.${name}) (attrNames wanted)
      ++ params
    );

  # That of the ISO, without freshroot.manifest-sha256, which only its build knows. The label and folder are those of make-iso.sh.
  isoCommandLine =
    wanted:
    commandLine (
      wanted
      // {
        "media.device" = "LABEL=FRESHROOT";
        "media.path" = "freshroot";
      }
    );

  # The file name of a machine below netboot/by-mac: lower case with hyphens, as iPXE's ${netX/mac:hexhyp} gives it.
  macName = mac: replaceStrings [ ":" ] [ "-" ] (toLower mac);

  # netboot/by-mac/<mac>.ipxe: one machine goes on with its own channel's script. When that is not there, its next boot entry follows.
  ipxeByMac =
    channel:
    concatStringsSep "\n" [
      "#!ipxe"
      "# Written by freshroot's NixOS module; do not edit."
      "chain --autofree ../${channel}.ipxe || exit 1"
      ""
    ];

  # netboot.ipxe, the one script that DHCP names for all machines: a machine's own one, else that of the default channel, else its disk. Tried several
  # times, because a switch's port may forward only 30 s after the link came up (spanning tree). A machine with a script of its own must not boot the
  # default channel because a packet was lost: the server has just answered, and is asked twice, before it counts as not being there; and what that script
  # could not boot is tried again, not replaced.
  ipxeEntry =
    {
      channel,
      url ? null,
      tries ? 5,
      pause ? 5,
    }:
    let
      base = if url == null then "" else "${url}/";
      own = "imgfetch --name own ${base}netboot/by-mac/\${netX/mac:hexhyp}.ipxe";
    in
    concatStringsSep "\n" [
      "#!ipxe"
      "# Written by freshroot's NixOS module; do not edit."
      "set tries:int32 0"
      ":try"
      "inc tries"
      "imgfree"
      "isset \${ip} || dhcp || goto failed"
      "imgfetch --name shared ${base}netboot/${channel}.ipxe || goto failed"
      "${own} || ${own} || goto shared"
      "chain --autofree own || goto failed"
      ":shared"
      "chain --autofree shared || goto failed"
      ":failed"
      "iseq \${tries} ${toString tries} && goto local ||"
      "echo freshroot: nothing could be booted, next try in ${toString pause} s"
      "sleep ${toString pause}"
      "goto try"
      ":local"
      "echo freshroot: giving up; the next boot entry of this machine follows"
      "imgfree"
      "exit 1"
      ""
    ];

  # hosts.json: hosts maps MAC addresses, UUIDs and serial numbers to channels.
  hostsJson =
    hosts:
    toJSON {
      version = 1;
      hosts = listToAttrs (
        map (host: {
          name = toLower host;
          value = {
            channel = hosts.${host};
          };
        }) (attrNames hosts)
      );
    };

  # The answer of Pixiecore's API (/v1/boot/<mac>): kernel, initrds and command line by URL.
  pixiecoreAnswer =
    {
      url,
      kernel,
      initrd,
      cmdline,
    }:
    toJSON {
      kernel = "${url}/kernels/${kernel}";
      initrd = [ "${url}/initrds/${initrd}" ];
      # A template of Go's text/template.
      cmdline = replaceStrings [ "{{" ] [ "{{\"{{\"}}" ] cmdline;
    };

  # --- Devices and units ----------------------------------------------------------------------------------------------------------

  # As udev writes names into /dev/disk/by-*: what is not in its list of harmless characters becomes \xHH.
  udevEscape = escapeAllBut "[][0-9A-Za-z#+.:=@_/-]";

  # The path below /dev of a device by name; a path stays as it is.
  devicePath =
    device:
    let
      byTag = tag: folder: {
        inherit tag folder;
      };
      tags = filter (one: hasPrefix one.tag device) [
        (byTag "LABEL=" "label")
        (byTag "UUID=" "uuid")
        (byTag "PARTLABEL=" "partlabel")
        (byTag "PARTUUID=" "partuuid")
      ];
      one = head tags;
    in
    if tags == [ ] then
      device
    else
      "/dev/disk/by-${one.folder}/${udevEscape (removePrefix one.tag device)}";

  # A path as systemd writes it into unit names (systemd.unit(5), «String escaping for inclusion in unit names»).
  escapePath =
    path:
    let
      parts = filter (part: part != "") (cut "/" path);
      escaped = concatStringsSep "-" (map (escapeAllBut "[0-9A-Za-z:_.]") parts);
    in
    if parts == [ ] then
      "-"
    else if substring 0 1 escaped == "." then
      "\\x2e${substring 1 (stringLength escaped) escaped}"
    else
      escaped;

  # The instance in a template unit's name: as a path, except that «/» inside a plain word does not occur.
  escapeInstance = escapePath;

  mountUnit = path: "${escapePath path}.mount";
  sysrootMountUnit = path: mountUnit "/sysroot${if path == "/" then "" else path}";
  deviceUnit = device: "${escapePath (devicePath device)}.device";
  fsckUnit = device: "systemd-fsck@${escapePath (devicePath device)}.service";

  # The unit that unlocks a device, if it is one of the LUKS mappings by these names.
  luksUnits =
    names: device:
    let
      path = devicePath device;
      name = removePrefix "/dev/mapper/" path;
    in
    if hasPrefix "/dev/mapper/" path && elem name names then
      [ "systemd-cryptsetup@${escapeInstance name}.service" ]
    else
      [ ];

  # Drop-ins of the units that unlock the LUKS mappings of these names, by unit: a passphrase is asked for as long as what lies on the mapping is waited for
  # (`timeout`). systemd asks for ever unless crypttab says `timeout=`, cryptsetup.target waits for every answer, and all of stage 1 for that. A mapping
  # that carries something without a limit is left as it is.
  unlockLimits =
    names: entries:
    let
      word = "x-systemd.device-timeout=";
      seconds =
        option:
        let
          parts = match "([0-9]+)(s|min)?" (removePrefix word option);
        in
        if parts == null then
          0
        else
          builtins.fromJSON (head parts) * (if builtins.elemAt parts 1 == "min" then 60 else 1);
      limit =
        entry: foldl' (_: option: seconds option) 0 (filter (hasPrefix word) (entry.options or [ ]));
      on =
        name: filter (entry: (entry.device or null) != null && luksUnits [ name ] entry.device != [ ]) entries;
      longest = foldl' (most: one: if one > most then one else most) 0;
      limitOf =
        name:
        let
          all = map limit (on name);
        in
        if elem 0 all then 0 else longest all;
    in
    listToAttrs (
      map (name: {
        name = head (luksUnits [ name ] "/dev/mapper/${name}");
        value = "[Service]\nTimeoutStartSec=${toString (limitOf name)}\n";
      }) (filter (name: limitOf name != 0) names)
    );

  isBind = entry: elem "bind" entry.options || elem "rbind" entry.options;

  # --- File systems ---------------------------------------------------------------------------------------------------------------

  # Mount points that the agent fills itself, in both modes.
  ownMountPoints = [
    "/nix/store"
    "/nix/.ro-store"
    "/nix/.rw-store"
  ];

  # Mount points that stage 1 mounts without being told, as NixOS has them.
  pathsNeededForBoot = [
    "/"
    "/etc"
    "/nix"
    "/nix/store"
    "/usr"
    "/var"
    "/var/lib"
    "/var/lib/nixos"
    "/var/log"
  ];

  # Words that only userspace reads: two mounts of one file system may differ in them.
  isUserspaceOption =
    option: match "defaults|auto|noauto|nofail|_netdev|x-.*|X-.*|comment=.*" option != null;

  # Words for a mount and not for its file system: as of the above.
  isMountOption =
    option:
    match "rw|(no)?(suid|dev|exec|diratime|symfollow|user|users|owner|group|relatime|strictatime)|noatime|atime|async|nomand|nolazytime" option
    != null;

  # What a cache's options say of the file system that it shares with an entry, and the entry's do not: it is mounted once. The agent has the same rule
  # (agent/src/mount/shared.rs). A btrfs is mounted for each of its subvolumes.
  conflictingOptions =
    cache: entry:
    let
      wordsOf = options: filter (word: word != "") (builtins.concatMap (cut ",") options);
      isBtrfs =
        one: one.fsType == "btrfs" || filter (word: hasPrefix "subvol" word) (wordsOf one.options) != [ ];
      own = wordsOf cache.options;
      others = wordsOf entry.options;
    in
    if isBtrfs cache || isBtrfs entry then
      [ ]
    else
      filter (
        word: !(isUserspaceOption word || isMountOption word || elem word others)
      ) own
      ++ (if elem "rw" own && elem "ro" others then [ "rw" ] else [ ]);

  # Types that the agent mounts when it is the whole stage 1.
  standaloneTypes = [
    "auto"
    "bcachefs"
    "btrfs"
    "exfat"
    "ext2"
    "ext3"
    "ext4"
    "f2fs"
    "none"
    "overlay"
    "tmpfs"
    "vfat"
    "xfs"
  ];

  # nofail is for stage 2. What is required is required in stage 1, where the failure policy is; without its disk stage 2 would end in emergency mode.
  stageOneOptions =
    entry: need:
    if need == "required" then filter (option: option != "nofail") entry.options else entry.options;

  # An entry of NixOS's fileSystems, as the agent's setting fileSystems has it. extra: need, timeout and create of boot.freshroot.persist.
  agentEntry =
    entry: extra:
    withoutNull {
      device = entry.device or null;
      inherit (entry) fsType;
      options = stageOneOptions entry (extra.need or null);
      depends = if entry.depends or [ ] == [ ] then null else entry.depends;
      need = extra.need or null;
      timeout = extra.timeout or null;
      create = if extra.create or null == null then null else withoutNull extra.create;
      noCheck = if entry.noCheck or false then true else null;
    };

  # Programs that a standalone initrd needs, by name → package and program in it, for file systems of these types. xfs, btrfs and bcachefs check themselves
  # when they are mounted.
  checkers =
    types:
    listToAttrs (
      map (type: {
        name = "fsck.${type}";
        value =
          {
            ext2 = "e2fsprogs";
            ext3 = "e2fsprogs";
            ext4 = "e2fsprogs";
            exfat = "exfatprogs";
            f2fs = "f2fs-tools";
            vfat = "dosfstools";
          }
          .${type};
      }) (filter (type: elem type [ "ext2" "ext3" "ext4" "exfat" "f2fs" "vfat" ]) types)
    );

  # The agent's setting fileSystems. entries: those of NixOS that stage 1 needs; extras: by mount point.
  agentFileSystems =
    entries: extras:
    listToAttrs (
      map (entry: {
        name = entry.mountPoint;
        value = agentEntry entry (extras.${entry.mountPoint} or { });
      }) (filter (entry: !(elem entry.mountPoint ([ "/" ] ++ ownMountPoints))) entries)
    );

  isSymlink = entry: entry.source != null && entry.how or "bind" == "symlink";

  # The symlinks of boot.freshroot.persist, as the agent's setting fileSystems has them.
  symlinks =
    persist:
    listToAttrs (
      map
        (entry: {
          name = entry.mountPoint;
          value = withoutNull {
            device = entry.source;
            fsType = "symlink";
            depends = if entry.depends == [ ] then null else entry.depends;
            create = if entry.create == null then null else withoutNull entry.create;
          };
        })
        (
          filter isSymlink (
            map (name: { mountPoint = name; } // persist.${name}) (attrNames persist)
          )
        )
    );

  # Types for which there is nothing to check before the mount.
  unchecked = [
    "9p"
    "bcachefs"
    "btrfs"
    "ceph"
    "cifs"
    "iso9660"
    "nfs"
    "nfs4"
    "none"
    "overlay"
    "squashfs"
    "tmpfs"
    "udf"
    "virtiofs"
    "zfs"
  ];

  # --- Disks that are prepared ----------------------------------------------------------------------------------------------------

  # The declarations (boot.freshroot.disks) of disks that something is done to.
  touchedDisks =
    disks: filter (disk: disk.prepare or false || disk.grow or false) (builtins.attrValues disks);

  # What preparing these disks takes, in an initrd of either mode: formats that are made, programs by name → package, and modules. No other initrd has them.
  preparation =
    disks:
    let
      prepared = filter (disk: disk.prepare or false) (builtins.attrValues disks);
      formatsOf =
        content:
        if content == null then
          [ ]
        else
          [ (content.format or (if content.type == "filesystem" then "" else content.type)) ]
          # In a LUKS container.
          ++ formatsOf (content.content or null);
      formats = unique (
        builtins.concatMap (
          disk: builtins.concatMap (partition: formatsOf (partition.content or null)) disk.partitions
        ) prepared
      );
      makers = {
        ext4 = {
          "mkfs.ext4" = "e2fsprogs";
        };
        xfs = {
          "mkfs.xfs" = "xfsprogs";
        };
        btrfs = {
          "mkfs.btrfs" = "btrfs-progs";
        };
        vfat = {
          "mkfs.vfat" = "dosfstools";
        };
        swap = {
          mkswap = "util-linux";
        };
        luks = {
          cryptsetup = "cryptsetup";
        };
      };
    in
    {
      inherit formats;
      programs =
        foldl' (all: format: all // (makers.${format} or { })) { } formats
        # The second probe, which must find nothing either.
        // (if prepared == [ ] then { } else { blkid = "util-linux"; });
      modules =
        # Subvolumes are made by the kernel.
        filter (format: format == "btrfs") formats ++ (if elem "luks" formats then [ "dm_crypt" ] else [ ]);
    };

  # Seconds that looking at a disk and making what is declared may take: the wait for it, what is read of it as slowly as is borne (4 MiB a second; samples are
  # less than 512 MiB), and hours for the rest. The agent has the same limit (agent/src/boot/prepare.rs), and shorter ones for each read and each program.
  prepareLimit =
    disk:
    let
      parts = match "([0-9]+)([KMGT]?)(iB)?" (toString disk.size.max);
      unit = elemAt parts 1;
      number = fromJSON (head parts);
      mebibytes =
        if unit == "T" then
          number * 1048576
        else if unit == "G" then
          number * 1024
        else if unit == "M" then
          number
        else if unit == "K" then
          number / 1024
        else
          number / 1048576;
      check = disk.blankCheck or null;
      full = check == "full" || (check == null && mebibytes <= 64 * 1024);
    in
    30 + 120 + (if full then mebibytes else 512) / 4 + 2 * 60 * 60;

  # --- Stacks of a standalone initrd ----------------------------------------------------------------------------------------------

  # NixOS's boot.initrd.luks.devices as the agent's setting luks has them. A key file may be written as crypttab(5) has it, path:device.
  agentLuks =
    devices:
    listToAttrs (
      map (name: {
        inherit name;
        value =
          let
            entry = devices.${name};
            key = entry.keyFile or null;
            onDevice = if key == null then null else match "(/[^:]*):(.+)" key;
          in
          withoutNull {
            inherit (entry) device;
            keyFile = if onDevice == null then key else head onDevice;
            keyFileDevice = if onDevice == null then null else head (tail onDevice);
            keyFileOffset = entry.keyFileOffset or null;
            keyFileSize = entry.keyFileSize or null;
            keyFileTimeout = entry.keyFileTimeout or null;
            allowDiscards = if entry.allowDiscards or false then true else null;
            bypassWorkqueues = if entry.bypassWorkqueues or false then true else null;
            fallbackToPassword = if entry.fallbackToPassword or false then true else null;
          };
      }) (attrNames devices)
    );

  # NixOS's swapDevices as the agent's setting swapDevices has them. What has to be made first (a file of a size, a key of chance) is left to the units of the running
  # system: the file of a size is written anew there where its size differs, and must not be in use then.
  agentSwapDevices =
    devices:
    listToAttrs (
      map (entry: {
        name = entry.device;
        value = withoutNull {
          priority = entry.priority or null;
          discardPolicy = entry.discardPolicy or null;
          options = if elem (entry.options or [ ]) [ [ ] [ "defaults" ] ] then null else entry.options;
        };
      }) (filter (entry: entry.size or null == null && !((entry.randomEncryption or { }).enable or false)) devices)
    );

  # What an entry of boot.initrd.luks.devices says that the agent does not do, by the names of the options.
  refusedLuksOptions =
    entry:
    filter (name: entry ? ${name} && !(elem entry.${name} [ null false "" [ ] ])) [
      "crypttabExtraOpts"
      "gpgCard"
      "header"
      "postOpenCommands"
      "preOpenCommands"
      "tryEmptyPassphrase"
      "yubikey"
    ]
    ++ (
      if
        (entry.fido2 or { }).credential or null != null || (entry.fido2 or { }).credentials or [ ] != [ ]
      then
        [ "fido2" ]
      else
        [ ]
    );

  # Programs that put these devices together, by name → package, and the modules that they need. luks: names of mappings. lvm, md: asked for.
  stacks =
    {
      devices,
      luks ? [ ],
      lvm ? false,
      md ? false,
    }:
    let
      mapped = filter (hasPrefix "/dev/mapper/") devices;
      isVolume =
        device:
        let
          parts = match "/dev/([^/]+)/[^/]+" device;
        in
        parts != null
        && !(elem (head parts) [
          "disk"
          "mapper"
          "md"
        ]);
      wantsLvm =
        lvm
        || filter (device: !(elem (removePrefix "/dev/mapper/" device) luks)) mapped != [ ]
        || filter isVolume devices != [ ];
      wantsMd = md || filter (device: match "/dev/md.*" device != null) devices != [ ];
      when = wanted: value: if wanted then value else { };
      listWhen = wanted: value: if wanted then value else [ ];
    in
    {
      programs =
        when (luks != [ ]) { cryptsetup = "cryptsetup"; }
        // when wantsLvm { lvm = "lvm2"; }
        // when wantsMd { mdadm = "mdadm"; };
      modules =
        listWhen (luks != [ ]) [ "dm_crypt" ]
        ++ listWhen wantsLvm [ "dm_mod" ]
        ++ listWhen wantsMd [
          "raid0"
          "raid1"
          "raid10"
          "raid456"
        ];
    };

  fstabEscape =
    replaceStrings
      [
        " "
        "\t"
      ]
      [
        "\\040"
        "\\011"
      ];

  fstabLine =
    entry: options:
    concatStringsSep " " [
      (fstabEscape (
        if entry.device == null then
          throw "freshroot: fileSystems.\"${entry.mountPoint}\" has no device: set fileSystems.\"${entry.mountPoint}\".device"
        else
          entry.device
      ))
      (fstabEscape entry.mountPoint)
      entry.fsType
      (fstabEscape (concatStringsSep "," options))
      "0"
      (if isChecked entry then "2" else "0")
    ];

  # Whether systemd checks it before the mount. Other than NixOS's own fstab, «auto» is checked: systemd finds out what there is to check, and a cache
  # on the same disk wants a check, which must not run beside an unchecked mount.
  isChecked =
    entry: !(entry.noCheck or false || isBind entry || elem entry.fsType unchecked);

  # The initrd's fstab: what systemd mounts below /sysroot. owned: mount points that the agent fills.
  initrdFstab =
    {
      entries,
      owned ? [ ],
      extras ? { },
    }:
    let
      systemds = filter (entry: !(elem entry.mountPoint (ownMountPoints ++ owned))) entries;
      needOf = entry: extras.${entry.mountPoint}.need or null;
    in
    concatMapStrings (entry: fstabLine entry (stageOneOptions entry (needOf entry)) + "\n") systemds;

  # Mount units that the check of a device the agent opens comes after. One disk may have two names: two checks of it at once, or a check beside a mount,
  # would hinder one another, and a check skips what is mounted. The mount that itself waits for this very check is not among them.
  mountsBeforeCheck =
    device: entries:
    map (entry: sysrootMountUnit entry.mountPoint) (
      filter (
        entry:
        !isBind entry
        && entry.device != null
        && hasPrefix "/dev/" (devicePath entry.device)
        && !(isChecked entry && devicePath entry.device == devicePath device)
      ) entries
    );

  # --- Persistence ----------------------------------------------------------------------------------------------------------------

  # boot.freshroot.persist.<mountPoint> → NixOS's fileSystems.<mountPoint>. nofail and the limit are for stage 2: there a missing disk must
  # not be emergency mode, because stage 1 has decided already what its absence means.
  persistFileSystem =
    entry:
    let
      bind = entry.source != null;
    in
    (
      # A disk that is declared elsewhere, as disko does, keeps its device and type.
      if bind then
        {
          device = entry.source;
          fsType = "none";
        }
      else if entry.device == null then
        { }
      else
        {
          inherit (entry) device fsType;
        }
    )
    // {
      options = unique (
        (if bind then [ "bind" ] else [ ])
        ++ filter (option: !((bind || entry.device == null) && option == "defaults")) entry.options
        ++ [ "nofail" ]
        ++ (if bind then [ ] else [ "x-systemd.device-timeout=${toString entry.timeout}s" ])
      );
      depends = entry.depends ++ (if bind then [ entry.source ] else [ ]);
      neededForBoot = true;
    };

  # HomestakerOS's mounts.<name> → boot.freshroot.persist.<where>. Units in «before» are those that must not run without the mount.
  persistOfHomestakerOS =
    mounts:
    listToAttrs (
      map (
        name:
        let
          mount = mounts.${name};
        in
        {
          name = mount.where;
          value = {
            device = mount.what;
            fsType = mount.type or "auto";
            options = filter (option: option != "") (cut "," (mount.options or "noatime"));
            # HomestakerOS mounts in stage 2 and boots without the disk: so does this.
            need = "degraded";
            services = filter (unit: match ".*\\.service" unit != null) (mount.before or [ ]);
          };
        }
      ) (filter (name: mounts.${name}.enable or true) (attrNames mounts))
    );

  # --- systemd stage 1 ------------------------------------------------------------------------------------------------------------

  # The unit of the boot, as boot.initrd.systemd.services.freshroot takes it.
  # agent: path of the binary. devices: those that the agent opens itself. mounts: mount points of disks that systemd mounts. luks: names of mappings.
  # nixosInit, etcOverlay: whether system.nixos-init and system.etc.overlay are enabled.
  bootUnit =
    {
      agent,
      devices ? [ ],
      mounts ? [ ],
      luks ? [ ],
      nixosInit ? false,
      etcOverlay ? false,
    }:
    let
      unlocked = unique (builtins.concatMap (luksUnits luks) devices);
      checked = map fsckUnit devices;
    in
    {
      description = "Verified Nix store image";
      documentation = [ "man:freshroot(8)" ];
      # initrd-fs.target is what initrd-cleanup.service waits for: without it stage 1 would be torn down while the image arrives.
      # What looks for the toplevel must not even start when there is no store, or its error hides ours.
      requiredBy = [
        "initrd-fs.target"
      ]
      ++ (if nixosInit then [ ] else [ "initrd-find-nixos-closure.service" ])
      ++ (if etcOverlay then [ "initrd-find-etc.service" ] else [ ]);
      before = [
        # Reads the symlink /sysroot/nix/.freshroot. Its RequiresMountsFor=/sysroot/nix/store finds no mount unit, since the agent
        # mounts by itself: nothing else would make it wait.
        "initrd-find-nixos-closure.service"
        # Resolves the etc overlay in the toplevel: for the same reason.
        "initrd-find-etc.service"
        # See requiredBy; a unit without default dependencies is not ordered before it on its own.
        "initrd-fs.target"
        # DefaultDependencies=no: a reboot or poweroff asked for in stage 1 must end us first.
        "shutdown.target"
      ];
      after = [
        # The root that the store and the symlink are put into.
        "sysroot.mount"
        # /run is bound into /sysroot once. What we mounted below /run before, such as the cache, might not be seen by stage 2.
        "sysroot-run.mount"
        # After a resume nothing of this runs. Before it, mounting a disk that the hibernated system has mounted would destroy it.
        "systemd-hibernate-resume.service"
        # What came of disks that are prepared is in its report. No such unit: no order.
        "freshroot-prepare.service"
      ]
      # The device that the agent opens: the check waits for the device up to the limit of its unit, and then we look ourselves.
      ++ checked
      ++ unlocked
      # Disks that systemd mounts: persisted paths are bound from them, and whether one is missing is looked at.
      ++ map sysrootMountUnit mounts;
      # Nothing but systemd's own mount units pulls in checks and LUKS mappings, and this mount is ours. Only wanted: without the device
      # the boot goes on from the network. No network unit stands here: the cache is looked at first, and mostly nothing else is needed.
      wants = checked ++ unlocked;
      conflicts = [ "shutdown.target" ];
      onFailure = [ "freshroot-failure.service" ];
      unitConfig = {
        DefaultDependencies = false;
        # A job that is waiting, such as emergency.target's, must not push the failure policy out.
        OnFailureJobMode = "replace-irreversibly";
      };
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${agent} boot --mode systemd --sysroot /sysroot";
        # A first download takes as long as it takes; the agent has limits of its own for every wait (transfer.stall, network.wait, cache.wait).
        TimeoutStartSec = "infinity";
        StandardOutput = "journal+console";
        StandardError = "journal+console";
        # In a tight memory something else goes first: without this process there is no boot.
        OOMScoreAdjust = -900;
      };
    };

  # Prepares declared disks before anything opens one, as boot.initrd.systemd.services.freshroot-prepare takes it. disks: boot.freshroot.disks.
  prepareUnit =
    {
      agent,
      udevadm,
      disks,
    }:
    {
      description = "Declared disks that are blank, or have become larger";
      documentation = [ "man:freshroot(8)" ];
      # Only wanted, by whatever: what is refused or fails is for the mounts of the disk to say (need).
      wantedBy = [ "initrd.target" ];
      # Both are passive: whoever must come before them pulls them in. systemd's mounts below /sysroot and systemd-fsck@ come after the first, systemd-cryptsetup@ after
      # the second. The agent's own partitions appear with their table, the last thing that is written; but what is made is on a loop device first, whose links
      # have the same labels, and a partition that grows goes and comes again.
      wants = [
        "local-fs-pre.target"
        "cryptsetup-pre.target"
      ];
      before = [
        "local-fs-pre.target"
        "cryptsetup-pre.target"
        "shutdown.target"
      ];
      after = [
        # A disk is known by its links, and these are udev's; it also loads the drivers.
        "systemd-udevd.service"
        "systemd-udev-trigger.service"
        # Those of the configuration, loop among them.
        "systemd-modules-load.service"
        # A hibernated system knows its disks as they were.
        "systemd-hibernate-resume.service"
      ];
      conflicts = [ "shutdown.target" ];
      unitConfig.DefaultDependencies = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        # A second disk of the same name may be among what has not been looked at; and a partition that udev is reading cannot be made larger.
        ExecStartPre = "-${udevadm} settle --timeout=30";
        # What comes next waits for links to the new partitions, and udev reads a disk's table anew when its last writer has closed it: a device must not go while
        # it is being opened.
        ExecStart = [
          "-${agent} prepare --stage-1"
          "-${udevadm} settle --timeout=60"
        ];
        TimeoutStartSec = foldl' (sum: disk: sum + prepareLimit disk) 0 (touchedDisks disks);
        StandardOutput = "journal+console";
        StandardError = "journal+console";
        OOMScoreAdjust = -900;
      };
    };

  # Makes file systems where an entry asks for it (x-systemd.makefs), and does not come after local-fs-pre.target as checks and mounts do.
  makefsOverride = {
    after = [ "freshroot-prepare.service" ];
  };

  # Drop-ins of device units, by unit. own: those that the agent opens, which have its limit; used: those of mounts and of LUKS mappings; prepared: whether disks
  # are prepared. A device's limit counts from when its job is begun, and is not to run out while the disk is being prepared that it lies on.
  deviceDropIns =
    {
      own,
      wait,
      used,
      prepared,
    }:
    let
      ownUnits = map deviceUnit own;
      usedUnits = map deviceUnit (filter (device: hasPrefix "/dev/" (devicePath device)) used);
      text = unit: {
        name = unit;
        value =
          "[Unit]\n"
          + (if prepared then "After=freshroot-prepare.service\n" else "")
          + (if elem unit ownUnits then "JobRunningTimeoutSec=${wait}\n" else "");
      };
    in
    listToAttrs (map text (ownUnits ++ (if prepared then usedUnits else [ ])));

  # The way out when the boot's unit failed, by itself or because its binary is missing or was killed.
  failureUnit =
    { agent }:
    {
      description = "What happens when nothing boots";
      documentation = [ "man:freshroot(8)" ];
      # Where the agent's binary is what is broken, the policy cannot run either.
      onFailure = [ "freshroot-last-resort.service" ];
      conflicts = [ "shutdown.target" ];
      before = [ "shutdown.target" ];
      unitConfig = {
        DefaultDependencies = false;
        OnFailureJobMode = "replace-irreversibly";
      };
      serviceConfig = failureService { inherit agent; };
    };

  failureService =
    { agent }:
    {
      Type = "oneshot";
      ExecStart = "${agent} fail";
      # The policy's pauses have limits of their own (onFailure.maxDelay, onFailure.shellTimeout).
      TimeoutStartSec = "infinity";
      # A shell by policy needs the console.
      StandardInput = "tty-force";
      StandardOutput = "inherit";
      StandardError = "inherit";
    };

  # No program of ours: systemd alone reboots. The pause keeps a machine from rebooting at full speed, and the reason on the screen.
  lastResortUnit =
    { sleep }:
    {
      description = "Reboot, since not even the failure policy could run";
      unitConfig = {
        DefaultDependencies = false;
        SuccessAction = "reboot-force";
        FailureAction = "reboot-force";
      };
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${sleep} 60";
        TimeoutStartSec = "90s";
      };
    };

  # emergency.service as a drop-in: initrd targets end in it, and on a machine that nobody stands beside it would be the end.
  emergencyOverride =
    { agent }:
    {
      onFailure = [ "freshroot-last-resort.service" ];
      unitConfig.OnFailureJobMode = "replace-irreversibly";
      serviceConfig = failureService { inherit agent; } // {
        # Type and start lines of systemd's own unit are replaced; empty ones clear what stands there.
        ExecStartPre = [ "" ];
        ExecStart = [
          ""
          "${agent} fail --unit emergency.service"
        ];
      };
    };

  # Limit of stage 1 as a whole, should the agent hang or something else of stage 1. The agent moves it while there is progress: it writes a longer
  # one to /run/systemd/system/initrd.target.d/zz-freshroot.conf and has the manager reload, which computes the job's end anew.
  deadline = limit: {
    JobTimeoutSec = limit;
    JobTimeoutAction = "reboot-force";
  };

  # A unit as text, for those who have no NixOS to render it (the boot tests), and for the golden files.
  unitText =
    unit:
    let
      list =
        name: key:
        if unit ? ${key} && unit.${key} != [ ] then
          { ${name} = concatStringsSep " " unit.${key}; }
        else
          { };
      section =
        name: values:
        if values == { } then
          ""
        else
          "[${name}]\n"
          + concatMapStrings (
            key:
            concatMapStrings (value: "${key}=${shown value}\n") (
              if isList values.${key} then values.${key} else [ values.${key} ]
            )
          ) (attrNames values)
          + "\n";
      shown = value: if isBool value then (if value then "true" else "false") else toString value;
    in
    section "Unit" (
      (if unit ? description then { Description = unit.description; } else { })
      // list "Documentation" "documentation"
      // list "Requires" "requires"
      // list "Wants" "wants"
      // list "After" "after"
      // list "Before" "before"
      // list "Conflicts" "conflicts"
      // list "OnFailure" "onFailure"
      // unit.unitConfig or { }
    )
    + section "Service" (unit.serviceConfig or { })
    + section "Install" (list "RequiredBy" "requiredBy" // list "WantedBy" "wantedBy");

  # --- Stage 2 --------------------------------------------------------------------------------------------------------------------

  # What stage 1 mounted, as the mount units that systemd finds in /proc/self/mountinfo. The image is a loop device on the cache, and the running store:
  # none of them can be unmounted before systemd-shutdown has gone over to the shutdown ramfs, which then unmounts in order. So no job may try before, and fail.
  keptMounts = [
    "/nix/.ro-store"
    "/nix/.rw-store"
    "/nix/store"
    "/run/freshroot/cache"
  ];
  keptMountOverride = {
    unitConfig.DefaultDependencies = false;
  };

  checkUnitName = mountPoint: "freshroot-persist-${escapePath mountPoint}";

  # A word of ExecStart=: «%» would be a specifier, and blanks would end it.
  quoteArgument =
    text:
    let
      plain = replaceStrings [ "%" "\\" "\"" ] [ "%%" "\\\\" "\\\"" ] text;
    in
    if match "[0-9A-Za-z/:_.@+-]+" text != null then text else "\"${plain}\"";

  # Looks whether the real thing is mounted, or the empty read-only tmpfs that stands for what is missing.
  checkUnit =
    { agent, mountPoint }:
    {
      description = "Check that ${mountPoint} is its disk";
      unitConfig.RequiresMountsFor = mountPoint;
      before = [ "freshroot-persist-ok.target" ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${agent} check-mount ${quoteArgument mountPoint}";
      };
    };

  retryUnitName = mountPoint: "freshroot-persist-retry-${escapePath mountPoint}";

  # Waits for a disk that was missing at the boot; then what needs it is started. It ends at once where nothing is missing.
  retryUnit =
    {
      agent,
      mountPoint,
      services,
    }:
    {
      description = "Mount ${mountPoint} when its disk comes";
      documentation = [ "man:freshroot(8)" ];
      after = [ "local-fs.target" ];
      serviceConfig = {
        # Nothing waits for it.
        Type = "exec";
        ExecStart = concatStringsSep " " (
          map quoteArgument (
            [
              agent
              "persist-retry"
              mountPoint
              "${checkUnitName mountPoint}.service"
              "freshroot-persist-ok.target"
            ]
            ++ services
          )
        );
        Restart = "on-failure";
        RestartSec = "30s";
      };
    };

  # Entries of boot.freshroot.persist (by mount point, complete) that the running system has to look at before their units start.
  guardedEntries =
    persist: filter (entry: entry.services != [ ] || entry.need == "degraded") (builtins.attrValues persist);

  # Disks whose absence a boot survives: they may come later.
  lateEntries =
    persist: filter (entry: entry.source == null && entry.need != "required") (builtins.attrValues persist);

  # Mount points of what lies on the disk at path, itself included: entries below it, binds from it, and what lies on those in turn.
  placesOn =
    persist: path:
    let
      liesOn =
        places: place: filter (above: place == above || hasPrefix "${above}/" place) places != [ ];
      hangs =
        places: entry:
        liesOn places entry.mountPoint || (entry.source != null && liesOn places entry.source);
      grow =
        places:
        let
          more = map (entry: entry.mountPoint) (filter (hangs places) (builtins.attrValues persist));
        in
        if length more == length places then more else grow more;
    in
    grow [ path ];

  # What may be missing at a boot: mount points of disks that need not be there, and of all that lies on them.
  mayBeMissing =
    persist:
    unique (builtins.concatMap (entry: placesOn persist entry.mountPoint) (lateEntries persist));

  # The units of both, by name without «.service».
  persistServices =
    { agent, persist }:
    let
      servicesOn =
        disk:
        let
          places = placesOn persist disk;
        in
        unique (
          builtins.concatMap (entry: if elem entry.mountPoint places then entry.services else [ ]) (
            builtins.attrValues persist
          )
        );
    in
    listToAttrs (
      map (entry: {
        name = checkUnitName entry.mountPoint;
        value =
          checkUnit {
            inherit agent;
            inherit (entry) mountPoint;
          }
          // {
            requiredBy = [ "freshroot-persist-ok.target" ] ++ entry.services;
          };
      }) (guardedEntries persist)
      ++ map (entry: {
        name = retryUnitName entry.mountPoint;
        value =
          retryUnit {
            inherit agent;
            inherit (entry) mountPoint;
            # What needs a bind from it, or a disk below it, waits for it too.
            services = servicesOn entry.mountPoint;
          }
          // {
            wantedBy = [ "multi-user.target" ];
          };
      }) (lateEntries persist)
    );

  persistOkTarget = {
    description = "All guarded persistent mounts are there";
    wantedBy = [ "multi-user.target" ];
  };

  # A line of the running system's fstab, for those who have no NixOS to write it (the boot tests).
  runningFstab =
    persist:
    concatMapStrings (
      mountPoint:
      let
        entry = persistFileSystem persist.${mountPoint};
      in
      fstabLine (entry // { inherit mountPoint; }) (entry.options ++ [ "x-initrd.mount" ]) + "\n"
    ) (attrNames persist);

  inherit
    cut
    hasPrefix
    unique
    ;
}
