#!/bin/bash
# Puts one session of each user in, by X2Go's own commands; then suspends or resumes one of them now and then.
set -euo pipefail
lib=/usr/lib/x2go
read -ra users <<<"${X2GO_USERS:-alice bob john_doe}"
declare -A names agents

as() {
    local user=$1
    shift
    ${by:-} setpriv --reuid="$user" --regid="$user" --init-groups env HOME="/home/$user" USER="$user" LOGNAME="$user" "$@"
}

start() {
    local user=$1 display=$2 name
    name="$user-$display-$(date +%s)_stDMATE_dp24"
    as "$user" "$lib/x2goinsertsession" "$display" "$(hostname)" "$name" >/dev/null
    # The name of the session is in the agent's command line, where X2Go looks for it; `exec` makes $! the agent itself.
    # shellcheck disable=SC2016
    by="exec" as "$user" bash -c 'exec -a "x2goagent-$1" bash /usr/local/lib/x2go-agent "$1"' sh "$name" </dev/null &
    as "$user" "$lib/x2gocreatesession" "$name" "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')" $! 192.0.2.7 \
        $((30000 + 3 * display)) $((30001 + 3 * display)) $((30002 + 3 * display)) -1 -1 >/dev/null
    names[$user]=$name agents[$user]=$!
}

display=50
for user in "${users[@]}"; do
    start "$user" $((display++))
done
touch /run/x2go-sessions

while sleep "${X2GO_CHANGE_SECONDS:-15}"; do
    user=${users[RANDOM % ${#users[@]}]}
    name=${names[$user]}
    if [ "$(as "$user" "$lib/x2gogetagentstate" "$name")" = RUNNING ]; then
        as "$user" x2gosuspend-session "$name" >/dev/null
        echo "suspended $name"
    else
        kill -HUP "${agents[$user]}"
        as "$user" "$lib/x2goresume" 192.0.2.8 "$name" 31001 31002 31003 -1 -1
        echo "resumed $name"
    fi
done
