"""docker-compose.yml is in step with the code: images, commands, variables, health checks."""

from __future__ import annotations

import importlib
import re
import subprocess
from typing import Any

import click
import msgspec
import pytest
import yaml
from snippets import ROOT

from krq import KRQ
from krq.cli.root import root
from krq.cli.target import load
from krq.config import Config
from krq.config import load as load_config
from krq.dashboard.access import WebSettings
from krq.dev.kafka_jars import KAFKA
from krq.dev.valkey import find_binary


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


@pytest.fixture(scope="module")
def workers(compose: dict[str, Any]) -> list[dict[str, Any]]:
    return [service for name, service in compose["services"].items() if name.startswith("worker")]


def test_servers_are_those_that_the_tests_run_on(compose: dict[str, Any]) -> None:
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA.rpartition(':')[2]}"
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)\.", said)
    assert version is not None, said
    assert compose["services"]["redis"]["image"] == f"valkey/valkey:{version[1]}"


def test_kafka_is_one_node_that_others_reach(compose: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    kafka = compose["services"]["kafka"]
    environ = kafka["environment"]
    assert environ["KAFKA_PROCESS_ROLES"] == "broker,controller"
    advertised = dict(each.split("://") for each in environ["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(each.split("://:") for each in environ["KAFKA_LISTENERS"].split(","))
    protocols = dict(each.split(":") for each in environ["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert set(advertised) | {environ["KAFKA_CONTROLLER_LISTENER_NAMES"]} == set(listening) == set(protocols)
    for name, address in advertised.items():
        assert address.endswith(f":{listening[name]}")
    assert advertised["OUTSIDE"] == Config().broker
    assert kafka["ports"] == ["127.0.0.1:9092:9092"]
    assert environ["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    for worker in workers:
        assert worker["environment"]["KRQ_BROKER"] == advertised["INSIDE"]
    assert environ["KAFKA_LOG_DIRS"] in [volume.partition(":")[2] for volume in kafka["volumes"]]


def test_redis_keeps_what_it_has(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = " ".join(redis["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert redis["ports"] == ["127.0.0.1:6379:6379"]


def test_servers_have_health_checks_and_workers_wait_for_them(compose: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    for name in ("kafka", "redis"):
        check = compose["services"][name]["healthcheck"]
        assert check["test"][0] == "CMD"
        assert {"interval", "timeout", "retries"} <= set(check)
    for worker in workers:
        assert worker["depends_on"] == {name: {"condition": "service_healthy"} for name in ("kafka", "redis")}


def test_two_workers_run_an_app_that_exists(workers: list[dict[str, Any]]) -> None:
    assert len(workers) == 2
    for worker in workers:
        krq, name, target, *options = worker["command"]
        assert (krq, name) == ("krq", "worker")
        app = load(target)
        assert isinstance(app, KRQ)
        assert len(app.registry) > 0
        with root.commands[name].make_context(name, [target, *options]) as context:
            assert isinstance(context, click.Context)


def test_variables_are_settings(workers: list[dict[str, Any]]) -> None:
    names = {f"KRQ_{field.name.upper()}" for field in msgspec.structs.fields(Config)}
    for worker in workers:
        assert set(worker["environment"]) <= names
        config = load_config({}, worker["environment"])
        assert seconds(worker["stop_grace_period"]) > config.grace, "Docker would kill what may still run"


def test_volumes_are_declared(compose: dict[str, Any]) -> None:
    used = {volume.partition(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_the_dashboard_starts_with_a_token_and_only_this_machine_reaches_it(
    compose: dict[str, Any], workers: list[dict[str, Any]]
) -> None:
    web = compose["services"]["web"]
    krq, name, *options = web["command"]
    token = re.fullmatch(r"\$\{KRQ_WEB_TOKEN:-(.*)\}", web["environment"]["KRQ_WEB_TOKEN"])
    assert (krq, name) == ("krq", "web") and token is not None
    with root.commands[name].make_context(name, options) as context:
        given = {field: value for field, value in context.params.items() if field in WebSettings.__struct_fields__ and value is not None}
        WebSettings(**{**given, "token": token[1]}).check()
        assert web["ports"] == [f"127.0.0.1:8080:{context.params['port']}"]
    assert {key: web["environment"][key] for key in ("KRQ_BROKER", "KRQ_BACKEND")}.items() <= workers[0]["environment"].items()
    assert web["depends_on"] == workers[0]["depends_on"]
    assert "'.[web,metrics]'" in (ROOT / "Dockerfile").read_text()


def test_the_image_has_what_the_command_needs(workers: list[dict[str, Any]]) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    target = workers[0]["command"][2]
    assert target.partition(".")[0] in copied, "the app's folder"
    assert {"pyproject.toml", "README.md", "LICENSE", "krq"} <= copied, "what building the package takes"
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert all(f"!{name}" in allowed for name in copied)
    importlib.import_module(target.partition(":")[0])  # needs nothing beyond the package's own dependencies
    assert "numpy" not in (ROOT / "examples" / "tasks.py").read_text()
    assert any(line.split() == ["FROM", "python:3.13-slim"] for line in lines)


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])
