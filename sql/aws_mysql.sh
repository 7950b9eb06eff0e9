#!/usr/bin/env bash
# The pipeline on AWS: MySQL on RDS, the scripts on Lambda, EventBridge's schedule; sql/aws_mysql.yaml describes it all.
#
#   bash sql/aws_mysql.sh deploy [--yes] [--no-run] [PARAMETER=VALUE...]   make or update it: package, stack, first run
#   bash sql/aws_mysql.sh run [ARGUMENTS...]                               a run, as pipeline_orchestrator.py ARGUMENTS
#   bash sql/aws_mysql.sh package [FILE]                                   the package for Lambda alone
#   bash sql/aws_mysql.sh powerbi                                          what Power BI asks for
#
# Needs bash, Python 3.12 to 3.14 with pip, and the AWS CLI with a login. `deploy` prints what it costs and asks first
# (--yes: does not ask), takes about 15 minutes the first time and is safe to repeat. The parameters are the template's:
# Egress=nat, AnalystCidr=203.0.113.7/32, AlarmEmail=me@example.com. From the environment come AWS_PROFILE, AWS_REGION,
# STACK (the name of it all, default crypto), ARCHITECTURE (arm64 or x86_64), PYTHON (the interpreter whose version the
# package is for) and RDS_CA_BUNDLE (the CA certificates of RDS, when they cannot be fetched).
# Works with bash 3.2 (macOS), and there is no zip, sha256sum or timeout there: Python does that.
set -euo pipefail

say() { echo "aws_mysql: $*" >&2; }
die() { say "$@"; exit 1; }
refuse() { say "$@"; exit 2; }

usage="usage: bash sql/aws_mysql.sh deploy [--yes] [--no-run] [PARAMETER=VALUE...]  |  run [ARGUMENTS...]  |"
usage="$usage  package [FILE]  |  powerbi"
case $OSTYPE in
  msys* | cygwin*) die "this needs Linux, macOS or AWS CloudShell: on Windows use WSL" ;;
esac

project=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
template=$project/sql/aws_mysql.yaml
stack=${STACK:-crypto}
this="bash sql/aws_mysql.sh"  # as the user is told to type it
[ "$stack" = crypto ] || this="STACK=$stack $this"

export AWS_PAGER='' AWS_CLI_AUTO_PROMPT=off  # either would wait for a key

# ---------------------------------------------------------------------------------------------- temporary files

work=$(mktemp -d "${TMPDIR:-/tmp}/aws_mysql.XXXXXX") || die "cannot make a temporary folder: TMPDIR names where"
partial=''   # what `package` has not finished yet
goes_on=''   # what AWS goes on with when this is interrupted
trap 'rm -rf "$work" ${partial:+"$partial"}' EXIT
interrupted() {
  [ -z "$goes_on" ] || say "interrupted: $goes_on"
  exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP
export TMPDIR="$work"  # pip's temporary files, too

# ------------------------------------------------------------------------------------------- what must be there

# Nothing of the caller's environment may change what is built: a hash seed, .pyc files of other names (-O) or in other
# folders, warnings as errors, a module of the caller's folder.
py() {
  PYTHONHASHSEED=0 PYTHONOPTIMIZE='' PYTHONPYCACHEPREFIX='' PYTHONWARNINGS=ignore PYTHONSAFEPATH=1 "$python" "$@"
}

# The version of the Python $1, such as 3.13; nothing when it does not run.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# Sets `python`, with pip, and its `version`, whose bytecode goes into the package.
find_python() {
  local name names=(python3 python3.14 python3.13 python3.12) found='' without_pip=''
  local install="in AWS CloudShell: sudo dnf install -y python3.13 python3.13-pip; on a Mac: brew install python@3.13"
  if [ "${PYTHON:-}" ]; then names=("$PYTHON"); fi
  for name in "${names[@]}"; do
    python=$name version=$(version_of "$name")
    [ -z "$version" ] || found="${found:-$name is $version}"
    case $version in 3.12 | 3.13 | 3.14) ;; *) continue ;; esac
    if py -c 'import pip' 2>/dev/null; then return; fi
    without_pip="${without_pip:-$name}"
  done
  if [ "$without_pip" ]; then
    say "$without_pip has no pip: install it ($install; on Debian and Ubuntu: apt-get install python3-pip)," \
      "or name another Python with PYTHON=..."
  else
    say "Python 3.12 to 3.14 is needed, as AWS Lambda has, and ${found:-${names[0]} does not run}: install one" \
      "($install; else from your distribution or python.org), or name it with PYTHON=..."
  fi
  return 1
}

