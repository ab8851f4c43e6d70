#!/bin/sh
# Runs on the polled X2Go server: reads one request a line, prints one framed answer each (format: probe.py).
# Started over SSH by a worker, or installed root-owned as the forced command of a key. Lists, and changes nothing.
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
unset DISPLAY XAUTHORITY ENV
set -f
umask 077
uid=$(id -u)
user=$(id -un)
export HOME="${HOME:-/}" USER="$user"
home=$(getent passwd x2gouser | cut -d: -f6)
database="${home:-/var/lib/x2go}/x2go_sessions"
sqlconfig=/etc/x2go/x2gosql/sql
libexec=$(x2gopath libexec 2>/dev/null) || libexec=/usr/lib/x2go
cpus=$(grep -c '^processor' /proc/cpuinfo)
# The clock that a processor's name gives, as x2gobroker's agent takes it ("CPU E5-2670 @ 2.60GHz"), else the present one.
cpu_mhz=$(sed -n 's/^model name.*CPU.*@ \([0-9][0-9]*\)\.*\([0-9]*\).*/\1.\2000/p' /proc/cpuinfo |
  sed -n 's/^\([0-9]*\)\.\([0-9][0-9][0-9]\).*/\1\2/p' | sed -n '$p')
[ -n "$cpu_mhz" ] || cpu_mhz=$(sed -n 's/^cpu MHz[^:]*: *//p' /proc/cpuinfo | sort -n | sed -n '$p')
held_id=- held='' pending_id=- pending='' serial=0

# Reads the session database without writing to it, and runs the listing between two readings: columns in hex, so
# that nothing that a user wrote into them can look like a frame.
# shellcheck disable=SC2016
records='
use strict; use DBI;
my ($mark, $file, $what, @command) = @ARGV;
$| = 1;
my $dbh;
sub failed {
  my $text = shift;
  $text =~ s/ at -e line \d+\.\s*\z//;
  $text =~ s/[^ -~]+/ /g;
  print "$mark recerr $text\n";
  exit 0;
}
sub query {
  my $sql = shift;
  eval {
    $dbh ||= DBI->connect("dbi:SQLite:dbname=$file", "", "", { RaiseError => 1, PrintError => 0, sqlite_open_flags => 1 });
    $dbh->sqlite_busy_timeout(2000) if $dbh->can("sqlite_busy_timeout");
    my $rows = $dbh->selectall_arrayref($sql);
    my $tag = $what eq "mounts" ? "mnt" : "rec";
    print join("", map { "$mark $tag " . join("|", map { defined $_ ? unpack("H*", $_) : "" } @$_) . "\n" } @$rows);
    1;
  } or failed($@ || "unknown error");
}
if ($what eq "mounts") {
  query("select session_id, client, path from mounts order by session_id, rowid");
  exit 0;
}
my $sql = q{select session_id, uname, server, status, display,
  strftime("%Y-%m-%dT%H:%M:%S", init_time), strftime("%Y-%m-%dT%H:%M:%S", last_time), cookie, client, agent_pid,
  gr_port, sound_port, fs_port, tekictrl_port, tekidata_port from sessions};
print "$mark records before\n";
query($sql);
print "$mark listing\n";
# Stays until the command has ended, so that timeout also kills one that ignores the first signal.
$SIG{TERM} = sub {};
my $raw = system(@command);
my $status = $raw == -1 ? 127 : $raw & 127 ? 128 + ($raw & 127) : $raw >> 8;
print "\n$mark listed $status\n$mark records after\n";
query($sql);
'

limited() { timeout -k 1 "$seconds" "$@" </dev/null; }

backend() { sed -n 's/^[ 	]*backend[ 	]*=[ 	]*//p' "$sqlconfig" 2>/dev/null | sed -n 1p | tr -d '\042\047 \t\r'; }

# Everything that a listing depends on: the host name, of each file its inode, size and times to the nanosecond, and
# the change counter of the database header.
signature() {
  set +f
  read -r host </proc/sys/kernel/hostname
  printf '%s\n' "$host"
  # Not the ctime of a write-ahead log: whenever root opens one, SQLite sets its owner anew.
  [ ! -e "$database-wal" ] || stat -c '%n %i %s %.9Y' "$database-wal" 2>/dev/null
  stat -c '%n %i %s %.9Y %.9Z' "$sqlconfig" "$database" "$database-journal" \
    /tmp/.x2go-*/C-*/state /tmp-inst/*/.x2go-*/C-*/state 2>/dev/null
  exec od -An -tx1 -j24 -N4 "$database" 2>&1
}

section_load() {
  printf '%s begin load\n' "$mark"
  read -r one five fifteen rest </proc/loadavg
  total='' available=''
  while read -r name value rest; do
    case $name in
      MemTotal:) total=$value ;;
      MemAvailable:) available=$value; break ;;
    esac
  done </proc/meminfo
  printf 'loadavg %s %s %s\nmemtotal_kb %s\nmemavailable_kb %s\ncpus %s\ncpu_mhz %s\n' \
    "$one" "$five" "$fifteen" "$total" "$available" "$cpus" "${cpu_mhz:-1000}"
  printf '\n%s end load 0\n' "$mark"
}

