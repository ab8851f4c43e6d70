#!/bin/bash
# Makes, where they are missing, the worker's key, each server's host key, known_hosts and fleet.toml.
# Arguments: the servers. Volumes: /srv/worker is what the worker reads, /srv/servers/NAME what that server reads.
set -euo pipefail
worker=/srv/worker
uid=${WORKER_UID:-10001}

[ -s "$worker/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C x2gofleet-worker -f "$worker/id_ed25519"
: >"$worker/known_hosts.new"
for server in "$@"; do
    keys="/srv/servers/$server"
    [ -s "$keys/ssh_host_ed25519_key" ] || ssh-keygen -q -t ed25519 -N '' -C "$server" -f "$keys/ssh_host_ed25519_key"
    echo "$server $(cut -d' ' -f1,2 "$keys/ssh_host_ed25519_key.pub")" >>"$worker/known_hosts.new"
    # Written last: the server waits for this file.
    echo "restrict $(cat "$worker/id_ed25519.pub")" >"$keys/authorized_keys.new"
    mv "$keys/authorized_keys.new" "$keys/authorized_keys"
done
mv "$worker/known_hosts.new" "$worker/known_hosts"
if [ ! -s "$worker/fleet.toml" ]; then
    {
        printf '[defaults]\nuser = "root"\nkey_file = "id_ed25519"\nknown_hosts = "known_hosts"\n'
        for server in "$@"; do
            printf '\n[servers.%s]\nhost = "%s"\nlabels = ["mate"]\n' "$server" "$server"
        done
        printf '\n[profiles.mate]\nlabels = ["mate"]\n'
    } >"$worker/fleet.toml.new"
    mv "$worker/fleet.toml.new" "$worker/fleet.toml"
fi
chmod 755 "$worker"
chmod 400 "$worker/id_ed25519"
chown "$uid" "$worker/id_ed25519"
echo "keys and inventory for $* are ready"
