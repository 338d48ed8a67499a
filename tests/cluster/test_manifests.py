"""What `cluster/` ships to start from: valid, closed to strangers, and without any secret."""

import copy
import re
import shutil
import subprocess
from pathlib import Path

import kube_fields
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted([*CLUSTER.glob("kuberay/*.yaml"), CLUSTER / "mlflow/kubernetes.yaml"], key=str)
SCRIPTS = [CLUSTER / "install.sh", CLUSTER / "node.sh", CLUSTER / "slurm.sbatch"]
SHIPPED = [
    *KUBERNETES,
    *SCRIPTS,
    *(CLUSTER / name for name in ("aws.yaml", "gcp.yaml", "Dockerfile")),
    *(CLUSTER / "mlflow" / name for name in ("Dockerfile", "compose.yaml")),
]


def launcher(name):
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def documents(*paths):
    """Every Kubernetes object of some manifests, the kustomization aside."""
    return [
        document
        for path in paths or KUBERNETES
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def pods():
    """(Where, pod template) of every pod the manifests bring about."""
    for document in documents():
        spec = document.get("spec", {})
        name = f"{document['kind']}/{document['metadata']['name']}"
        cluster = spec.get("rayClusterSpec", spec)
        if "template" in spec:
            yield name, spec["template"]
        if "headGroupSpec" in cluster:
            yield f"{name}/head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]


# --- all of them


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_each_says_at_its_head_how_it_is_started(path):
    head = "\n".join(path.read_text().splitlines()[:6])
    assert "Start: " in head


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_image_names_a_registry_and_none_floats(path):
    images = re.findall(r"^\s*(?:image:|FROM|ARG BASE=)\s*([^\s$#]+)", path.read_text(), re.M)
    ours = {"tokenpool", "tokenpool-mlflow", "CHANGE-ME"}
    for image in images:
        host = image.split("/")[0]
        assert "/" not in image or not re.search(r"[.:]|localhost", host), image
        assert image in ours or re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?(-[a-z0-9]+)*", image), image


# --- ray up


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_launcher_file_passes_rays_own_validator(cloud):
    config = launcher(cloud)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    # Nothing of Ray's defaults, which open the dashboard to the network, has crept in.
    assert set(prepared) - set(config) <= {"docker"}
    # The validator can say no.
    broken = copy.deepcopy(prepared) | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(broken)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_asks_for_a_token_and_the_dashboard_stays_on_loopback(cloud):
    config = launcher(cloud)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for node in ("head", "worker"):
        (start,) = [c for c in config[f"{node}_start_ray_commands"] if "ray start" in c]
        assert "export RAY_AUTH_MODE=token" in start
        assert subprocess.run(["bash", "-n", "-c", start], check=False).returncode == 0
        hosts = re.findall(r"--dashboard-host=(\S+)", start)
        assert hosts == (["127.0.0.1"] if node == "head" else [])


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_trials_are_on_spot_machines_and_the_head_is_not(cloud):
    config = launcher(cloud)
    head = config["head_node_type"]
    for name, kind in config["available_node_types"].items():
        text = str(kind["node_config"]).lower()
        assert ("spot" in text) == (name != head), name


def test_no_machine_of_a_cloud_has_a_public_address():
    for cloud in ("aws", "gcp"):
        assert launcher(cloud)["provider"]["use_internal_ips"] is True
    for kind in launcher("aws")["available_node_types"].values():
        (interface,) = kind["node_config"]["NetworkInterfaces"]
        assert interface["AssociatePublicIpAddress"] is False
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    for kind in launcher("gcp")["available_node_types"].values():
        assert all("accessConfigs" not in n for n in kind["node_config"]["networkInterfaces"])


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_only_what_runs_leaves_the_users_machine(cloud):
    local = set(launcher(cloud)["file_mounts"].values()) - {"~/.ray/auth_token"}
    assert all((ROOT / path).exists() for path in local)
    needed = {"tokenpool", "tune_spaces", "pipelines", "cluster", "pyproject.toml"}
    assert local == needed | {"constraints.txt", "README.md", "LICENSE"}


# --- Kubernetes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_manifests_use_only_fields_that_exist(path):
    found = [line for document in documents(path) for line in kube_fields.problems(document)]
    assert found == []


def test_the_table_of_fields_can_say_no():
    (cluster,) = documents(CLUSTER / "kuberay/raycluster.yaml")
    spec = cluster["spec"]
    spec["networkPolicy"] = {"mode": "DenyAll"}  # of v1.7, behind a gate
    spec["authOptions"]["mode"] = "none"
    del spec["headGroupSpec"]["template"]["spec"]["containers"]
    spec["workerGroupSpecs"][0]["template"]["spec"]["tolerations"] = {"key": "spot"}
    found = "\n".join(kube_fields.problems(cluster))
    for said in (
        "networkPolicy: RayClusterSpec has no such field",
        "mode: none is none of disabled, token",
        "template.spec.containers: missing",
        "tolerations: a list is wanted",
    ):
        assert said in found
    assert kube_fields.problems({"apiVersion": "v1", "kind": "Pod"})


def test_the_manifests_name_the_version_their_fields_are_of():
    for name in ("raycluster", "rayjob"):
        assert kube_fields.KUBERAY_VERSION in (CLUSTER / f"kuberay/{name}.yaml").read_text()


def test_the_job_brings_the_same_cluster_as_the_one_that_stays():
    (cluster,) = documents(CLUSTER / "kuberay/raycluster.yaml")
    (job,) = documents(CLUSTER / "kuberay/rayjob.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_ray_on_kubernetes_has_a_token_a_state_that_lasts_and_the_installed_version():
    (cluster,) = documents(CLUSTER / "kuberay/raycluster.yaml")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "tokenpool-ray"}
    secret = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "tokenpool-redis", "key": "password"}
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert spec["rayVersion"] == pinned[1]


