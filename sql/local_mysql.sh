#!/usr/bin/env bash
# A private database server for this project, then COMMAND with the settings to reach it.
#
#   bash sql/local_mysql.sh python pipeline_orchestrator.py
#   bash sql/local_mysql.sh --with more-requirements.txt COMMAND...   install these packages too
#   bash sql/local_mysql.sh --stop                                    stop the server
#
# The first run makes .venv with requirements.txt, and in .mysql/ a server of its own: on this machine only
# (127.0.0.1), on a port of its own, no service. Later runs find both and take about a second. The server stays up.
# MYSQL_DATABASE names the database (default crypto_db). To begin anew: --stop, then remove .mysql.
# Works with bash 3.2 (macOS). Windows: see README.md.
set -euo pipefail

say() { echo "local_mysql: $*" >&2; }
die() { say "$@"; exit 1; }

usage="usage: bash sql/local_mysql.sh [--with REQUIREMENTS] COMMAND...  |  bash sql/local_mysql.sh --stop"
stop= more_requirements=
case ${1:-} in
  --stop) stop=yes ;;
  --with)
    [ $# -ge 3 ] || die "$usage"
    [ -r "$2" ] || die "there is no file $2: --with takes a requirements file"
    more_requirements=$2
    shift 2 ;;
  '' | -*) die "$usage" ;;
esac
case $(uname -s) in MINGW* | MSYS* | CYGWIN*) die "this script needs Linux or macOS: on Windows see README.md, or use WSL" ;; esac
database=${MYSQL_DATABASE:-crypto_db}
case $database in *[!A-Za-z0-9_]*) die "MYSQL_DATABASE is '$database': use letters, digits and _ only" ;; esac

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$project/.venv
home=$project/.mysql
(umask 077; mkdir -p "$home") 2>/dev/null && [ -r "$home" ] && [ -w "$home" ] && [ -x "$home" ] \
  || die "$home cannot be written: run this as the user it belongs to, or remove it"
owner=$(stat -c %u "$home" 2>/dev/null || stat -f %u "$home")

# ---------------------------------------------------------------------------------------------- small helpers

# Lock the open file descriptor $1; with -n as $2, fail instead of waiting. macOS has no flock, but perl has it.
lock() {
  if command -v flock >/dev/null; then
    flock ${2:-} "$1"
  else
    perl -MFcntl=:flock -e 'open F, ">&=", shift or die; exit !flock F, LOCK_EX | (@ARGV ? LOCK_NB : 0)' "$@"
  fi
}

# Run a command in a session of its own, so that Ctrl-C, a closed terminal or the end of cron's job leave it alone.
in_own_session() {
  if command -v setsid >/dev/null; then exec setsid "$@"; fi
  exec perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV or die $!' "$@"
}

# Install Debian or Ubuntu packages, as root or with sudo.
apt_install() {
  local as_root=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; } \
      || die "as root, run: apt-get install --no-install-recommends $*   (then this again)"
    as_root=sudo
  fi
  say "installing $*"
  local get="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120"
  local install="$get install -y --no-install-recommends --no-remove $*"
  { $install || { $get update && $install; }; } </dev/null >"$home/install.log" 2>&1 && return
  tail -n 5 "$home/install.log" >&2
  die "apt-get could not install $*: see above and $home/install.log"
}

new_password() { LC_ALL=C tr -dc a-zA-Z0-9 </dev/urandom 2>/dev/null | head -c 24 || true; }

# Root may run this in a folder of somebody else's; the server then runs as that user and needs the files.
give_to_owner() { if [ "$(id -u)" = 0 ] && [ "$owner" != 0 ]; then chown -R "$owner" "$home"; fi; }

# ------------------------------------------------------------------------------------- Python and its packages

make_venv() {
  local python=
  for python in python3 python3.14 python3.13 python3.12 python3.11 none; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  done
  [ "$python" != none ] || die "no Python 3.11 or newer in PATH: install one, from your distribution or python.org"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then  # Debian and Ubuntu keep it in a package of its own
    command -v apt-get >/dev/null || die "$python has no ensurepip: install your distribution's package for Python's venv"
    apt_install python3-venv
  fi
  say "making $venv"
  "$python" -m venv --clear "$venv" >&2 || die "$python could not make $venv: see above"
}

