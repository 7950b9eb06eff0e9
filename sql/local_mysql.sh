#!/usr/bin/env bash
# A private database server for this project, then COMMAND with the settings to reach it.
#
#   bash sql/local_mysql.sh python pipeline_orchestrator.py
#   bash sql/local_mysql.sh --with more-requirements.txt COMMAND...   install these packages too
#   bash sql/local_mysql.sh mysql|mysqldump [OPTION...]               these, as the account that only reads
#   bash sql/local_mysql.sh --stop                                    stop the server
#
# The first run makes .venv with requirements.txt, and in .mysql/ a server of its own: on this machine only
# (127.0.0.1), on a port of its own, no service. Later runs find both and take about a second. The server stays up.
# MYSQL_DATABASE names the database (default crypto_db). To start over: --stop, then remove .mysql.
# Works with bash 3.2 (macOS): there, `set -e` does not see a subshell (...) fail. Windows: see README.md.
set -euo pipefail

say() { echo "local_mysql: $*" >&2; }
die() { say "$@"; exit 1; }

not_yours="cannot be written: run this as the user it belongs to, or remove it"
usage="usage: bash sql/local_mysql.sh [--with REQUIREMENTS] COMMAND...  |  bash sql/local_mysql.sh --stop"
stop=no more_requirements=''
case ${1:-} in
  --stop) stop=yes ;;
  --with)
    [ $# -ge 3 ] || die "$usage"
    [ -f "$2" ] || die "there is no file $2: --with takes a requirements file"
    more_requirements=$2
    shift 2 ;;
  '' | -*) die "$usage" ;;
esac
case $(uname -s) in
  MINGW* | MSYS* | CYGWIN*) die "this needs Linux or macOS: on Windows see README.md, or use WSL" ;;
esac

database=${MYSQL_DATABASE:-crypto_db}
project=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$project/.venv
home=$project/.mysql

# ---------------------------------------------------------------------------------------------- small helpers

# Lock the open file descriptor $1, or with -n before it fail at once. macOS has no flock, but perl has it.
lock() {
  if command -v flock >/dev/null; then
    flock "$@"
  else
    perl -MFcntl=:flock -e 'open F, ">&=", pop or die; exit !flock F, LOCK_EX | (@ARGV && LOCK_NB)' -- "$@"
  fi
}

# Run a command in a session of its own, so that Ctrl-C, a closed terminal or the end of cron's job leave it alone.
in_own_session() {
  if command -v setsid >/dev/null; then exec setsid "$@"; fi
  exec perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV or die $!' "$@"
}

# Run a command that may take minutes, its output in .mysql/install.log; a terminal sees the seconds go by.
logged() {
  local exit_code=0 started=$SECONDS
  while [ -t 2 ] && sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r%4d s\r' $((SECONDS - started)) >&2; done 9>&- &
  "$@" </dev/null >"$home/install.log" 2>&1 || exit_code=$?
  { kill $! && wait $!; } 2>/dev/null || true
  return $exit_code
}

# The end of the log $1 and the reason why this ends here.
die_with_log() {
  tail -n 4 "$1" >&2
  shift
  die "$@"
}

# Root may run this in a folder of somebody else's: what it makes there is given to that user, who runs the server too.
# No server runs as a user without a name, which a container's mounted folder may belong to: then it is root.
owner=$(stat -c %u "$project" 2>/dev/null || stat -f %u "$project")
id "$owner" >/dev/null 2>&1 || owner=0
give_to_owner() {
  if [ "$(id -u)" = 0 ] && [ "$owner" != 0 ]; then chown -R "$owner" "$home" "$venv" 2>/dev/null || true; fi
}

