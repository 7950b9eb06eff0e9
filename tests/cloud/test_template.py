"""sql/aws_mysql.yaml, read as data: nobody can deploy it here, so what a stack must never be is looked for in it.

`findings()` does that: it has none for the template as it is, and one for each of the seeded faults.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from dotenv import dotenv_values

from tests.conftest import PROJECT_DIR

NEEDED = "needs the packages of sql/aws_requirements.txt"
pytest.importorskip("cfnlint", reason=NEEDED)
yaml = pytest.importorskip("yaml", reason=NEEDED)

PATH = PROJECT_DIR / "sql" / "aws_mysql.yaml"
TEXT = PATH.read_text(encoding="utf-8")
REGIONS = ("us-east-1", "eu-central-1")
MOST_BYTES = 51_200  # of a template that is sent along with the call, not put into a bucket first
DAY = 86_400  # seconds: what an alarm with a period below one hour can look back
ANALYST = "203.0.113.7/32"
PIPELINE_VARIABLES = {
    *("MYSQL_SECRET_ID", "MYSQL_DATABASE", "MYSQL_SSL_CA", "COINGECKO_SECRET_ID", "COIN_LIMIT", "SNAPSHOT_DIR"),
}
SETUP_VARIABLES = {
    *("MASTER_SECRET_ID", "MYSQL_SECRET_ID", "READER_SECRET_ID", "MYSQL_DATABASE", "MYSQL_SSL_CA"),
}
VPC_ACCESS = {"Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"}
OUTPUTS = {
    *("CoinGeckoSecret", "Database", "DatabaseName", "Files", "Log", "Pipeline", "ReaderSecret", "Server", "Setup"),
    "SetupLog",
}

# --------------------------------------------------------------------------------------------------- reading a template


class Loader(yaml.SafeLoader):
    """With CloudFormation's short forms in their long ones: !Ref x is {"Ref": "x"}."""


def long_form(loader: Loader, tag: str, node: yaml.Node) -> dict:
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if tag == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {tag if tag in ("Ref", "Condition") else f"Fn::{tag}": value}


Loader.add_multi_constructor("!", long_form)


def read_template() -> dict:
    return yaml.load(TEXT, Loader)


def walk(value: Any) -> Iterator[dict]:
    """Each mapping in `value`, the outer ones first."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from walk(part)


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def references(value: Any) -> set[str]:
    """The names that `value` refers to, those of resources, parameters and AWS::…"""
    names = set()
    for part in walk(value):
        if "Ref" in part:
            names.add(part["Ref"])
        if "Fn::GetAtt" in part:
            names.add(part["Fn::GetAtt"][0])
        if isinstance(part.get("Fn::Sub"), str):
            names |= {name.split(".")[0] for name in re.findall(r"\$\{([\w.:]+)\}", part["Fn::Sub"])}
    return names


class Unresolved(Exception):
    """A condition that this reader does not know."""


class Stack:
    """What CloudFormation makes of a template with these parameters: the resources, without conditions."""

    def __init__(self, template: dict, **parameters: str) -> None:
        defaults = {name: parameter.get("Default", "") for name, parameter in template["Parameters"].items()}
        self.template, self.parameters = template, defaults | parameters
        self.resources = {
            name: self.resolve(resource)
            for name, resource in template["Resources"].items()
            if "Condition" not in resource or self.is_true({"Condition": resource["Condition"]})
        }

    def is_true(self, condition: dict) -> bool:
        [(kind, value)] = condition.items()
        if kind == "Condition":
            return self.is_true(self.template["Conditions"][value])
        if kind == "Fn::Not":
            return not self.is_true(value[0])
        if kind == "Fn::Or":
            return any(self.is_true(part) for part in value)
        if kind == "Fn::Equals":
            left, right = (self.parameters[part["Ref"]] if isinstance(part, dict) else part for part in value)
            return left == right
        raise Unresolved(kind)

    def resolve(self, value: Any) -> Any:
        """`value` with its Fn::If decided, and without AWS::NoValue."""
        if isinstance(value, list):
            parts = [self.resolve(part) for part in value]
            return [part for part in parts if part != {"Ref": "AWS::NoValue"}]
        if not isinstance(value, dict):
            return value
        if "Fn::If" in value:
            name, if_true, if_false = value["Fn::If"]
            return self.resolve(if_true if self.is_true({"Condition": name}) else if_false)
        parts = {key: self.resolve(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part != {"Ref": "AWS::NoValue"}}

    def of_type(self, kind: str) -> dict[str, dict]:
        """Properties by name, of all resources of the type AWS::`kind`."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.resources.items()
            if resource["Type"] == f"AWS::{kind}"
        }

    def waits_for(self, name: str) -> set[str]:
        """What is made before the resource `name` is, directly."""
        resource = self.resources[name]
        return {*as_list(resource.get("DependsOn", []))} | references(resource)

    def statements(self) -> Iterator[tuple[str, dict]]:
        """Each statement of a policy, with the name of its resource."""
        for name, resource in self.resources.items():
            for part in walk(resource):
                for statement in as_list(part.get("Statement", [])):
                    yield name, statement

    def internet_routes(self) -> dict[str, set[str]]:
        """The subnets that have a route to an internet gateway, by the route's name."""
        tables = {
            name: route["RouteTableId"]["Ref"]
            for name, route in self.of_type("EC2::Route").items()
            if "GatewayId" in route
        }
        links = self.of_type("EC2::SubnetRouteTableAssociation").values()
        return {
            name: {link["SubnetId"]["Ref"] for link in links if link["RouteTableId"]["Ref"] == table}
            for name, table in tables.items()
        }


# ------------------------------------------------------------------------------------------------------------- findings