# Sets `python` to any Python 3: it has to read JSON, no more.
find_any_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python; do
    python=$name
    case $(version_of "$name") in 3.*) return ;; esac
  done
  say "Python 3 is missing: install it, or name it with PYTHON=..."
  return 1
}

find_aws() {
  local install="install version 2 (on a Mac: brew install awscli), see"
  install="$install https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html"
  command -v aws >/dev/null || { say "the AWS CLI is missing: $install"; return 1; }
  case $(aws --version 2>&1 || true) in
    aws-cli/1.*) say "version 2 of the AWS CLI is needed, and this is version 1: $install"; return 1 ;;
  esac
}

# The name becomes a part of the bucket's, which may have 63 characters: NAME-code-ACCOUNT-REGION.
check_stack_name() {
  local lower=abcdefghijklmnopqrstuvwxyz  # [a-z] has capitals in some locales
  case $stack in
    [!$lower]* | *[!${lower}0-9-]*) ;;
    *) [ ${#stack} -gt 30 ] || return 0 ;;
  esac
  refuse "STACK=$stack cannot be part of a bucket's name: lower-case letters, digits and hyphens, a letter first," \
    "at most 30 characters"
}

find_region() {
  region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
  [ "$region" ] || region=$(aws configure get region 2>/dev/null) || true
  [ "$region" ] || refuse "no region is set: export AWS_REGION=us-east-1, or one near you, or run: aws configure"
  case $region in *[!a-z0-9-]*) refuse "AWS_REGION=$region is no region: an example is us-east-1" ;; esac
  export AWS_REGION="$region" AWS_DEFAULT_REGION="$region"
}

# ------------------------------------------------------------------------------------------------ AWS's answers

login_again="log in again: aws sso login, or aws configure; AWS_PROFILE names the profile"

# What to do about AWS's words in the file $1; $2 when they are none of the common ones.
next_step() {
  case $(cat "$1") in
    *AccessDenied* | *"not authorized"* | *UnauthorizedOperation*)
      echo "this login lacks a right: use another one (AWS_PROFILE), or ask whoever administers the account" ;;
    *[Ee]xpired* | *"ocate credentials"* | *InvalidClientTokenId* | *UnrecognizedClient* | *SignatureDoesNotMatch* | \
      *"SSO Token"* | *"SSO session"* | *"config profile"* | *"security token"*)
      echo "$login_again (a region that is not enabled in the account answers this, too)" ;;
    *"Read timeout"* | *"onnection was closed"*)
      echo "the connection was lost, what was started goes on: wait for its end, then run this again" ;;
    *"endpoint URL"* | *"nvalid endpoint"* | *"supported format"* | *"LocationConstraint"*)
      echo "check the region, AWS_REGION=$region, and the network" ;;
    *LimitExceeded* | *QuotaExceeded* | *[Qq]uota* | *"maximum number of"* | *"has been reached"*)
      echo "a quota of the account is full: remove what is not used, or have it raised in Service Quotas in $region" ;;
    *"lready exists"* | *AlreadyExists* | *BucketAlreadyOwnedByYou*)
      echo "a name is taken: delete what has it, or choose another: STACK=crypto2 bash sql/aws_mysql.sh deploy" ;;
    *FreeTierRestriction*)
      echo "AWS's free plan does not allow it: upgrade the account, or lower the number in $template (such as" \
        "BackupRetentionPeriod)" ;;
    *) echo "$2" ;;
  esac
}

# AWS's words about the last call, then what to do: $1 when that is not known from the words.
aws_failed() {
  local hint
  cat "$work/words" >&2
  hint=$(next_step "$work/words" "$1")
  die "$hint"
}

# Did the last call fail with these words, or without any?
words_are() { [ ! -s "$work/words" ] || grep -q -F -e "$1" "$work/words"; }