section_sessions() {
  if [ "$scope" = user ]; then
    printf '%s begin sessions backend=%s sig=-\n' "$mark" "$(backend)"
    limited x2golistsessions
    status=$?
    if [ $status -eq 0 ]; then
      feature=$(limited x2gofeature X2GO_LIST_SHADOWSESSIONS 2>/dev/null)
      case $?$feature in
        124* | 137*) status=124 ;;
        0ok*) limited x2golistshadowsessions; status=$? ;;
      esac
    fi
    printf '\n%s end sessions %s\n' "$mark" "$status"
    return
  fi
  now=$(signature)
  if [ "$1" != - ] && [ "$1" = "$pending_id" ]; then held_id=$pending_id held=$pending; fi
  if [ "$1" != - ] && [ "$1" = "$held_id" ] && [ "$now" = "$held" ]; then
    printf '%s same sessions sig=%s\n' "$mark" "$1"
    return
  fi
  engine=$(backend)
  if [ "$engine" = sqlite ]; then
    serial=$((serial + 1)) pending=$now
    pending_id=$serial
    read -r host </proc/sys/kernel/hostname
    printf '%s begin sessions backend=sqlite sig=%s host=%s\n' "$mark" "$serial" "$host"
    limited perl -e "$records" "$mark" "$database" sessions x2golistsessions_root
    printf '\n%s end sessions %s\n' "$mark" $?
    return
  fi
  # Without a session database to check against, an empty list is believed only where the query by itself succeeds:
  # x2golistsessions_root hides its exit status.
  read -r host </proc/sys/kernel/hostname
  printf '%s begin sessions backend=%s sig=- host=%s\n' "$mark" "${engine:-unknown}" "$host"
  listing=$(limited x2golistsessions_root)
  status=$?
  printf '%s\n' "$listing"
  if [ $status -eq 0 ] && [ -z "$listing" ]; then
    limited "$libexec/x2golistsessions_sql" "$(uname -n)" >/dev/null
    status=$?
  fi
  printf '\n%s end sessions %s\n' "$mark" "$status"
}

section_mounts() {
  engine=$(backend)
  printf '%s begin mounts backend=%s\n' "$mark" "${engine:-unknown}"
  if [ "$scope" = server ] && [ "$engine" = sqlite ]; then
    limited perl -e "$records" "$mark" "$database" mounts
    status=$?
  else
    if [ "$scope" = server ]; then list=x2golistsessions_root; else list=x2golistsessions; fi
    sessions=$(limited "$list")
    status=$?
    # An error text with exit status 0 is no listing.
    case $sessions in '' | *'|'*) ;; *) printf '%s\n' "$sessions"; status=1 ;; esac
    for session in $(printf '%s\n' "$sessions" | cut -d'|' -f2); do
      case $session in *[!A-Za-z0-9._@-]* | -*) continue ;; esac
      mounts=$(limited x2golistmounts "$session") || { status=$?; break; }
      [ -z "$mounts" ] || printf '%s\n' "$mounts" | sed "s/^/$session|/"
    done
  fi
  printf '\n%s end mounts %s\n' "$mark" "$status"
}

section_desktops() {
  printf '%s begin desktops\n' "$mark"
  if [ -z "$1" ]; then
    limited x2golistdesktops
  else
    # shellcheck disable=SC2016
    timeout -k 1 "$seconds" su "$1" -s /bin/sh -c 'cd; exec env HOME="$HOME" USER="$(id -un)" x2golistdesktops' </dev/null
  fi
  printf '\n%s end desktops %s\n' "$mark" $?
}

refuse() { printf '%s error %s\n' "$mark" "$1"; }

answer() {
  for section in $1; do
    case $section in
      load) section_load ;;
      sessions=*) section_sessions "${section#sessions=}" ;;
      mounts) section_mounts ;;
      desktops) section_desktops '' ;;
      desktops=*)
        name=${section#desktops=}
        case $name in '' | -* | *[!A-Za-z0-9._@-]*) refuse 'no user name'; return ;; esac
        [ "$scope" = server ] || { refuse 'desktops of another user in user scope'; return; }
        section_desktops "$name"
        ;;
      *) refuse 'unknown section'; return ;;
    esac
  done
  read -r host </proc/sys/kernel/hostname
  printf '%s done uid=%s host=%s\n' "$mark" "$uid" "$host"
}

# The empty line: a shell may have printed something without a newline at its end.
printf '\nx2gofleet-probe 1 uid=%s user=%s host=%s\n' "$uid" "$user" "$(uname -n)"
while read -r verb mark scope seconds sections; do
  case $mark in '' | *[!0-9a-f]*) mark=-; refuse 'no boundary'; continue ;; esac
  case $verb in poll) ;; *) refuse 'unknown verb'; continue ;; esac
  case $scope in server | user) ;; *) refuse 'unknown scope'; continue ;; esac
  case $seconds in '' | 0* | *[!0-9]*) refuse 'no timeout'; continue ;; esac
  answer "$sections"
done
