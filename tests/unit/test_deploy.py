"""Deployment files name existing files, commands, settings and ports, and contain no secrets."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from relay import __version__
from relay.__main__ import COMMANDS
from relay.cli.exits import USAGE
from relay.cli.http_server import MOST_FILES
from relay.config.environment import load
from relay.config.variables import SETTINGS

ROOT = Path(__file__).parents[2]
SETTING_NAMES = {setting.variable for setting in SETTINGS}
SECRET_NAMES = {setting.variable for setting in SETTINGS if setting.secret}
OPS_PORT, API_PORT = load({}).ops_port, load({}).port
USER = 10001


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fly() -> dict[str, Any]:
    return tomllib.loads(text("fly.toml"))


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text("docker-compose.yml"))["services"]
    return found


def ours() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services().items() if service["image"] == "relay"}


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found = list(yaml.safe_load_all(text("deploy/kubernetes/relay.yml")))
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each workload, the specification of its pod, and the one container in that."""
    for (kind, _), one in manifests().items():
        if kind in {"Job", "Deployment"}:
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield one, pod, container


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, continued lines joined, without comments."""
    lines = "\n".join(line for line in text("Dockerfile").splitlines() if not line.startswith("#"))
    found = [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line]
    return [(word, rest) for word, rest in found]


def image_size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_size", ROOT / "scripts" / "image_size.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_that_the_image_copies_is_there_and_reaches_the_build() -> None:
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    assert sources
    let_in = [line.removeprefix("!") for line in text(".dockerignore").splitlines() if line.startswith("!")]
    assert "*" in text(".dockerignore").splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in let_in), f"{source} is ignored"
    assert sorted(sources) == sorted(let_in), "something is sent that nothing copies"


def test_nothing_is_compiled_or_installed_without_a_hash() -> None:
    (install,) = [rest for word, rest in instructions() if word == "RUN" and " install " in rest]
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= set(install.split())
    assert "requirements/prod.txt" in install
    assert not re.search(r"\b(apk add|gcc|build-base|curl|pip install [a-z])", text("Dockerfile"))


def test_every_pin_of_the_lock_has_a_hash_and_none_is_the_embedded_postgresql() -> None:
    pins = re.split(r"\n(?=\S)", text("requirements/prod.txt").strip())
    assert len(pins) > 30
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==[^ ]+ .*\\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", pin), pin[:60]
    assert "postgres" not in text("requirements/prod.txt")


def test_the_image_runs_the_api_as_a_user_who_is_not_root() -> None:
    last = dict(instructions())
    assert last["ENTRYPOINT"] == '["relay"]'
    assert last["CMD"] == '["serve"]'
    assert last["USER"] == f"{USER}:{USER}"
    assert set(last["EXPOSE"].split()) == {str(API_PORT), str(OPS_PORT)}
    assert f"${{PORT:-{API_PORT}}}/health/live" in text("Dockerfile")
    assert f"${{RELAY_OPS_PORT:-{OPS_PORT}}}/health/live" in text("Dockerfile")
    assert f"ARG VERSION={__version__}\n" in text("Dockerfile")


def test_only_settings_that_there_are_are_set() -> None:
    for service in ours().values():
        assert set(service["environment"]) <= SETTING_NAMES
    assert set(fly()["env"]) <= SETTING_NAMES
    for _, _, container in pods():
        assert {one["name"] for one in container.get("env", ())} <= SETTING_NAMES


def test_what_is_set_outright_is_what_the_settings_may_be() -> None:
    load(fly()["env"])
    for _, _, container in pods():
        load({one["name"]: one["value"] for one in container.get("env", ())})
    filled = re.compile(r"\$\{\w+(?::\?[^}]*|:-)\}")
    for service in ours().values():
        values = service["environment"]
        load(
            {
                name: filled.sub("", value) if "NETWORKS" in name else filled.sub("x" * 32, value)
                for name, value in values.items()
                if value is not None
            }
        )


def test_the_composition_passes_on_every_setting_that_is_not_its_own() -> None:
    # Where the database of `relay up` lies, and the port that health checks and Prometheus ask.
    own = {"RELAY_DATA_DIR", "RELAY_OPS_PORT"}
    for service in ours().values():
        assert {name for name in service["environment"] if name.startswith("RELAY_")} == {
            name for name in SETTING_NAMES - own if name.startswith("RELAY_")
        }


def test_no_secret_stands_in_a_file() -> None:
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if value is None:
                continue
            if re.search(r"PASSWORD|SECRET|TOKEN", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
            assert not re.search(r"://[^/@]*:[^/@]+@", re.sub(r"\$\{[^}]+\}", "", value)), name
    assert not set(fly()["env"]) & SECRET_NAMES
    for _, _, container in pods():
        assert not {one["name"] for one in container.get("env", ())} & SECRET_NAMES
    assert not [kind for kind, _ in manifests() if kind == "Secret"]


def test_only_commands_that_there_are_are_run() -> None:
    run = [
        *(service["command"] for service in ours().values()),
        *(container["args"] for _, _, container in pods()),
        *(command.split() for command in fly()["processes"].values()),
        fly()["deploy"]["release_command"].split(),
    ]
    assert len(run) == 9
    for command in run:
        assert len(command) == 1
        assert command[0] in COMMANDS


def test_containers_may_do_nothing_and_write_nowhere() -> None:
    assert set(ours()) == {"migrate", "api", "deliver"}
    for service in ours().values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for _, pod, container in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_migrations_come_before_what_needs_them() -> None:
    for name in ("api", "deliver"):
        assert services()[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services()["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    for service in services().values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services()[needed]["healthcheck"]


def test_what_is_mounted_is_there() -> None:
    volumes = yaml.safe_load(text("docker-compose.yml"))["volumes"]
    for service in services().values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (ROOT / source).is_dir() if source.startswith("./") else source in volumes, mount


def test_prometheus_scrapes_the_services_at_their_ports_by_the_names_that_the_alerts_know() -> None:
    config = yaml.safe_load(text("docs/prometheus/prometheus.yml"))
    assert config["rule_files"] == ["alerts.yml"]
    scraped = {
        job["job_name"]: (one["names"], one["port"])
        for job in config["scrape_configs"]
        for one in job["dns_sd_configs"]
    }
    assert scraped == {"relay-api": (["api"], API_PORT), "relay-deliver": (["deliver"], OPS_PORT)}


def test_on_a_bare_machine_the_same_jobs_are_scraped_on_loopback() -> None:
    config = yaml.safe_load(text("deploy/prometheus/prometheus.yml"))
    scraped = {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]}
    assert scraped == {
        "relay-api": [{"targets": [f"127.0.0.1:{API_PORT}"]}],
        "relay-deliver": [{"targets": [f"127.0.0.1:{OPS_PORT}"]}],
    }
    assert config["rule_files"] == ["alerts.yml"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("name", ["docs/prometheus/prometheus.yml", "deploy/prometheus/prometheus.yml"])
def test_prometheus_takes_its_configuration(name: str, tmp_path: Path) -> None:
    # Where they are installed the alerts lie beside it.
    for file in (name, "docs/prometheus/alerts.yml"):
        shutil.copy(ROOT / file, tmp_path)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_its_source_and_the_dashboard_where_they_are_mounted() -> None:
    (source,) = yaml.safe_load(text("deploy/grafana/datasources/prometheus.yml"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(text("deploy/grafana/dashboards/relay.yml"))["providers"]
    mounts = dict(mount.split(":")[:2] for mount in services()["grafana"]["volumes"])
    assert mounts["./docs/grafana"] == provider["options"]["path"]
    assert mounts["./deploy/grafana"] == "/etc/grafana/provisioning"


def test_fly_asks_and_scrapes_each_group_at_its_port() -> None:
    config = fly()
    assert config["http_service"]["internal_port"] == int(config["env"]["PORT"]) == API_PORT
    assert config["http_service"]["processes"] == ["api"]
    assert int(config["env"]["RELAY_OPS_PORT"]) == OPS_PORT
    scraped = {tuple(one["processes"]): (one["port"], one["path"]) for one in config["metrics"]}
    assert scraped == {("api",): (API_PORT, "/metrics"), ("deliver",): (OPS_PORT, "/metrics")}
    (check,) = config["checks"].values()
    assert (check["processes"], check["port"], check["path"]) == (["deliver"], OPS_PORT, "/health")
    (size,) = config["vm"]
    assert sorted(size["processes"]) == sorted(config["processes"])


def test_every_stop_is_given_the_time_that_relay_takes() -> None:
    assert fly()["kill_signal"] == "SIGTERM"
    assert fly()["kill_timeout"] > 30
    for service in ours().values():
        assert int(service["stop_grace_period"].removesuffix("s")) > 30
    for one, pod, container in pods():
        if one["kind"] == "Deployment":
            wait = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            assert pod["terminationGracePeriodSeconds"] - int(wait[1]) > 30


def test_kubernetes_selects_and_asks_its_own_pods() -> None:
    labels = {
        name: one["spec"]["template"]["metadata"]["labels"]
        for (kind, name), one in manifests().items()
        if kind == "Deployment"
    }
    assert set(labels) == {"relay-api", "relay-deliver"}
    for (kind, name), one in manifests().items():
        if kind in {"Deployment", "PodDisruptionBudget"}:
            assert one["spec"]["selector"]["matchLabels"] == labels[name]
    service = manifests()[("Service", "relay-api")]["spec"]
    assert service["selector"] == labels["relay-api"]
    listening = {"relay-api": ("http", API_PORT), "relay-deliver": ("ops", OPS_PORT)}
    for one, _, container in pods():
        assert container["envFrom"] == [{"secretRef": {"name": "relay-secrets"}}]
        if one["kind"] == "Deployment":
            port, number = listening[one["metadata"]["name"]]
            assert container["ports"] == [{"name": port, "containerPort": number}]
            assert {
                container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("readiness", "liveness", "startup")
            } == {port}
            assert container["readinessProbe"]["httpGet"]["path"] == "/health"
            assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert [port["targetPort"] for port in service["ports"]] == ["http"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_libraries_that_a_wheel_asks_for_are_read_from_it() -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = sorted(Path(sysconfig.get_path("platlib")).glob(f"asyncpg/protocol/*{suffix}"))
    assert found
    assert "libc.so.6" in image_size().needs(found[0].read_bytes())
    assert image_size().needs(b"#!/bin/sh") == []


UNITS = ("serve", "deliver", "migrate")


def unit(command: str) -> dict[str, list[str]]:
    """What each directive of a unit is set to, in order."""
    found: dict[str, list[str]] = {}
    for line in text(f"deploy/systemd/relay-{command}.service").splitlines():
        name, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("command", UNITS)
def test_a_unit_runs_a_command_that_there_is_with_next_to_no_rights(command: str) -> None:
    directives = unit(command)
    assert command in COMMANDS
    assert directives["ExecStart"] == [f"/opt/relay/bin/relay {command}"]
    assert directives["EnvironmentFile"] == ["/etc/relay/relay.env"]
    assert directives["CapabilityBoundingSet"] == [""]
    for name in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateTmp", "MemoryDenyWriteExecute"):
        assert directives[name] == ["yes"], name
    assert directives["ProtectSystem"] == ["strict"]
    if command != "migrate":
        assert int(directives["TimeoutStopSec"][0]) > 30
        assert directives["LimitNOFILE"] == [str(MOST_FILES)]
        assert directives["RestartPreventExitStatus"] == [str(USAGE)]
        assert directives["KillMode"] == ["mixed"]
        assert directives["Requires"] == ["relay-migrate.service"]
        assert "relay-migrate.service" in directives["After"][0].split()


def test_the_environment_of_the_units_has_settings_alone_and_no_secret() -> None:
    lines = [line for line in text("deploy/systemd/relay.env").splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert set(values) <= SETTING_NAMES
    for name in SECRET_NAMES & set(values):
        assert not values[name] or ":" not in values[name].partition("@")[0].partition("//")[2], name
    settings = load(values)
    # Only the proxy reaches it, and the proxy is believed.
    assert settings.host == "127.0.0.1"
    assert any(ipaddress.ip_address("127.0.0.1") in network for network in settings.trusted_proxies)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units_and_finds_little_exposed(tmp_path: Path) -> None:
    command = str(Path(sysconfig.get_path("scripts")) / "relay")
    paths = []
    for name in UNITS:
        paths.append(tmp_path / f"relay-{name}.service")
        made = text(f"deploy/systemd/relay-{name}.service").replace("/opt/relay/bin/relay", command)
        paths[-1].write_text(made, encoding="utf-8")
    for words in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(["systemd-analyze", *words, *paths], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        if words == ["verify"]:
            # It complains of unknown directives, and ends with 0.
            assert not [line for line in done.stderr.splitlines() if "relay-" in line], done.stderr


def test_proxies_pass_on_to_the_port_of_the_api_and_keep_its_metrics_to_this_machine() -> None:
    for name in ("deploy/nginx/relay.conf", "deploy/caddy/Caddyfile"):
        assert f"127.0.0.1:{API_PORT}" in text(name)
        assert re.search(r"/metrics \{?\s*(return )?404", text(name)), name
        assert name in text("docs/deploy-machine.md")
