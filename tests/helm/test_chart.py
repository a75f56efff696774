"""The chart: what it renders is what Kubernetes accepts, wrong values are refused, and the promises of operation hold in it."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.access import Access
from services.control.sessions import Sessions
from services.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "slatewise"
KUBERNETES = "1.31"
CUSTOM = {"RayCluster", "ServiceMonitor", "PrometheusRule"}  # of operators: what matters of them is asserted below

HOME = "surface: home\nlive: null\n"
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "acknowledged by the log, scaled by load": {
        "scoring": {"ack": "log", "autoscaling": {"enabled": True, "max": 9}},
        "surfaces": {"home.yaml": HOME},
    },
    "plain Ray, no experiences": {"learning": {"ray": {"mode": "plain", "workers": 3}}, "experiences": ""},
    "small: Ray inside, no policies of the network": {
        "learning": {"ray": {"mode": "local"}},
        "networkPolicy": {"enabled": False},
        "scoring": {"replicas": 1, "autoscaling": {"enabled": True, "min": 1, "max": 3}},
        "serviceAccount": {"create": False},
        "topologySpread": False,
    },
    "watched, tolerant, with a GCS that survives": {
        "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboards": True, "labels": {"release": "p"}},
        "learning": {"ray": {"gcsRedis": "redis://gcs:6379"}},
        "networkPolicy": {"from": [{"matchLabels": {"team": "shop"}}]},
        "nodeSelector": {"pool": "fast"},
        "tolerations": [{"key": "fast", "operator": "Exists"}],
        "image": {"pullSecrets": [{"name": "pull"}]},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
    },
    "a tenant of its own, its people known by a proxy": {
        "tenant": "shop-eu",
        "otel": "http://collector:4318",
        "drift": "off",
        "retentionSeconds": 86_400,
        "control": {"ops": {"userHeader": "X-Forwarded-User", "proxies": ["10.1.0.0/16", "fd00::/8"]}},
        "learning": {"ray": {"mode": "plain"}},
    },
}


@pytest.fixture(scope="session")
def helm() -> str:
    found = shutil.which("helm")
    if found is None:
        pytest.skip("needs helm on the PATH")
    return found


def run(helm: str, tmp_path: Path, values: Mapping[str, Any], *command: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    return subprocess.run([helm, *command, "--values", str(file)], capture_output=True, text=True)


def rendered(helm: str, tmp_path: Path, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    done = run(helm, tmp_path, values, "template", "shop", str(CHART), "--kube-version", f"{KUBERNETES}.0")
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of everything that runs."""
    found = []
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Pod":
            found.append((document["metadata"]["name"], spec))
        elif document["kind"] == "RayCluster":
            groups = [("head", spec["headGroupSpec"]), *((g["groupName"], g) for g in spec["workerGroupSpecs"])]
            found += [(name, group["template"]["spec"]) for name, group in groups]
        elif "template" in spec:
            found.append((document["metadata"]["name"], spec["template"]["spec"]))
    return found


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_accepts_what_is_rendered(helm: str, tmp_path: Path, name: str) -> None:
    documents = rendered(helm, tmp_path, VALUES[name])
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", VALUES)
def test_nothing_runs_as_root_and_every_volume_is_there(helm: str, tmp_path: Path, name: str) -> None:
    found = pods(rendered(helm, tmp_path, VALUES[name]))
    assert len(found) >= 4
    for who, pod in found:
        assert pod["securityContext"]["runAsNonRoot"], who
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, who
            if "ray" not in who and container["name"] not in ("ray", "ray-head", "ray-worker"):
                assert container["securityContext"]["readOnlyRootFilesystem"], who
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, who


def settings_of(container: dict[str, Any]) -> Settings:
    """What a container's process makes of its environment; secrets are as long as they have to be."""
    said = {one["name"]: one.get("value", "a-secret-of-more-than-32-characters") for one in container.get("env", [])}
    ours = {name: value for name, value in said.items() if name.startswith(PREFIX)}
    assert {name.removeprefix(PREFIX).lower() for name in ours} <= set(Settings.__dataclass_fields__)
    return Settings.load(ours)