def findings(template: dict) -> list[str]:
    """What is wrong with the template, a line each: with its default parameters, with Egress=nat, with an analyst."""
    default = Stack(template)
    with_nat = Stack(template, Egress="nat")
    public = Stack(template, AnalystCidr=ANALYST)
    mailed = Stack(template, AlarmEmail="me@example.com", AnalystCidr=ANALYST, Egress="nat")
    found = [*check_texts(template)]
    for stack in (default, with_nat, public, mailed):
        for check in CHECKS:
            found += check(stack)
    found += check_privacy(default, with_nat, public)
    if {"Ref": "AlarmEmail"} not in [part.get("Endpoint") for part in mailed.of_type("SNS::Subscription").values()]:
        found.append("AlarmEmail gets no mail")
    return sorted(set(found))


def check_texts(template: dict) -> Iterator[str]:
    """No secret in a parameter, a variable or an output, and none resolved into one."""
    secret = re.compile(r"password|api_?key|token", re.IGNORECASE)
    variables = [name for part in walk(template["Resources"]) for name in part.get("Variables", {})]
    for name in (*template["Parameters"], *variables, *template["Outputs"]):
        if secret.search(name):
            yield f"{name} would hold a plain password"
    if "{{resolve:" in json.dumps(template):
        yield "a dynamic reference shows a secret to whoever may read the configuration"


def check_references(stack: Stack) -> Iterator[str]:
    """Each name is that of a resource which is made with these parameters, or of a parameter which has a value."""
    parameters = stack.template["Parameters"].items()
    empty = {name for name, parameter in parameters if parameter.get("Default") == stack.parameters[name] == ""}
    known = {*stack.resources, *stack.parameters}
    named = {name: stack.waits_for(name) for name in stack.resources}
    named |= {f"output {name}": references(output) for name, output in stack.template["Outputs"].items()}
    for name, others in named.items():
        for other in others - known:
            if not other.startswith("AWS::"):
                yield f"{name} waits for {other}, which is not there"
        for other in others & empty:
            yield f"{name} is made of {other}, which is empty"


def check_privacy(default: Stack, with_nat: Stack, public: Stack) -> Iterator[str]:
    """Only an AnalystCidr makes the database public, and then it waits for its way to the internet."""
    for stack, which in ((default, "by default"), (with_nat, "with Egress=nat")):
        for name, database in stack.of_type("RDS::DBInstance").items():
            if database.get("PubliclyAccessible") is not False:
                yield f"{name} is public {which}"
        for route, subnets in stack.internet_routes().items():
            if subnets & database_subnets(stack):
                yield f"{route} leads from the database to the internet {which}"
    if default.of_type("EC2::InternetGateway") or default.of_type("EC2::NatGateway"):
        yield "there is an internet gateway by default"
    routes = {route for route, subnets in public.internet_routes().items() if database_subnets(public) <= subnets}
    for name, database in public.of_type("RDS::DBInstance").items():
        if database.get("PubliclyAccessible") is not True or not routes:
            yield f"{name} cannot be reached from AnalystCidr"
        elif not routes & public.waits_for(name):
            yield f"{name} does not wait for its route to the internet"
        elif {"Ref": "AnalystCidr"} not in sources(public, database["VPCSecurityGroups"], 3306):
            yield f"{name} lets no analyst in"
    for gateway, nat in with_nat.of_type("EC2::NatGateway").items():
        ways = [route for route, subnets in with_nat.internet_routes().items() if nat["SubnetId"]["Ref"] in subnets]
        if not {*ways} & with_nat.waits_for(gateway):
            yield f"{gateway} does not wait for its route to the internet"


def database_subnets(stack: Stack) -> set[str]:
    return references([group["SubnetIds"] for group in stack.of_type("RDS::DBSubnetGroup").values()])


def check_security_groups(stack: Stack) -> Iterator[str]:
    rules = [(name, rule) for name, rule in stack.of_type("EC2::SecurityGroupIngress").items()]
    for name, group in stack.of_type("EC2::SecurityGroup").items():
        rules += [(name, rule) for rule in group.get("SecurityGroupIngress", [])]
        if not group.get("SecurityGroupEgress"):
            yield f"{name} lets everything out"
    for name, rule in rules:
        source = rule.get("CidrIp", rule.get("CidrIpv6", rule.get("SourcePrefixListId")))
        if source is not None and source != {"Ref": "AnalystCidr"}:
            yield f"{name} lets in {source}"
        if rule.get("FromPort") != rule.get("ToPort") or rule.get("FromPort") not in (3306, 2049):
            yield f"{name} opens other ports than those of MySQL and NFS"


def sources(stack: Stack, groups: list, port: int) -> list:
    """What may connect to this port of what has these security groups."""
    rules = [rule for rule in stack.of_type("EC2::SecurityGroupIngress").values() if rule["GroupId"] in groups]
    for group in references(groups):
        rules += stack.of_type("EC2::SecurityGroup")[group].get("SecurityGroupIngress", [])
    open_rules = [rule for rule in rules if rule["FromPort"] <= port <= rule["ToPort"]]
    return [rule.get("SourceSecurityGroupId", rule.get("CidrIp")) for rule in open_rules]


def destinations(stack: Stack, groups: list, port: int) -> list:
    """Where what has these security groups may connect to, at this port."""
    rules = []
    for group in references(groups):
        rules += stack.of_type("EC2::SecurityGroup")[group].get("SecurityGroupEgress", [])
    open_rules = [rule for rule in rules if rule.get("FromPort", 0) <= port <= rule.get("ToPort", 0)]
    return [rule.get("CidrIp", rule.get("CidrIpv6")) for rule in open_rules]