# Sets `value` to the stack's output $1. Without $2 it must be there; else $2 stands for one that is not.
read_output() {
  value=$(aws cloudformation describe-stacks --stack-name "$stack" \
    --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue" --output text 2>"$work/words") || {
    if words_are 'does not exist'; then
      cat "$work/words" >&2
      die "there is no stack $stack in $region: deploy it first: $this deploy"
    fi
    aws_failed "look at the stack: aws cloudformation describe-stacks --stack-name $stack --region $region"
  }
  case $value in
    '' | None)
      [ $# = 2 ] || die "the stack $stack has no output $1: deploy it first: $this deploy"
      value=$2 ;;
  esac
}

# Invoke the function of the output $1, whose log is the output $2, with the event $3. Prints its result; or the line of
# its failure, and returns the exit code that this line begins with, else 1. One attempt: the CLI's retry after a lost
# connection would run it twice.
invoke() {
  local name value function_error code=0
  read_output "$1"
  name=$value
  function_error=$(AWS_MAX_ATTEMPTS=1 aws lambda invoke --function-name "$name" \
    --cli-binary-format raw-in-base64-out --cli-read-timeout 900 --payload "$3" \
    --query FunctionError --output text "$work/answer" 2>"$work/words") \
    || aws_failed "look at the function $name in Lambda, then run this again"
  py - "$function_error" "$work/answer" >"$work/text" <<'PYTHON' || code=$?
import json
import re
import sys


def read(path):
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def show(text):
    sys.stdout.buffer.write((text.rstrip("\n") + "\n").encode("utf-8", "replace"))


error, answer = sys.argv[1], read(sys.argv[2])
fields = answer if isinstance(answer, dict) else {}
if error in ("", "None", "null") and not ("errorMessage" in fields and "result" not in fields):
    result = fields.get("result", answer)
    show(result if isinstance(result, str) else json.dumps(result))
    sys.exit(0)
line = " ".join(str(fields.get("errorMessage") or answer or error).split("\n"))
named = re.match(r"exit code ([0-9]{1,3}): ", line)
if not named and fields.get("errorType"):
    line = "%s: %s" % (fields["errorType"], line)
show(line)
sys.exit(int(named.group(1)) if named and 0 < int(named.group(1)) < 256 else 1)
PYTHON
  if [ $code = 0 ]; then cat "$work/text"; return; fi
  cat "$work/text" >&2
  if ! grep -q '^exit code ' "$work/text"; then  # a bug, or Lambda's own words
    read_output "$2" LOG-GROUP
    say "its log says more: aws logs tail $value --since 30m --region $region"
  fi
  return $code
}

# -------------------------------------------------------------------------------------------------- the package

# Sets `architecture`.
find_architecture() {
  architecture=${ARCHITECTURE:-}
  if [ -z "$architecture" ]; then
    architecture=$(sed -n '/^  Architecture:/,$ s/.*Default: *"\{0,1\}\([a-z0-9_]*\).*/\1/p' "$template" | sed -n 1p)
  fi
  case $architecture in
    arm64 | x86_64) ;;
    *) refuse "ARCHITECTURE=$architecture is none of Lambda's: arm64 or x86_64" ;;
  esac
}

# The end of the log $1 and the reason why this ends here.
die_with_log() {
  tail -n 4 "$work/$1.log" >&2
  die "$2"
}

# A file with a key in it would carry that key to Lambda.
check_ca_bundle() {
  local line
  if [ -z "${RDS_CA_BUNDLE:-}" ]; then return; fi
  if [ ! -r "$RDS_CA_BUNDLE" ] || [ -d "$RDS_CA_BUNDLE" ]; then
    die "RDS_CA_BUNDLE=$RDS_CA_BUNDLE cannot be read: name the file of RDS's CA certificates"
  fi
  for line in BEGIN END; do
    grep -q -e "-----$line CERTIFICATE-----" "$RDS_CA_BUNDLE" \
      || die "RDS_CA_BUNDLE=$RDS_CA_BUNDLE holds no certificates (PEM): name the file of RDS's CA certificates"
  done
  ! grep -q -e 'PRIVATE KEY-----' "$RDS_CA_BUNDLE" \
    || die "RDS_CA_BUNDLE=$RDS_CA_BUNDLE holds a private key, which must not get into the package: remove it"
}