@pytest.mark.parametrize("name", VALUES)
def test_every_process_takes_the_settings_it_is_given(helm: str, tmp_path: Path, name: str) -> None:
    """No misspelt variable, no value that the process refuses; the tenant is the same everywhere, and its salt is there."""
    tenant = VALUES[name].get("tenant", "default")
    seen = 0
    for who, pod in pods(rendered(helm, tmp_path, VALUES[name])):
        keys = [one["secret"]["items"] for one in pod.get("volumes", []) if one["name"] == "keys"]
        for container in pod["containers"]:
            if "env" in container:
                found = settings_of(container)
                assert found.tenant == tenant, who
                named = (found.otel, found.drift, found.retention_seconds)
                wanted = ("http://collector:4318", "off", 86_400) if tenant == "shop-eu" else ("", "on", 7 * 86_400)
                assert named == wanted, who
                [items] = keys
                assert {one["path"] for one in items} == {"server.key", f"salt.{tenant}"}
                seen += 1
    assert seen >= 4


def test_people_are_believed_from_the_proxy_only_and_by_control_only(helm: str, tmp_path: Path) -> None:
    values = VALUES["a tenant of its own, its people known by a proxy"]
    for who, pod in pods(rendered(helm, tmp_path, values)):
        for container in pod["containers"]:
            if "env" in container:
                found = settings_of(container)
                wanted = ("X-Forwarded-User", "10.1.0.0/16,fd00::/8") if who == "shop-control" else ("", "")
                assert (found.ops_user_header, found.ops_proxies) == wanted, who
                Sessions(Access(), b"x" * 32, user_header=found.ops_user_header, proxies=found.ops_proxies)


