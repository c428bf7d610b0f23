# shellcheck shell=dash
# Before all else, as sops-nix and agenix do it: the keys of the machine are read, from a disk that has to be mounted by then. A line for each goes to the log.
for key in /data/ssh/ssh_host_ecdsa_key /data/age/key.txt; do
    if [ -r $key ]; then
        echo "demo: activation reads $key: $(@busybox@/bin/sha256sum <$key | @busybox@/bin/cut -c 1-16)"
    else
        echo "demo: activation finds no $key"
    fi
done