# Install a Debian or Ubuntu package, as root or with sudo, which drops the proxy's variables.
apt_install() {
  local as=() install=(apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends --no-remove "$1")
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || { [ -t 0 ] && say "sudo may ask for your password, to install $1" && sudo -v; } \
      || die "as root, run: apt-get install --no-install-recommends $1   (then this again)"
    as=(sudo)
  fi
  as+=(env DEBIAN_FRONTEND=noninteractive http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}")
  say "installing $1 (once)"
  logged "${as[@]}" "${install[@]}" || { logged "${as[@]}" apt-get -qq update && logged "${as[@]}" "${install[@]}"; } \
    || die_with_log "$home/install.log" "apt-get could not install $1: see above"
}

# Install what is called $1, by apt's package $2 or brew's mysql.
install_mysql() {
  if command -v apt-get >/dev/null; then
    apt_install "$2"
  elif command -v brew >/dev/null; then
    say "installing mysql (once)"
    logged brew install mysql || die_with_log "$home/install.log" "brew could not install mysql: see above"
  else
    die "no $1 here: install your distribution's MySQL or MariaDB, server and client, then run this again"
  fi
}

# ------------------------------------------------------------------------------------- Python and its packages

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

make_venv() {
  local name python=''
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if is_new_enough "$name"; then python=$name && break; fi
  done
  [ "$python" ] || die "Python 3.11 or newer is needed, and python3 is $(python3 --version 2>/dev/null || echo missing):" \
    "install one, from your distribution or python.org"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then  # Debian and Ubuntu keep it in a package of its own
    command -v apt-get >/dev/null || die "$python has no ensurepip: install your distribution's package of Python's venv"
    apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  fi
  say "making $venv"
  logged "$python" -m venv --clear "$venv" || die_with_log "$home/install.log" "$python could not make $venv: see above"
}

# Install the requirements file $1. A copy of it, $2 in .venv, tells whether that was done and whether it changed since.
install_requirements() {
  local file=$1 done_for=$venv/$2
  if is_new_enough "$venv/bin/python" && cmp -s "$file" "$done_for"; then return; fi
  if [ -e "$venv" ] && [ ! -w "$venv" ]; then die "$venv $not_yours"; fi
  # pip is missing where an earlier run was interrupted
  if ! is_new_enough "$venv/bin/python" || ! logged "$venv/bin/python" -m pip --version; then make_venv; fi
  say "installing the packages of $file (once, about half a minute)"
  logged "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$file" \
    || die_with_log "$home/install.log" "pip could not install $file: see above, and check the network"
  cp "$file" "$done_for"
}

# --------------------------------------------------------------------------------------------------- the server

# The server inherits a lock on .mysql/alive and holds it until it dies, however it dies. A PID file would outlive it.
is_alive() { ! lock -n 8 8>>"$home/alive"; }

# Does a database server greet us? A dying one may still accept.
greets() { (exec 3<>"/dev/tcp/127.0.0.1/$(cat "$home/port")" && LC_ALL=C read -r -t 10 -n 1 _ <&3) 2>/dev/null; }

# Waits for a server that an interrupted run left starting, and for one that is dying.
is_running() {
  local until=$((SECONDS + 60))
  while is_alive; do
    if greets; then return 0; fi
    [ $SECONDS -lt $until ] || die "the server does not answer: see $home/server.log, or end it with" \
      "kill -9 $(cat "$home/data/mysqld.pid" 2>/dev/null)"
    sleep 0.2
  done
  return 1
}

stop_server() {
  local until=$((SECONDS + 60))
  kill "$(cat "$home/data/mysqld.pid")"
  while is_alive; do
    [ $SECONDS -lt $until ] || die "the server does not stop: see $home/server.log"
    sleep 0.1
  done
  say "the server has stopped"
}

# A plain user's PATH lacks the sbin folders, cron's the others.
find_program() {
  PATH=$PATH:/usr/sbin:/usr/local/sbin:/usr/libexec:/usr/local/bin:/opt/homebrew/bin:/usr/local/mysql/bin command -v "$1"
}

