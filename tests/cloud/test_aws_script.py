"""sql/aws_mysql.sh against a stand-in for the AWS CLI, with little more than bash in PATH."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cloud.fake_aws import (
    ACCOUNT,
    BUCKET,
    LINE,
    PASSWORD,
    REGION,
    RESULT,
    TOOLS,
    AwsScript,
    needs_lambdas_python,
    write_program,
)
from tests.conftest import PROJECT_DIR, TIMEOUT, posix_only, wait_until

pytestmark = posix_only
pytest.importorskip("jmespath", reason="the stand-in for the AWS CLI needs jmespath: see sql/aws_requirements.txt")

USAGE = "usage: bash sql/aws_mysql.sh deploy [--yes] [--no-run] [PARAMETER=VALUE...]  |  run [ARGUMENTS...]  |"
USAGE += "  package [FILE]  |  powerbi"
RUNTIME = f"python{sys.version_info[0]}.{sys.version_info[1]}"
STACK_EXISTS = {"StackStatus": "CREATE_COMPLETE", "Parameters": [{"ParameterKey": "CodeKey", "ParameterValue": "x"}]}
DENIED = "An error occurred (AccessDenied) when calling the Something operation: User is not authorized to perform it"


@pytest.fixture
def script(tmp_path: Path) -> AwsScript:
    return AwsScript(tmp_path / "tests")


def with_egress(egress: str) -> dict:
    return STACK_EXISTS | {"Parameters": [*STACK_EXISTS["Parameters"], parameter("Egress", egress)]}


def parameter(name: str, value: str) -> dict[str, str]:
    return {"ParameterKey": name, "ParameterValue": value}


# -------------------------------------------------------------------------------------------------------------- deploy


@needs_lambdas_python
def test_deploy_goes_step_by_step_from_the_login_to_the_first_run(script: AwsScript):
    printed = script.done("deploy", "--yes")

    steps = [step for step in script.steps() if step != "cloudformation describe-stacks"]
    assert steps == [
        "sts get-caller-identity",
        "s3api head-bucket",
        "s3 mb",
        "s3api put-public-access-block",
        "s3 cp",
        "cloudformation deploy",
        "lambda invoke",
        "lambda invoke",
    ]
    assert script.payloads() == [("crypto-setup", "{}"), ("crypto-pipeline", '{"arguments": []}')]
    assert printed.startswith(f"database crypto_db made\n{RESULT}\n")


@needs_lambdas_python
def test_the_package_goes_up_under_its_sha256_into_a_private_bucket_of_the_account(script: AwsScript):
    script.done("deploy", "--yes", "--no-run")

    key = hashlib.sha256((script.folder / "uploaded.zip").read_bytes()).hexdigest()[:32] + ".zip"
    owner = ["--expected-bucket-owner", ACCOUNT]
    assert script.call("s3api head-bucket") == ["s3api", "head-bucket", "--bucket", BUCKET, *owner]
    assert script.call("s3 mb") == ["s3", "mb", f"s3://{BUCKET}"]
    block = script.call("s3api put-public-access-block")
    assert block[block.index("--public-access-block-configuration") + 1].split(",") == [
        f"{name}=true" for name in ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    ]
    copy = script.call("s3 cp")
    assert (copy[:3], copy[-1]) == (["s3", "cp", "--no-progress"], f"s3://{BUCKET}/{key}")
    assert f"CodeKey={key}" in script.call("cloudformation deploy")


@needs_lambdas_python
def test_the_stack_gets_the_template_the_package_and_the_users_parameters(script: AwsScript):
    script.done(
        "deploy", "--yes", "Egress=nat", "ScheduleExpression=rate(1 hour)", "AlarmEmail=", ARCHITECTURE="x86_64"
    )

    call = script.call("cloudformation deploy")
    at = call.index("--parameter-overrides")
    assert call[2:at] == [
        *("--stack-name", "crypto", "--template-file", str(script.project / "sql" / "aws_mysql.yaml")),
        *("--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset"),
    ]
    overrides = call[at + 1 :]
    assert [override for override in overrides if not override.startswith("CodeKey=")] == [
        *(f"CodeBucket={BUCKET}", f"Runtime={RUNTIME}", "Architecture=x86_64"),
        *("Egress=nat", "ScheduleExpression=rate(1 hour)", "AlarmEmail="),
    ]


@needs_lambdas_python
def test_the_architecture_is_the_templates_default_when_nothing_else_is_said(script: AwsScript):
    template = (PROJECT_DIR / "sql" / "aws_mysql.yaml").read_text()
    [default] = re.findall(r"^  Architecture:.*?Default: (\w+)", template, re.M | re.S)[:1]

    script.done("deploy", "--yes", "--no-run")

    assert f"Architecture={default}" in script.call("cloudformation deploy")
    machine = {"arm64": "aarch64", "x86_64": "x86_64"}[default]
    assert f"manylinux_2_28_{machine}" in (script.folder / "pip.txt").read_text()


@needs_lambdas_python
def test_pip_gets_the_pinned_packages_without_those_of_the_tests(script: AwsScript):
    script.done("deploy", "--yes", "--no-run")

    wanted = (script.folder / "requirements.txt").read_text()
    assert re.findall(r"^(\w.*)==", wanted, re.M) == ["requests", "mysql-connector-python", "pandas", "python-dotenv"]


@needs_lambdas_python
def test_another_stack_and_region_are_in_every_name(script: AwsScript):
    printed = script.done("deploy", "--yes", STACK="coins-2", AWS_REGION=None, AWS_DEFAULT_REGION="us-west-2")

    assert f"s3://coins-2-code-{ACCOUNT}-us-west-2" in script.call("s3 mb")
    assert [function for function, _ in script.payloads()] == ["coins-2-setup", "coins-2-pipeline"]
    assert {call["env"]["AWS_REGION"] for call in script.all_calls()[1:]} == {"us-west-2"}
    assert "STACK=coins-2 bash sql/aws_mysql.sh powerbi" in printed


@needs_lambdas_python
def test_the_region_of_the_profile_counts_where_no_variable_names_one(script: AwsScript):
    script.set(configured_region="ap-southeast-2")

    script.done("deploy", "--yes", AWS_REGION=None, AWS_PROFILE="me")

    assert script.call("configure get") == ["configure", "get", "region"]
    assert f"s3://crypto-code-{ACCOUNT}-ap-southeast-2" in script.call("s3 mb")
    assert {call["env"]["AWS_PROFILE"] for call in script.all_calls()} == {"me"}


@needs_lambdas_python
def test_a_first_run_that_the_schedule_was_quicker_with_is_no_failure(script: AwsScript):
    busy = {"errorMessage": "exit code 5: another run is writing to crypto_db"}
    script.set(answers={"setup": {"result": "ok"}, "pipeline": busy})

    script.done("deploy", "--yes")


@needs_lambdas_python
def test_a_bug_in_the_set_up_names_the_log_of_the_set_up(script: AwsScript):
    script.set(answers={"setup": {"errorMessage": "'id'", "errorType": "KeyError"}})

    result = script.run("deploy", "--yes")

    assert result.returncode == 1
    assert "aws logs tail crypto-SetupLog-1" in result.stderr


@needs_lambdas_python
def test_no_run_ends_after_the_set_up(script: AwsScript):
    printed = script.done("deploy", "--yes", "--no-run")

    assert script.payloads() == [("crypto-setup", "{}")]
    assert RESULT not in printed


@needs_lambdas_python
def test_a_second_deploy_updates_and_makes_no_bucket(script: AwsScript):
    script.deployed()

    script.done("deploy", "--yes")

    closed = "s3api put-public-access-block"
    assert script.made() == [closed, "s3 cp", "cloudformation deploy", "lambda invoke", "lambda invoke"]


@needs_lambdas_python
def test_an_invocation_is_not_repeated_by_the_cli_and_waits_as_long_as_lambda_does(script: AwsScript):
    script.done("deploy", "--yes")

    for call in script.all_calls():
        is_invocation = call["argv"][:2] == ["lambda", "invoke"]
        assert call["env"].get("AWS_MAX_ATTEMPTS") == ("1" if is_invocation else None)
        if is_invocation:
            options = " ".join(call["argv"])
            assert "--cli-binary-format raw-in-base64-out --cli-read-timeout 900" in options
            assert "--query FunctionError --output text" in options


@needs_lambdas_python
def test_it_ends_with_what_to_do_next_and_how_to_remove_it_all(script: AwsScript):
    printed = script.done("deploy", "--yes", "AlarmEmail=me@example.com")

    for command in (
        "aws secretsmanager put-secret-value --secret-id arn:coingecko --secret-string",
        "bash sql/aws_mysql.sh powerbi",
        "aws rds modify-db-instance --db-instance-identifier crypto-database-1 --no-deletion-protection"
        " --apply-immediately",
        "aws cloudformation delete-stack --stack-name crypto",
        "aws efs delete-file-system --file-system-id fs-0123",
        f"aws s3 rb --force s3://{BUCKET}",
    ):
        [line] = [line for line in printed.splitlines() if command in line]
        assert line.startswith("  ")
    assert (
        printed.index("--no-deletion-protection")
        < printed.index("delete-stack")
        < printed.index("wait stack-delete-complete")
        < printed.index("delete-file-system")
    )
    assert "snapshot of the database" in printed
    assert "me@example.com gets a mail from AWS, which must be confirmed" in printed
    assert "ALARM" in printed
    assert printed.isascii()


@needs_lambdas_python
def test_nothing_is_said_of_alarms_without_an_address(script: AwsScript):
    assert "ALARM" not in script.done("deploy", "--yes")


# ----------------------------------------------------------------------------------------- what it costs, the question


@needs_lambdas_python
@pytest.mark.parametrize(
    ("parameters", "cost"),
    [
        ([], "about 16 USD a month (list prices of us-east-1)\n"),
        (["AnalystCidr=203.0.113.7/32"], "about 19.65 USD a month"),
        (["Egress=nat"], "about 52.50 USD a month"),
        (["Egress=nat", "AnalystCidr=203.0.113.7/32"], "about 56.15 USD a month"),
        (["DatabaseClass=db.t4g.small"], "more than that: db.t4g.small"),
    ],
)
def test_without_a_terminal_and_without_yes_it_prints_the_cost_and_makes_nothing(
    script: AwsScript, parameters: list[str], cost: str
):
    said = script.failed(2, "deploy", *parameters)

    assert cost in said
    assert "--yes" in said.splitlines()[-1]
    assert script.made() == []
    assert not (script.folder / "pip.txt").exists()


@needs_lambdas_python
def test_a_deployed_stack_costs_what_its_parameters_cost(script: AwsScript):
    script.done("deploy", "--yes", "--no-run", "Egress=nat", "AnalystCidr=203.0.113.7/32")

    assert "about 56.15 USD" in script.failed(2, "deploy")
    assert "about 52.50 USD" in script.failed(2, "deploy", "AnalystCidr=")


@needs_lambdas_python
@pytest.mark.parametrize(
    ("typed", "exit_code"),
    [("n\n", 1), ("\n", 1), ("no way\n", 1), ("\x04", 1), ("y\n", 0), ("Yes\n", 0)],
)
def test_on_a_terminal_it_asks_first(script: AwsScript, typed: str, exit_code: int):
    terminal, stdin = pty.openpty()
    with script.start("deploy", stdin=stdin) as process:
        os.write(terminal, typed.encode())
        _, said = process.communicate(timeout=TIMEOUT)
    os.close(stdin)
    os.close(terminal)

    assert process.returncode == exit_code, said
    asked = f"make the stack crypto in {REGION}, AWS account {ACCOUNT}? [y/N] "
    assert said.index("about 16 USD a month") < said.index(asked)
    assert (script.made() == []) is (exit_code == 1)
    assert ("nothing was made" in said) is (exit_code == 1)


# ------------------------------------------------------------------------------------------ checks before anything else


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["destroy"],
        ["deploy", "--now"],
        ["deploy", "-y"],
        ["deploy", "yes"],
        ["deploy", "=nat"],
        ["package", "--zip"],
        ["package", "a.zip", "b.zip"],
        ["powerbi", "now"],
    ],
)
def test_wrong_options_give_one_usage_line(script: AwsScript, arguments: list[str]):
    assert script.refused(2, *arguments) == f"aws_mysql: {USAGE}\n"


def test_the_usage_is_what_the_head_of_the_script_says():
    head = (PROJECT_DIR / "sql" / "aws_mysql.sh").read_text().partition("set -euo")[0]
    forms = re.findall(r"^#   bash sql/aws_mysql\.sh (.*?)  +", head, re.M)

    assert "usage: bash sql/aws_mysql.sh " + "  |  ".join(forms) == USAGE


def test_an_unknown_parameter_is_refused_with_those_that_there_are(script: AwsScript):
    said = script.refused(2, "deploy", "--yes", "Egres=nat")

    names = "ScheduleExpression CoinLimit AlarmEmail AlarmAfterHalfHours DatabaseClass EngineVersion DatabaseName"
    assert said == f"aws_mysql: there is no parameter Egres; there are: {names} AnalystCidr Egress\n"


@pytest.mark.parametrize("name", ["VpcIpv6", "Server", "Default", "Type", "AnalystCidr Egress", "E.*"])
def test_a_name_that_only_looks_like_a_parameter_is_refused(script: AwsScript, name: str):
    assert "there is no parameter" in script.refused(2, "deploy", "--yes", f"{name}=x")


def test_egress_is_one_of_two(script: AwsScript):
    assert "Egress=no: it is ipv6, or nat" in script.refused(2, "deploy", "--yes", "Egress=no")


@pytest.mark.parametrize(
    ("parameter", "variable"),
    [("Architecture", "ARCHITECTURE="), ("Runtime", "PYTHON="), ("CodeBucket", "STACK"), ("CodeKey", "STACK")],
)
def test_a_parameter_of_the_scripts_own_is_refused_with_its_variable(script: AwsScript, parameter: str, variable: str):
    said = script.refused(2, "deploy", "--yes", f"{parameter}=x")

    assert variable in said
    assert "environment" in said


@pytest.mark.parametrize("stack", ["Crypto", "1crypto", "-c", "my_crypto", "a.b", "a b", "c" * 31, "ä", "$(id)"])
@pytest.mark.parametrize("subcommand", [["deploy", "--yes"], ["run"], ["powerbi"]])
def test_a_stack_whose_name_cannot_be_a_buckets_is_refused(script: AwsScript, stack: str, subcommand: list[str]):
    said = script.refused(2, *subcommand, STACK=stack)

    assert said.startswith(f"aws_mysql: STACK={stack} cannot be part of a bucket's name")


@needs_lambdas_python
def test_the_longest_name_makes_a_bucket_of_63_characters(script: AwsScript):
    script.done("deploy", "--yes", "--no-run", STACK="c" * 30, AWS_REGION="ap-southeast-1")

    assert len(script.call("s3 mb")[2].removeprefix("s3://")) == 63


@pytest.mark.parametrize("architecture", ["aarch64", "x86", "ARM64"])
def test_an_unknown_architecture_is_refused(script: AwsScript, architecture: str):
    said = script.refused(2, "package", ARCHITECTURE=architecture)

    assert f"ARCHITECTURE={architecture} is none of Lambda's: arm64 or x86_64" in said


@pytest.mark.parametrize("subcommand", ["deploy", "run", "powerbi"])
def test_without_a_region_it_says_how_to_set_one(script: AwsScript, subcommand: str):
    if subcommand == "deploy" and script.run(subcommand).returncode == 1:
        pytest.skip("packing needs Python 3.12 to 3.14, as AWS Lambda has")
    (script.folder / "calls.jsonl").unlink(missing_ok=True)

    said = script.failed(2, subcommand, AWS_REGION=None)

    assert said.startswith("aws_mysql: no region is set: export AWS_REGION=us-east-1")
    assert script.steps() == ["configure get"]


def test_what_cannot_be_a_region_is_refused(script: AwsScript):
    assert "AWS_REGION=eu_central 1 is no region" in script.refused(2, "powerbi", AWS_REGION="eu_central 1")


@pytest.mark.parametrize("subcommand", ["deploy", "run", "powerbi"])
def test_a_missing_aws_cli_is_named(script: AwsScript, subcommand: str):
    (script.path / "aws").unlink()

    assert "aws_mysql: the AWS CLI is missing: install version 2" in script.failed(1, subcommand)


@pytest.mark.parametrize("subcommand", ["deploy", "run", "powerbi"])
def test_version_1_of_the_aws_cli_is_refused(script: AwsScript, subcommand: str):
    script.set(version="aws-cli/1.45.11 Python/3.11.7 Linux/6.18 botocore/1.43.11")

    assert "version 2 of the AWS CLI is needed" in script.failed(1, subcommand)
    assert script.calls() == []


def test_an_aws_cli_of_an_unknown_version_is_taken(script: AwsScript):
    script.set(version="something", stack={**STACK_EXISTS, "Outputs": [output("Pipeline", "crypto-pipeline")]})

    assert script.done("run") == f"{RESULT}\n"


@pytest.mark.parametrize("subcommand", ["deploy", "package"])
def test_a_python_that_is_too_old_is_named_with_what_to_install(script: AwsScript, subcommand: str):
    write_program(script.path / "old", "#!/bin/sh", "echo 3.9")

    said = script.refused(1, subcommand, PYTHON=str(script.path / "old"))

    assert "Python 3.12 to 3.14 is needed, as AWS Lambda has, and " in said
    assert "old is 3.9: install one (in AWS CloudShell: sudo dnf install -y python3.13 python3.13-pip" in said


def test_python_and_the_aws_cli_are_both_named_when_both_are_missing(script: AwsScript):
    for program in ("aws", "python3"):
        (script.path / program).unlink()

    said = script.failed(1, "deploy", "--yes")

    assert "Python 3.12 to 3.14 is needed, as AWS Lambda has, and python3 does not run" in said
    assert "the AWS CLI is missing" in said
    assert script.failed(1, "run").count("\n") == 2


@needs_lambdas_python
def test_a_newer_python_is_found_where_python3_is_too_old(script: AwsScript):
    (script.path / "python3").rename(script.path / f"python3.{sys.version_info[1]}")
    write_program(script.path / "python3", "#!/bin/sh", "echo 3.9")

    script.done("deploy", "--yes", "--no-run")

    assert f"Runtime={RUNTIME}" in script.call("cloudformation deploy")


@needs_lambdas_python
def test_a_python_without_pip_is_named(script: AwsScript):
    python = script.path / "without pip"
    write_program(
        python,
        "#!/bin/sh",
        f'case "$*" in *"import pip"*) exit 1 ;; esac; exec {script.path}/python3 "$@"',
    )

    assert "without pip has no pip: install it" in script.refused(1, "package", PYTHON=str(python))


@needs_lambdas_python
def test_an_expired_login_ends_it_with_awss_words_and_how_to_log_in(script: AwsScript):
    words = "Error when retrieving token from sso: Token has expired and refresh failed"
    script.fail("sts get-caller-identity", words)

    said = script.failed(1, "deploy", "--yes")

    assert words in said
    assert "aws_mysql: log in again: aws sso login, or aws configure; AWS_PROFILE names the profile" in said
    assert script.steps() == ["sts get-caller-identity"]


@needs_lambdas_python
def test_a_region_that_there_is_not_ends_it_with_awss_words(script: AwsScript):
    words = 'Could not connect to the endpoint URL: "https://sts.eu-central-9.amazonaws.com/"'
    script.fail("sts get-caller-identity", words)

    said = script.failed(1, "deploy", "--yes", AWS_REGION="eu-central-9")

    assert words in said
    assert "aws_mysql: check the region, AWS_REGION=eu-central-9, and the network" in said


# ---------------------------------------------------------------------------------------------------- the way out, IPv6


@needs_lambdas_python
def test_without_an_ipv6_address_of_coingecko_it_stops_and_names_the_other_way_and_its_price(script: AwsScript):
    script.set_ipv6()

    said = script.failed(1, "deploy", "--yes")

    assert "api.coingecko.com has no IPv6 address" in said
    assert "Egress=nat, about 36.50 USD a month more" in said
    assert script.made() == []
    assert not (script.folder / "pip.txt").exists()


@needs_lambdas_python
def test_with_the_other_way_nobody_asks_for_that_address(script: AwsScript):
    script.set_ipv6()

    script.done("deploy", "--yes", "Egress=nat")

    assert "Egress=nat" in script.call("cloudformation deploy")


@needs_lambdas_python
def test_a_stack_that_has_the_other_way_keeps_it_and_needs_no_ipv6(script: AwsScript):
    script.set(stack=with_egress("nat"))
    script.set_ipv6()

    script.done("deploy", "--yes")

    assert "has no IPv6 address" in script.failed(1, "deploy", "--yes", "Egress=ipv6")


@needs_lambdas_python
def test_a_missing_address_of_the_paid_api_is_only_mentioned(script: AwsScript):
    script.set_ipv6("api.coingecko.com")

    result = script.run("deploy", "--yes")

    assert result.returncode == 0
    assert "pro-api.coingecko.com has no IPv6 address" in result.stderr


@needs_lambdas_python
@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (["2606:4700::6812:1"], True),
        ([], False),
        (["64:ff9b::102:304"], False),
        (["64:ff9b::102:304", "2606::1"], True),
    ],
)
def test_an_address_that_this_network_makes_up_for_nat64_is_none(script: AwsScript, addresses: list[str], found: bool):
    answer = [(None, None, None, None, (address, 443, 0, 0)) for address in addresses]
    code = f"import socket; socket.getaddrinfo = lambda *a: {answer!r}"
    modules = script.folder / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(code)

    result = script.run("deploy", "--yes", "--no-run", PYTHON=sys.executable, PYTHONPATH=str(modules), PIP_NO_INDEX="1")

    assert ("has no IPv6 address" in result.stderr) is not found
    assert ("pip could not install" in result.stderr) is found


# ------------------------------------------------------------------------------------- the states that a stack can have


@needs_lambdas_python
@pytest.mark.parametrize("state", ["ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"])
def test_a_stack_that_cannot_be_updated_ends_it_with_the_commands_that_delete_it(script: AwsScript, state: str):
    script.set(stack={"StackStatus": state})

    said = script.failed(1, "deploy", "--yes")

    assert f"the stack crypto is in {state}" in said
    assert said.index("--no-deletion-protection --apply-immediately") < said.index(
        "aws cloudformation delete-stack --stack-name crypto"
    )
    assert script.made() == []


@needs_lambdas_python
def test_a_rollback_that_failed_is_to_be_continued(script: AwsScript):
    script.set(stack=STACK_EXISTS | {"StackStatus": "UPDATE_ROLLBACK_FAILED"})

    said = script.failed(1, "deploy", "--yes")

    assert "aws cloudformation continue-update-rollback --stack-name crypto" in said
    assert script.made() == []


@needs_lambdas_python
def test_it_waits_for_what_is_in_progress(script: AwsScript):
    states = ["UPDATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_COMPLETE"]
    script.set(stack=STACK_EXISTS, statuses=states)

    result = script.run("deploy", "--yes", "--no-run")

    assert result.returncode == 0
    assert result.stderr.count("waiting until that is over") == 2
    assert script.steps()[1:5] == ["cloudformation describe-stacks"] * 4


@needs_lambdas_python
def test_a_deletion_in_progress_ends_in_a_new_stack(script: AwsScript):
    script.set(stack=STACK_EXISTS, statuses=["DELETE_IN_PROGRESS", "gone"])

    result = script.run("deploy", "--yes", "--no-run")

    assert "making the stack crypto" in result.stderr
    assert result.returncode == 0


@needs_lambdas_python
def test_a_stack_that_an_interrupted_deploy_only_announced_is_no_hindrance(script: AwsScript):
    script.set(stack={"StackStatus": "REVIEW_IN_PROGRESS"})

    result = script.run("deploy", "--yes", "--no-run")

    assert result.returncode == 0
    assert "waiting" not in result.stderr


@needs_lambdas_python
def test_a_stack_of_that_name_which_is_something_else_is_not_replaced(script: AwsScript):
    script.set(stack={"StackStatus": "CREATE_COMPLETE", "Parameters": [parameter("Size", "3")], "Outputs": []})

    said = script.failed(1, "deploy", "--yes")

    assert "the stack crypto in eu-central-1 belongs to something else" in said
    assert "STACK=..." in said
    assert script.made() == []


# -------------------------------------------------------------------------------------------- steps that fail in deploy


@needs_lambdas_python
def test_a_bucket_of_somebody_else_never_gets_the_code(script: AwsScript):
    script.set(buckets={BUCKET: "999999999999"})

    said = script.failed(1, "deploy", "--yes")

    assert "An error occurred (403) when calling the HeadBucket operation: Forbidden" in said
    assert "choose a name, STACK=..." in said
    assert script.made() == []


@needs_lambdas_python
@pytest.mark.parametrize(
    ("step", "words", "next_step"),
    [
        ("cloudformation describe-stacks", DENIED, "this login lacks a right"),
        (
            "s3api head-bucket",
            "An error occurred (400) when calling the HeadBucket operation: Bad Request",
            "STACK=...",
        ),
        ("s3 mb", "make_bucket failed: An error occurred (BucketAlreadyExists): it is not available", "STACK=crypto2"),
        ("s3 mb", "make_bucket failed: An error occurred (TooManyBuckets): quota exceeded", "a quota of the account"),
        ("s3api put-public-access-block", DENIED, "this login lacks a right"),
        ("s3 cp", "upload failed: Unable to locate credentials", "log in again: aws sso login"),
        ("s3 cp", "upload failed: something new", "run this again"),
    ],
)
def test_a_failing_step_stops_it_with_awss_words_and_the_next_step(
    script: AwsScript, step: str, words: str, next_step: str
):
    script.fail(step, words)

    said = script.failed(1, "deploy", "--yes")

    assert words in said
    assert next_step in said.splitlines()[-1]
    assert script.steps()[-1] == step


FAILED = """Failed to create/update the stack. Run the following command
to fetch the list of events leading up to the failure
aws cloudformation describe-stack-events --stack-name crypto"""
QUOTA = "The maximum number of VPCs has been reached. (Service: Ec2, Status Code: 400) (HandlerErrorCode: Limit)"


def event(resource: str, reason: str, status: str = "CREATE_FAILED") -> dict[str, str]:
    return {"LogicalResourceId": resource, "ResourceStatus": status, "ResourceStatusReason": reason}


@needs_lambdas_python
def test_a_stack_that_could_not_be_made_ends_it_with_the_reasons_and_how_to_delete_it(script: AwsScript):
    script.fail("cloudformation deploy", FAILED)
    rollback = [event("Database", "Cannot delete protected DB Instance", "DELETE_FAILED")]
    cancelled = [event(f"Other{number}", "Resource creation cancelled") for number in range(9)]
    more = [event(f"More{number}", "Another reason") for number in range(9)]
    this_time = [event("Vpc", QUOTA), event("Fine", "None", "CREATE_COMPLETE"), event("crypto", "User Initiated", "-")]
    before = [event("Before", "lacks a permission")]
    script.set(events=[*rollback, *cancelled, *more, *this_time, *before])

    said = script.failed(1, "deploy", "--yes")

    assert "Failed to create/update the stack" in said
    assert f"More8\tAnother reason\nCREATE_FAILED\tVpc\t{QUOTA}\n" in said
    for resource in ("More4", "Other", "Fine", "Before", "protected"):
        assert resource not in said
    assert "a quota of the account is full" in said.splitlines()[-1]
    assert "aws cloudformation delete-stack --stack-name crypto" in said
    assert script.payloads() == []


@needs_lambdas_python
def test_a_stack_that_could_not_be_updated_is_not_to_be_deleted(script: AwsScript):
    script.set(stack=STACK_EXISTS, events=[event("PipelineLog", "crypto-pipeline already exists", "UPDATE_FAILED")])
    script.fail("cloudformation deploy", FAILED)

    said = script.failed(1, "deploy", "--yes")

    assert "crypto-pipeline already exists" in said
    assert (
        "the stack crypto was not updated: a name is taken: delete what has it, or choose another: STACK=crypto2 "
        in said
    )
    assert "delete-stack" not in said


@needs_lambdas_python
def test_a_parameter_that_the_template_refuses_leaves_nothing_to_delete(script: AwsScript):
    words = (
        "An error occurred (ValidationError) when calling the CreateChangeSet operation: Parameter AnalystCidr failed"
    )
    script.fail("cloudformation deploy", words)

    said = script.failed(1, "deploy", "--yes", "AnalystCidr=everybody")

    assert words in said
    assert "correct what AWS names above" in said.splitlines()[-1]
    assert "delete-stack" not in said


@needs_lambdas_python
def test_a_set_up_that_fails_stops_it_before_the_first_run(script: AwsScript):
    script.set(answers={"setup": {"errorMessage": LINE, "errorType": "DatabaseError", "stackTrace": []}})

    result = script.run("deploy", "--yes")

    assert result.returncode == 4
    assert LINE in result.stderr.splitlines()
    assert "its set-up failed: do what the line above says, then deploy again" in result.stderr
    assert script.payloads() == [("crypto-setup", "{}")]
    assert "aws cloudformation delete-stack" in result.stdout


@needs_lambdas_python
def test_a_first_run_that_fails_is_a_failure_of_deploy(script: AwsScript):
    script.set(answers={"setup": {"result": "ok"}, "pipeline": {"errorMessage": LINE, "errorType": "DatabaseError"}})

    said = script.failed(4, "deploy", "--yes")

    assert LINE in said.splitlines()
    assert "its first run failed: do what the line above says, then: bash sql/aws_mysql.sh run" in said


@needs_lambdas_python
def test_packages_that_pip_cannot_get_stop_it_before_anything_is_made(script: AwsScript):
    (script.folder / "pip_fails").touch()

    said = script.failed(1, "deploy", "--yes")

    assert "ERROR: No matching distribution found for pandas==3.1.1" in said
    assert "pip could not install" in said.splitlines()[-1]
    assert script.made() == []


@needs_lambdas_python
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_nothing_temporary_stays_after_an_interruption(script: AwsScript, ending: signal.Signals):
    (script.folder / "pip_hangs").touch()
    with script.start("package", "out.zip") as process:
        wait_until((script.folder / "pip_is_there").exists, "pip")
        assert list(script.temporary.iterdir()) != []
        os.killpg(process.pid, ending)
        process.communicate(timeout=TIMEOUT)

    assert process.returncode == 128 + ending
    assert list(script.temporary.iterdir()) == []
    assert [path.name for path in script.folder.iterdir() if "out.zip" in path.name] == []


# ----------------------------------------------------------------------------------------------------------------- run


def output(name: str, value: str) -> dict[str, str]:
    return {"OutputKey": name, "OutputValue": value}


@pytest.fixture
def deployed(script: AwsScript) -> AwsScript:
    """With a stack that is there; neither Python 3.12 nor a package is needed for what follows."""
    outputs = [
        *(output("Pipeline", "crypto-pipeline"), output("Log", "crypto-PipelineLog-1")),
        *(output("Server", "db.example.com:3306"), output("DatabaseName", "crypto_db")),
        output("ReaderSecret", "arn:reader"),
    ]
    script.set(stack=STACK_EXISTS | {"Outputs": outputs})
    return script


def test_run_prints_the_result(deployed: AwsScript):
    result = deployed.run("run")

    assert (result.returncode, result.stdout, result.stderr) == (0, f"{RESULT}\n", "")
    assert deployed.steps() == ["cloudformation describe-stacks", "lambda invoke"]
    [(_, payload)] = deployed.payloads()
    assert json.loads(payload) == {"arguments": []}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--status", "--max-age", "90"],
        ["--yes", "--help", "deploy", "-"],
        ["--replay", "/mnt/snapshots/*.json.gz", "two words", "", "'", '"', "$(x)", "`x`", "a\\b", "%s", "line\nbreak"],
        ["ünï çödé 样本 \N{IZAKAYA LANTERN}"],
    ],
)
def test_run_passes_its_arguments_through_as_they_are(deployed: AwsScript, arguments: list[str]):
    deployed.done("run", *arguments)

    [(function, payload)] = deployed.payloads()
    assert (function, json.loads(payload)) == ("crypto-pipeline", {"arguments": arguments})


@pytest.mark.parametrize(
    ("answer", "exit_code", "line"),
    [
        ({"errorMessage": LINE, "errorType": "DatabaseError", "stackTrace": ["  File ..."]}, 4, LINE),
        ({"errorMessage": "exit code 6: older than 90 minutes"}, 6, "exit code 6: older than 90 minutes"),
        ({"errorMessage": "exit code 143: ended"}, 143, "exit code 143: ended"),
        ({"errorMessage": "exit code 0: ?"}, 1, "exit code 0: ?"),
        ({"errorMessage": "exit code 999: ?"}, 1, "exit code 999: ?"),
        ({"errorMessage": "an exit code 4: ?", "errorType": "X"}, 1, "X: an exit code 4: ?"),
        ({"errorMessage": "'id'", "errorType": "KeyError", "stackTrace": ["File"]}, 1, "KeyError: 'id'"),
        ({"errorMessage": "2026-11-25T12:00:00Z 0b1 Task timed out after 900.00 seconds"}, 1, None),
        ({"errorMessage": "", "errorType": "Runtime.ExitError"}, 1, None),
    ],
)
def test_run_ends_with_the_exit_code_of_its_line(deployed: AwsScript, answer: dict, exit_code: int, line: str | None):
    deployed.set(answers={"pipeline": answer})

    result = deployed.run("run")

    assert (result.returncode, result.stdout) == (exit_code, "")
    assert result.stderr.splitlines()[0] == (line or result.stderr.splitlines()[0])
    assert ("aws logs tail crypto-PipelineLog-1" in result.stderr) is not answer["errorMessage"].startswith("exit")


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        ({"result": "one\ntwo\n"}, "one\ntwo\n"),
        ({"result": "山 \ud83c"}, "山 ?\n"),
        ({"result": ""}, "\n"),
        ({"result": ["a", 1]}, '["a", 1]\n'),
        ("null", "null\n"),
        ("no JSON", "no JSON\n"),
        ("", "\n"),
    ],
)
def test_run_prints_whatever_comes_back(deployed: AwsScript, answer: object, printed: str):
    deployed.set(answers={"pipeline": answer})

    assert deployed.done("run") == printed


def test_run_does_not_mind_a_reader_that_goes_away(deployed: AwsScript):
    deployed.set(answers={"pipeline": {"result": "line\n" * 100_000}})

    with deployed.start("run") as process:
        process.stdout.close()
        process.stdout = None
        _, said = process.communicate(timeout=TIMEOUT)

    assert "Traceback" not in said
    assert list(deployed.temporary.iterdir()) == []


def test_an_invocation_that_aws_refuses_ends_run_with_its_words(deployed: AwsScript):
    deployed.fail("lambda invoke", DENIED)

    said = deployed.failed(1, "run")

    assert DENIED in said
    assert "this login lacks a right" in said


def test_a_lost_connection_is_no_reason_to_start_a_second_run(deployed: AwsScript):
    words = (
        'Read timeout on endpoint URL: "https://lambda.eu-central-1.amazonaws.com/2015-03-31/functions/x/invocations"'
    )
    deployed.fail("lambda invoke", words)

    said = deployed.failed(1, "run")

    assert words in said
    assert "what was started goes on: wait for its end" in said


@pytest.mark.parametrize("subcommand", ["run", "powerbi"])
def test_without_a_stack_awss_words_are_followed_by_deploy_it_first(script: AwsScript, subcommand: str):
    said = script.failed(1, subcommand)

    assert "Stack with id crypto does not exist" in said
    assert "deploy it first: bash sql/aws_mysql.sh deploy" in said.splitlines()[-1]


def test_run_needs_no_python_of_lambda(deployed: AwsScript):
    write_program(deployed.path / "python3", "#!/bin/sh", "exit 1")
    (deployed.path / "python").symlink_to(sys.executable)

    assert deployed.done("run") == f"{RESULT}\n"


# ------------------------------------------------------------------------------------------------------------- powerbi


def test_powerbi_prints_what_power_bi_asks_for_and_how_to_fetch_the_password(deployed: AwsScript):
    printed = deployed.done("powerbi")

    assert [line.split() for line in printed.splitlines()[:3]] == [
        ["MySQLServer", "db.example.com:3306"],
        ["MySQLDatabase", "crypto_db"],
        ["account", "crypto_reader"],
    ]
    command = printed.splitlines()[-1].strip()
    assert command.startswith("aws secretsmanager get-secret-value --secret-id arn:reader --query SecretString")
    fetched = subprocess.run(
        command.split(), env=deployed.environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert json.loads(fetched.stdout)["password"] == PASSWORD


def test_powerbi_needs_no_python_at_all(deployed: AwsScript):
    (deployed.path / "python3").unlink()

    assert "db.example.com:3306" in deployed.done("powerbi")


# ------------------------------------------------------------------------------------------ package, with little in it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the caller's, with a space in its name."""
    path = tmp_path / "my folder"
    path.mkdir()
    return path


