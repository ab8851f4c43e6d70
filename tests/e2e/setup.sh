#!/bin/sh
# Installs what the tests on real X2Go servers need, where it is missing (Debian, Ubuntu; as root).
set -eu

packages="x2goserver openssh-server openssh-client python3-x2go python3-x2gobroker x2gobroker-common x2gobroker
x2gobroker-daemon x2gobroker-loadchecker x2gobroker-agent python3-nose python3-pyside2.qtcore sqlite3
postgresql pgbouncer libdbd-pg-perl pwgen
x11-utils x11-xserver-utils xauth xvfb
sudo putty-tools util-linux iproute2 perl strace zsh ksh fish csh tcsh faketime redis-server prometheus"

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || :)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup.sh: run as root to install:$missing" >&2
    exit 1
fi

# The tests start their own servers: nothing that is installed here may start by itself.
policy=/usr/sbin/policy-rc.d
made=""
trap 'rm -f $made' EXIT
if [ ! -e "$policy" ]; then
    made="$policy"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# The tests make their own PostgreSQL cluster: without one, Debian's service has nothing to start at boot either.
clusters=/etc/postgresql-common/createcluster.d
if [ ! -e "$clusters/x2gofleet.conf" ]; then
    made="$made $clusters/x2gofleet.conf"
    mkdir -p "$clusters"
    echo 'create_main_cluster = false' >"$clusters/x2gofleet.conf"
fi

log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } </dev/null >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "setup.sh: could not install:$missing (full log: $log)" >&2
    exit 1
fi
rm -f "$log"
echo "setup.sh: installed:$missing"