def test_trials_are_on_spot_nodes_and_the_head_is_on_none():
    def terms(template):
        affinity = template["spec"]["affinity"]["nodeAffinity"]
        return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    (cluster,) = documents(CLUSTER / "kuberay/raycluster.yaml")
    head = terms(cluster["spec"]["headGroupSpec"]["template"])
    (group,) = cluster["spec"]["workerGroupSpecs"]
    spot = {
        (e["key"], *e["values"]) for t in terms(group["template"]) for e in t["matchExpressions"]
    }
    # Terms are alternatives; within one all must hold.
    assert len(head) == 1 and len(terms(group["template"])) == len(spot)
    assert {(e["key"], *e["values"]) for e in head[0]["matchExpressions"]} == spot
    assert {e["operator"] for e in head[0]["matchExpressions"]} == {"NotIn"}


def test_pods_run_as_nobody_in_particular_and_may_little():
    seen = dict(pods())
    assert len(seen) == 7
    for name, template in seen.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
        # Only the autoscaler, beside the head, talks to Kubernetes.
        assert spec.get("automountServiceAccountToken", True) is name.endswith("/head"), name


def test_services_are_reached_from_inside_the_cluster_only():
    for document in documents():
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert spec["type"] == "ClusterIP"
        cluster = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in cluster:
            assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
            assert "enableIngress" not in cluster["headGroupSpec"]


def selects(selector, labels):
    wanted = selector.get("matchLabels", {})
    return all(labels.get(k) == v for k, v in wanted.items()) and all(
        expression["key"] in labels for expression in selector.get("matchExpressions", [])
    )


def may_enter(source, target, port):
    """Whether a pod with some labels may reach one with others, by our policies on ingress."""
    policies = [d["spec"] for d in documents() if d["kind"] == "NetworkPolicy"]
    mine = [
        p for p in policies if "Ingress" in p["policyTypes"] and selects(p["podSelector"], target)
    ]
    assert mine, f"no policy on {target}: everybody may enter"
    return any(
        any(selects(peer["podSelector"], source) for peer in rule["from"])
        and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
        for policy in mine
        for rule in policy.get("ingress", [])
    )


def test_network_policies_let_in_whom_they_should_and_nobody_else():
    def labels(component):
        return {
            "app.kubernetes.io/part-of": "tokenpool",
            "app.kubernetes.io/component": component,
        }

    ray, redis, mlflow, postgres = map(labels, ("ray", "redis", "mlflow", "postgres"))
    stranger = {"app": "stranger"}
    assert may_enter(ray, ray, 6379) and may_enter(ray, ray, 43210)
    assert may_enter(ray, redis, 6379) and may_enter(ray, mlflow, 5000)
    assert may_enter(mlflow, postgres, 5432)
    assert may_enter(stranger, ray, 8265)  # the job API of this namespace; the token decides
    for target, port in ((ray, 6379), (ray, 10001), (redis, 6379), (mlflow, 5000)):
        assert not may_enter(stranger, target, port)
    for source in (stranger, ray, redis):
        assert not may_enter(source, postgres, 5432)
    # The labels the policies go by are those the pods have.
    components = {t["metadata"]["labels"]["app.kubernetes.io/component"] for _, t in pods()}
    assert components == {"ray", "redis", "mlflow", "postgres"}


def test_no_secret_is_shipped_and_each_one_is_asked_for_by_name():
    assert not [d for d in documents() if d["kind"] == "Secret"]
    wanted = set()
    for _, template in pods():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                secretish = re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable["name"])
                if secretish and not variable["name"].endswith("_FILE"):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert not reference.get("optional"), variable["name"]
                    wanted.add(reference["name"])
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                assert not volume["secret"].get("optional")
                wanted.add(volume["secret"]["secretName"])
    assert wanted == {"tokenpool-redis", "tokenpool-mlflow"}


def test_kustomize_puts_the_users_image_everywhere():
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")
    built = subprocess.run(
        ["kubectl", "kustomize", CLUSTER / "kuberay"], capture_output=True, text=True, check=True
    ).stdout
    made = list(yaml.safe_load_all(built))
    assert {d["metadata"].get("namespace") for d in made if d["kind"] != "Namespace"} == {
        "tokenpool"
    }
    (cluster,) = [d["spec"] for d in made if d["kind"] == "RayCluster"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for t in templates for c in t["template"]["spec"]["containers"]}
    assert images == {"CHANGE-ME:CHANGE-ME"}
    assert [line for d in made for line in kube_fields.problems(d)] == []


# --- compose


def test_compose_listens_on_loopback_and_its_secrets_are_files():
    compose = yaml.safe_load((CLUSTER / "mlflow/compose.yaml").read_text())
    postgres, mlflow = compose["services"]["postgres"], compose["services"]["mlflow"]
    assert "ports" not in postgres and postgres["networks"] == ["database"]
    assert compose["networks"]["database"] == {"internal": True}
    assert all(port.startswith("127.0.0.1:") for port in mlflow["ports"])
    assert set(mlflow["secrets"]) == set(compose["secrets"])
    for secret in compose["secrets"].values():
        assert list(secret) == ["file"] and secret["file"].startswith("secrets/")
        ignored = ["git", "check-ignore", "-q", f"cluster/mlflow/{secret['file']}"]
        assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0
    for service in (postgres, mlflow):
        for name, value in service["environment"].items():
            assert not re.search(r"PASSWORD|SECRET|KEY", name) or name.endswith("_FILE"), (
                name,
                value,
            )
    assert "no-new-privileges:true" in mlflow["security_opt"] and mlflow["cap_drop"] == ["ALL"]
