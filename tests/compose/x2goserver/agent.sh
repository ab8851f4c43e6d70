#!/bin/bash
# Stands in for x2goagent: keeps the session's state file and, as the real one, suspends or resumes on SIGHUP.
directory="/tmp/.x2go-$(id -un)/C-$1"
umask 077
mkdir -p "$directory"

tell() {
    state=$1
    printf %s "$state" >"$directory/state"
}

turn() {
    if [ "$state" = RUNNING ]; then tell SUSPENDED; else tell RUNNING; fi
}

tell RUNNING
trap turn HUP
trap 'tell TERMINATED; exit 0' TERM
while :; do
    sleep infinity &
    wait $!
    kill $! 2>/dev/null
done
