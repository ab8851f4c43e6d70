#!/bin/bash
# The X2Go server's start: an empty session database, sessions, and sshd, on which the container ends.
set -euo pipefail
# Sessions don't outlive their container.
rm -rf /var/lib/x2go/x2go_sessions* /run/x2go-sessions /tmp/.x2go-*
x2godbadmin --createdb >/dev/null
mkdir -p /run/sshd
mkdir -p /tmp/.X11-unix
chmod 1777 /tmp/.X11-unix
for _ in $(seq 300); do
    [ ! -s /srv/keys/authorized_keys ] || break
    sleep 0.2
done
[ -s /srv/keys/authorized_keys ] || { echo "no keys in /srv/keys: the service setup makes them" >&2; exit 1; }
x2go-sessions &
exec /usr/sbin/sshd -D -e -f /etc/ssh/fleet_config