def test_lint_is_clean(helm: str, tmp_path: Path) -> None:
    done = run(helm, tmp_path, {}, "lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"log": "sqlite:///here"}, "log"),
        ({"scoring": {"replicas": 0}}, "replicas"),
        ({"scoring": {"ack": "never"}}, "ack"),
        ({"scorring": {}}, "scorring"),
        ({"learning": {"ray": {"mode": "slurm"}}}, "mode"),
        ({"surfaces": {"home": HOME}}, "home"),
        ({"scoring": {"spool": {"bytes": "1Gi"}}}, "bytes"),
        ({"monitoring": {"labels": {"release": 3}}}, "release"),
        ({"tenant": "Shop EU"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"drift": True}, "drift"),  # YAML's on is a switch's on only in quotes
        ({"otel": "collector:4318"}, "otel"),
        ({"retentionSeconds": 0}, "retentionSeconds"),
        ({"control": {"ops": {"userHeader": "X-User: admin"}}}, "userHeader"),
        ({"control": {"ops": {"proxies": ["the-proxy"]}}}, "proxies"),
        ({"control": {"ops": {"proxies": ["0.0.0.0/0"]}}}, "proxies"),  # everybody could name themselves an admin
        ({"control": {"ops": {"proxy": "10.0.0.1"}}}, "proxy"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: str, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    done = run(helm, tmp_path, wrong, "template", "shop", str(CHART), "--kube-version", f"{KUBERNETES}.0")
    assert done.returncode != 0
    assert said in done.stderr


def test_a_spool_outlives_its_pod_and_is_brought_away_before_the_pod_goes(helm: str, tmp_path: Path) -> None:
    documents = rendered(helm, tmp_path, {})
    (scoring,) = [d for d in of_kind(documents, "StatefulSet") if d["metadata"]["name"] == "shop-scoring"]
    assert scoring["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"
    pod = scoring["spec"]["template"]["spec"]
    forwarder = next(c for c in pod["containers"] if c["name"] == "forwarder")
    waits = int(forwarder["lifecycle"]["preStop"]["exec"]["command"][1])
    scores = next(c for c in pod["containers"] if c["name"] == "scoring")
    assert int(scores["lifecycle"]["preStop"]["exec"]["command"][1]) < waits < pod["terminationGracePeriodSeconds"]


def test_with_acknowledgement_by_the_log_no_volume_is_kept(helm: str, tmp_path: Path) -> None:
    documents = rendered(helm, tmp_path, {"scoring": {"ack": "log"}})
    (scoring,) = [d for d in of_kind(documents, "Deployment") if d["metadata"]["name"] == "shop-scoring"]
    container = scoring["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "SLATEWISE_ACK", "value": "log"} in container["env"]


@pytest.mark.parametrize("name", VALUES)
def test_prometheus_and_the_ops_page_reach_every_process_that_counts(helm: str, tmp_path: Path, name: str) -> None:
    """Pods of ours are alone with their data folder: each gives out its own metrics, at a port that its service names."""
    documents = rendered(helm, tmp_path, VALUES[name] | {"monitoring": {"serviceMonitor": True}})
    (monitor,) = of_kind(documents, "ServiceMonitor")
    [wanted] = monitor["spec"]["selector"]["matchExpressions"]
    services = {one["metadata"]["name"]: one for one in of_kind(documents, "Service")}
    scraped = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["ports"][0]["port"]
        for one in services.values()
        if one["metadata"]["labels"].get("app.kubernetes.io/component") in wanted["values"]
    }
    listening = {}
    for who, pod in pods(documents):
        for container in pod["containers"]:
            if container.get("args", [""])[0] in ("scoring", "learning", "settle", "control"):
                found = settings_of(container)
                at = found.metrics_address or (found.control_address if who == "shop-control" else found.http_address)
                assert at[0] == "0.0.0.0", who
                assert container["ports"] == [{"name": "http", "containerPort": at[1]}], who
                listening[container["name"]] = at[1]
                if who == "shop-control":
                    sources = dict(found.metrics_sources.values())
    assert scraped == listening
    assert {host: services[host]["spec"]["ports"][0]["port"] for host in sources} == sources
    assert {services[host]["spec"]["selector"]["app.kubernetes.io/component"] for host in sources} == (
        listening.keys() - {"control"}
    )
    closed = {
        d["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: d
        for d in of_kind(documents, "NetworkPolicy")
    }
    for component in listening.keys() & closed.keys():
        assert closed[component]["spec"]["ingress"][0]["ports"] == [{"port": "http"}]


def test_rays_ports_are_open_to_the_learners_alone(helm: str, tmp_path: Path) -> None:
    for mode in ("kuberay", "plain"):
        documents = rendered(helm, tmp_path, {"learning": {"ray": {"mode": mode}}})
        (policy,) = [d for d in of_kind(documents, "NetworkPolicy") if d["metadata"]["name"] == "shop-ray"]
        sources = policy["spec"]["ingress"][0]["from"]
        components = {source["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for source in sources}
        assert components == {"ray", "learning"}


def test_the_learning_service_is_told_where_its_ray_is(helm: str, tmp_path: Path) -> None:
    wanted = {"kuberay": "ray://shop-ray-head-svc:10001", "plain": "ray://shop-ray-head:10001", "local": "local"}
    for mode, url in wanted.items():
        documents = rendered(helm, tmp_path, {"learning": {"ray": {"mode": mode}}})
        (learning,) = [d for d in of_kind(documents, "StatefulSet") if d["metadata"]["name"] == "shop-learning"]
        env = {e["name"]: e.get("value") for e in learning["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert env["SLATEWISE_RAY"] == url


def test_a_changed_surface_rolls_the_control_service_out(helm: str, tmp_path: Path) -> None:
    def checksum(surfaces: dict[str, str]) -> str:
        documents = rendered(helm, tmp_path, {"surfaces": surfaces})
        (control,) = [d for d in of_kind(documents, "StatefulSet") if d["metadata"]["name"] == "shop-control"]
        return str(control["spec"]["template"]["metadata"]["annotations"]["checksum/surfaces"])

    assert checksum({"home.yaml": HOME}) == checksum({"home.yaml": HOME})
    assert checksum({"home.yaml": HOME}) != checksum({"home.yaml": HOME + "slots: 3\n"})


def test_rules_and_dashboards_are_those_of_deploy(helm: str, tmp_path: Path) -> None:
    sources = [*(ROOT / "deploy/prometheus").glob("*.rules.yml"), *(ROOT / "deploy/grafana/dashboards").glob("*.json")]
    assert sources
    assert {file.name: file.read_text() for file in (CHART / "files").iterdir()} == {
        file.name: file.read_text() for file in sources
    }
    documents = rendered(helm, tmp_path, VALUES["watched, tolerant, with a GCS that survives"])
    (rule,) = of_kind(documents, "PrometheusRule")
    alerts = [r["alert"] for group in rule["spec"]["groups"] for r in group["rules"] if "alert" in r]
    assert "SlatewiseShardStopped" in alerts
    (boards,) = [d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == "shop-dashboards"]
    assert {json.loads(text)["uid"] for text in boards["data"].values()} >= {"slatewise-overview"}
    (monitor,) = of_kind(documents, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "p"
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"
    (ray,) = of_kind(documents, "RayCluster")
    assert ray["spec"]["gcsFaultToleranceOptions"] == {"redisAddress": "redis://gcs:6379"}