def check_ways(stack: Stack) -> Iterator[str]:
    """The functions reach MySQL, the raw snapshots and CoinGecko, that by IPv6 or NAT."""
    inside = {"Fn::GetAtt": ["Vpc", "CidrBlock"]}
    targets = [(3306, database["VPCSecurityGroups"]) for database in stack.of_type("RDS::DBInstance").values()]
    targets += [(2049, mount["SecurityGroups"]) for mount in stack.of_type("EFS::MountTarget").values()]
    for name, function in stack.of_type("Lambda::Function").items():
        groups = function["VpcConfig"]["SecurityGroupIds"]
        for port, target in targets:
            let_in = any(group in sources(stack, target, port) for group in groups)
            if not let_in or inside not in destinations(stack, groups, port):
                yield f"{name} cannot reach port {port}"
        ways = [
            (route.get("DestinationIpv6CidrBlock", route.get("DestinationCidrBlock")), gateway)
            for route in routes_of(stack, function).values()
            for gateway in route.keys() & {"EgressOnlyInternetGatewayId", "NatGatewayId", "GatewayId"}
        ]
        wanted = [("::/0", "EgressOnlyInternetGatewayId")]
        wanted += [("0.0.0.0/0", "NatGatewayId")] if stack.parameters["Egress"] == "nat" else []
        if sorted(ways) != sorted(wanted):
            yield f"{name} has other ways out than Egress says"
        if sorted(destinations(stack, groups, 443)) != sorted(network for network, _ in wanted):
            yield f"{name} may go out otherwise than Egress says"


def routes_of(stack: Stack, function: dict) -> dict[str, dict]:
    """The routes out of a function's subnets, by name."""
    subnets = references(function["VpcConfig"].get("SubnetIds"))
    links = stack.of_type("EC2::SubnetRouteTableAssociation").values()
    tables = [link["RouteTableId"] for link in links if link["SubnetId"]["Ref"] in subnets]
    return {name: route for name, route in stack.of_type("EC2::Route").items() if route["RouteTableId"] in tables}


def check_order(stack: Stack) -> Iterator[str]:
    """What CloudFormation cannot know from the references alone."""
    blocks = {*stack.of_type("EC2::VPCCidrBlock")}
    for name, subnet in stack.of_type("EC2::Subnet").items():
        if "Ipv6CidrBlock" in subnet and not blocks & stack.waits_for(name):
            yield f"{name} does not wait for the IPv6 block"
    attached = {*stack.of_type("EC2::VPCGatewayAttachment")}
    for name in (*stack.internet_routes(), *stack.of_type("EC2::EIP")):
        if not attached & stack.waits_for(name):
            yield f"{name} does not wait for the internet gateway to be attached"
    for name in stack.of_type("Scheduler::Schedule"):
        if not {*stack.of_type("Lambda::EventInvokeConfig")} <= stack.waits_for(name):
            yield f"{name} begins before failures are told"


def check_database(stack: Stack) -> Iterator[str]:
    for name, database in stack.of_type("RDS::DBInstance").items():
        for key in ("StorageEncrypted", "DeletionProtection", "ManageMasterUserPassword"):
            if database.get(key) is not True:
                yield f"{name} has no {key}"
        for key in ("DeletionPolicy", "UpdateReplacePolicy"):
            if stack.resources[name].get(key) != "Snapshot":
                yield f"{name} has no {key} Snapshot"
        if "MasterUserPassword" in database:
            yield f"{name} has a plain password"
        if database.get("BackupRetentionPeriod", 0) < 7:
            yield f"{name} keeps backups for less than 7 days"
        for group in stack.of_type("RDS::DBParameterGroup").keys() & references(database):
            yield from check_database_parameters(group, stack.of_type("RDS::DBParameterGroup")[group])
        if not stack.of_type("RDS::DBParameterGroup").keys() & references(database):
            yield f"{name} has no parameters of its own"


def check_database_parameters(name: str, group: dict) -> Iterator[str]:
    parameters = group.get("Parameters", {})
    if group.get("Family") != "mysql8.4":
        yield f"{name} is for another version"
    if parameters.get("require_secure_transport") != "1":
        yield f"{name} does not require TLS"
    if parameters.get("time_zone") != "UTC":
        yield f"{name} is not in UTC"
    if int(parameters.get("wait_timeout", "28800")) > 900:
        yield f"{name} lets a frozen session keep the named lock for more than 900 s"


def check_files(stack: Stack) -> Iterator[str]:
    for name, files in stack.of_type("EFS::FileSystem").items():
        if files.get("Encrypted") is not True:
            yield f"{name} is not encrypted"
        if {stack.resources[name].get(key) for key in ("DeletionPolicy", "UpdateReplacePolicy")} != {"Retain"}:
            yield f"{name} goes with the stack"
        if files.get("BackupPolicy") != {"Status": "ENABLED"}:
            yield f"{name} has no backup"
        denied = [part for part in walk(files.get("FileSystemPolicy")) if part.get("Effect") == "Deny"]
        plain = [part for part in denied if part.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}}]
        if not any("elasticfilesystem:ClientMount" in part.get("Action", []) for part in plain):
            yield f"{name} lets in clients without TLS"
    for name, point in stack.of_type("EFS::AccessPoint").items():
        if point.get("PosixUser", {}).get("Uid", "0") == "0":
            yield f"{name} is used as root"
        folder = point.get("RootDirectory", {})
        if folder.get("CreationInfo", {}).get("Permissions") != "0750" or folder.get("Path") != "/snapshots":
            yield f"{name} leads to a folder that is not its own"
    for name, queue in stack.of_type("SQS::Queue").items():
        if queue.get("SqsManagedSseEnabled") is not True:
            yield f"{name} is not encrypted"