@needs_lambdas_python
@pytest.mark.parametrize("arguments", [[], ["out.zip"], ["-"], ["./deeper/../out.zip"]])
def test_a_relative_file_means_the_callers_folder(script: AwsScript, folder: Path, arguments: list[str]):
    (folder / "deeper").mkdir()
    if arguments == ["-"]:
        arguments = [str(folder / "out.zip")]

    printed = script.done("package", *arguments, cwd=folder)

    name = "out.zip" if arguments else "crypto-lambda.zip"
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "deeper"])
    sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    version = RUNTIME.removeprefix("python")
    path, _, built = printed.partition(": ")
    assert Path(path).resolve() == folder / name
    assert re.fullmatch(
        rf"\d+\.\d MB zipped, \d+\.\d MB unzipped, for Python {version} on arm64, sha256 {sha256}\n", built
    )
    assert script.calls() == []


@needs_lambdas_python
def test_the_package_holds_the_scripts_and_no_more(script: AwsScript, folder: Path):
    script.done("package", cwd=folder)

    with zipfile.ZipFile(folder / "crypto-lambda.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/") and "__pycache__" not in name}
        assert package.read("sql/aws-rds-ca.pem").decode() == script.pem.read_text()
        assert not any(PASSWORD.encode() in package.read(name) for name in package.namelist())
    scripts = {"etl_crypto.py", "segment_and_load.py", "pipeline_orchestrator.py", "sql/aws-rds-ca.pem"}
    scripts |= {f"sql/{path.name}" for path in (PROJECT_DIR / "sql").glob("*.py")}
    scripts |= {f"sql/{path.name}" for path in (PROJECT_DIR / "sql").glob("*.sql")}
    packages = {"certifi/cacert.pem", "pandas/__init__.py", "pandas/_x.cpython.so", "pandas-3.1.1.dist-info/METADATA"}
    assert names == scripts | packages | {"mysql/vendor/plugin/mysql_native_password.so"}


