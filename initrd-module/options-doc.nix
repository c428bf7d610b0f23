# docs/nixos-options.md, from the options: nix eval --raw -f options-doc.nix --arg lib 'import <nixpkgs/lib>'
{ lib }:
let
  # Nothing of pkgs is looked at: every computed default has a text.
  evaluated = lib.evalModules {
    modules = [
      ./options.nix
      {
        _module.args.pkgs = throw "freshroot: an option's documentation needs pkgs: give it a defaultText";
      }
    ];
  };
  all = lib.optionAttrSetToDocList evaluated.options;
  ours = lib.filter (
    option: option.visible && !option.internal && lib.hasPrefix "boot.freshroot." option.name
  ) all;
  text = value: value.text or (lib.generators.toPretty { multiline = false; } value);
  oneLine = value: lib.replaceStrings [ "\n" ] [ " " ] (lib.trim value);
  # The roles of nixpkgs' manual, as this page can show them.
  plain = lib.replaceStrings [ "{option}" "{manpage}" "{command}" ] [ "" "" "" ];
  field = name: value: "- ${name}: `${oneLine (text value)}`\n";
  section =
    option:
    "## ${lib.replaceStrings [ "<" ">" ] [ "\\<" "\\>" ] option.name}\n\n"
    + "${plain (oneLine (option.description.text or option.description or ""))}\n\n"
    + "- type: ${oneLine option.type}\n"
    + lib.optionalString (option ? default) (field "default" option.default)
    + lib.optionalString (option ? example) (field "example" option.example)
    + "\n";
in
''
  # NixOS options

  <!-- Written from initrd-module/options.nix: do not edit. UPDATE_DOCS=1 NIXPKGS_LIB=… initrd-module/tests/run writes it anew. -->

  An option that is null leaves the agent's own default; [settings.md](settings.md) has them all, and what the words mean.

''
+ lib.trim (lib.concatMapStrings section ours)
+ "\n"