def check_secrets(stack: Stack) -> Iterator[str]:
    targets = stack.of_type("SecretsManager::SecretTargetAttachment").values()
    accounts = {target["SecretId"]["Ref"] for target in targets if references(target["TargetId"]) == {"Database"}}
    users: list[str | None] = []
    for name, secret in stack.of_type("SecretsManager::Secret").items():
        generated = secret.get("GenerateSecretString", {})
        if "SecretString" in secret:
            fields = json.loads(secret["SecretString"])
            if name in accounts or fields != {"api_key": "", "api_plan": "demo"}:
                yield f"{name} is not generated"
        elif generated.get("GenerateStringKey") != "password" or generated.get("ExcludePunctuation") is not True:
            yield f"{name} has no generated password without punctuation"
        elif name not in accounts:
            yield f"{name} does not name its server"
        else:
            users.append(json.loads(generated.get("SecretStringTemplate", "{}")).get("username"))
    if sorted(map(str, users)) != ["crypto_etl", "crypto_reader"]:
        yield "there are other accounts than crypto_etl and crypto_reader"


def check_policies(stack: Stack) -> Iterator[str]:
    for name, statement in stack.statements():
        for key in ("Action", "Resource"):
            if any("*" in json.dumps(text) for text in as_list(statement.get(key, []))):
                yield f"{name} has a * in {key}"
        if statement.keys() & {"NotAction", "NotResource", "NotPrincipal"}:
            yield f"{name} allows all but something"
        if statement["Effect"] == "Allow" and "*" in json.dumps(statement.get("Principal", "")):
            yield f"{name} allows everybody"
    of_functions = references([function["Role"] for function in stack.of_type("Lambda::Function").values()])
    for name, role in stack.of_type("IAM::Role").items():
        managed = [VPC_ACCESS] if name in of_functions else []
        if role.get("ManagedPolicyArns", []) != managed:
            yield f"{name} has other managed policies than it needs"


class Function(NamedTuple):
    name: str
    properties: dict
    allowed: list[dict]  # the statements of its role

    def resources(self, action: str) -> list:
        return [
            resource
            for statement in self.allowed
            if action in as_list(statement["Action"])
            for resource in as_list(statement.get("Resource", []))
        ]

    def variables(self) -> dict:
        return self.properties.get("Environment", {}).get("Variables", {})


def read_function(stack: Stack, handler: str) -> Function:
    [(name, properties)] = (
        (name, properties)
        for name, properties in stack.of_type("Lambda::Function").items()
        if properties["Handler"] == f"pipeline_orchestrator.{handler}"
    )
    [role] = references(properties["Role"])
    return Function(name, properties, [statement for owner, statement in stack.statements() if owner == role])


def check_functions(stack: Stack) -> Iterator[str]:
    pipeline, setup = read_function(stack, "lambda_handler"), read_function(stack, "setup_handler")
    master = {"Fn::GetAtt": ["Database", "MasterUserSecret.SecretArn"]}
    reader = setup.variables().get("READER_SECRET_ID")
    if master in pipeline.resources("secretsmanager:GetSecretValue"):
        yield f"{pipeline.name} may read the master secret"
    if reader in pipeline.resources("secretsmanager:GetSecretValue"):
        yield f"{pipeline.name} may read the reader's secret"
    if setup.variables().get("MASTER_SECRET_ID") != master:
        yield f"{setup.name} does not get the master secret"
    for function, variables in ((pipeline, PIPELINE_VARIABLES), (setup, SETUP_VARIABLES)):
        if function.variables().keys() != variables:
            yield f"{function.name} has other variables"
        yield from check_function(stack, function)
    if pipeline.properties["Timeout"] > 900:
        yield f"{pipeline.name} may outlive wait_timeout"
    yield from check_failures(stack, pipeline)
    yield from check_mount(stack, pipeline)


def check_function(stack: Stack, function: Function) -> Iterator[str]:
    name, properties = function.name, function.properties
    given = [value for key, value in function.variables().items() if key.endswith("_SECRET_ID")]
    if sorted(map(str, given)) != sorted(map(str, function.resources("secretsmanager:GetSecretValue"))):
        yield f"{name} may read other secrets than those it is given"
    if "ReservedConcurrentExecutions" in properties:
        yield f"{name} has reserved concurrency"
    if properties.get("VpcConfig", {}).get("Ipv6AllowedForDualStack") is not True:
        yield f"{name} has no IPv6"
    logs = stack.of_type("Logs::LogGroup")
    log = properties.get("LoggingConfig", {}).get("LogGroup", {}).get("Ref")
    if "RetentionInDays" not in logs.get(log, {}):
        yield f"{name} has a log that is kept for ever"
    waits_for = stack.waits_for(name)
    for need in needs(stack, function):
        if need not in waits_for:
            yield f"{name} does not wait for {need}"


def needs(stack: Stack, function: Function) -> Iterator[str]:
    """What a function needs when it runs: routes out of its subnets, mount targets, secrets that name the server."""
    subnets = references(function.properties["VpcConfig"].get("SubnetIds"))
    links = stack.of_type("EC2::SubnetRouteTableAssociation").items()
    yield from (name for name, link in links if link["SubnetId"]["Ref"] in subnets)
    yield from routes_of(stack, function.properties)
    if function.properties.get("FileSystemConfigs"):
        yield from stack.of_type("EFS::MountTarget")
    secrets = references(function.variables())
    for name, target in stack.of_type("SecretsManager::SecretTargetAttachment").items():
        if target["SecretId"]["Ref"] in secrets:
            yield name


def check_failures(stack: Stack, pipeline: Function) -> Iterator[str]:
    """A run that fails twice more is mailed, to a topic that the role may publish to."""
    for name, config in stack.of_type("Lambda::EventInvokeConfig").items():
        topic = config.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination", {})
        if references(config["FunctionName"]) != {pipeline.name} or topic.get("Ref") not in stack.of_type("SNS::Topic"):
            yield f"{name} tells nobody of a failure"
        elif topic not in pipeline.resources("sns:Publish"):
            yield f"{pipeline.name} may not tell of a failure"
        if config.get("MaximumRetryAttempts") != 2 or config.get("MaximumEventAgeInSeconds", 21_600) > 1200:
            yield f"{name} retries for hours, or never"
    if not stack.of_type("Lambda::EventInvokeConfig"):
        yield "nobody is told of a failure"