# The packages of requirements.txt as Lambda's Linux takes them, whatever this machine is.
install_packages() {
  local machine=$architecture platform platforms=()
  if [ "$machine" = arm64 ]; then machine=aarch64; fi
  for platform in manylinux2014 manylinux_2_17 manylinux_2_28; do platforms+=(--platform "${platform}_$machine"); done
  grep -viE '^ *(pytest|responses)([^A-Za-z0-9_.-]|$)' "$project/requirements.txt" >"$work/requirements.txt"
  # no package of ours needs a newer one, and boto3, which is there in Lambda's Python, would find that
  echo 'python-dateutil<3' >"$work/constraints.txt"
  PIP_USER=0 py -m pip install -q --disable-pip-version-check --no-input --no-compile --only-binary=:all: \
    --implementation cp --python-version "$version" "${platforms[@]}" --target "$task" -c "$work/constraints.txt" \
    -r "$work/requirements.txt" </dev/null >"$work/pip.log" 2>&1 \
    || die_with_log pip "pip could not install $project/requirements.txt: see above, and check the network"
}

copy_scripts() {
  cp "$project"/{etl_crypto,segment_and_load,pipeline_orchestrator}.py "$task"
  mkdir -p "$task/sql"
  cp "$project"/sql/*.py "$project"/sql/*.sql "$task/sql"
}

# With the CA certificates of the system and of certifi: Python from python.org has none of its own on a Mac.
fetch_ca_bundle() {
  local url=https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem problem
  problem="the CA certificates of RDS could not be fetched: check the network and run this again, or get $url in"
  problem="$problem another way and name the file with RDS_CA_BUNDLE=..."
  if [ "${RDS_CA_BUNDLE:-}" ]; then
    cp "$RDS_CA_BUNDLE" "$1"
    return
  fi
  py - "$url" "$task/certifi/cacert.pem" "$1" <<'PYTHON' || die "$problem"
import ssl
import sys
import urllib.request

url, certifi, path = sys.argv[1:]
try:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi)
    with urllib.request.urlopen(url, timeout=30, context=context) as response:
        bundle = response.read()
    if b"-----BEGIN CERTIFICATE-----" not in bundle:
        raise ValueError("what came are no certificates")
    with open(path, "wb") as file:
        file.write(bundle)
except (OSError, ValueError) as error:
    sys.exit("%s: %s" % (url, error))
PYTHON
}

# What the pipeline never imports, a third of it all; and RECORD, which differs with the path of this Python.
remove_the_unused() {
  py - "$task" <<'PYTHON'
import shutil
import sys
from pathlib import Path

task = Path(sys.argv[1])
for name in ("bin", "mysql/ai", "mysql/connector/aio", "mysql/connector/django", "mysql/vendor/private", "numpy/f2py"):
    shutil.rmtree(task / name, ignore_errors=True)
for path in sorted(task.rglob("*"), reverse=True):
    if path.is_dir() and path.name in ("test", "tests", "__pycache__"):
        shutil.rmtree(path)
    elif path.is_file() and (
        path.name in ("conftest.py", "RECORD")
        or (path.parent == task / "mysql/vendor/plugin" and path.name != "mysql_native_password.so")
    ):
        path.unlink()
PYTHON
}

# The same bytes for the same files: names in order, one date, modes of their own. The umask of whoever packs must not
# be in it: Lambda's user has to read it all. Prints sizes in MB and the sha256.
write_zip() {
  py - "$task" "$1" <<'PYTHON'
import hashlib
import sys
import zipfile
from pathlib import Path

MAX_ZIPPED, MAX_UNZIPPED = 52_428_800, 262_144_000  # Lambda's limits

task, target = map(Path, sys.argv[1:])
unzipped = 0
with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as package:
    for path in sorted(task.rglob("*"), key=lambda path: path.relative_to(task).as_posix()):
        folder = path.is_dir()
        entry = zipfile.ZipInfo(path.relative_to(task).as_posix() + "/" * folder, (1980, 1, 1, 0, 0, 0))
        entry.create_system = 3  # the modes below are Unix modes
        entry.compress_type = zipfile.ZIP_STORED if folder else zipfile.ZIP_DEFLATED
        mode = 0o040755 if folder else 0o100755 if ".so" in path.suffixes else 0o100644
        entry.external_attr = mode << 16 | 0x10 * folder
        content = b"" if folder else path.read_bytes()
        unzipped += len(content)
        package.writestr(entry, content)
zipped = target.stat().st_size
for size, most, what in (zipped, MAX_ZIPPED, "zipped"), (unzipped, MAX_UNZIPPED, "unzipped"):
    if size > most:
        sys.exit(
            f"aws_mysql: the package has {size:,} bytes {what} and Lambda takes {most:,}: "
            "did requirements.txt grow, or another file beside the scripts?"
        )
print(f"{zipped / 1e6:.1f} {unzipped / 1e6:.1f} {hashlib.sha256(target.read_bytes()).hexdigest()}")
PYTHON
}

# Build the package as the file $1; sets `built` and `sha256`.
build_package() {
  local zipped unzipped
  task=$work/task
  mkdir "$task"
  say "building the package for Python $version on $architecture (about a minute)"
  install_packages
  copy_scripts
  fetch_ca_bundle "$task/sql/aws-rds-ca.pem"
  remove_the_unused
  # /var/task is read-only: without bytecode, each cold start would compile pandas, 5 s at 1,024 MB. unchecked-hash:
  # Python must not compare dates. The names in it are for tracebacks.
  py -m compileall -q --invalidation-mode unchecked-hash -s "$task" -p /var/task "$task" >"$work/compile.log" 2>&1 \
    || die_with_log compile "the package does not compile with Python $version: see above"
  write_zip "$1" >"$work/built" || exit 1
  read -r zipped unzipped sha256 <"$work/built"
  built="$zipped MB zipped, $unzipped MB unzipped, for Python $version on $architecture, sha256 $sha256"
  rm -rf "$task"
}

# ------------------------------------------------------------------------------------------------------- deploy

parameters=()  # PARAMETER=VALUE of the command line

# The parameters of the template, one a line.
template_parameters() {
  sed -n '/^Parameters:/,/^[A-Z]/ s/^  \([A-Za-z0-9]*\):.*/\1/p' "$template"
}

