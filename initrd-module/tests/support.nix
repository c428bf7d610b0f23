# A test is { name, ok, why }; its line begins with «ok» or «FAILED».
rec {
  check = name: ok: why: { inherit name ok why; };
  equal =
    name: found: wanted:
    check name (found == wanted) "found ${builtins.toJSON found}, wanted ${builtins.toJSON wanted}";
  lines =
    tests:
    builtins.concatStringsSep "" (
      map (test: if test.ok then "ok ${test.name}\n" else "FAILED ${test.name}: ${test.why}\n") tests
    );
  # Whether evaluating it to the end throws.
  throws = value: !(builtins.tryEval (builtins.deepSeq value value)).success;
}