def check_mount(stack: Stack, pipeline: Function) -> Iterator[str]:
    """The raw snapshots lie on EFS, in each zone of the function, and only its access point leads there."""
    mounts = pipeline.properties.get("FileSystemConfigs", [])
    if [mount["LocalMountPath"] for mount in mounts] != [pipeline.variables().get("SNAPSHOT_DIR")]:
        yield f"{pipeline.name} keeps its raw snapshots nowhere"
    reached = references([target["SubnetId"] for target in stack.of_type("EFS::MountTarget").values()])
    if references(pipeline.properties["VpcConfig"]["SubnetIds"]) != reached:
        yield f"{pipeline.name} has a zone without a mount target"
    points = [mount["Arn"] for mount in mounts]
    for action in ("elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"):
        conditions = [part.get("Condition") for part in pipeline.allowed if action in as_list(part["Action"])]
        if conditions != [{"StringEquals": {"elasticfilesystem:AccessPointArn": point}} for point in points]:
            yield f"{pipeline.name} has {action} for more or less than its access point"


def check_schedule(stack: Stack) -> Iterator[str]:
    pipeline = read_function(stack, "lambda_handler")
    for name, schedule in stack.of_type("Scheduler::Schedule").items():
        target = schedule["Target"]
        if references(target["Arn"]) != {pipeline.name}:
            yield f"{name} does not run the pipeline"
        if json.loads(target.get("Input", "null")) != {"arguments": []}:
            yield f"{name} has no Input"
        if not references(target.get("DeadLetterConfig")) & stack.of_type("SQS::Queue").keys():
            yield f"{name} drops what it cannot deliver"
        [role] = references(target["RoleArn"])
        statements = [statement for owner, statement in stack.statements() if owner == role]
        trust = [statement for statement in statements if "Principal" in statement]
        if not all("aws:SourceAccount" in json.dumps(statement.get("Condition")) for statement in trust):
            yield f"{name} has a role that other accounts could use"
        rights = [(statement["Action"], statement["Resource"]) for statement in statements if "Resource" in statement]
        queue = target.get("DeadLetterConfig", {}).get("Arn")
        if rights != [("lambda:InvokeFunction", target["Arn"]), ("sqs:SendMessage", queue)]:
            yield f"{name} has more or fewer rights than it needs"
    if not stack.of_type("Scheduler::Schedule"):
        yield "there is no schedule"


def check_alarms(stack: Stack) -> Iterator[str]:
    pipeline = read_function(stack, "lambda_handler")
    watched = set()
    for name, alarm in stack.of_type("CloudWatch::Alarm").items():
        if not references(alarm.get("AlarmActions")) & stack.of_type("SNS::Topic").keys():
            yield f"{name} tells nobody"
        metrics = [part for part in walk(alarm) if "MetricName" in part]
        watched |= {metric["MetricName"] for metric in metrics}
        if {metric["MetricName"] for metric in metrics} == {"Invocations", "Errors"}:
            yield from check_age_alarm(stack, name, alarm, pipeline)
    for metric in {"Invocations", "Errors", "FreeStorageSpace"} - watched:
        yield f"no alarm watches {metric}"


def check_age_alarm(stack: Stack, name: str, alarm: dict, pipeline: Function) -> Iterator[str]:
    if alarm.get("TreatMissingData") != "breaching":
        yield f"{name} takes missing data for good ones"
    if [part["Expression"] for part in walk(alarm) if "Expression" in part] != ["FILL(runs, 0) - FILL(errors, 0)"]:
        yield f"{name} counts runs that failed"
    if (alarm["ComparisonOperator"], alarm["Threshold"]) != ("LessThanThreshold", 1):
        yield f"{name} does not begin at no run"
    if not references(alarm.get("OKActions")) & stack.of_type("SNS::Topic").keys():
        yield f"{name} does not tell that all is well again"
    if alarm.get("EvaluationPeriods") != alarm.get("DatapointsToAlarm"):
        yield f"{name} counts other periods than it looks at"
    for metric in (part for part in walk(alarm) if "MetricName" in part):
        if references(metric["Dimensions"]) != {pipeline.name}:
            yield f"{name} watches another function"
    periods = {part["Period"] for part in walk(alarm) if "Period" in part}
    longest = stack.template["Parameters"]["AlarmAfterHalfHours"]["MaxValue"]
    if periods != {1800} or longest * 1800 > DAY:
        yield f"{name} looks back for more than a day, or not by half hours"


CHECKS = (
    *(check_references, check_security_groups, check_ways, check_order, check_database, check_files, check_secrets),
    *(check_policies, check_functions, check_schedule, check_alarms),
)

# --------------------------------------------------------------------------------------------------------- the template


