#!/usr/bin/perl
# Runs on the polled X2Go server and answers the requests of an x2gofleet worker on stdin and stdout (frames: protocol.py).
# Started over SSH, or installed root-owned as the forced command of a key. It reads, and changes nothing.
#
# Two processes: this one talks to the worker and runs commands; a child, the reader, reads the session database and
# the agents' state files. A reader that does not answer in time is killed, so that a hung database or file system
# costs its own sections only.
package X2GoFleet::Probe;
use strict;
use warnings;
use Errno    qw(EINTR EAGAIN);
use Fcntl    qw(O_RDONLY O_NOFOLLOW O_NONBLOCK S_ISDIR S_ISREG);
use POSIX    qw(WNOHANG);
use Time::HiRes ();

use constant {
    PROTOCOL             => 2,
    HEADER_BYTES         => 17,
    MAX_REQUEST_BYTES    => 65_536,
    MAX_TEXT_BYTES       => 1_048_576,
    FRAME_BYTES          => 65_536,
    MAX_ANSWER_BYTES     => 64 * 1_048_576,
    MAX_RECORDS          => 40_000,
    MAX_OF_CREATOR       => 2000,
    SHORTENED_BYTES      => 80,
    MAX_STATE_BYTES      => 32,
    MAX_ROLE_BYTES       => 63,
    LIFE_SECONDS         => 7200,
    LOOK_SECONDS         => 0.1,
    STATES_PER_LOOK      => 64,
    SETTLED_SECONDS      => 0.05,
    FLUSH_SECONDS        => 0.02,
    LOCK_WAIT_MS         => 1500,
    NAMES_KEPT_SECONDS   => 300,
    LOOKUP_SECONDS       => 1,
    FACTS_SECONDS        => 60,
    CONNECTION_SECONDS   => 60,
    DESKTOPS_SECONDS     => 5,
    MAX_HUNG_READERS     => 3,
    RECYCLE_ANSWER_BYTES => 4 * 1_048_576,
};

my $SQL_CONFIG     = '/etc/x2go/x2gosql/sql';
my $SERVER_CONFIG  = '/etc/x2go/x2goserver.conf';
my @PASSWORD_FILES = map { "/etc/x2go/x2gosql/passwords/$_" } qw(x2gopgadmin x2goadmin);
my $REFERENCE      = 'print map { "$_\n" } X2Go::Server::DB::dbsys_listsessionsroot($ARGV[0])';
my $DESKTOPS       = 'cd; exec env HOME="$HOME" USER="$(id -un)" x2golistdesktops';

# --- words and frames

sub encoded { my ($text) = @_; $text = '' unless defined $text; $text =~ s/([^A-Za-z0-9._-])/sprintf '%%%02X', ord $1/ge; $text }
sub decoded { my ($text) = @_; $text =~ s/%([0-9A-F]{2})/chr hex $1/ge; $text }

sub words {
    my @pairs = @_;
    my @words;
    while (my ($key, $value) = splice @pairs, 0, 2) { push @words, $key . '=' . encoded($value) }
    return join ' ', @words;
}

sub parsed_words {
    my ($line) = @_;
    my %found;
    for my $word (split / /, $line, -1) {
        my ($key, $value) = $word =~ /\A([a-z_]+)=([A-Za-z0-9._%-]*)\z/ or return;
        $found{$key} = decoded($value);
    }
    return \%found;
}

# A failure that ends a section; the worker knows the closed set of codes.
sub failed { my ($code, $text, @more) = @_; die { code => $code, text => plain($text), more => \@more } }

sub plain {
    my ($text) = @_;
    $text = '' unless defined $text;
    $text =~ s/ at (?:\(eval \d+\)|-e|\S+) line \d+.*//s;
    $text =~ s/[^ -~]+/ /g;
    return substr $text, 0, 400;
}

sub error_words {
    my ($error) = @_;
    return words(status => 'error', error => 'internal', text => plain("$error")) unless ref $error;
    return words(status => 'error', error => $error->{code}, text => $error->{text}, @{ $error->{more} });
}

sub frame { my ($type, $request, $payload) = @_; return sprintf('%s%08x%08x', $type, $request, length $payload) . $payload }

sub data_frames {
    my ($type, $request, $data) = @_;
    return join '', map { frame($type, $request, $_) } unpack '(a' . FRAME_BYTES . ')*', $data;
}

sub write_all {
    my ($handle, $data) = @_;
    my $sent = 0;
    while ($sent < length $data) {
        my $count = syswrite $handle, $data, length($data) - $sent, $sent;
        next if !defined $count && $! == EINTR;
        POSIX::_exit(0) unless defined $count;
        $sent += $count;
    }
    return;
}