check_parameter() {
  local name=${1%%=*} known
  case $name in
    Architecture) refuse "Architecture is set by this script: set ARCHITECTURE=${1#*=} in the environment" ;;
    Runtime) refuse "Runtime is set by this script: name a Python of that version with PYTHON=... in the environment" ;;
    CodeBucket | CodeKey) refuse "$name is set by this script: the bucket is named after STACK in the environment" ;;
  esac
  known=$(template_parameters | grep -vxE 'Architecture|Runtime|CodeBucket|CodeKey')
  grep -qxF -e "$name" <<<"$known" || refuse "there is no parameter $name; there are: ${known//$'\n'/ }"
  case $1 in
    Egress=ipv6 | Egress=nat) ;;
    Egress=*) refuse "$1: it is ipv6, or nat" ;;
  esac
}

# Sets the variable $1 to what the parameter $2 will be: as given, else as the stack has it, $3, else the default $4.
effective() {
  local parameter result=$3
  [ "$result" ] || result=$4
  for parameter in ${parameters[@]+"${parameters[@]}"}; do
    if [ "${parameter%%=*}" = "$2" ]; then result=${parameter#*=}; fi
  done
  printf -v "$1" %s "$result"
}

# Sets `account`.
check_login() {
  account=$(aws sts get-caller-identity --query Account --output text 2>"$work/words") || aws_failed "$login_again"
  case $account in '' | *[!0-9]*) die "AWS names no account number, but: $account; $login_again" ;; esac
}

# Sets `state`, empty for a stack that is not there, and what it has of the parameters that matter here.
read_state() {
  local line name query="Stacks[0].[StackStatus,Parameters[?ParameterKey=='CodeKey']|[0].ParameterKey"
  query="$query,Outputs[?OutputKey=='Pipeline']|[0].OutputKey"
  for name in Egress DatabaseClass AnalystCidr; do
    query="$query,Parameters[?ParameterKey=='$name']|[0].ParameterValue"
  done
  state='' code_key='' pipeline='' old_egress='' old_class='' old_cidr=''
  if line=$(aws cloudformation describe-stacks --stack-name "$stack" --query "$query]" --output text \
      2>"$work/words"); then
    IFS=$'\t' read -r state code_key pipeline old_egress old_class old_cidr <<<"$line"
  elif ! words_are 'does not exist'; then
    aws_failed "check the region, AWS_REGION=$region, and the network"
  fi
  for name in state old_egress old_class old_cidr; do
    if [ "${!name}" = None ]; then printf -v "$name" %s ''; fi
  done
  # what an interrupted first deploy may leave: no resources, and the next one takes it over
  if [ "$state" = REVIEW_IN_PROGRESS ]; then state=''; fi
}