@needs_lambdas_python
def test_an_environment_of_the_callers_own_changes_not_a_byte(script: AwsScript, folder: Path):
    script.done("package", "one.zip", cwd=folder)
    (folder / "pip.py").write_text("raise SystemExit('a module of the caller')")
    (folder / "json.py").write_text("raise SystemExit('a module of the caller')")
    settings = {"PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": str(folder / "cache"), "PYTHONHASHSEED": "7"}
    more = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error", "CDPATH": "/", "LC_ALL": "C", "TZ": "Asia/Tokyo"}

    script.done("package", "two.zip", cwd=folder, **settings, **more)

    assert (folder / "one.zip").read_bytes() == (folder / "two.zip").read_bytes()
    assert not (folder / "cache").exists()


@needs_lambdas_python
def test_an_older_package_is_replaced_and_one_that_cannot_be_built_leaves_it(script: AwsScript, folder: Path):
    script.done("package", cwd=folder)
    before = (folder / "crypto-lambda.zip").read_bytes()
    (script.folder / "pip_fails").touch()
    script.failed(1, "package", cwd=folder)
    assert (folder / "crypto-lambda.zip").read_bytes() == before
    (script.folder / "pip_fails").unlink()
    (script.project / "etl_crypto.py").write_text("x = 1\n")

    script.done("package", cwd=folder)

    assert (folder / "crypto-lambda.zip").read_bytes() != before
    assert [path.name for path in folder.iterdir()] == ["crypto-lambda.zip"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("sql/accounts.sql", "is there and no package: name another file"),
        ("sql", "is a folder: name a file"),
        ("nowhere/out.zip", "there is no folder for nowhere/out.zip: make it first"),
    ],
)
def test_what_is_no_package_is_not_overwritten(script: AwsScript, file: str, said: str):
    before = (script.project / "sql" / "accounts.sql").read_bytes()

    assert said in script.refused(1, "package", file, cwd=script.project)
    assert (script.project / "sql" / "accounts.sql").read_bytes() == before