def test_cfn_lint_has_nothing_to_say():
    command = [sys.executable, "-c", "from cfnlint.runner import main; main()", "-r", *REGIONS, "-t", str(PATH)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_it_has_neither_yaml_anchors_nor_aliases_which_cloudformation_refuses():
    assert [token for token in yaml.scan(TEXT) if isinstance(token, (yaml.AnchorToken, yaml.AliasToken))] == []


def test_it_is_small_enough_to_be_deployed_without_a_bucket_for_it():
    assert len(PATH.read_bytes()) < MOST_BYTES


def test_it_is_ascii_in_lines_of_120_characters():
    assert TEXT.isascii()
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []


def test_it_has_no_findings():
    assert findings(read_template()) == []


def test_each_parameter_says_what_it_is_and_what_it_takes():
    for name, parameter in read_template()["Parameters"].items():
        assert parameter["Description"], name
        if parameter.keys() & {"AllowedPattern", "MaxValue"}:
            assert parameter["ConstraintDescription"], name


def test_each_output_says_what_it_is():
    outputs = read_template()["Outputs"]

    assert outputs.keys() == OUTPUTS
    assert all(output["Description"] for output in outputs.values())


def test_the_variables_of_the_pipeline_are_settings():
    assert dotenv_values(PROJECT_DIR / ".env.example").keys() >= PIPELINE_VARIABLES


def test_a_default_that_the_template_shares_with_the_settings_is_the_same():
    defaults = dotenv_values(PROJECT_DIR / ".env.example")
    parameters = read_template()["Parameters"]

    assert parameters["CoinLimit"]["Default"] == defaults["COIN_LIMIT"]
    assert parameters["DatabaseName"]["Default"] == defaults["MYSQL_DATABASE"]


# -------------------------------------------------------------------------------------------------------- seeded faults

GONE = object()
VARIABLES = "Properties/Environment/Variables"
PIPELINE_STATEMENTS = "PipelineRole/Properties/Policies/0/PolicyDocument/Statement"
MASTER = {"Fn::GetAtt": ["Database", "MasterUserSecret.SecretArn"]}
INTERNET = {"IpProtocol": "tcp", "FromPort": 3306, "ToPort": 3306}
TRUST = "ScheduleRole/Properties/AssumeRolePolicyDocument/Statement/0"


class Fault(NamedTuple):
    """A change at a path below Resources (a path that begins with / is one from the top), and what it must lead to."""

    path: str
    value: Any  # GONE: the part is taken away; a list at the path + : it gets one more
    finding: str


FAULTS = [
    # network
    Fault("Database/Properties/PubliclyAccessible", True, "Database is public by default"),
    Fault("Database/Properties/PubliclyAccessible", GONE, "Database is public by default"),
    Fault("Database/Properties/PubliclyAccessible", False, "Database cannot be reached from AnalystCidr"),
    Fault("/Parameters/AnalystCidr/Default", ANALYST, "Database is public by default"),
    Fault("Database/Metadata", GONE, "Database does not wait for its route"),
    Fault("Database/DependsOn", "DatabaseRouteInternet", "waits for DatabaseRouteInternet, which is not there"),
    Fault("DatabaseRouteInternet/Condition", "HasInternetGateway", "to the internet with Egress=nat"),
    Fault("InternetGateway/Condition", GONE, "internet gateway by default"),
    Fault("NatGateway/DependsOn", GONE, "NatGateway does not wait for its route"),
    Fault("FunctionSubnetB/DependsOn", GONE, "FunctionSubnetB does not wait for the IPv6 block"),
    Fault("Pipeline/Properties/VpcConfig/Ipv6AllowedForDualStack", GONE, "Pipeline has no IPv6"),
    Fault("FunctionRouteIpv6", GONE, "Pipeline has other ways out than Egress says"),
    Fault("FunctionRouteNat", GONE, "Pipeline has other ways out than Egress says"),
    Fault("FunctionRoutesB/Properties/RouteTableId", {"Ref": "DatabaseRoutes"}, "Pipeline does not wait for"),
    Fault("NatRouteInternet/DependsOn", GONE, "NatRouteInternet does not wait for the internet gateway"),
    Fault("DatabaseRouteInternet/DependsOn", GONE, "DatabaseRouteInternet does not wait for the internet gateway"),
    # security groups
    Fault("FunctionGroup/Properties/SecurityGroupEgress/0", GONE, "Pipeline may go out otherwise"),
    Fault("FunctionGroup/Properties/SecurityGroupEgress/1", GONE, "Pipeline may go out otherwise"),
    Fault("FunctionGroup/Properties/SecurityGroupEgress/2", GONE, "Setup cannot reach port 3306"),
    Fault("FunctionGroup/Properties/SecurityGroupEgress/3", GONE, "Pipeline cannot reach port 2049"),
    Fault("DatabaseGroup/Properties/SecurityGroupIngress", GONE, "Pipeline cannot reach port 3306"),
    Fault("FilesMountA/Properties/SecurityGroups/0", {"Ref": "DatabaseGroup"}, "Pipeline cannot reach port 2049"),
    Fault("DatabaseGroupAnalyst/Condition", GONE, "DatabaseGroupAnalyst is made of AnalystCidr, which is empty"),
    Fault("DatabaseGroupAnalyst", GONE, "Database lets no analyst in"),
    Fault("DatabaseGroup/Properties/SecurityGroupIngress+", INTERNET | {"CidrIp": "0.0.0.0/0"}, "lets in 0.0.0.0/0"),
    Fault("DatabaseGroup/Properties/SecurityGroupIngress+", INTERNET | {"CidrIpv6": "::/0"}, "lets in ::/0"),
    Fault("DatabaseGroupAnalyst/Properties/CidrIp", "0.0.0.0/0", "lets in 0.0.0.0/0"),
    Fault("FilesGroup/Properties/SecurityGroupIngress/0/FromPort", 0, "FilesGroup opens other ports"),
    Fault("DatabaseGroup/Properties/SecurityGroupEgress", GONE, "DatabaseGroup lets everything out"),
    # database
    Fault("Database/Properties/StorageEncrypted", False, "Database has no StorageEncrypted"),
    Fault("Database/Properties/DeletionProtection", GONE, "Database has no DeletionProtection"),
    Fault("Database/Properties/ManageMasterUserPassword", GONE, "Database has no ManageMasterUserPassword"),
    Fault("Database/Properties/MasterUserPassword", "secret", "Database has a plain password"),
    Fault("Database/Properties/BackupRetentionPeriod", 0, "Database keeps backups for less"),
    Fault("Database/Properties/DBParameterGroupName", GONE, "Database has no parameters of its own"),
    Fault("Database/DeletionPolicy", "Delete", "Database has no DeletionPolicy Snapshot"),
    Fault("Database/UpdateReplacePolicy", GONE, "Database has no UpdateReplacePolicy Snapshot"),
    Fault("DatabaseParameters/Properties/Parameters/require_secure_transport", "0", "does not require TLS"),
    Fault("DatabaseParameters/Properties/Parameters/wait_timeout", GONE, "a frozen session"),
    Fault("DatabaseParameters/Properties/Parameters/time_zone", GONE, "is not in UTC"),
    Fault("DatabaseParameters/Properties/Family", "mysql8.0", "is for another version"),
    # files and queue
    Fault("Files/Properties/Encrypted", False, "Files is not encrypted"),
    Fault("Files/DeletionPolicy", "Delete", "Files goes with the stack"),
    Fault("Files/UpdateReplacePolicy", GONE, "Files goes with the stack"),
    Fault("Files/Properties/BackupPolicy", GONE, "Files has no backup"),
    Fault("Files/Properties/FileSystemPolicy", GONE, "Files lets in clients without TLS"),
    Fault("FilesAccess/Properties/PosixUser/Uid", "0", "FilesAccess is used as root"),
    Fault("FilesAccess/Properties/RootDirectory", GONE, "FilesAccess leads to a folder that is not its own"),
    Fault("FilesMountB", GONE, "FilesMountB, which is not there"),
    Fault("FilesMountB/Properties/SubnetId", {"Ref": "FunctionSubnetA"}, "a zone without a mount target"),
    Fault("Undelivered/Properties/SqsManagedSseEnabled", False, "Undelivered is not encrypted"),
    # passwords
    Fault("/Parameters/MasterPassword", {"Type": "String", "NoEcho": True}, "MasterPassword would hold a plain"),
    Fault("/Outputs/ReaderPassword", {"Value": "secret"}, "ReaderPassword would hold a plain password"),
    Fault(f"Pipeline/{VARIABLES}/MYSQL_PASSWORD", "secret", "MYSQL_PASSWORD would hold a plain password"),
    Fault(f"Pipeline/{VARIABLES}/COIN_LIMIT", "{{resolve:secretsmanager:x}}", "a dynamic reference"),
    Fault("PipelineSecret/Properties", {"SecretString": '{"password": "secret"}'}, "PipelineSecret is not generated"),
    Fault("ReaderSecret/Properties/GenerateSecretString/ExcludePunctuation", False, "without punctuation"),
    Fault("ReaderSecret/Properties/GenerateSecretString/SecretStringTemplate", "{}", "other accounts than"),
    Fault("CoinGeckoSecret/Properties/SecretString", '{"api_key": "CG-1"}', "CoinGeckoSecret is not generated"),
    # rights
    Fault(f"{PIPELINE_STATEMENTS}/0/Action", "secretsmanager:*", "PipelineRole has a * in Action"),
    Fault(f"{PIPELINE_STATEMENTS}/2/Resource", "*", "PipelineRole has a * in Resource"),
    Fault(f"{PIPELINE_STATEMENTS}/0/Resource+", MASTER, "Pipeline may read the master secret"),
    Fault(f"{PIPELINE_STATEMENTS}/0/Resource+", {"Ref": "ReaderSecret"}, "Pipeline may read the reader's secret"),
    Fault(f"{PIPELINE_STATEMENTS}/1/Condition", GONE, "Pipeline has elasticfilesystem:ClientMount for more"),
    Fault(f"{PIPELINE_STATEMENTS}/2", GONE, "Pipeline may not tell of a failure"),
    Fault("Pipeline/Properties/Role", {"Fn::GetAtt": ["SetupRole", "Arn"]}, "Pipeline may read the master secret"),
    Fault(
        "SetupRole/Properties/ManagedPolicyArns/0",
        {"Fn::Sub": "x/AdministratorAccess"},
        "SetupRole has other managed policies",
    ),
    Fault(f"{PIPELINE_STATEMENTS}/1/Action/1", GONE, "Pipeline has elasticfilesystem:ClientWrite for more or less"),
    Fault("PipelineRole/Properties/ManagedPolicyArns", GONE, "PipelineRole has other managed policies"),
    Fault("ScheduleRole/Properties/Policies/0/PolicyDocument/Statement/1", GONE, "more or fewer rights"),
    Fault(f"{TRUST}/Condition", GONE, "a role that other accounts could use"),
    Fault("Files/Properties/FileSystemPolicy/Statement/0/Effect", "Allow", "Files allows everybody"),
    # functions
    Fault("PipelineLog/Properties/RetentionInDays", GONE, "Pipeline has a log that is kept for ever"),
    Fault("Setup/Properties/LoggingConfig/LogGroup", GONE, "Setup has a log that is kept for ever"),
    Fault("Pipeline/Properties/ReservedConcurrentExecutions", 1, "Pipeline has reserved concurrency"),
    Fault("Pipeline/DependsOn/1", GONE, "Pipeline does not wait for FilesMountB"),
    Fault("Pipeline/DependsOn/2", GONE, "Pipeline does not wait for FunctionRouteIpv6"),
    Fault("Pipeline/DependsOn/5", GONE, "Pipeline does not wait for PipelineSecretTarget"),
    Fault("Pipeline/Metadata", GONE, "Pipeline does not wait for FunctionRouteNat"),
    Fault("Setup/DependsOn", GONE, "Setup does not wait for ReaderSecretTarget"),
    Fault("PipelineSecretTarget", GONE, "PipelineSecret does not name its server"),
    Fault("Pipeline/Properties/FileSystemConfigs", GONE, "Pipeline keeps its raw snapshots nowhere"),
    Fault(f"Pipeline/{VARIABLES}/SNAPSHOT_DIR", "snapshots", "Pipeline keeps its raw snapshots nowhere"),
    Fault(f"Pipeline/{VARIABLES}/MYSQL_SSL_CA", GONE, "Pipeline has other variables"),
    # failures, schedule and alarms
    Fault("PipelineRetries", GONE, "nobody is told of a failure"),
    Fault("PipelineRetries/Properties/DestinationConfig", GONE, "PipelineRetries tells nobody"),
    Fault("PipelineRetries/Properties/MaximumEventAgeInSeconds", GONE, "PipelineRetries retries for hours"),
    Fault("AlarmSubscription/Condition", GONE, "AlarmSubscription is made of AlarmEmail, which is empty"),
    Fault("/Outputs/Nat", {"Value": {"Ref": "NatGateway"}}, "output Nat waits for NatGateway, which is not there"),
    Fault("AlarmSubscription", GONE, "AlarmEmail gets no mail"),
    Fault("Schedule/DependsOn", GONE, "Schedule begins before failures are told"),
    Fault("Schedule/Properties/Target/Input", GONE, "Schedule has no Input"),
    Fault("Schedule/Properties/Target/DeadLetterConfig", GONE, "Schedule drops what it cannot deliver"),
    Fault("Schedule/Properties/Target/Arn", {"Fn::GetAtt": ["Setup", "SetupLog", "Arn"]}, "does not run the pipeline"),
    Fault("FiguresTooOld", GONE, "no alarm watches Errors"),
    Fault("FiguresTooOld/Properties/TreatMissingData", "notBreaching", "FiguresTooOld takes missing data"),
    Fault("FiguresTooOld/Properties/Metrics/0/Expression", "FILL(runs, 0)", "FiguresTooOld counts runs that failed"),
    Fault("FiguresTooOld/Properties/Threshold", 0, "FiguresTooOld does not begin at no run"),
    Fault("FiguresTooOld/Properties/AlarmActions", GONE, "FiguresTooOld tells nobody"),
    Fault("FiguresTooOld/Properties/Metrics/2", GONE, "no alarm watches Errors"),
    Fault("/Parameters/AlarmAfterHalfHours/MaxValue", 96, "looks back for more than a day"),
    Fault("DiskFull", GONE, "no alarm watches FreeStorageSpace"),
]


def with_fault(template: dict, fault: Fault) -> dict:
    template = copy.deepcopy(template)
    path = fault.path[1:] if fault.path.startswith("/") else f"Resources/{fault.path}"
    *parents, last = (int(key) if key.isdigit() else key for key in path.removesuffix("+").split("/"))
    place = template
    for key in parents:
        place = place[key]
    if fault.value is GONE:
        del place[last]
    elif path.endswith("+"):
        place[last].append(fault.value)
    else:
        place[last] = fault.value
    return template


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.finding)
def test_a_fault_is_found(fault: Fault):
    found = findings(with_fault(read_template(), fault))

    assert any(fault.finding in line for line in found), found