print_deletion() {
  local protection="--no-deletion-protection --apply-immediately"
  echo "  aws rds modify-db-instance --db-instance-identifier $1 $protection --region $region"
  echo "  aws cloudformation delete-stack --stack-name $stack --region $region"
  echo "  aws cloudformation wait stack-delete-complete --stack-name $stack --region $region"
}

# The commands for a stack of which nothing works, and what that deletes; ends the script.
must_be_deleted() {
  local resource="aws cloudformation describe-stack-resource --stack-name $stack --logical-resource-id Database"
  resource="$resource --query StackResourceDetail.PhysicalResourceId --output text --region $region"
  print_deletion "\$($resource)" >&2
  die "$1 (the first lifts the deletion protection: it fails where no database is left, go on with the second)"
}

check_state() {
  local until=$((SECONDS + 3600)) seen=''
  read_state
  while :; do
    case $state in *_IN_PROGRESS) ;; *) break ;; esac
    [ "$state" = "$seen" ] || say "the stack $stack is in $state: waiting until that is over"
    seen=$state
    [ $SECONDS -lt $until ] || die "the stack $stack is in $state for an hour: look at it, then run this again"
    sleep 15
    read_state
  done
  case $state in
    ROLLBACK_COMPLETE | ROLLBACK_FAILED | CREATE_FAILED | DELETE_FAILED)
      must_be_deleted "the stack $stack is in $state, which no deploy changes: delete it so, then deploy again" ;;
    UPDATE_ROLLBACK_FAILED)
      die "the stack $stack is in $state: run this, then deploy again:" \
        "aws cloudformation continue-update-rollback --stack-name $stack --region $region" ;;
  esac
  if [ "$state" ] && [ "$code_key $pipeline" = 'None None' ]; then
    die "the stack $stack in $region belongs to something else and would be overwritten: choose another name, STACK=..."
  fi
}

# Does the host $1 have an IPv6 address? One of NAT64 (64:ff9b::) is this network's own, not the host's.
has_ipv6() {
  py -c 'import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], 443, socket.AF_INET6)
except OSError:
    found = []
sys.exit(not [a for a in found if not str(a[4][0]).startswith(("64:ff9b:", "::ffff:"))])' "$1"
}

check_way_out() {
  if [ "$egress" = nat ]; then return; fi
  has_ipv6 api.coingecko.com || die "api.coingecko.com has no IPv6 address, as far as this machine can see, and" \
    "without one the pipeline on AWS does not reach it: deploy with Egress=nat, about 36.50 USD a month more"
  has_ipv6 pro-api.coingecko.com || say "pro-api.coingecko.com has no IPv6 address: a paid plan's key needs Egress=nat"
}

# List prices of us-east-1 without the free tier.
say_cost() {
  local cents=1600 more=''
  if [ "$cidr" ]; then cents=$((cents + 365)) more="$more, 3.65 of it for the public address of AnalystCidr"; fi
  if [ "$egress" = nat ]; then cents=$((cents + 3650)) more="$more, 36.50 of it for Egress=nat"; fi
  if [ "$class" != db.t4g.micro ]; then more="$more, and more than that: $class instead of db.t4g.micro"; fi
  local usd=$((cents / 100))
  if [ $((cents % 100)) != 0 ]; then printf -v usd %d.%02d $usd $((cents % 100)); fi
  say "this costs about $usd USD a month (list prices of us-east-1)$more"
}

ask() {
  local answer='' what=make
  if [ "$state" ]; then what=update; fi
  printf 'aws_mysql: %s the stack %s in %s, AWS account %s? [y/N] ' "$what" "$stack" "$region" "$account" >&2
  read -r answer || echo >&2
  case $answer in
    [Yy] | [Yy][Ee][Ss]) ;;
    *) die "nothing was made" ;;
  esac
}