sub now { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

# --- running a command, with a limit that also holds where this process is killed

# Returns exit status, stdout, stderr (its end). $aside: called with what arrives on STDIN, where that is to be read.
sub captured {
    my ($seconds, $aside, @command) = @_;
    $seconds = 1 if $seconds < 1;
    pipe my $out_read, my $out_write or failed('internal', "pipe: $!");
    pipe my $err_read, my $err_write or failed('internal', "pipe: $!");
    my $pid = fork;
    failed('internal', "fork: $!") unless defined $pid;
    if (!$pid) {
        POSIX::setpgid(0, 0);
        open STDIN,  '<',  '/dev/null';
        open STDOUT, '>&', $out_write;
        open STDERR, '>&', $err_write;
        $SIG{$_} = 'DEFAULT' for qw(PIPE TERM HUP INT ALRM);
        no warnings 'exec';
        exec 'timeout', '-k', '1', int($seconds), @command or POSIX::_exit($!{ENOENT} ? 127 : 125);
    }
    close $out_write;
    close $err_write;
    my %text = (out => '', err => '');
    my %open = (out => $out_read, err => $err_read);
    my $until = now() + $seconds + 1.5;
    my $over  = '';
    while (%open && !$over) {
        my $bits = '';
        vec($bits, fileno $_, 1) = 1 for values %open;
        vec($bits, fileno STDIN, 1) = 1 if $aside;
        my $left = $until - now();
        if ($left <= 0) { $over = 'timeout'; last }
        next if select($bits, undef, undef, $left) < 0;
        $aside->() if $aside && vec $bits, fileno STDIN, 1;
        for my $name (keys %open) {
            next unless vec $bits, fileno $open{$name}, 1;
            my $count = sysread $open{$name}, $text{$name}, 65_536, length $text{$name};
            delete $open{$name} if defined $count && !$count;
            $text{err} = substr $text{err}, -2048 if length $text{err} > 8192;
            $over = 'too_large' if length $text{out} > MAX_ANSWER_BYTES / 4;
        }
    }
    kill KILL => -$pid if $over;
    1 while waitpid($pid, 0) < 0 && $! == EINTR;
    my $status = $? & 127 ? 128 + ($? & 127) : $? >> 8;
    failed($over, "$command[0] printed too much") if $over eq 'too_large';
    failed('timeout', "$command[0] did not end within " . int($seconds) . ' s') if $over || $status == 124 || $status == 137;
    failed('command_missing', "$command[0] could not be run: " . (plain($text{err}) || 'not found'))
        if $status == 126 || $status == 127;
    failed('internal', "$command[0] could not be run: " . (plain($text{err}) || 'timeout did not start')) if $status == 125;
    # The cause first: DBI puts the call before it.
    $text{err} =~ s/^(?:DBD::\S+ \S+ failed: |DBI connect\(.*?\) failed: )//mg;
    return ($status, $text{out}, plain($text{err}));
}

# As captured, for a command that reads the session database: on PostgreSQL it then gives up a lock by itself, where
# killing it would leave its query waiting. A pgbouncer may refuse such options.
my $pg_options = '-c lock_timeout=2000 -c statement_timeout=5000';

sub captured_query {
    my @arguments = @_;
    local $ENV{PGOPTIONS} = $pg_options;
    my @found = captured(@arguments);
    return @found unless $found[0] && $pg_options ne '' && $found[2] =~ /unsupported startup parameter/;
    $ENV{PGOPTIONS} = $pg_options = '';
    return captured(@arguments);
}

# --- the reader: configuration

sub host_name { return (POSIX::uname())[1] }

# Sections and keys of an ini file, as "section.key", or "key" before the first section; undef where it cannot be read.
sub ini {
    my ($path) = @_;
    open my $file, '<', $path or return;
    my ($section, %found) = '';
    while (my $line = <$file>) {
        last if $. > 10_000;
        if ($line =~ /^\s*\[\s*([^\]]*?)\s*\]/) { $section = "$1."; next }
        next unless $line =~ /^\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$/;
        my ($key, $value) = ($1, $2);
        $value =~ s/\A(["'])(.*)\1\z/$2/;
        $found{"$section$key"} = $value unless exists $found{"$section$key"};
    }
    return \%found;
}

# Fails with driver where it is not installed; what lack of memory, or an upgrade that runs, has spoiled may pass.
sub load_driver {
    my ($driver) = @_;
    return if eval { require DBI; require "DBD/$driver.pm"; 1 };
    my $error = "$@";
    # Perl would not try again what failed once.
    delete $INC{$_} for grep { !defined $INC{$_} } keys %INC;
    failed($error =~ /Can't locate/ ? 'driver' : 'internal', "perl cannot load DBI and DBD::$driver: $error");
}

my (%config, $config_signature);

sub configuration {
    my $signature = join '', map { file_signature($_) } $SQL_CONFIG, $SERVER_CONFIG;
    return \%config if defined $config_signature && $signature eq $config_signature;
    my $sql = ini($SQL_CONFIG) or failed('config', "$SQL_CONFIG cannot be read: $!");
    my $backend = defined $sql->{backend} ? lc $sql->{backend} : '';
    failed('config', "$SQL_CONFIG names no backend") if $backend eq '';
    failed('backend', "the backend \"$backend\" in $SQL_CONFIG is not supported") unless $backend =~ /\A(?:sqlite|postgres)\z/;
    my $server = ini($SERVER_CONFIG) || {};
    my $telekinesis = $server->{'telekinesis.enable'};
    %config = (
        backend => $backend,
        host    => $sql->{'postgres.host'} || 'localhost',
        port    => $sql->{'postgres.port'} || '5432',
        ssl     => $sql->{'postgres.ssl'}  || 'prefer',
        fields  => $backend eq 'sqlite' || (defined $telekinesis && $telekinesis =~ /\A(?:1|on|yes|true)\z/i) ? 16 : 14,
    );
    $config_signature = $signature;
    return \%config;
}

my ($database, $database_looked_up) = ('', -1e9);

sub database_file {
    return $database if now() - $database_looked_up < 60;
    my $home = (getpwnam 'x2gouser')[7];
    ($database, $database_looked_up) = ((defined $home && $home ne '' ? $home : '/var/lib/x2go') . '/x2go_sessions', now());
    return $database;
}

# --- the reader: what a listing depends on

# Device, inode, owner, size, modification and change time; a change time cannot be set by a user.
sub file_signature { my @found = Time::HiRes::stat($_[0]);  return @found ? pack 'd6', @found[0, 1, 4, 7, 9, 10] : '-' }
sub link_signature { my @found = Time::HiRes::lstat($_[0]); return @found ? pack 'd6', @found[0, 1, 4, 7, 9, 10] : '-' }

sub database_header {
    my ($path) = @_;
    # Not sysopen, which takes four more system calls.
    my $file = POSIX::open($path, O_RDONLY | O_NONBLOCK);
    return '' unless defined $file;
    my $count = POSIX::read($file, my $header, 100);
    POSIX::close($file);
    return $count ? $header : '';
}

# What each write changes, but for one within the same tick of the file system's clock as the one before.
sub database_times {
    my ($path) = @_;
    my @log = Time::HiRes::stat("$path-wal");
    # Not the change time of a write-ahead log: whenever root opens one, SQLite sets its owner again.
    return join '|', file_signature($path), @log ? pack('d5', @log[0, 1, 4, 7, 9]) : '-';
}

sub database_signature {
    my ($path) = @_;
    return join '|', database_times($path), file_signature("$path-journal"), database_header($path);
}

# What a listing on SQLite depends on besides agents' states; after configuration(), whose signature is in it.
sub base_signature {
    my @common = (host_name(), $config_signature, map { file_signature($_) } '/etc/localtime', '/tmp-inst');
    return join '|', @common, database_signature(database_file());
}

# --- the reader: rows

my @COLUMNS = qw(session_id uname server status display init_time last_time cookie client agent_pid gr_port sound_port
    fs_port tekictrl_port tekidata_port);

# How long a column may be: no less than X2Go and the name service allow, and so little that MAX_RECORDS of them fit into
# an answer.
my %MOST_BYTES = (session_id => 512, uname => 256, server => 256, client => 256, cookie => 64, path => 768, creator_id => 128);

sub most_bytes { return $MOST_BYTES{ $_[0] } || 24 }

my @MOUNT_LIMITS   = map { most_bytes($_) } qw(session_id client path);
my @SESSION_LIMITS = map { most_bytes($_) } @COLUMNS, qw(age creator_id uname state);

sub code_of_sqlite {
    my ($text) = @_;
    return 'locked'      if $text =~ /locked|busy/i;
    return 'hot_journal' if $text =~ /readonly database/i;
    return 'schema'      if $text =~ /no such (?:table|column)/i;
    return 'malformed'   if $text =~ /malformed|not a database|corrupt|encrypted/i;
    return 'unreadable';
}

sub sqlite_queries {
    my ($handle, $what, $host) = @_;
    my $bytes = sub { my ($name) = $_[0] =~ /(\w+)\z/; "substr(cast($_[0] as blob), 1, " . (most_bytes($name) + 1) . ')' };
    my $limit = 'limit ' . (MAX_RECORDS + 1);
    if ($what eq 'mounts') {
        my $columns = join ', ', map { $bytes->("m.$_") } qw(session_id client path);
        return $handle->selectall_arrayref(
            "select $columns from mounts m join sessions s on s.session_id = m.session_id where s.server = ? "
                . "order by m.session_id, m.rowid $limit", undef, $host), [];
    }
    my $columns = join ', ', map { /_time$/ ? "strftime('%Y-%m-%dT%H:%M:%S', $_)" : $bytes->($_) } @COLUMNS;
    my $rows = $handle->selectall_arrayref(
        "select $columns, strftime('%s', 'now', 'localtime') - strftime('%s', init_time), '' from sessions "
            . "where server = ? order by status desc, rowid $limit", undef, $host);
    return $rows, [] if @$rows;
    return $rows, $handle->selectall_arrayref(
        'select ' . $bytes->('server') . ', count(*) from sessions group by server order by 2 desc limit 200');
}

sub sqlite_handle {
    my ($source, $flags) = @_;
    my $handle = DBI->connect("dbi:SQLite:$source", '', '',
        { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1, sqlite_open_flags => $flags });
    $handle->sqlite_busy_timeout(LOCK_WAIT_MS) if $handle->can('sqlite_busy_timeout');
    return $handle;
}

my $can_read_without_lock;

# Reads the database file as it lies there, without a lock, so that X2Go's own commands can write whatever becomes of
# this process meanwhile. What was read counts only if the file, its journal and its change counter are the same
# before and after, and the last write is longer ago than file times are coarse. Returns whether another try makes sense,
# and what was read.
sub read_without_lock {
    my ($path, $what, $host) = @_;
    if (!defined $can_read_without_lock) {
        my ($major, $minor, $patch) = do { no warnings 'once'; split /\./, $DBD::SQLite::sqlite_version };
        $can_read_without_lock = $major * 1_000_000 + $minor * 1000 + $patch >= 3_008_005 && $path =~ m{\A[\w/.-]+\z};
    }
    return 0 unless $can_read_without_lock;
    my $before = database_signature($path);
    my $header = database_header($path);
    # Not with a write-ahead log (file format 2), nor while a journal is there.
    return 0 unless length $header == 100 && substr($header, 18, 2) eq "\1\1";
    return 1 if -s "$path-journal";
    my $changed = (Time::HiRes::stat($path))[10];
    return 0 unless defined $changed;
    return 1 unless abs(Time::HiRes::time() - $changed) > SETTLED_SECONDS;
    my @found = eval {
        my $handle = sqlite_handle("uri=file:$path?immutable=1", 0x41);
        my @rows = sqlite_queries($handle, $what, $host);
        $handle->disconnect;
        @rows;
    };
    return 1 if $before ne database_signature($path) || -s "$path-journal";
    return 0, @found;
}

# Reads in a transaction. X2Go's commands do not write meanwhile; whoever does (a copy over the file) is noticed.
sub read_with_lock {
    my ($path, $what, $host) = @_;
    for my $try (1 .. 3) {
        my @opened = stat $path;
        failed(($!{ENOENT} ? 'missing' : 'unreadable'), "$path: $!") unless @opened;
        my ($before, $after);
        my @found = eval {
            my $handle = sqlite_handle("dbname=$path", 0x1);
            $handle->begin_work;
            $handle->selectrow_array('select 1 from sessions limit 1');
            $before = file_signature($path);
            my @rows = sqlite_queries($handle, $what, $host);
            $after = file_signature($path);
            $handle->rollback;
            $handle->disconnect;
            @rows;
        };
        failed(code_of_sqlite("$@"), "$path: " . sqlite_text("$@")) unless @found;
        # Neither written to since the lock was taken, nor another file than the one that was opened.
        return @found if $before eq $after && substr($after, 0, 16) eq pack 'd2', @opened[0, 1];
    }
    failed('replaced', "$path was replaced while it was read");
}

sub sqlite_text { my ($text) = @_; $text =~ s/\ADBD::\S+ \S+ failed: |\ADBI connect\(.*?\) failed: //s; return $text }

sub sqlite_rows {
    my ($what, $host) = @_;
    load_driver('SQLite');
    my $path = database_file();
    POSIX::tzset();
    for my $try (1 .. 4) {
        my ($again, @found) = read_without_lock($path, $what, $host);
        return @found if @found;
        last unless $again;
        Time::HiRes::sleep(0.02 * $try);
    }
    return read_with_lock($path, $what, $host);
}

my ($postgres, $postgres_key, $postgres_since) = (undef, '', 0);
my $keeps_connection = 1;

# What a database says of itself: text encoding, identity, connections that are not reserved, reserved ones, limit of the
# role or database (-1 for none), TLS version. The identity is the same on a standby that took over.
my ($database_facts, $facts_key, $facts_since) = ({}, '', -1e9);
my $FACTS_QUERY = "select current_setting('client_encoding'), concat(system_identifier, '.', d.oid), "
    . "current_setting('max_connections')::int - reserved, reserved, "
    . 'coalesce(least(nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)), -1), '
    . '(select version from pg_stat_ssl where pid = pg_backend_pid()) '
    . "from pg_control_system(), pg_database d, pg_roles r, (select current_setting('superuser_reserved_connections')::int "
    . "+ coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::int as reserved) s "
    . 'where d.datname = current_database() and r.rolname = current_user';

my %CODE_OF_STATE = (
    '42501' => 'pg_permission', '42P01' => 'schema', '42703' => 'schema', '55P03' => 'pg_timeout', '57014' => 'pg_timeout',
);

sub code_of_postgres {
    my ($text, $state) = @_;
    $text = postgres_text($text);
    # By the state where there is one: messages may be in another language.
    return $CODE_OF_STATE{$state} if defined $state && $CODE_OF_STATE{$state};
    return 'pg_password'   if $text =~ /password authentication failed|no password supplied|role ".*" does not exist/i;
    return 'pg_hba'        if $text =~ /no pg_hba/i;
    return 'pg_tls'        if $text =~ /certificate|does not support SSL|SSL (?:error|negotiation)|invalid sslmode/i;
    return 'pg_limit'      if $text =~ /too many (?:connections|clients)|remaining connection slots/i;
    return 'pg_timeout'    if $text =~ /canceling statement/i;
    return 'pg_database'   if $text =~ /database ".*" does not exist/i;
    return 'pg_permission' if $text =~ /permission denied/i;
    return 'schema'        if $text =~ /relation ".*" does not exist|column .* does not exist/i;
    return 'pg_connect';
}

sub postgres_password {
    for my $path (@PASSWORD_FILES) {
        open my $file, '<', $path or next;
        my $password = <$file>;
        next unless defined $password && $password =~ /\S/;
        chomp $password;
        return $password;
    }
    failed('pg_password', -e $PASSWORD_FILES[0] ? "no database password in $PASSWORD_FILES[0]" : "$PASSWORD_FILES[0]: $!");
}

sub postgres_handle {
    my ($config) = @_;
    my $key = join "\0", @$config{qw(host port ssl)}, map { file_signature($_) } @PASSWORD_FILES;
    # Not for ever: a switch to another server must not leave this connection with one that X2Go does not use any more.
    return $postgres if $postgres && $key eq $postgres_key && now() - $postgres_since < CONNECTION_SECONDS;
    $postgres->disconnect if $postgres;
    undef $postgres;
    my $source = "dbi:Pg:dbname=x2go_sessions;host=$config->{host};port=$config->{port};sslmode=$config->{ssl}";
    $postgres = DBI->connect($source, 'x2godbuser', postgres_password(),
        { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1, pg_enable_utf8 => 0, pg_server_prepare => 0 });
    ($postgres_key, $postgres_since) = ($key, now());
    learn_database($postgres, $key) if $keeps_connection || $key ne $facts_key || now() - $facts_since > FACTS_SECONDS;
    return $postgres;
}

# What $read returns, from one state of the database. Only PostgreSQL's own functions and operators are found: before version
# 15 each user may define others that fit better, in the schema that has X2Go's tables.
sub in_transaction {
    my ($handle, $read) = @_;
    $handle->do('begin transaction isolation level repeatable read, read only; set local search_path = pg_catalog, pg_temp; '
            . "set local statement_timeout = '3s'; set local lock_timeout = '2s'");
    # Whoever catches an error of these ends the transaction, after it has read the error's state.
    my @found = $read->();
    $handle->do('commit');
    return @found;
}

sub learn_database {
    my ($handle, $key) = @_;
    # Before PostgreSQL 9.6, or where the right was revoked, the encoding alone; that query fails where the database does.
    my @found = eval { in_transaction($handle, sub { $handle->selectrow_array($FACTS_QUERY) }) };
    if (!@found) {
        eval { $handle->do('rollback') };
        @found = $handle->selectrow_array('show client_encoding');
    }
    my %facts;
    @facts{qw(encoding database connections reserved role_limit tls)} = @found;
    ($database_facts, $facts_key, $facts_since) = (\%facts, $key, now());
    return;
}

# The words about the database, where it is PostgreSQL and says them.
sub database_words {
    my ($config) = @_;
    return () unless $config->{backend} eq 'postgres';
    my @names = grep { defined $database_facts->{$_} && $database_facts->{$_} ne '-1' } qw(database connections reserved role_limit tls);
    return (address => "$config->{host} port $config->{port}", map { $_ => $database_facts->{$_} } @names);
}

# Whether a session's record is of its user's own making, or of the owner's of a shadowed session (as in proof.py).
sub is_creator {
    my ($creator, $user, $session) = @_;
    return 1 if $creator eq 'x2godbuser';
    return grep { $creator eq substr "x2gouser_$_", 0, MAX_ROLE_BYTES } $user, agent_user($session, $user);
}

# The columns of a line as X2Go's commands print it. Those write and read characters, each of which stands for one byte;
# a line that holds any other character is printed in UTF-8.
sub as_printed {
    my @columns = @_;
    return @columns unless ($database_facts->{encoding} || '') eq 'UTF8' && grep { defined && /[^\0-\x7f]/ } @columns;
    my @printed = @columns;
    for my $column (grep { defined } @printed) {
        return @columns unless utf8::decode($column) && utf8::downgrade($column, 1);
    }
    return @printed;
}

# A FROM clause: what $what selects, without what one user has made beyond all measure, and how many records that leaves out.
sub of_each_creator {
    my ($handle, $what, $host, $read) = @_;
    my $most = "creator_id = 'x2godbuser' or of_creator <= " . MAX_OF_CREATOR;
    my $rows = $read->("(select *, row_number() over (partition by creator_id order by session_id) as of_creator from ($what) w) r "
            . "where ($most)");
    # A creator's number of records is counted only where there are enough of them to matter.
    return ($rows, 0) if @$rows < MAX_OF_CREATOR;
    my ($left_out) = $handle->selectrow_array("select coalesce(sum(n - ?), 0) from (select count(*) as n from ($what) w "
            . "where creator_id <> 'x2godbuser' group by creator_id) c where n > ?", undef, MAX_OF_CREATOR, $host, MAX_OF_CREATOR);
    return ($rows, $left_out);
}

sub postgres_query {
    my ($config, $what, $host) = @_;
    my $handle = postgres_handle($config);
    return in_transaction($handle, sub { $what eq 'mounts' ? postgres_mounts($handle, $host) : postgres_sessions($handle, $host) });
}

# concat prints a column as the client gets it; a cast would print the network of an address too.
sub bytes_of {
    my ($column) = @_;
    my ($name) = $column =~ /(\w+)\z/;
    return "substr(concat($column), 1, " . (most_bytes($name) + 1) . ')';
}

sub postgres_mounts {
    my ($handle, $host) = @_;
    my $columns = join ', ', map { bytes_of($_) } qw(session_id client path uname creator_id);
    my $what    = 'select m.*, s.uname from public.mounts m join public.sessions s on s.session_id = m.session_id '
        . 'and s.creator_id = m.creator_id where s.server = ?';
    my ($rows, $left_out) = of_each_creator($handle, $what, $host, sub {
        $handle->selectall_arrayref("select $columns from $_[0] order by session_id, path limit " . (MAX_RECORDS + 1), undef, $host) });
    return ([ map { [ $_->[0], as_printed(@$_[1, 2]) ] } grep { is_creator(@$_[4, 3, 0]) } @$rows ], [], $left_out);
}

sub postgres_sessions {
    my ($handle, $host) = @_;
    my $columns = join ', ', map { /_time$/ ? qq{to_char($_, 'YYYY-MM-DD"T"HH24:MI:SS')} : bytes_of($_) } @COLUMNS;
    my ($rows, $left_out) = of_each_creator($handle, 'select * from public.sessions where server = ?', $host, sub {
        # A user can make a time infinite; such a record must not fail the others.
        $handle->selectall_arrayref("select $columns, "
                . 'case when isfinite(init_time) then floor(extract(epoch from now() - init_time))::bigint end, '
                . bytes_of('creator_id') . " from $_[0] order by status desc, session_id limit " . (MAX_RECORDS + 1), undef, $host) });
    @$_[0 .. $#COLUMNS] = as_printed(@$_[0 .. $#COLUMNS]) for @$rows;
    my $others = [];
    $others = $handle->selectall_arrayref(
        'select ' . bytes_of('server') . ', count(*) from public.sessions group by 1 order by 2 desc limit 200')
        unless @$rows;
    return ($rows, $others, $left_out);
}

sub postgres_rows {
    my ($config, $what, $host) = @_;
    load_driver('Pg');
    # A standing connection that the database has ended meanwhile is no failure: one more try with a new one.
    my $standing = defined $postgres;
    my @found = eval { postgres_query($config, $what, $host) };
    return @found if @found;
    my ($error, $state) = ($@, $DBI::state);
    drop_postgres();
    if ($standing && !ref $error && code_of_postgres("$error", $state) eq 'pg_connect') {
        @found = eval { postgres_query($config, $what, $host) };
        return @found if @found;
        ($error, $state) = ($@, $DBI::state);
        drop_postgres();
    }
    die $error if ref $error;
    failed(code_of_postgres("$error", $state), "PostgreSQL at $config->{host} port $config->{port}: " . postgres_text("$error"));
}

sub drop_postgres {
    my $handle = $postgres;
    undef $postgres;
    eval { $handle->disconnect } if $handle;
    return;
}

sub postgres_text {
    my ($text) = @_;
    $text =~ s/\ADBD::\S+ \S+ failed: |\ADBI connect\(.*?\) failed: //s;
    my ($cause) = $text =~ /((?:FATAL|ERROR):.*)/s;
    return $cause || $text;
}

# Rows of this host, and the counts of other hosts' records where there are none.
sub rows_of {
    my ($config, $what, $host) = @_;
    my ($rows, $others, $left_out) =
        $config->{backend} eq 'sqlite' ? sqlite_rows($what, $host) : postgres_rows($config, $what, $host);
    failed('too_large', 'the session database has more than ' . MAX_RECORDS . ' records') if @$rows > MAX_RECORDS;
    return ($rows, $others, $left_out || 0);
}

# A record with a column that is too long is not served: what is left of it is for a message.
sub packed_record {
    my ($limits, @columns) = @_;
    my @long = grep { length $columns[$_] > $limits->[$_] } 0 .. $#columns;
    return pack '(N/a*)*', '', @columns unless @long;
    return pack '(N/a*)*', join(',', map { $_ + 1 } @long), map { substr $_, 0, SHORTENED_BYTES } @columns;
}

# --- the reader: agents' states and owners

my (%names, %uids, $names_since);
my $lookups_until = 0;

# Whether a user id is that of a user name; undef where the name service does not know.
sub uid_is {
    my ($uid, $name) = @_;
    (%names, %uids) = () if !defined $names_since || now() - $names_since > NAMES_KEPT_SECONDS;
    $names_since = now() unless %names || %uids;
    $names{$uid} = getpwuid $uid unless exists $names{$uid};
    return 1 if defined $names{$uid} && $names{$uid} eq $name;
    return undef unless exists $uids{$name} || $lookups_until > now();
    $uids{$name} = getpwnam $name unless exists $uids{$name};
    return defined $uids{$name} ? $uids{$name} == $uid : undef;
}

sub agent_user {
    my ($session, $user) = @_;
    return $session =~ /XSHAD(.*)XSHADPP/s ? $1 : $user;
}

sub foreign_agent {
    my ($pid, $session, $user) = @_;
    return '' unless $pid =~ /\A[1-9][0-9]{0,8}\z/;
    my $uid = (stat "/proc/$pid")[4];
    return '' unless defined $uid;
    for my $name ($user, agent_user($session, $user)) {
        my $same = uid_is($uid, $name);
        return '' if !defined $same || $same;
    }
    return defined $names{$uid} ? $names{$uid} : "uid $uid";
}

# Directories of users on which something is mounted: looking into those may not return.
sub mounted_directories {
    open my $file, '<', '/proc/self/mountinfo' or return {};
    my %found;
    while (my $line = <$file>) {
        my $point = (split / /, $line)[4];
        $point =~ s/\\([0-7]{3})/chr oct $1/ge if defined $point;
        $found{$1} = 1 if defined $point && $point =~ m{\A((?:/tmp|/tmp-inst/[^/]+)/\.x2go-[^/]+)(?:\z|/C-[^/]+(?:/state)?\z)};
    }
    return \%found;
}

sub state_directory {
    my ($session, $user) = @_;
    return if "$session$user" =~ m{[/\0]} || $session eq '' || $user eq '';
    my $instance = "/tmp-inst/$user/.x2go-$user";
    my $mode = -d '/tmp-inst' ? (lstat $instance)[2] : undef;
    return defined $mode && S_ISDIR($mode) ? $instance : "/tmp/.x2go-$user";
}

# The signature of a state file, "-" where there is none; "link" where a directory above it is none: nothing behind a
# link is looked at, since it may lie on a file system that does not answer.
sub state_signature {
    my ($place) = @_;
    for my $directory (@$place[0, 1]) {
        my $mode = (lstat $directory)[2];
        return '-' unless defined $mode;
        return 'link' unless S_ISDIR($mode);
    }
    return link_signature($place->[2]);
}

# The state word of an agent, where its file is, and the signature of the file, taken before it is read.
sub agent_state {
    my ($session, $user, $mounted) = @_;
    $user = agent_user($session, $user);
    my $directory = state_directory($session, $user);
    return ('', '', '') unless defined $directory;
    my $place = [ $directory, "$directory/C-$session", "$directory/C-$session/state" ];
    return ('!mounted', '', '') if $mounted->{$directory};
    my $signature = state_signature($place);
    return ('', $place, $signature) if $signature eq '-';
    return ('!link', $place, $signature) if $signature eq 'link';
    sysopen my $file, $place->[2], O_RDONLY | O_NOFOLLOW | O_NONBLOCK or return ('!unreadable', $place, $signature);
    my @found = stat $file;
    return ('!special', $place, $signature) unless @found && S_ISREG($found[2]);
    my $same = uid_is($found[4], $user);
    return ('!owner', $place, $signature) if defined $same && !$same;
    my $count = sysread $file, my $state, MAX_STATE_BYTES;
    $state = '' unless $count;
    $state =~ s/[^A-Z]+\z//;
    return ($state =~ /\A[A-Z]*\z/ ? $state : '!content', $place, $signature);
}

# --- the reader: sections

my %known;       # what the last two listings were made from, by token: base signature, state files and their signatures
my @known_order;
my ($epoch, $serial) = ('', 0);
my ($looked_at, $looks, $look_turn) = (undef, 0, 0);

sub states_are {
    my ($listing) = @_;
    my $signatures = $listing->{signatures};
    for my $index (0 .. $#{ $listing->{places} }) {
        return 0 if state_signature($listing->{places}[$index]) ne $signatures->[$index];
    }
    return 1;
}

sub remember {
    my (%listing) = @_;
    my $token = sprintf '%s.%d', $epoch, ++$serial;
    $known{$token} = \%listing;
    push @known_order, $token;
    delete $known{ shift @known_order } while @known_order > 2;
    $looked_at = \%listing;
    return $token;
}

# All records of this host with states and owners, packed, and what they depend on.
sub session_records {
    my ($config, $host, $comparable) = @_;
    my ($rows, $others, $left_out) = rows_of($config, 'sessions', $host);
    my $mounted = mounted_directories();
    $lookups_until = now() + LOOKUP_SECONDS;
    my (@packed, @ageless, @places, @signatures);
    for my $row (@$rows) {
        my @column = map { defined $_ ? $_ : '' } @$row;
        my ($session, $user, $status, $pid) = @column[0, 1, 3, 9];
        my $state = '';
        if ($status eq 'R') {
            ($state, my $place, my $signature) = agent_state($session, $user, $mounted);
            if ($place ne '') { push @places, $place; push @signatures, $signature }
        }
        push @column, $status eq 'F' ? '' : foreign_agent($pid, $session, $user), $state;
        push @packed, packed_record(\@SESSION_LIMITS, @column);
        next unless $comparable;
        $column[15] = '';
        push @ageless, packed_record(\@SESSION_LIMITS, @column);
    }
    my @safe = map { [ $_->[0], $_->[1] ] } $comparable ? @$rows : ();
    return {
        packed => \@packed, ageless => join('', $left_out, @ageless), others => $others, left_out => $left_out,
        places => \@places, signatures => \@signatures, names => \@safe,
    };
}

sub counts {
    my ($found, $host) = @_;
    my @others = grep { $_->[0] ne $host } @{ $found->{others} };
    my $count  = 0;
    $count += $_->[1] for @others;
    my $shown = join ',', map { my $name = substr $_->[0], 0, 64; $name =~ s/[^!-+\--~]/?/g; $name } splice @others, 0, 200;
    return (records => scalar @{ $found->{packed} }, others => $count, other_hosts => $shown, left_out => $found->{left_out});
}

sub section_sessions {
    my ($token, $listing) = @_;
    # A poll that fails says so itself: there is nothing to notice until one succeeds.
    undef $looked_at;
    my $host   = host_name();
    my $config = configuration();
    my @facts  = (backend => $config->{backend}, host => $host, fields => $config->{fields});
    my $before = $known{$token};
    my $base   = $config->{backend} eq 'sqlite' ? base_signature() : join '|', $host, $config_signature;
    my $same   = $before && $base eq $before->{base};
    if ($same && $config->{backend} eq 'sqlite' && states_are($before)) {
        $looked_at = $before;
        return (\@facts, [], '', words(status => 'same', signature => $token));
    }
    my @command = $listing eq 'command' ? listed_by_command($config, $host) : ();
    my $found   = @command ? $command[0] : session_records($config, $host, $config->{backend} ne 'sqlite');
    push @facts, database_words($config);
    if ($same && $config->{backend} ne 'sqlite' && $found->{ageless} eq $before->{ageless}) {
        $looked_at = $before;
        return (\@facts, [], '', words(status => 'same', signature => $token));
    }
    my $new = remember(
        backend => $config->{backend}, base => $base, places => $found->{places}, signatures => $found->{signatures},
        ageless => $config->{backend} eq 'sqlite' ? '' : $found->{ageless},
    );
    my ($lines, @source) = ('', source => 'records');
    if (@command > 1) {
        $lines  = $command[2];
        @source = (source => 'command', exit => $command[1], stderr => $command[3]);
    }
    return (\@facts, $found->{packed}, $lines, words(status => 'ok', counts($found, $host), @source, signature => $new));
}

# Whether x2golistsessions_root may be run: it hands session names and users of rows to a shell as root.
sub is_safe {
    my ($rows) = @_;
    for my $row (@$rows) {
        my ($session, $user) = map { defined $_ ? $_ : '' } @$row[0, 1];
        return 0 unless $session =~ /\A[\w.@+][\w.@+-]*\z/ && $user =~ /\A[\w.@+][\w.@+-]*\z/;
    }
    return 1;
}

# The records, and exit status, stdout and stderr of X2Go's listing where it may be run: between two equal readings.
sub listed_by_command {
    my ($config, $host) = @_;
    my $before = session_records($config, $host, 1);
    for my $try (1 .. 3) {
        return ($before) unless is_safe($before->{names});
        my @output = captured(command_seconds(), undef, 'x2golistsessions_root');
        my $after = session_records($config, $host, 1);
        return ($after, @output) if $before->{ageless} eq $after->{ageless};
        $before = $after;
    }
    # Whoever changes a record all the time does not fail the others: the records alone, as for unsafe names.
    return ($before);
}

sub section_mounts {
    my $host   = host_name();
    my $config = configuration();
    my ($rows, undef, $left_out) = rows_of($config, 'mounts', $host);
    my @packed = map { packed_record(\@MOUNT_LIMITS, map { defined $_ ? $_ : '' } @$_) } @$rows;
    return ([backend => $config->{backend}, host => $host], \@packed, '', words(status => 'ok', records => scalar @packed, left_out => $left_out));
}

sub section_reference {
    my $host   = host_name();
    my $config = configuration();
    my $before = session_records($config, $host, 1);
    for my $try (1 .. 3) {
        my ($status, $stdout, $stderr) = captured_query(command_seconds(), undef, 'perl', '-MX2Go::Server::DB', '-e', $REFERENCE, $host);
        my $after = session_records($config, $host, 1);
        if ($before->{ageless} eq $after->{ageless}) {
            return ([backend => $config->{backend}, host => $host, fields => $config->{fields}], $after->{packed}, $stdout,
                words(status => 'ok', counts($after, $host), exit => $status, stderr => $stderr));
        }
        $before = $after;
    }
    failed('busy', 'the session database changed at each of three readings');
}

# Whether what the last listing was made from has changed; of many state files a part at each look.
sub has_changed {
    return 0 unless $looked_at;
    # A look is a hint, of which polls make sure: each looks at the database's times, one in ten at everything.
    if ($looked_at->{backend} eq 'sqlite') {
        return 1 if index($looked_at->{base}, database_times(database_file())) < 0;
        return 1 if !($looks++ % 10) && !(eval { configuration() } && base_signature() eq $looked_at->{base});
    } elsif ($keeps_connection && !($looks++ % 10)) {
        # A database that does not answer is not asked again before a poll succeeded.
        my $listing = $looked_at;
        undef $looked_at;
        my $found = session_records(configuration(), host_name(), 1);
        $looked_at = $listing;
        return 1 if $found->{ageless} ne $listing->{ageless};
    }
    my $places = $looked_at->{places};
    return 0 unless @$places;
    for (1 .. @$places < STATES_PER_LOOK ? @$places : STATES_PER_LOOK) {
        my $index = $look_turn++ % @$places;
        return 1 if state_signature($places->[$index]) ne $looked_at->{signatures}[$index];
    }
    return 0;
}


# --- the reader: its loop

my %SECTION_OF_READER = (sessions => \&section_sessions, mounts => \&section_mounts, reference => \&section_reference);

my $answer_until = 0;

# How long a command of the reader may take: it is to be named before the reader is given up.
sub command_seconds { return $answer_until - now() - 2 }

# Answers a line "REQUEST KIND WATCH KEEP SECONDS ARGUMENT..." with the frames of a section.
sub reader {
    my ($in, $out) = @_;
    my ($input, $watch) = ('', 0);
    while (1) {
        my $bits = '';
        vec($bits, fileno $in, 1) = 1;
        my $ready = select $bits, undef, undef, $watch ? LOOK_SECONDS : undef;
        next if $ready < 0;
        if (!$ready) {
            # A look that fails is no change: the next poll says what is wrong.
            if (eval { has_changed() }) { write_all($out, frame('N', 0, words(changed => 'sessions'))); $watch = 0 }
            next;
        }
        POSIX::_exit(0) unless sysread $in, $input, 4096, length $input;
        while ($input =~ s/\A([^\n]*)\n//) {
            (my $request, my $kind, $watch, $keeps_connection, my $seconds, my @arguments) = split / /, $1;
            $answer_until = now() + $seconds;
            my @parts = eval { $SECTION_OF_READER{$kind}->(@arguments) };
            @parts = ([], [], '', error_words($@)) unless @parts;
            drop_postgres() unless $keeps_connection;
            my $sent = write_section($out, $request, $kind, @parts);
            # Perl keeps memory that it had once: after a long answer a new reader begins small.
            POSIX::_exit(0) if $sent > RECYCLE_ANSWER_BYTES;
        }
    }
}

# Writes the frames of a section, none of which splits a record; returns the bytes of its data.
sub write_section {
    my ($out, $request, $kind, $facts, $records, $lines, $end) = @_;
    my $buffer = frame('B', $request, words(kind => $kind, @$facts));
    my ($payload, $sent) = ('', 0);
    for my $record (@$records) {
        if (length($payload) + length($record) > FRAME_BYTES) {
            write_all($out, $buffer . frame('D', $request, $payload));
            $sent += length $payload;
            $buffer = $payload = '';
        }
        $payload .= $record;
    }
    $buffer .= frame('D', $request, $payload) if length $payload;
    $sent += length $payload;
    write_all($out, $buffer . data_frames('L', $request, $lines) . frame('E', $request, $end));
    return $sent + length $lines;
}

# --- the conversation with the worker

my $input = '';
my %reader;
my @hung;
my $section_begun = 0;

sub finish {
    kill KILL => $reader{pid} if $reader{pid};
    POSIX::_exit(0);
}

sub read_input {
    my $count = sysread STDIN, $input, 65_536, length $input;
    return if !defined $count && ($! == EINTR || $! == EAGAIN);
    finish() if !$count || length $input > 2 * MAX_TEXT_BYTES;
    return;
}

sub lose_reader {
    kill KILL => $reader{pid};
    # A process that hangs in the kernel ends when it can; it is not waited for.
    push @hung, $reader{pid} unless waitpid $reader{pid}, WNOHANG;
    %reader = ();
    return;
}

sub start_reader {
    %reader = ();
    @hung = grep { !waitpid $_, WNOHANG } @hung;
    failed('hung', scalar(@hung) . ' readings of the session database hang and cannot be ended') if @hung >= MAX_HUNG_READERS;
    my $driver = eval { configuration()->{backend} eq 'postgres' } ? 'Pg' : 'SQLite';
    # Loaded here, once: a new reader then starts within a millisecond, and shares the memory.
    eval { load_driver($driver) };
    pipe my $request_read, my $request_write or failed('internal', "pipe: $!");
    pipe my $answer_read,  my $answer_write  or failed('internal', "pipe: $!");
    my $pid = fork;
    failed('internal', "fork: $!") unless defined $pid;
    if (!$pid) {
        $SIG{$_} = 'DEFAULT' for qw(TERM HUP INT ALRM PIPE);
        open STDIN,  '<', '/dev/null';
        open STDOUT, '>', '/dev/null';
        close $request_write;
        close $answer_read;
        $epoch = sprintf '%x.%x', time, $$;
        $0     = 'x2gofleet-probe reader';
        eval { reader($request_read, $answer_write) };
        POSIX::_exit(1);
    }
    %reader = (pid => $pid, in => $request_write, out => $answer_read, buffer => '');
    return;
}

# What is to be written to the worker: one write, and so one packet, for a short answer.
my $output = '';

sub flush_output { write_all(\*STDOUT, $output); $output = ''; return }

sub put { my ($data) = @_; $output .= $data; flush_output() if length $output > FRAME_BYTES; return }

# Returns the next frame of the reader, its type and the whole of it; END where the reader ended, nothing where $until
# passed.
sub reader_frame {
    my ($until) = @_;
    while (1) {
        if (length $reader{buffer} >= HEADER_BYTES) {
            my ($type, $length) = (substr($reader{buffer}, 0, 1), hex substr $reader{buffer}, 9, 8);
            if (length $reader{buffer} >= HEADER_BYTES + $length) {
                return ($type, substr $reader{buffer}, 0, HEADER_BYTES + $length, '');
            }
        }
        my $left = $until - now();
        return if $left <= 0;
        my $bits = '';
        vec($bits, fileno $_, 1) = 1 for \*STDIN, $reader{out};
        my $ready = select $bits, undef, undef, length $output && $left > FLUSH_SECONDS ? FLUSH_SECONDS : $left;
        next if $ready < 0;
        if (!$ready) { flush_output(); next }
        read_input() if vec $bits, fileno STDIN, 1;
        next unless vec $bits, fileno $reader{out}, 1;
        my $count = sysread $reader{out}, $reader{buffer}, 2 * FRAME_BYTES, length $reader{buffer};
        next if !defined $count && $! == EINTR;
        if (!$count) { lose_reader(); return ('END', '') }
    }
}

# Passes the frames of a section that the reader answers on to the worker.
sub from_reader {
    my ($request, $kind, $watch, $keep, $until, @arguments) = @_;
    my $line = join(' ', $request, $kind, $watch, $keep, $until - now(), @arguments) . "\n";
    for my $try (1, 2) {
        start_reader() unless $reader{pid} && !waitpid $reader{pid}, WNOHANG;
        {
            local $SIG{PIPE} = 'IGNORE';
            syswrite $reader{in}, $line;
        }
        my $frames = 0;
        while (my ($type, $frame) = reader_frame($until)) {
            if ($type eq 'END') { $type = ''; last }
            next if $type eq 'N';
            $section_begun = 1 if $type eq 'B';
            $frames++;
            put($frame);
            return if $type eq 'E';
        }
        if ($reader{pid}) {
            lose_reader();
            my $config = eval { configuration() };
            failed('pg_silent', "PostgreSQL at $config->{host} port $config->{port} did not answer in time")
                if $config && $config->{backend} eq 'postgres';
            failed('timeout', 'the session database did not answer in time');
        }
        # A reader that was just ending after a long answer is no failure.
        failed('internal', 'the reading of the session database ended early') if $frames || $try == 2;
    }
}

# --- sections that this process answers

my ($cpus, $cpu_mhz);

# The clock that a processor's name gives, as x2gobroker's agent takes it ("CPU E5-2670 @ 2.60GHz"), else the present one.
sub read_processors {
    open my $file, '<', '/proc/cpuinfo' or return;
    my ($named, $present) = ('', 0);
    while (my $line = <$file>) {
        $cpus++ if $line =~ /^processor/;
        $named   = substr "$1${2}000", 0, length($1) + 3 if $line =~ /^model name.*CPU.*@ ([0-9]+)\.*([0-9]*)/;
        $present = $1 if $line =~ /^cpu MHz[^:]*: *([0-9.]+)/ && $1 > $present;
    }
    $cpu_mhz = $named || $present || 1000;
    return;
}

sub load_text {
    read_processors() unless defined $cpu_mhz;
    my ($load, %memory) = ('');
    if (open my $file, '<', '/proc/loadavg') { $load = join ' ', (split ' ', <$file>)[0 .. 2] }
    if (open my $file, '<', '/proc/meminfo') {
        while (my $line = <$file>) { $memory{$1} = $2 if $line =~ /^(MemTotal|MemAvailable):\s*(\d+)/ }
    }
    $memory{$_} = '' for grep { !defined $memory{$_} } qw(MemTotal MemAvailable);
    return "loadavg $load\nmemtotal_kb $memory{MemTotal}\nmemavailable_kb $memory{MemAvailable}\n"
        . 'cpus ' . ($cpus || 1) . "\ncpu_mhz $cpu_mhz\n";
}

my $lists_shadows;

sub user_sessions {
    my ($left) = @_;
    my ($status, $stdout, $stderr) = captured_query($left->(), \&read_input, 'x2golistsessions');
    if (!$status && !defined $lists_shadows) {
        my ($feature, $answer) = captured($left->(), \&read_input, 'x2gofeature', 'X2GO_LIST_SHADOWSESSIONS');
        $lists_shadows = !$feature && $answer =~ /\Aok/;
    }
    if (!$status && $lists_shadows) {
        ($status, my $shadows, $stderr) = captured_query($left->(), \&read_input, 'x2golistshadowsessions');
        $stdout .= $shadows;
    }
    return ($status, $stdout, $stderr);
}

sub user_mounts {
    my ($left) = @_;
    my ($status, $sessions, $stderr) = captured_query($left->(), \&read_input, 'x2golistsessions');
    return ($status, '', $stderr) if $status;
    my $text = '';
    for my $line (split /\n/, $sessions) {
        next unless $line =~ /\S/;
        my $session = (split /\|/, $line, -1)[1];
        failed('command', 'x2golistsessions printed no session but: ' . $line) unless defined $session;
        next unless $session =~ /\A[\w.@+][\w.@+-]*\z/;
        ($status, my $mounts, $stderr) = captured_query($left->(), \&read_input, 'x2golistmounts', $session);
        return ($status, '', $stderr) if $status;
        $text .= join '', map { "$session|$_\n" } grep { /\S/ } split /\n/, $mounts;
    }
    return (0, $text, '');
}

sub desktops {
    my ($left, $user) = @_;
    return captured($left->(), \&read_input, 'x2golistdesktops') unless defined $user;
    # One user's command must not use up the time of the others.
    my $seconds = $left->();
    $seconds = DESKTOPS_SECONDS if $seconds > DESKTOPS_SECONDS;
    return captured($seconds, \&read_input, 'su', '-s', '/bin/sh', '-c', $DESKTOPS, '--', $user);
}

sub own_section {
    my ($request, $section, $left) = @_;
    my $kind = $section->{section};
    return data_frames('D', $request, load_text()) . frame('E', $request, words(status => 'ok')) if $kind eq 'load';
    my ($status, $stdout, $stderr) =
          $kind eq 'desktops' ? desktops($left, $section->{user})
        : $kind eq 'sessions' ? user_sessions($left)
        :                       user_mounts($left);
    return data_frames('D', $request, $stdout) . frame('E', $request, words(status => 'ok', exit => $status, stderr => $stderr));
}

my %ALLOWED = (
    load     => [],
    sessions => [qw(signature listing)],
    mounts   => [],
    desktops => [qw(user)],
    reference => [],
);

# The parsed request, or what is wrong with it.
sub parsed_request {
    my ($payload) = @_;
    my ($first, @lines) = split /\n/, $payload;
    my $head = parsed_words(defined $first ? $first : '') or return 'the first line is not one of words';
    return 'scope is not server or user' unless defined $head->{scope} && $head->{scope} =~ /\A(?:server|user)\z/;
    return 'seconds is not a number from 1 to 600'
        unless defined $head->{seconds} && $head->{seconds} =~ /\A[1-9][0-9]{0,2}\z/ && $head->{seconds} <= 600;
    my @sections;
    for my $line (@lines) {
        my $section = parsed_words($line) or return 'a section is not a line of words';
        my $allowed = $ALLOWED{ defined $section->{section} ? $section->{section} : '' } or return 'unknown section';
        my %known   = map { $_ => 1 } 'section', @$allowed;
        return 'unknown word of a section' if grep { !$known{$_} } keys %$section;
        return 'in scope user there are no desktops of others and no reference'
            if $head->{scope} eq 'user' && (defined $section->{user} || $section->{section} eq 'reference');
        return 'a user name is empty or has a NUL' if defined $section->{user} && $section->{user} !~ /\A[^\0]+\z/;
        $section->{signature} = '-'       unless defined $section->{signature};
        $section->{listing}   = 'records' unless defined $section->{listing};
        return 'signature or listing is malformed'
            unless $section->{signature} =~ /\A[0-9a-z.-]{1,64}\z/ && $section->{listing} =~ /\A(?:records|command)\z/;
        push @sections, $section;
    }
    return ($head, @sections);
}

sub answer {
    my ($request, $payload) = @_;
    my ($head, @sections) = parsed_request($payload);
    return write_all(\*STDOUT, frame('X', $request, words(error => 'request', text => $head))) unless ref $head;
    my $until = now() + $head->{seconds};
    my $left  = sub { my $seconds = $until - now(); failed('timeout', 'no time was left') if $seconds <= 0; $seconds };
    for my $section (@sections) {
        my $kind      = $section->{section};
        my $by_reader = $head->{scope} eq 'server' && $kind ne 'load' && $kind ne 'desktops';
        $section_begun = 0;
        my $done      = eval {
            failed('not_root', "uid $> is not root") if $by_reader && $>;
            $left->() unless $kind eq 'load';
            if ($by_reader) {
                from_reader($request, $kind, $head->{watch} ? 1 : 0, ($head->{connect} || '') eq 'each_poll' ? 0 : 1, $until, @$section{ @{ $ALLOWED{$kind} } });
            } else {
                flush_output() if $kind ne 'load';
                put(frame('B', $request, words(kind => $kind)) . own_section($request, $section, $left));
            }
            1;
        };
        next if $done;
        # A section that fails after it began ends with the error: what came of it before is void.
        my $begin = $section_begun ? '' : frame('B', $request, words(kind => $kind));
        put($begin . frame('E', $request, error_words($@)));
    }
    put(frame('Z', $request, words(uid => $>, host => host_name())));
    return flush_output();
}

# Waits for the next frame of the worker, and passes a notice of the reader on meanwhile.
sub next_frame {
    while (1) {
        if (length $input >= HEADER_BYTES) {
            my ($type, $request, $length) = $input =~ /\A([A-Z])([0-9a-f]{8})([0-9a-f]{8})/;
            my $most = defined $type && $type eq 'S' ? MAX_TEXT_BYTES : MAX_REQUEST_BYTES;
            if (!defined $type || hex $length > $most) {
                write_all(\*STDOUT, frame('X', 0, words(error => 'request', text => 'not a frame, or too long')));
                finish();
            }
            if (length $input >= HEADER_BYTES + hex $length) {
                my $payload = substr $input, HEADER_BYTES, hex $length;
                substr($input, 0, HEADER_BYTES + hex $length) = '';
                return ($type, hex $request, $payload);
            }
        }
        my $bits = '';
        vec($bits, fileno $_, 1) = 1 for \*STDIN, $reader{out} ? $reader{out} : ();
        next if select($bits, undef, undef, undef) < 0;
        read_input() if vec $bits, fileno STDIN, 1;
        next unless $reader{out} && vec $bits, fileno $reader{out}, 1;
        my $count = sysread $reader{out}, $reader{buffer}, 65_536, length $reader{buffer};
        if (!$count) { lose_reader() if defined $count; next }
        while (my ($type, $notice) = eval { reader_frame(now() + 0.2) }) {
            write_all(\*STDOUT, $notice) if $type eq 'N';
            last unless $type ne 'END' && $reader{out} && length $reader{buffer} >= HEADER_BYTES;
        }
    }
}

sub main {
    binmode STDIN;
    binmode STDOUT;
    my $user = getpwuid $>;
    %ENV = (
        PATH   => '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        LC_ALL => 'C',
        HOME   => (getpwuid $>)[7] || '/',
        USER   => defined $user ? $user : "$>",
        PGCONNECT_TIMEOUT => 3,
        PGAPPNAME         => 'x2gofleet-probe',
    );
    $0 = 'x2gofleet-probe';
    umask 077;
    chdir '/';
    $SIG{__WARN__} = sub { };
    $SIG{CHLD} = 'DEFAULT';
    $SIG{$_} = \&finish for qw(ALRM TERM HUP INT);
    alarm LIFE_SECONDS;
    # The empty line: a login shell may have printed something without a newline at its end.
    write_all(\*STDOUT, "\nx2gofleet-probe " . PROTOCOL . ' ' . words(uid => $>, user => $ENV{USER}, host => host_name()) . "\n");
    open STDERR, '>', '/dev/null';
    while (my ($type, $request, $payload) = next_frame()) {
        # The text of the probe, sent to one that is installed, is passed over.
        next if $type eq 'S';
        if ($type eq 'Q') { answer($request, $payload) }
        else              { write_all(\*STDOUT, frame('X', $request, words(error => 'request', text => 'unknown frame'))) }
    }
    return;
}

main();
