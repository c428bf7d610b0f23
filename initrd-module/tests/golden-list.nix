# The names of the golden outputs, one a line.
builtins.concatStringsSep "" (map (name: name + "\n") (builtins.attrNames (import ./golden.nix)))