# Sets `server` to a server binary and `kind` to what it is, which must be what made the data that is there.
find_server() {
  local made_by name mismatch=''
  made_by=$(cat "$home/data/.complete" 2>/dev/null || true)
  for name in mysqld mariadbd; do
    server=$(find_program "$name") || continue
    case $("$server" --no-defaults --version) in *MariaDB*) kind=MariaDB ;; *) kind=MySQL ;; esac
    if [ "${made_by:-$kind}" = "$kind" ]; then return; fi
    mismatch=$server
  done
  [ -z "$mismatch" ] \
    || die "$mismatch is not $made_by, which made $home/data: install $made_by, or remove $home to start over"
  return 1
}

# MySQL makes its system tables by itself, MariaDB from SQL files whose folder and names changed with the versions.
mariadb_system_tables() {
  local prefix folder
  prefix=$("$venv/bin/python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).resolve().parents[1])' "$server")
  for folder in "$prefix"/share/{mysql,mariadb} /usr/share/{mysql,mariadb}; do
    if ls "$folder"/*_system_tables.sql >/dev/null 2>&1; then break; fi
  done
  printf '%s\n' 'CREATE DATABASE mysql;' 'USE mysql;' 'SET @auth_root_socket = NULL;'  # one statement a line
  cat "$folder"/*_system_tables.sql "$folder"/*_performance_tables.sql "$folder"/*_system_tables_data.sql
  echo "DELETE FROM global_priv WHERE Host <> 'localhost';"  # roots of other hosts, without a password
}

create_data() {
  say "making the server's data in $home (once, some seconds)"
  rm -rf "$home/data"
  (umask 077; mkdir "$home/data")
  give_to_owner
  if [ "$kind" = MariaDB ]; then
    mariadb_system_tables | "$server" "${options[@]}" --bootstrap --silent-startup --log-warnings=0
  else
    "$server" "${options[@]}" --initialize-insecure
  fi >"$home/server.log" 2>&1 || server_failed "could not make its data"
  echo "$kind" >"$home/data/.complete"  # without it, what an interrupted run left is made again
}

server_failed() {
  local hint=''
  if [ "$kind" = MySQL ] && [ -e /etc/apparmor.d/usr.sbin.mysqld ]; then
    hint="; if AppArmor denied it, add  \"$home/**\" rwk,  to /etc/apparmor.d/local/usr.sbin.mysqld and reload apparmor"
  fi
  die_with_log "$home/server.log" "$server $1: see above and $home/server.log$hint"
}

# Start the server on port $1 in the background; sets `pid`.
launch() {
  # Left by a server that was killed; MySQL believes them when their process number is in use again.
  rm -f "$home"/data/mysqld.sock* "$home"/data/mysqld.pid
  : >"$home/server.log"
  give_to_owner
  (
    # Whoever waits until nobody has one of the caller's descriptors open, would wait for the server.
    for fd in /dev/fd/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
    done
    exec 8>>"$home/alive"
    lock -n 8
    cd /
    # The socket's path is relative to the data folder: an absolute one may have 107 bytes, this folder's may have more.
    in_own_session "$server" "${options[@]}" --bind-address=127.0.0.1 --port="$1" --socket=mysqld.sock \
      --pid-file=mysqld.pid --init-file="$home/init.sql" --secure-file-priv="$home/files" --skip-log-bin \
      --loose-mysqlx=OFF
  ) </dev/null >>"$home/server.log" 2>&1 &
  pid=$!
  disown
}

# By its log and not by a connection, which may be to somebody else's server on that port.
gets_ready() {
  until grep -q 'ready for connections' "$home/server.log"; do
    kill -0 "$pid" 2>/dev/null || return 1
    sleep 0.05
  done
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_server() {
  local first_port port
  # the binary alone: no service, no user, no data
  find_server || { install_mysql mysqld default-mysql-server-core; find_server; } || die "no mysqld, even installed"
  options=(--no-defaults --datadir="$home/data")
  if [ "$(id -u)" = 0 ]; then options+=(--user="$owner"); fi
  [ -e "$home/data/.complete" ] || create_data
  # the server sets root's password as it starts; until then the data folder, mode 700, is what keeps others out
  (umask 077; echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$(cat "$home/root.password")';" >"$home/init.sql")
  mkdir -p "$home/files"

  first_port=$(cat "$home/port" 2>/dev/null || echo 3307)
  for port in $(seq "$first_port" $((first_port + 50))); do
    if is_taken "$port"; then continue; fi
    echo "$port" >"$home/port"
    launch "$port"
    if gets_ready; then
      [ "$port" = "$first_port" ] || say "port $first_port is taken: the server is at port $port (for Power BI, too)"
      return
    fi
    grep -qi 'address already in use' "$home/server.log" || server_failed "did not start"
  done
  die "the ports $first_port to $port are all taken: put a free one into $home/port"
}

# ---------------------------------------------------------------------------------- database, table and accounts

# By the code for a MySQL of one's own.
set_up_database() {
  "$venv/bin/python" -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); from sql.create_database import set_up_private
sys.exit(set_up_private(*sys.argv[1:]))' "$project" "$home" "$database"
}

# Become mysql or mysqldump on the private server, as the account that may only read.
open_client() {
  local names=(mysql mariadb) package=default-mysql-client-core client
  if [ "$1" = mysqldump ]; then names=(mysqldump mariadb-dump) package=default-mysql-client; fi
  if ! client=$(find_program "${names[0]}" || find_program "${names[1]}"); then
    install_mysql "$1" "$package"
    client=$(find_program "${names[0]}" || find_program "${names[1]}")
  fi
  (umask 077; printf '%s\n' '[client]' protocol=tcp host=127.0.0.1 "port=$port" user=crypto_reader \
    "password=$(cat "$home/crypto_reader.password")" default-character-set=utf8mb4 '[mysql]' "database=$database" \
    >"$home/client.cnf")
  exec "$client" --defaults-file="$home/client.cnf" "${@:2}"
}

# ------------------------------------------------------------------------------------------------ in this order

if [ $stop = yes ] && [ ! -e "$home" ]; then die "no server is running"; fi
# mode 700: chmod also fails for whoever is not the owner
{ mkdir -p "$home" && chmod 700 "$home"; } 2>/dev/null \
  || die "$home $not_yours"
trap give_to_owner EXIT

exec 9>>"$home/lock"  # one at a time
lock -n 9 || { if [ -t 2 ]; then say "waiting for another call of this"; fi; lock 9; }

if [ $stop = yes ]; then
  if is_running; then stop_server; else say "no server is running"; fi
  exit
fi

install_requirements "$project/requirements.txt" installed.txt
if [ "$more_requirements" ]; then install_requirements "$more_requirements" installed-more.txt; fi

for account in root crypto_etl crypto_reader; do
  file=$home/$account.password
  if [ -s "$file" ]; then continue; fi
  (umask 077; "$venv/bin/python" -c 'import secrets; print(secrets.token_hex(16))' >"$file") || die "could not write $file"
  # the server takes root's as it starts
  if [ $account = root ] && is_running; then stop_server; fi
done
is_running || start_server
set_up_database || exit
exec 9>&-
give_to_owner  # exec runs no trap

port=$(cat "$home/port") password=$(cat "$home/crypto_etl.password") root_password=$(cat "$home/root.password")
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
export MYSQL_HOST=127.0.0.1 MYSQL_PORT="$port" MYSQL_DATABASE="$database" MYSQL_SSL_CA=none MYSQL_SECRET_ID=''
export MYSQL_USER=crypto_etl MYSQL_PASSWORD="$password"
# The account of the tests: it may create databases.
export TEST_MYSQL_HOST=127.0.0.1 TEST_MYSQL_PORT="$port" TEST_MYSQL_USER=root TEST_MYSQL_PASSWORD="$root_password"
case $1 in mysql | mysqldump) open_client "$@" ;; esac
type -P "$1" >/dev/null || { say "cannot run $1: not found, or not executable"; exit 127; }
exec "$@"