# What was installed is copied into .venv: another requirements file, or a changed one, is installed when it is met.
install_requirements() {
  local file=$1 done_for
  done_for=$venv/installed-$(echo "$file" | tr / _)
  if cmp -s "$file" "$done_for"; then return; fi
  say "installing the packages of $file (once, about half a minute)"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$file" >&2 \
    || die "pip could not install $file: see above, and check the network"
  cp "$file" "$done_for"
}

# --------------------------------------------------------------------------------------------------- the server

# The server inherits a lock on .mysql/alive and so holds it until it dies, however it dies. A PID file would outlive it.
is_alive() { ! (lock 8 -n) 8>>"$home/alive"; }

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$(cat "$home/port")" && LC_ALL=C read -r -t 10 -n 1 _ <&3) 2>/dev/null; }

is_running() {
  local try
  for try in 1 2 3 4 5 6; do  # a dying server holds its lock for a moment, but greets nobody
    is_alive || return 1
    if answers; then return 0; fi
    sleep 0.5
  done
  die "the server in $home runs but does not answer: see $home/server.log, or end it with --stop"
}

stop_server() {
  local try
  is_alive || { say "no server is running"; return; }
  kill "$(cat "$home/data/mysqld.pid")"
  for try in $(seq 600); do
    is_alive || { say "the server has stopped"; return; }
    sleep 0.1
  done
  die "the server does not stop: see $home/server.log"
}

# Sets `server` to a server binary. A plain user's PATH lacks the sbin folders.
find_server() {
  local name
  for name in mysqld mariadbd; do
    server=$(PATH=$PATH:/usr/sbin:/usr/local/sbin:/usr/libexec:/opt/homebrew/bin:/usr/local/bin command -v "$name") && return
  done
  return 1
}

install_server() {
  if command -v apt-get >/dev/null; then
    apt_install default-mysql-server-core  # the binary alone: no service, no user, no data
  elif command -v brew >/dev/null; then
    brew install mysql >&2
  else
    die "no mysqld and no mariadbd: install your distribution's MySQL or MariaDB server, then run this again"
  fi
}

