#!/bin/sh
# device-nodes.sh >ARCHIVE: a cpio archive with /dev/console and /dev/null, and the folders that file systems of the kernel are mounted on. Where the kernel
# finds no console, a Rust program dies before its first line if there is no /dev/null. No tool that packs files can make these entries in a sandbox, where
# nobody may make device nodes; written out by hand they need nobody's leave. The format is «newc» (cpio(5)): headers of 110 characters, all aligned to 4.
set -eu

number=0
# entry NAME MODE MAJOR MINOR
entry() {
  number=$((number + 1))
  # Magic; inode, mode, uid, gid, links, time, size; the file system's device; the node's device; length of the name with its NUL; checksum.
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
    "$number" "$2" 0 0 1 1 0 0 0 "$3" "$4" $((${#1} + 1)) 0 "$1"
  pad $((110 + ${#1} + 1)) 4
}
# pad LENGTH TO: zeros up to a multiple of TO.
pad() {
  written=$((${written:-0} + $1))
  while [ $((written % $2)) -ne 0 ]; do
    printf '\0'
    written=$((written + 1))
  done
}

entry dev $((0040755)) 0 0
entry dev/console $((0020600)) 5 1
entry dev/null $((0020666)) 1 3
entry proc $((0040755)) 0 0
entry sys $((0040755)) 0 0
entry 'TRAILER!!!' 0 0 0
pad 0 512