# The bucket of the package. One of that name that belongs to somebody else must never get the code.
make_bucket() {
  bucket=$stack-code-$account-$region
  if ! aws s3api head-bucket --bucket "$bucket" --expected-bucket-owner "$account" >/dev/null 2>"$work/words"; then
    words_are '(404)' \
      || aws_failed "the bucket $bucket is somebody else's, or not to be seen by this login: choose a name, STACK=..."
    say "making the bucket $bucket"
    aws s3 mb "s3://$bucket" >/dev/null 2>"$work/words" || aws_failed "the bucket $bucket cannot be made"
  fi
  aws s3api put-public-access-block --bucket "$bucket" --expected-bucket-owner "$account" \
    --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true \
    >/dev/null 2>"$work/words" || aws_failed "the bucket $bucket cannot be closed to the public: run this again"
}

upload() {
  key=$(printf %.32s "$sha256").zip
  say "uploading the package"
  aws s3 cp --no-progress "$work/package.zip" "s3://$bucket/$key" >/dev/null 2>"$work/words" \
    || aws_failed "the package cannot be put into the bucket $bucket: run this again"
}

# Why CloudFormation failed this time: the events come newest first, and the first failure led to the others. What was
# cancelled because of another resource says nothing.
say_reasons() {
  aws cloudformation describe-stack-events --stack-name "$stack" \
    --query "StackEvents[].[ResourceStatus,LogicalResourceId,ResourceStatusReason]" \
    --output text >"$work/events" 2>&1 || true
  sed '/User Initiated/q' "$work/events" | grep -e '^CREATE_FAILED' -e '^UPDATE_FAILED' \
    | grep -v -i -e 'creation cancelled' -e 'update cancelled' | tail -n 5 >"$work/reasons" || true
  cat "$work/reasons" >&2
}

make_stack() {
  local hint
  if [ "$state" ]; then say "updating the stack $stack"; else say "making the stack $stack (about 15 minutes)"; fi
  goes_on="CloudFormation goes on; the next deploy waits for it"
  if aws cloudformation deploy --stack-name "$stack" --template-file "$template" --capabilities CAPABILITY_IAM \
    --no-fail-on-empty-changeset --parameter-overrides "CodeBucket=$bucket" "CodeKey=$key" "Runtime=python$version" \
    "Architecture=$architecture" ${parameters[@]+"${parameters[@]}"} >&2 2>"$work/words"; then
    goes_on=''
    return
  fi
  cat "$work/words" >&2
  say_reasons
  cat "$work/words" >>"$work/reasons"
  hint=$(next_step "$work/reasons" "correct what AWS names above")
  if ! grep -q 'Failed to create/update the stack' "$work/words"; then
    die "CloudFormation did not finish: $hint; then deploy again"
  elif [ "$state" ]; then
    die "the stack $stack was not updated: $hint; then deploy again"
  fi
  must_be_deleted "the stack $stack could not be made: $hint; delete what is left so, then deploy again"
}

# What there is to do now, and how to remove it all.
say_next() {
  local parameter database files key='{"api_key": "YOUR-KEY", "api_plan": "demo"}'
  read_output CoinGeckoSecret SECRET
  echo
  echo "CoinGecko's key (without one it works, slowly; the plan is demo or pro):"
  echo "  aws secretsmanager put-secret-value --secret-id $value --secret-string '$key' --region $region"
  echo "Power BI:"
  echo "  $this powerbi"
  echo "How old the figures are:"
  echo "  $this run --status"
  for parameter in ${parameters[@]+"${parameters[@]}"}; do
    case $parameter in
      AlarmEmail=?*)
        echo "Alarms: ${parameter#*=} gets a mail from AWS, which must be confirmed. The first mail after that may be"
        echo "ALARM, as no run has succeeded yet; OK follows the first run." ;;
    esac
  done
  echo "To remove it all:"
  read_output Database DATABASE-IDENTIFIER
  database=$value
  read_output Files FILE-SYSTEM-ID
  files=$value
  print_deletion "$database"
  echo "Kept even then: a last snapshot of the database (aws rds describe-db-snapshots --region $region lists it),"
  echo "AWS Backup's copies of the raw snapshots and, until these commands remove them, these and the package:"
  echo "  aws efs delete-file-system --file-system-id $files --region $region"
  echo "  aws s3 rb --force s3://$bucket --region $region"
}