# ----------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "AnalystCidr",
            ["", ANALYST, "10.0.0.0/8", "255.255.255.255/32", "192.168.1.0/24", "1.20.199.249/19"],
            [
                *("0.0.0.0/0", "0.0.0.0/7", "::/0", "2001:db8::1/128", "203.0.113.7", "203.0.113.7/33", "300.1.1.1/32"),
                *("1.1.1.256/32", "1.1.1/32", "1.1.1.1.1/32", "01.1.1.1/32", "1.1.1.1/08", f"{ANALYST},{ANALYST}", " "),
            ],
        ),
        (
            "ScheduleExpression",
            ["rate(30 minutes)", "rate(1 hour)", "rate(1 day)", "cron(0/30 * * * ? *)", "cron(15 6,18 ? * MON-FRI *)"],
            ["", "30 minutes", "rate(0 minutes)", "rate(30)", "cron(*/30 * * * *)", "at(2026-11-25T06:00:00)"],
        ),
        ("CoinLimit", ["1", "1000", "17000", "all"], ["", "0", "-1", "1,000", "1e3", "none", "all "]),
        ("DatabaseName", ["crypto_db", "c", "Crypto2"], ["", "2crypto", "crypto-db", "a b", "c`d", "c" * 65, "c;d"]),
        ("EngineVersion", ["8.4", "8.4.6", "8.4.10"], ["", "8.0", "8", "8.40", "8.4.", "8.4.6.1", "9.4", "8x4"]),
        ("DatabaseClass", ["db.t4g.micro", "db.m7g.large"], ["", "t4g.micro", "db.t4g", "db.t4g.micro "]),
        (
            "AlarmEmail",
            ["", "me@example.com", "a.b+c@mail.example.org"],
            ["me", "me@", "me@host", "@example.com", "a@b.c,d@e.f", "a b@c.d"],
        ),
    ],
)
def test_a_parameter_takes_good_values_and_refuses_bad_ones(name: str, good: list[str], bad: list[str]):
    parameter = read_template()["Parameters"][name]

    assert [value for value in good if not re.fullmatch(parameter["AllowedPattern"], value)] == []
    assert [value for value in bad if re.fullmatch(parameter["AllowedPattern"], value)] == []
    assert re.fullmatch(parameter["AllowedPattern"], parameter["Default"])


def test_each_pattern_is_tied_to_both_ends_of_the_value():
    patterns = [parameter.get("AllowedPattern", "^$") for parameter in read_template()["Parameters"].values()]

    assert [pattern for pattern in patterns if not re.fullmatch(r"\^.*\$", pattern)] == []