@needs_lambdas_python
@pytest.mark.parametrize(("size", "fits"), [(52_000_000, True), (52_428_800, False)])
def test_a_package_that_lambda_would_not_take_is_not_made(script: AwsScript, folder: Path, size: int, fits: bool):
    (script.folder / "big").write_text(str(size))

    result = script.run("package", cwd=folder)

    assert result.returncode == (0 if fits else 1)
    assert ("and Lambda takes 52,428,800" in result.stderr) is not fits
    assert [path.name for path in folder.iterdir()] == (["crypto-lambda.zip"] if fits else [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<html>sign in to this network</html>", "holds no certificates (PEM)"),
        ("-----BEGIN CERTIFICATE-----\nMIIB", "holds no certificates (PEM)"),
        ("-----BEGIN RSA PRIVATE KEY-----\n-----END CERTIFICATE-----", "holds no certificates (PEM)"),
        (None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("subcommand", [["package"], ["deploy", "--yes"]])
def test_a_ca_bundle_that_is_none_is_refused_before_anything_is_downloaded(
    script: AwsScript, folder: Path, subcommand: list[str], content: str | None, said: str
):
    if content is not None:
        (folder / "ca.pem").write_text(content)

    line = script.refused(1, *subcommand, cwd=folder, RDS_CA_BUNDLE="ca.pem")

    assert line.startswith("aws_mysql: RDS_CA_BUNDLE=ca.pem ")
    assert said in line
    assert not (script.folder / "pip.txt").exists()


def test_a_ca_bundle_with_a_private_key_is_refused(script: AwsScript):
    with script.pem.open("a") as file:
        file.write("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n")

    assert "holds a private key, which must not get into the package" in script.refused(1, "package")


@needs_lambdas_python
def test_a_relative_ca_bundle_means_the_callers_folder(script: AwsScript, folder: Path):
    script.pem.rename(folder / "ca.pem")

    script.done("package", cwd=folder, RDS_CA_BUNDLE="ca.pem")


@needs_lambdas_python
def test_ca_certificates_that_cannot_be_fetched_are_named_with_the_way_around(script: AwsScript, folder: Path):
    said = script.failed(1, "package", cwd=folder, RDS_CA_BUNDLE=None, HTTPS_PROXY="http://127.0.0.1:9")

    last = said.splitlines()[-1]
    assert "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem" in last
    assert "RDS_CA_BUNDLE=" in last
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- everywhere


def test_nothing_but_bash_python_aws_and_common_tools_is_in_the_path_of_these_tests(script: AwsScript):
    assert {path.name for path in script.path.iterdir()} == {*TOOLS, "sleep", "aws", "python3"}
    assert not {"zip", "unzip", "sha256sum", "shasum", "timeout", "getent", "curl", "awk", "find", "stat"} & {*TOOLS}


def test_a_script_that_is_called_by_a_relative_path_or_a_link_finds_its_files(script: AwsScript):
    for folder, path in ((script.project, "sql/aws_mysql.sh"), (script.project / "sql", "aws_mysql.sh")):
        command = [script.path / "bash", path, "deploy", "--yes", "Egres=nat"]
        result = subprocess.run(
            command, cwd=folder, env=script.environment(CDPATH="/:.."), capture_output=True, text=True, timeout=TIMEOUT
        )
        assert "there are: ScheduleExpression" in result.stderr


def test_every_message_is_ascii():
    assert (PROJECT_DIR / "sql" / "aws_mysql.sh").read_text(encoding="utf-8").isascii()