# ---------------------------------------------------------------------------------------------- the subcommands

deploy() {
  local yes=no first_run=yes argument egress class cidr value code=0 missing=no
  for argument in "$@"; do
    case $argument in
      --yes) yes=yes ;;
      --no-run) first_run=no ;;
      -* | =*) refuse "$usage" ;;
      *=*) check_parameter "$argument"; parameters+=("$argument") ;;
      *) refuse "$usage" ;;
    esac
  done
  check_stack_name
  find_architecture
  check_ca_bundle
  find_python || missing=yes
  find_aws || missing=yes
  [ $missing = no ] || exit 1
  find_region
  check_login
  check_state
  effective egress Egress "$old_egress" ipv6
  effective class DatabaseClass "$old_class" db.t4g.micro
  effective cidr AnalystCidr "$old_cidr" ''

  if [ $yes = no ] && [ ! -t 0 ]; then
    say_cost
    refuse "nothing was made: there is no terminal to ask on, and --yes was not given"
  fi
  check_way_out
  say_cost
  [ $yes = yes ] || ask

  build_package "$work/package.zip"
  say "the package has $built"
  make_bucket
  upload
  make_stack

  say "making the database, the table and the accounts"
  invoke Setup SetupLog '{}' || code=$?
  if [ $code = 0 ] && [ $first_run = yes ]; then
    say "the first run"
    goes_on="the run goes on in AWS"
    invoke Pipeline Log '{"arguments": []}' || code=$?
    goes_on=''
    if [ $code = 5 ]; then code=0; fi  # the schedule, which begins as it is made, was quicker
    [ $code = 0 ] || say "the stack $stack is there, its first run failed: do what the line above says, then: $this run"
  elif [ $code != 0 ]; then
    say "the stack $stack is there, its set-up failed: do what the line above says, then deploy again"
  fi
  say_next
  exit $code
}

run() {
  local event missing=no code=0
  check_stack_name
  find_any_python || missing=yes
  find_aws || missing=yes
  [ $missing = no ] || exit 1
  find_region
  event=$(py -c 'import json, sys; print(json.dumps({"arguments": sys.argv[1:]}))' "$@") || exit 1
  goes_on="the run goes on in AWS"
  invoke Pipeline Log "$event" || code=$?
  goes_on=''
  exit $code
}

# A file of the project, or any other that is no package, is not overwritten.
package() {
  local file=${1:-crypto-lambda.zip} folder
  [ $# -le 1 ] || refuse "$usage"
  case $file in -*) refuse "$usage" ;; esac
  folder=$(CDPATH='' cd "$(dirname "$file")" 2>/dev/null && pwd) || die "there is no folder for $file: make it first"
  file=${folder%/}/${file##*/}
  [ ! -d "$file" ] || die "$file is a folder: name a file"
  if [ -s "$file" ] && [ "$(head -c 2 "$file" | tr -d '\0')" != PK ]; then
    die "$file is there and no package: name another file"
  fi
  [ -w "$folder" ] || die "$folder cannot be written: name a file in another folder"
  find_architecture
  check_ca_bundle
  find_python || exit 1
  partial=$folder/.${file##*/}.$$
  build_package "$partial"
  mv -f "$partial" "$file"
  echo "$file: $built"
}

powerbi() {
  local server database
  [ $# = 0 ] || refuse "$usage"
  check_stack_name
  find_aws || exit 1
  find_region
  read_output Server
  server=$value
  read_output DatabaseName
  database=$value
  read_output ReaderSecret
  echo "MySQLServer    $server"
  echo "MySQLDatabase  $database"
  echo "account        crypto_reader"
  echo "password       the field \"password\" of what this prints:"
  echo "  aws secretsmanager get-secret-value --secret-id $value --query SecretString --output text --region $region"
  say "only the address that was given as AnalystCidr reaches it: $this deploy AnalystCidr=YOUR.PUBLIC.ADDRESS/32"
}

case ${1:-} in
  deploy | run | package | powerbi) "$@" ;;
  *) refuse "$usage" ;;
esac