# MariaDB makes its system tables from SQL files that it ships; their folder changed its name with the versions.
mariadb_system_tables() {
  local share binary
  binary=$(perl -MCwd=realpath -e 'print realpath shift' "$server")
  for share in "${binary%/*/*}"/share/{mysql,mariadb} /usr/share/{mysql,mariadb}; do
    ls "$share"/*_system_tables.sql >/dev/null 2>&1 && break
  done
  echo "create database mysql;"
  echo "use mysql;"
  echo "set @auth_root_socket=NULL;"
  cat "$share"/{mysql,mariadb}_system_tables.sql "$share"/{mysql,mariadb}_performance_tables.sql \
    "$share"/{mysql,mariadb}_system_tables_data.sql "$share"/maria_add_gis_sp_bootstrap.sql \
    "$share"/{mysql,mariadb}_sys_schema.sql 2>/dev/null || true
  echo "delete from mysql.global_priv where Host <> 'localhost';"  # roots of other hosts, without a password
}

create_data() {
  rm -rf "$home/data"
  (umask 077; mkdir "$home/data")
  give_to_owner
  if "$server" --no-defaults --version | grep -qi mariadb; then
    mariadb_system_tables | sed '/@current_hostname/d' | "$server" "${options[@]}" --bootstrap --silent-startup \
      --log-warnings=0 --enforce-storage-engine= --max-allowed-packet=8M >"$home/server.log" 2>&1
  else
    "$server" "${options[@]}" --initialize-insecure >"$home/server.log" 2>&1
  fi || server_failed "could not make its data folder"
  touch "$home/data/.complete"  # without it, what an interrupted run left is made anew
  give_to_owner
}

server_failed() {
  tail -n 5 "$home/server.log" >&2
  local hint=
  if [ -e /etc/apparmor.d/usr.sbin.mysqld ]; then hint=" (AppArmor may keep mysqld out of $home: mariadb-server-core is free of that)"; fi
  die "$server $1: see above and $home/server.log$hint"
}

start_server() {
  find_server || { install_server; find_server; } || die "no mysqld and no mariadbd even after the installation"
  options=(--no-defaults --datadir="$home/data")
  if [ "$(id -u)" = 0 ]; then options+=(--user="$owner"); fi
  if [ ! -e "$home/data/.complete" ]; then create_data; fi
  # the server sets root's password as it starts; until then the data folder, mode 700, is what keeps others out
  (umask 077; echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$(cat "$home/root.password")';" >"$home/init.sql")
  mkdir -p "$home/files"

  local port try pid
  port=$(cat "$home/port" 2>/dev/null || echo 3307)
  for try in $(seq 50); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=$((port + 1)); continue; fi  # somebody else's
    # Left by a server that was killed; MySQL believes them when their process number is in use again.
    rm -f "$home"/data/mysqld.sock* "$home"/data/mysqld.pid
    : >"$home/server.log"
    give_to_owner
    (
      exec 8>>"$home/alive"
      lock 8 -n
      exec 3>&- 4>&- 5>&- 6>&- 7>&- 9>&-  # or whoever waits for one of these to close, waits for the server
      cd /
      # The socket's path is relative to the data folder: an absolute one may have 107 bytes, this folder's may have more.
      in_own_session "$server" "${options[@]}" --bind-address=127.0.0.1 --port="$port" --socket=mysqld.sock \
        --pid-file=mysqld.pid --init-file="$home/init.sql" --secure-file-priv="$home/files" --skip-log-bin --loose-mysqlx=OFF
    ) </dev/null >>"$home/server.log" 2>&1 &
    pid=$!
    disown
    while kill -0 "$pid" 2>/dev/null; do
      # not by the port, which may be somebody else's by now
      if grep -q 'ready for connections' "$home/server.log"; then
        echo "$port" >"$home/port"
        give_to_owner
        return
      fi
      sleep 0.05
    done
    grep -qiE 'address already in use|port.* in use' "$home/server.log" || server_failed "did not start"
    port=$((port + 1))
  done
  die "the ports up to $port are all taken: put a free one into $home/port"
}

# ---------------------------------------------------------------------------------- database, table and accounts

# The three SQL files, with the names and passwords of this server. Safe to repeat, as they are.
set_up_database() {
  "$venv/bin/python" - "$project/sql" "$home" "$database" <<'PYTHON'
import sys
from pathlib import Path

import mysql.connector

sql, home, database = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
password = {name: (home / f"{name}.password").read_text().strip() for name in ("root", "crypto_etl", "crypto_reader")}
port = int((home / "port").read_text())
server = mysql.connector.connect(host="127.0.0.1", port=port, user="root", password=password["root"], charset="utf8mb4")
cursor = server.cursor()
cursor.execute("SHOW DATABASES LIKE %s", (database.replace("_", r"\_"),))
is_new = not cursor.fetchall()
for name in ("database.sql", "crypto_prices.sql", "accounts.sql"):
    text = (sql / name).read_text(encoding="utf-8").replace("crypto_db", f"`{database}`")
    for account in ("crypto_etl", "crypto_reader"):
        text = text.replace(f"<password for {account}>", f"'{password[account]}'")
    cursor.execute(text)
    while cursor.nextset():
        pass
    if name == "database.sql":
        cursor.execute(f"USE `{database}`")
if is_new:
    print(f"""local_mysql: the database {database} is ready. In Power BI, enter
local_mysql:   server    127.0.0.1:{port}
local_mysql:   database  {database}
local_mysql:   user      crypto_reader, with the password in {home / "crypto_reader.password"}""", file=sys.stderr)
PYTHON
}

# ------------------------------------------------------------------------------------------------ in this order

exec 9>>"$home/lock"  # one at a time
lock 9
if [ "$stop" ]; then
  stop_server
  exit
fi

"$venv/bin/python" -c '' 2>/dev/null || make_venv
(cd "$project" && install_requirements requirements.txt)
if [ "$more_requirements" ]; then install_requirements "$more_requirements"; fi

for account in root crypto_etl crypto_reader; do
  [ -s "$home/$account.password" ] || (umask 077; new_password >"$home/$account.password")
done
is_running || start_server
set_up_database || die "the database $database could not be set up: see above and $home/server.log"
exec 9>&-

export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
export MYSQL_HOST=127.0.0.1 MYSQL_DATABASE="$database" MYSQL_USER=crypto_etl MYSQL_SSL_CA=
MYSQL_PORT=$(cat "$home/port")
MYSQL_PASSWORD=$(cat "$home/crypto_etl.password")
export MYSQL_PORT MYSQL_PASSWORD
# The account of the tests: it may create databases.
export TEST_MYSQL_HOST=127.0.0.1 TEST_MYSQL_PORT="$MYSQL_PORT" TEST_MYSQL_USER=root
TEST_MYSQL_PASSWORD=$(cat "$home/root.password")
export TEST_MYSQL_PASSWORD
exec "$@"
