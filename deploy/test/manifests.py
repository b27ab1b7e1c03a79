"""What a schema cannot see in the manifests and in docker-compose.yml: that things which name each other fit together, and
that what is promised of them is there.

    manifests.py check COMPOSE RENDERED...       says every mistake; exit code 1 if there is one
    manifests.py selfcheck COMPOSE RENDERED...   makes mistakes on purpose, and sees each one found
    manifests.py update                          writes the copies that k8s/ has of files of deploy/

COMPOSE is what `docker-compose config` prints, RENDERED what `kubectl kustomize` does. $ANTIPHON is the binary, which is
asked about its settings.
"""

import copy
import functools
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

# Of the node's own: after drain.deadline the last traces have a second (telemetry.rs); and one to end.
AFTER_DRAIN_S = 2
# When /healthz calls the node stuck (health.rs), and how long its clients may be left with one that is.
STUCK_AFTER_S, STUCK_BEARABLE_S = 15, 40
# Not to answer for so long is no reason yet to be killed: the machine may be busy.
BUSY_S = 15
# From what happens to an alert that is pending: a scrape (PodMonitor), and an evaluation (Prometheus operator).
NOTICED_S = 15 + 30

# Memory: what a connection takes, with room for all of them coming at once, and what a node has beside them and beside
# limits.memory (k8s/README.md). That is this part of the container's limit, unless it is set (settings.rs).
CONNECTION_BYTES, BESIDE_BYTES, HELD_PART = 20_000, 100e6, 2
# How long the controllers that k8s/README.md names keep idle connections to a node: Traefik longest.
CONTROLLER_IDLE_S = 90

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
HANDLERS = {"httpGet", "tcpSocket", "exec", "grpc"}
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
IMAGE = re.compile(r"^([a-z0-9]+([._/-][a-z0-9]+)*)(:[0-9]+/[a-z0-9._/-]+)?(:[\w][\w.-]{0,127})(@sha256:[0-9a-f]{64})?$")


def quantity(text):
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]{0,2})", str(text))
    if not found or found[2] not in UNITS:
        return None
    return float(found[1]) * UNITS[found[2]]


def seconds(text):
    """A duration, as Antiphon and Compose write them: 1m 30s, 500ms."""
    units = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"([\d.]+)\s*(ms|s|m|h)", text)
    return sum(float(number) * units[unit] for number, unit in parts)


def size(text):
    """A size, as ingress-nginx writes it: 2m."""
    return float(text.rstrip("kmg")) * {"k": 2**10, "m": 2**20, "g": 2**30}.get(text[-1], 1)


def whole_bytes(value):
    """A size, as Antiphon's settings have it: 65536, "64KiB", "1MB"."""
    found = re.fullmatch(r"(\d+)\s*(|B|kB|KB|KiB|MB|MiB|GB|GiB)", str(value))
    return int(found[1]) * UNITS[found[2].rstrip("B").replace("K", "k" if found[2] == "KB" else "K")]


def client_bounds(known, memory):
    """What is wrong with a node's bounds on its clients, in a container with so much memory."""
    server, limits = known["server"], known["limits"]
    held = whole_bytes(limits["memory"]) or memory / HELD_PART
    if held > memory * 0.6:
        yield f"limits.memory leaves too little of the limit of memory, {memory:.0f} bytes"
    if memory - held < BESIDE_BYTES + CONNECTION_BYTES * server["max_connections"]:
        yield "the limit of memory, without limits.memory, is below what server.max_connections take"
    if server["max_connections_per_ip"] > server["max_connections"] / 2:
        yield "server.max_connections_per_ip lets one address, or two, take every place"
    if limits["max_unconnected_sessions"] > server["max_connections"] / 2:
        yield "limits.max_unconnected_sessions leaves no places for clients that connect to a namespace"
    for event in known["event"]:
        if "rate" not in event:
            yield f"event {event['name']} has no rate"
        if whole_bytes(event.get("max_bytes", limits["max_message_bytes"])) >= 1_000_000:
            yield f"event {event['name']} has no size of its own, nor is limits.max_message_bytes below the default"


def fits(selector, labels):
    """Whether the labels are among those that the selector means. Of expressions, none is used here."""
    selector = selector or {}
    assert not selector.get("matchExpressions"), "expressions are not understood here"
    return (selector.get("matchLabels") or {}).items() <= (labels or {}).items()


@functools.cache
def settings(toml, environment):
    """What the node makes of a file and an environment: (settings, None), or (None, what it says)."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(toml)
        file.flush()
        asked = lambda command: subprocess.run(
            [os.environ["ANTIPHON"], command, "--config", file.name],
            env=dict(environment), capture_output=True, text=True,
        )
        checked = asked("check-config")
        if checked.returncode:
            return None, checked.stderr.strip()
        return tomllib.loads(asked("print-config").stdout), None


def drain_s(known):
    """How long a node may take to end."""
    drain = known["drain"]
    return seconds(drain["deadline"]) + AFTER_DRAIN_S


def prometheus_rule(text):
    """What deploy/prometheus/rules.yml is for the Prometheus operator, comments and all."""
    groups = text[text.index("\ngroups:\n") + 1 :]
    return (
        "# A copy of deploy/prometheus/rules.yml, made by `deploy/test/manifests update`.\n"
        "apiVersion: monitoring.coreos.com/v1\n"
        "kind: PrometheusRule\n"
        "metadata:\n"
        "  name: antiphon\n"
        "  labels:\n"
        "    # What kube-prometheus-stack looks for: the name that it was installed under.\n"
        "    release: kube-prometheus-stack\n"
        "spec:\n" + re.sub("^(?=.)", "  ", groups, flags=re.M)
    )


# Kustomize reads no file outside its own directory, so k8s/ has copies: what of, which, and how it is made.
COPIES = (
    ("deploy/antiphon.toml", "k8s/base/antiphon.toml", str),
    ("deploy/redis/redis.conf", "k8s/base/redis.conf", str),
    ("deploy/prometheus/rules.yml", "k8s/components/alerts/prometheusrule.yaml", prometheus_rule),
)


@functools.cache
def rules():
    """The groups that deploy/prometheus/rules.yml has."""
    return yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]


def alert(name):
    return next(rule for group in rules() for rule in group["rules"] if rule.get("alert") == name)


class Cluster:
    """The objects of one rendered overlay."""

    def __init__(self, documents):
        self.all = [document for document in documents if document]

    def of(self, *kinds):
        return [thing for thing in self.all if thing["kind"] in kinds]

    def named(self, kind, name):
        return next((thing for thing in self.of(kind) if thing["metadata"]["name"] == name), None)

    def workloads(self):
        return self.of("Deployment", "StatefulSet")

    def selected(self, selector):
        """The workloads whose pods a selector means."""
        return [work for work in self.workloads() if fits(selector, work["spec"]["template"]["metadata"].get("labels"))]


def call(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def pod(work):
    return work["spec"]["template"]["spec"]


def containers(work):
    return pod(work).get("initContainers", []) + pod(work)["containers"]


def ports(work):
    """Names and numbers of the ports of a workload's pods."""
    listed = [port for container in containers(work) for port in container.get("ports", [])]
    return {port.get("name") for port in listed} | {port["containerPort"] for port in listed}


def config_of(cluster, work):
    """The text of the file that a container of Antiphon is started with; None without one."""
    for container in containers(work):
        args = container.get("args", [])
        if "--config" not in args:
            continue
        path = Path(args[args.index("--config") + 1])
        for mount in container.get("volumeMounts", []):
            if Path(mount["mountPath"]) != path.parent:
                continue
            volume = next((volume for volume in pod(work).get("volumes", []) if volume["name"] == mount["name"]), {})
            held = cluster.named("ConfigMap", volume.get("configMap", {}).get("name"))
            return ((held or {}).get("data") or {}).get(path.name)
    return None


def environment_of(container):
    """Its variables; those from elsewhere have a value of the right kind."""
    values = {}
    for variable in container.get("env", []):
        name = variable["name"]
        elsewhere = "redis://elsewhere:6379" if name.endswith("__URL") else "from-elsewhere"
        values[name] = str(variable.get("value", elsewhere))
    return values


def known_of(cluster, work):
    """The settings in effect in a workload of Antiphon's; None if it is none, or they are wrong."""
    toml = config_of(cluster, work)
    if toml is None:
        return None
    return settings(toml, tuple(environment_of(containers(work)[0]).items()))[0]


# --- checks: each yields what is wrong ---------------------------------------------------------------------


def names(cluster):
    space = cluster.of("Namespace")
    if len(space) != 1:
        yield f"{len(space)} Namespaces: one is expected"
        return
    seen = set()
    for thing in cluster.all:
        key = (thing["kind"], thing["metadata"]["name"])
        if key in seen:
            yield f"{call(thing)}: twice"
        seen.add(key)
        if thing["kind"] != "Namespace" and thing["metadata"].get("namespace") != space[0]["metadata"]["name"]:
            yield f"{call(thing)}: is in another namespace"
    for mode in ("enforce", "audit", "warn"):
        if (space[0]["metadata"].get("labels") or {}).get(f"pod-security.kubernetes.io/{mode}") != "restricted":
            yield f"{call(space[0])}: Pod Security does not {mode} `restricted`"


def selectors(cluster):
    for work in cluster.workloads():
        labels = work["spec"]["template"]["metadata"].get("labels")
        if not work["spec"]["selector"].get("matchLabels") or not fits(work["spec"]["selector"], labels):
            yield f"{call(work)}: its selector does not match its own pods"
        for spread in pod(work).get("topologySpreadConstraints", []):
            if not spread.get("labelSelector", {}).get("matchLabels") or not fits(spread["labelSelector"], labels):
                yield f"{call(work)}: spreads pods other than its own over {spread['topologyKey']}"
    for service in cluster.of("Service"):
        if not service["spec"].get("selector") or not cluster.selected({"matchLabels": service["spec"]["selector"]}):
            yield f"{call(service)}: selects no pods"
    for thing in cluster.of("PodDisruptionBudget", "PodMonitor"):
        if not thing["spec"].get("selector", {}).get("matchLabels") or not cluster.selected(thing["spec"]["selector"]):
            yield f"{call(thing)}: selects no pods"
    for policy in cluster.of("NetworkPolicy"):
        if not cluster.selected(policy["spec"]["podSelector"]):
            yield f"{call(policy)}: selects no pods"


def port_names(cluster):
    def among(work, port):
        # Numbers that a port is not declared for are legal, but here all are declared.
        return port in ports(work)

    for service in cluster.of("Service"):
        for port in service["spec"]["ports"]:
            for work in cluster.selected({"matchLabels": service["spec"].get("selector")}):
                if not among(work, port.get("targetPort", port["port"])):
                    yield f"{call(service)}: {call(work)} has no port {port.get('targetPort')}"
    for ingress in cluster.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                wanted = path["backend"]["service"]
                service = cluster.named("Service", wanted["name"])
                offered = service["spec"]["ports"] if service else []
                if not any(wanted["port"].items() <= {"name": port.get("name"), "number": port["port"]}.items() for port in offered):
                    yield f"{call(ingress)}: there is no Service {wanted['name']} with port {wanted['port']}"
    for work in cluster.workloads():
        for container in containers(work):
            for kind in PROBES:
                for handler in (container.get(kind) or {}).values():
                    if isinstance(handler, dict) and "port" in handler and not among(work, handler["port"]):
                        yield f"{call(work)}: {kind} asks port {handler['port']}, which is not there"
    for policy in cluster.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if not all(among(work, port["port"]) for work in cluster.selected(policy["spec"]["podSelector"])):
                    yield f"{call(policy)}: its pods have no port {port['port']}"
        for rule in policy["spec"].get("egress", []):
            ours = [peer["podSelector"] for peer in rule.get("to", []) if "podSelector" in peer and "namespaceSelector" not in peer]
            for selector in ours:
                there = cluster.selected(selector)
                if not there:
                    yield f"{call(policy)}: lets out to pods that are not there"
                for port in rule.get("ports", []):
                    if not all(among(work, port["port"]) for work in there):
                        yield f"{call(policy)}: lets out to port {port['port']}, which is not there"
    for monitor in cluster.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if "authorization" not in endpoint:
                yield f"{call(monitor)}: has no token"
            if not all(among(work, endpoint["port"]) for work in cluster.selected(monitor["spec"]["selector"])):
                yield f"{call(monitor)}: asks port {endpoint['port']}, which is not there"


def references(cluster):
    manual = (ROOT / "k8s/README.md").read_text().replace("\\\n", "")

    def told(secret, key):
        """Secrets are not in here: k8s/README.md says how to make them."""
        return any(secret in line and f"--from-literal={key}=" in line for line in manual.splitlines())

    for work in cluster.workloads():
        account = cluster.named("ServiceAccount", pod(work).get("serviceAccountName"))
        if not account:
            yield f"{call(work)}: there is no ServiceAccount {pod(work).get('serviceAccountName')}"
        elif account.get("automountServiceAccountToken") is not False or pod(work).get("automountServiceAccountToken") is not False:
            yield f"{call(work)}: gets a token"
        volumes = {volume["name"]: volume for volume in pod(work).get("volumes", [])}
        mounted = {mount["name"] for container in containers(work) for mount in container.get("volumeMounts", [])}
        for name in mounted ^ volumes.keys():
            yield f"{call(work)}: volume {name} is mounted or there, but not both"
        for volume in volumes.values():
            if "configMap" in volume and not cluster.named("ConfigMap", volume["configMap"]["name"]):
                yield f"{call(work)}: there is no ConfigMap {volume['configMap']['name']}"
            if "secret" in volume:
                yield f"{call(work)}: Secret {volume['secret']['secretName']} as a volume is not looked at here"
        for container in containers(work):
            listed = [variable["name"] for variable in container.get("env", [])]
            for name in {name for name in listed if listed.count(name) > 1}:
                yield f"{call(work)}: {name} is set twice"
            if container.get("envFrom"):
                yield f"{call(work)}: envFrom hides which variables there are"
            for variable in container.get("env", []):
                source = variable.get("valueFrom") or {}
                if ("value" in variable) == bool(source):
                    yield f"{call(work)}: {variable['name']} needs one of value and valueFrom"
                if "configMapKeyRef" in source:
                    held = cluster.named("ConfigMap", source["configMapKeyRef"]["name"])
                    if source["configMapKeyRef"]["key"] not in ((held or {}).get("data") or {}):
                        yield f"{call(work)}: {variable['name']}: there is no such ConfigMap and key"
                if "secretKeyRef" in source and not told(source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]):
                    yield f"{call(work)}: {variable['name']}: k8s/README.md does not say how to make that Secret and key"
                if re.search("PASSWORD|TOKEN|SECRET", variable["name"]) and "secretKeyRef" not in source:
                    yield f"{call(work)}: {variable['name']} is not from a Secret"
        if "serviceName" in work["spec"] and not cluster.named("Service", work["spec"]["serviceName"]):
            yield f"{call(work)}: there is no Service {work['spec']['serviceName']}"


def resources(cluster):
    for work in cluster.workloads():
        for container in containers(work):
            who = f"{call(work)}, {container['name']}"
            if not IMAGE.match(container["image"]) or container["image"].endswith(":latest"):
                yield f"{who}: image {container['image']!r} is no name with a tag of its own"
            wanted = container.get("resources", {})
            for kind in ("requests", "limits"):
                for name, amount in wanted.get(kind, {}).items():
                    if quantity(amount) is None:
                        yield f"{who}: {kind}.{name} = {amount!r} is no quantity"
            for name in ("cpu", "memory"):
                if name not in wanted.get("requests", {}):
                    yield f"{who}: requests no {name}"
            if "memory" not in wanted.get("limits", {}):
                yield f"{who}: no limit of memory"
            if known := known_of(cluster, work):
                for wrong in client_bounds(known, quantity(wanted.get("limits", {}).get("memory")) or 1e12):
                    yield f"{who}: {wrong}"
            for name, limit in wanted.get("limits", {}).items():
                request = quantity(wanted.get("requests", {}).get(name, 0))
                if None not in (quantity(limit), request) and quantity(limit) < request:
                    yield f"{who}: the limit of {name} is below what is requested"
        for volume in pod(work).get("volumes", []):
            bound = volume.get("emptyDir", {"sizeLimit": "1"}).get("sizeLimit")
            if bound is None or quantity(bound) is None:
                yield f"{call(work)}: emptyDir {volume['name']} has no bound that is a quantity"


def probes(cluster):
    for work in cluster.workloads():
        for container in containers(work):
            for kind in PROBES:
                probe = container.get(kind)
                if not probe:
                    yield f"{call(work)}: no {kind}"
                elif len(HANDLERS & probe.keys()) != 1:
                    yield f"{call(work)}: {kind} has {len(HANDLERS & probe.keys())} handlers: one is needed"
            if config_of(cluster, work) is None:
                continue
            for kind, path in zip(PROBES, ("/healthz", "/readyz", "/healthz")):
                if (container.get(kind) or {}).get("httpGet", {}).get("path") != path:
                    yield f"{call(work)}: {kind} does not ask {path}"
            alive = container.get("livenessProbe") or {}
            patience = alive.get("periodSeconds", 10) * alive.get("failureThreshold", 3)
            kept = STUCK_AFTER_S + patience + alive.get("terminationGracePeriodSeconds", pod(work).get("terminationGracePeriodSeconds", 30))
            if kept > STUCK_BEARABLE_S:
                yield f"{call(work)}: when it is stuck, its clients are kept for {kept} s"
            if patience < BUSY_S or alive.get("failureThreshold", 3) < 2:
                yield f"{call(work)}: when it is only busy, it is killed after {patience} s"


def restricted(cluster):
    """Pod Security `restricted`, and a root file system that is not written to."""
    volumes = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for work in cluster.workloads():
        spec, who = pod(work), call(work)
        outer = spec.get("securityContext", {})
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{who}: {key}"
        for volume in spec.get("volumes", []):
            if not (volume.keys() - {"name"}) <= volumes:
                yield f"{who}: a volume of the kind {', '.join(volume.keys() - {'name'})}"
        if outer.get("sysctls"):
            yield f"{who}: sysctls"
        for container in containers(work):
            inner = container.get("securityContext", {})
            either = lambda key: inner.get(key, outer.get(key))
            capabilities = inner.get("capabilities", {})
            for wrong, what in (
                (inner.get("privileged"), "is privileged"),
                (inner.get("allowPrivilegeEscalation") is not False, "may gain privileges"),
                (either("runAsNonRoot") is not True, "may run as root (runAsNonRoot)"),
                (either("runAsUser") in (0, None), "runs as root, or as nobody in particular (runAsUser)"),
                ((either("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"), "has no seccomp profile"),
                ("ALL" not in capabilities.get("drop", []), "keeps capabilities"),
                (set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}, "adds capabilities"),
                (inner.get("procMount", "Default") != "Default", "sees all of /proc"),
                (any(port.get("hostPort") for port in container.get("ports", [])), "takes a port of the host"),
                (inner.get("readOnlyRootFilesystem") is not True, "may write to its root file system"),
            ):
                if wrong:
                    yield f"{who}, {container['name']}: {what}"


def variables(cluster):
    """The node is asked: every ANTIPHON__ variable is one that it reads, with a value that it takes."""
    nodes = [work for work in cluster.workloads() if config_of(cluster, work) is not None]
    if not nodes:
        yield "no workload is started with --config and a file that is mounted there"
    for work in cluster.workloads():
        if pod(work).get("enableServiceLinks") is not False:
            yield f"{call(work)}: enableServiceLinks adds variables named like Services"
    for work in nodes:
        environment = environment_of(containers(work)[0])
        for name in environment:
            if re.match("ANTIPHON(?!__)", name):
                yield f"{call(work)}: {name} is not a setting: two underscores"
        known, error = settings(config_of(cluster, work), tuple(environment.items()))
        if error:
            yield f"{call(work)}: {error}"
            continue
        port = {name: next((port["containerPort"] for port in containers(work)[0]["ports"] if port["name"] == name), None) for name in ("clients", "admin")}
        for name, listen in (("clients", known["server"]["listen"]), ("admin", known["admin"]["listen"])):
            address, _, number = listen.rpartition(":")
            if int(number or 0) != port[name] or address not in ("0.0.0.0", "[::]"):
                yield f"{call(work)}: port {name} is {port[name]}, but the node listens on {listen}"
        host = re.fullmatch(r"redis://([^:/@]+):(\d+).*", environment.get("ANTIPHON__REDIS__URL", ""))
        if host and host[1] != "elsewhere":
            service = cluster.named("Service", host[1])
            if not service or int(host[2]) not in [port["port"] for port in service["spec"]["ports"]]:
                yield f"{call(work)}: there is no Service {host[1]} with port {host[2]}"


def drain(cluster):
    for work in cluster.workloads():
        if not (known := known_of(cluster, work)):
            continue
        hook = containers(work)[0].get("lifecycle", {}).get("preStop", {})
        before = hook.get("sleep", {}).get("seconds", 0)
        if set(hook) - {"sleep"}:
            yield f"{call(work)}: preStop runs something, and there is no shell"
        needed = before + drain_s(known)
        grace = pod(work).get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield f"{call(work)}: killed after {grace} s, but leaving may take {needed:g} s"
        told = before + seconds(alert("AntiphonDrainStuck")["for"]) + NOTICED_S
        if grace < told:
            yield f"{call(work)}: killed after {grace} s, but AntiphonDrainStuck fires after {told:g} s"
        rolling = work["spec"].get("strategy", {}).get("rollingUpdate", {})
        if work["spec"].get("strategy", {}).get("type", "RollingUpdate") != "RollingUpdate" or rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
            yield f"{call(work)}: a rollout takes a node away before there is a new one"


def scaling(cluster):
    for scaler in cluster.of("HorizontalPodAutoscaler"):
        spec, target = scaler["spec"], scaler["spec"]["scaleTargetRef"]
        work = cluster.named(target["kind"], target["name"])
        if not work or work["apiVersion"] != target.get("apiVersion"):
            yield f"{call(scaler)}: there is no {target['kind']} {target['name']}"
            continue
        if not 2 <= spec.get("minReplicas", 1) <= spec["maxReplicas"]:
            yield f"{call(scaler)}: minReplicas {spec.get('minReplicas')}, maxReplicas {spec['maxReplicas']}"
        if "replicas" in work["spec"]:
            yield f"{call(work)}: its replicas would undo what the autoscaler did"
        for metric in spec["metrics"]:
            detail = metric.get(metric["type"][0].lower() + metric["type"][1:])
            if not detail:
                yield f"{call(scaler)}: a metric of the type {metric['type']} without its details"
            elif metric["type"] == "Pods":
                if quantity(detail["target"].get("averageValue")) is None:
                    yield f"{call(scaler)}: averageValue is no quantity"
                known = known_of(cluster, work) or {"server": {"max_connections": 0}}
                if quantity(detail["target"].get("averageValue", 0)) >= known["server"]["max_connections"]:
                    yield f"{call(scaler)}: a node is full before there is another"
        budgets = [budget for budget in cluster.of("PodDisruptionBudget") if work in cluster.selected(budget["spec"]["selector"])]
        if len(budgets) != 1:
            yield f"{call(work)}: {len(budgets)} PodDisruptionBudgets: one is needed"
    for budget in cluster.of("PodDisruptionBudget"):
        given = {"minAvailable", "maxUnavailable"} & budget["spec"].keys()
        if len(given) != 1:
            yield f"{call(budget)}: needs one of minAvailable and maxUnavailable"
        elif budget["spec"][given.copy().pop()] in (0, "0%", "100%") or budget["spec"].get("minAvailable", 0) not in (0, 1, 2):
            yield f"{call(budget)}: lets nobody be evicted, or everybody"


def network(cluster):
    policies = cluster.of("NetworkPolicy")
    denies = lambda policy: policy["spec"]["podSelector"] == {} and not policy["spec"].get("ingress") and not policy["spec"].get("egress")
    if not any(denies(policy) and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in policies):
        yield "no NetworkPolicy denies what the others do not allow"
    for policy in policies:
        for direction in ("Ingress", "Egress"):
            if policy["spec"].get(direction.lower()) and direction not in policy["spec"]["policyTypes"]:
                yield f"{call(policy)}: its rules of {direction} do not apply"
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from") or {} in rule["from"] or not rule.get("ports"):
                yield f"{call(policy)}: lets everybody in"
            for peer in rule.get("from", []):
                admin = any(port.get("port") in ("admin", 9464) for port in rule.get("ports", []))
                if admin and not peer.get("podSelector", {}).get("matchLabels"):
                    yield f"{call(policy)}: lets everything in a namespace reach the admin port"
        for rule in policy["spec"].get("egress", []):
            blocks = {peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer}
            if len(blocks & {"0.0.0.0/0", "::/0"}) == 1:
                yield f"{call(policy)}: lets out to everywhere, but only over one of IPv4 and IPv6"
    for work in cluster.workloads():
        if (known := known_of(cluster, work)) is None:
            continue
        collector = re.fullmatch(r"http://[^.:/]+\.([^.:/]+)[^:/]*:(\d+)/.*", known["traces"]["endpoint"])
        if known["traces"]["endpoint"] and not collector:
            yield f"{call(work)}: traces.endpoint is not http://SERVICE.NAMESPACE:PORT/…"
        labels = work["spec"]["template"]["metadata"]["labels"]
        own = [policy for policy in policies if policy["spec"]["podSelector"] and work in cluster.selected(policy["spec"]["podSelector"])]
        out = [(peer, port) for policy in own for rule in policy["spec"].get("egress", []) for peer in rule["to"] for port in rule["ports"]]
        if not any(port.get("port") == 53 for _, port in out):
            yield f"{call(work)}: may not ask for names"
        if collector and not any(
            fits(peer.get("namespaceSelector"), {"kubernetes.io/metadata.name": collector[1]}) and str(port["port"]) == collector[2] and "namespaceSelector" in peer
            for peer, port in out
        ):
            yield f"{call(work)}: may not reach the collector of {known['traces']['endpoint']}"
        redis = cluster.named("StatefulSet", "redis")
        if redis:
            if not any(redis in cluster.selected(peer.get("podSelector", {"matchLabels": {"no": "one"}})) and "namespaceSelector" not in peer for peer, _ in out):
                yield f"{call(work)}: may not reach {call(redis)}"
            into = [peer for policy in policies if policy["spec"]["podSelector"] and redis in cluster.selected(policy["spec"]["podSelector"])
                    for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
            if not any(fits(peer.get("podSelector"), labels) for peer in into):
                yield f"{call(redis)}: does not let {call(work)} in"
        elif not any("ipBlock" in peer for peer, _ in out):
            yield f"{call(work)}: may not reach a Redis elsewhere"


def unfolded(thing):
    """The same with single spaces in its texts: kubectl folds long ones anew, and adds lines."""
    if isinstance(thing, dict):
        return {key: unfolded(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [unfolded(value) for value in thing]
    return " ".join(thing.split()) if isinstance(thing, str) else thing


def monitoring(cluster):
    """What the Prometheus operator reads. It has no schema here."""
    things = cluster.of("PodMonitor", "PrometheusRule")
    for thing in things:
        if thing["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"{call(thing)}: apiVersion {thing['apiVersion']}"
        if not thing["metadata"].get("labels", {}).get("release"):
            yield f"{call(thing)}: kube-prometheus-stack passes it by, without a label `release`"
    if len({thing["metadata"].get("labels", {}).get("release") for thing in things}) > 1:
        yield "PodMonitor and PrometheusRule are for two Prometheuses: their `release` differs"
    for thing in cluster.of("PodMonitor"):
        # The rules mean nodes by it: NAMESPACE/NAME.
        if thing["metadata"]["name"] != "antiphon" or "jobLabel" in thing["spec"]:
            yield f"{call(thing)}: the rules do not know its job"
    for thing in cluster.of("PrometheusRule"):
        if unfolded(thing["spec"]) != unfolded({"groups": rules()}):
            yield f"{call(thing)}: has other rules than deploy/prometheus/rules.yml"


def gateway(cluster):
    """Gateway API, as Envoy Gateway does it. It has no schema here."""
    nodes = [known for work in cluster.workloads() if (known := known_of(cluster, work))]
    versions = {"Gateway": "gateway.networking.k8s.io/v1", "HTTPRoute": "gateway.networking.k8s.io/v1", "BackendTrafficPolicy": "gateway.envoyproxy.io/v1alpha1"}
    for thing in cluster.of(*versions):
        if thing["apiVersion"] != versions[thing["kind"]]:
            yield f"{call(thing)}: apiVersion {thing['apiVersion']}"
    sticky = set()
    for policy in cluster.of("BackendTrafficPolicy"):
        for target in policy["spec"]["targetRefs"]:
            if not cluster.named(target["kind"], target["name"]):
                yield f"{call(policy)}: there is no {target['kind']} {target['name']}"
            balancer = policy["spec"].get("loadBalancer", {})
            if balancer.get("type") == "ConsistentHash" and "ttl" in balancer["consistentHash"].get("cookie", {}):
                sticky.add(target["name"])
        # Envoy's default is an hour.
        idle = seconds(policy["spec"].get("timeout", {}).get("http", {}).get("connectionIdleTimeout", "1h"))
        for known in nodes:
            if idle >= seconds(known["server"]["keep_alive_timeout"]):
                yield f"{call(policy)}: keeps idle connections to a node for longer than the node does"
    for route in cluster.of("HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            if not cluster.named("Gateway", parent["name"]):
                yield f"{call(route)}: there is no Gateway {parent['name']}"
        paths = []
        for rule in route["spec"]["rules"]:
            paths += [match["path"] for match in rule["matches"]]
            if rule.keys() & {"retry", "sessionPersistence"}:
                yield f"{call(route)}: needs the experimental channel of Gateway API"
            if rule.get("timeouts", {}).get("request") != "0s":
                yield f"{call(route)}: ends WebSockets after a time"
            for wanted in rule["backendRefs"]:
                service = cluster.named("Service", wanted["name"])
                port = next((port for port in (service or {"spec": {"ports": []}})["spec"]["ports"] if port["port"] == wanted["port"]), None)
                if not port:
                    yield f"{call(route)}: there is no Service {wanted['name']} with port {wanted['port']}"
                elif port.get("appProtocol") != "kubernetes.io/ws":
                    yield f"{call(service)}: does not say that it speaks WebSocket"
        for known in nodes:
            if paths != [{"type": "PathPrefix", "value": known["server"]["path"]}]:
                yield f"{call(route)}: leads {paths} there, but clients ask for {known['server']['path']}"
            if "polling" in known["server"]["transports"] and route["metadata"]["name"] not in sticky:
                yield f"{call(route)}: clients that poll do not stay with their node"


def way_in(cluster):
    """Clients come one way, NetworkPolicies know where from, and nodes do not close what controllers keep."""
    for work in cluster.workloads():
        known = known_of(cluster, work)
        if known and seconds(known["server"]["keep_alive_timeout"]) <= CONTROLLER_IDLE_S:
            yield f"{call(work)}: server.keep_alive_timeout is not above what controllers keep idle connections for"
    ways = [(thing, thing["spec"].get("ingressClassName") or thing["spec"].get("gatewayClassName")) for thing in cluster.of("Ingress", "Gateway")]
    if len(ways) != 1:
        yield f"{len(ways)} ways in for clients: one is expected"
    controllers = {"nginx": "ingress-nginx", "eg": "envoy-gateway-system"}
    for thing, name in ways:
        into = [
            peer["namespaceSelector"] for policy in cluster.of("NetworkPolicy") for rule in policy["spec"].get("ingress", [])
            for peer in rule.get("from", []) if "namespaceSelector" in peer and {"port": "clients", "protocol": "TCP"} in rule.get("ports", [])
        ]
        if not any(fits(selector, {"kubernetes.io/metadata.name": controllers[name]}) for selector in into):
            yield f"{call(thing)}: no NetworkPolicy lets {controllers[name]} in"


def ingress(cluster):
    nodes = [known for work in cluster.workloads() if (known := known_of(cluster, work))]
    for thing in cluster.of("Ingress"):
        set_to = {key.rpartition("/")[2]: value for key, value in thing["metadata"].get("annotations", {}).items()}
        for value in set_to.values():
            if not isinstance(value, str):
                yield f"{call(thing)}: annotation {value!r} is no text"
        for known in nodes:
            silence = seconds(known["session"]["ping_interval"]) + seconds(known["session"]["ping_timeout"])
            for key in ("proxy-read-timeout", "proxy-send-timeout"):
                if float(set_to.get(key, 60)) <= silence + 10:
                    yield f"{call(thing)}: {key} is not above what a client may be silent ({silence:g} s)"
            if size(str(set_to.get("proxy-body-size", "1m"))) <= whole_bytes(known["limits"]["max_message_bytes"]):
                yield f"{call(thing)}: proxy-body-size is below limits.max_message_bytes"
            paths = [path["path"] for rule in thing["spec"]["rules"] for path in rule["http"]["paths"]]
            if paths != [known["server"]["path"]]:
                yield f"{call(thing)}: leads {paths} there, but clients ask for {known['server']['path']}"
        if set_to.get("affinity") != "cookie":
            yield f"{call(thing)}: clients that poll do not stay with their node"
        if set_to.get("proxy-buffering") != "off":
            yield f"{call(thing)}: answers are held back"
        for tls in thing["spec"].get("tls", []):
            if not set(tls["hosts"]) <= {rule.get("host") for rule in thing["spec"]["rules"]}:
                yield f"{call(thing)}: TLS for a host without a rule"


def published(port):
    """The address and the container's port, whether written as a text or, by Compose v2, as a table."""
    if isinstance(port, dict):
        return port.get("host_ip"), int(port["target"])
    *before, target = str(port).split("/")[0].split(":")
    return before[0] if len(before) == 2 else None, int(target)


def mounted(volume):
    """Kind and source of a volume, the same way."""
    if isinstance(volume, dict):
        return volume["type"], volume.get("source", "")
    source = volume.split(":")[0]
    return "bind" if source[0] in "./" else "volume", source


def memory_limit(service):
    """In bytes. Compose 1.29 prints what is written (1g), v2 bytes."""
    limit = str(service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory", 0))
    return int(limit) if limit.isdigit() else size(limit.lower())


def compose(file):
    """docker-compose.yml."""
    services = file["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            address, target = published(port)
            if (name, target) != ("balancer", 5000) and address != "127.0.0.1":
                yield f"{name}: port {target} is published to everybody"
        if name in ("node", "redis") and service.get("ports"):
            yield f"{name}: is published"
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"] or service.get("privileged"):
            yield f"{name}: may more than it needs"
        if not {"max-size", "max-file"} <= service.get("logging", {}).get("options", {}).keys():
            yield f"{name}: its log has no bound"
        if name != "loadtest" and not memory_limit(service):
            yield f"{name}: its memory has no bound"
        if not IMAGE.match(service["image"]) or service["image"].endswith(":latest"):
            yield f"{name}: {service['image']} is no name with a tag of its own"
        for volume in service.get("volumes", []):
            kind, source = mounted(volume)
            if kind == "bind" and not (ROOT / source).exists():
                yield f"{name}: {source} is not there"
        for network in service.get("networks", {}):
            if network not in file["networks"]:
                yield f"{name}: network {network} is not there"
    for network in ("nodes", "redis"):
        if not file["networks"][network].get("internal"):
            yield f"network {network}: leads out"
    if set(services["redis"]["networks"]) != {"redis"} or "public" in services["node"]["networks"]:
        yield "redis, or a node, is on a network that it has no business on"
    node = services["node"]
    toml = (ROOT / "deploy/antiphon.toml").read_text()
    environment = {key: str(value) for key, value in node["environment"].items()}
    known, error = settings(toml, tuple(environment.items()))
    if error:
        yield f"node: {error}"
        return
    if seconds(node.get("stop_grace_period", "10s")) < drain_s(known):
        yield f"node: killed after {node.get('stop_grace_period', '10s')}, but leaving may take {drain_s(known):g} s"
    for wrong in client_bounds(known, memory_limit(node)):
        yield f"node: {wrong}"
    redis = (ROOT / "deploy/redis/redis.conf").read_text()
    bounds = [int(found[1]) for key in ("maxmemory", "maxmemory-clients") if (found := re.search(rf"^{key} (\d+)mb$", redis, re.M))]
    if len(bounds) < 2 or sum(bounds) * 2**20 > 0.8 * memory_limit(services["redis"]):
        yield "redis: what it may hold does not fit into its memory"
    if environment["ANTIPHON__ADMIN__TOKEN"] != str(services["prometheus"]["environment"]["ADMIN_TOKEN"]):
        yield "prometheus: has another token than the nodes"
    if not known["admin"]["listen"].startswith("0.0.0.0:"):
        yield "node: the balancer cannot ask how it is (admin.listen)"
    if environment["ANTIPHON__REDIS__PASSWORD"] != str(services["redis"]["environment"]["REDIS_PASSWORD"]):
        yield "node: has another password than redis"
    if environment["ANTIPHON__REDIS__PASSWORD"] in environment["ANTIPHON__REDIS__URL"]:
        yield "node: the password is in the URL"
    balancer = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    for key in ("client", "server", "tunnel"):
        allowed = seconds(re.search(rf"^ +timeout {key} +(\S+)", balancer, re.M)[1])
        if allowed <= seconds(known["session"]["ping_interval"]) + seconds(known["session"]["ping_timeout"]):
            yield f"haproxy.cfg: timeout {key} is below what a client may be silent"
    idle = re.search(r"^ +timeout http-keep-alive +(\S+)", balancer, re.M)
    if not idle or seconds(idle[1]) >= seconds(known["server"]["keep_alive_timeout"]):
        yield "haproxy.cfg: keeps idle connections for as long as a node does, or longer (timeout http-keep-alive)"


CHECKS = (names, selectors, port_names, references, resources, probes, restricted, variables, drain, scaling, network, monitoring, way_in, ingress, gateway)


def complaints(cluster):
    return [complaint for check in CHECKS for complaint in check(cluster)]


# --- mistakes on purpose ---------------------------------------------------------------------------------


def at(path):
    """A place: "Deployment/antiphon spec.template.spec.containers.0.image"."""
    who, _, keys = path.partition(" ")
    kind, name = who.split("/")

    def go(cluster):
        place = cluster.named(kind, name)
        *way, last = [int(key) if key.isdigit() else key for key in re.split(r"\.(?![a-z]+\.)|\.(?=[a-z])", keys)]
        for key in way:
            place = place[key]
        return place, last

    return go


def put(path, value):
    def change(cluster):
        place, last = at(path)(cluster)
        place[last] = value

    return f"{path} = {value!r}", change


def drop(path):
    def change(cluster):
        place, last = at(path)(cluster)
        del place[last]

    return f"{path} left out", change


def gone(kind, name):
    return f"{kind}/{name} left out", lambda cluster: cluster.all.remove(cluster.named(kind, name))


def variable(name, value):
    def change(cluster):
        listed = containers(cluster.named("Deployment", "antiphon"))[0]["env"]
        listed[:] = [one for one in listed if one["name"] != name] + [{"name": name, "value": value}]

    return f"{name}={value}", change


def replaced(who, *texts):
    """In the file that a ConfigMap holds: each text by the one after it."""
    kind, name = who.split("/")

    def change(cluster):
        held = next(thing for thing in cluster.of(kind) if thing["metadata"]["name"].startswith(name))
        for key, value in held["data"].items():
            for before, after in zip(texts[::2], texts[1::2]):
                value = re.sub(rf"\b{before}", after, value)
            held["data"][key] = value

    return f"{who}: {texts}", change


def annotation(name, value):
    def change(cluster):
        cluster.of("Ingress")[0]["metadata"]["annotations"][f"nginx.ingress.kubernetes.io/{name}"] = value

    return f"annotation {name}: {value}", change


POD = "Deployment/antiphon spec.template.spec"
FIRST = f"{POD}.containers.0"
# What is changed, and a part of what is said about it.
MISTAKES = (
    (put("Service/antiphon metadata.namespace", "default"), "another namespace"),
    (put("Namespace/antiphon metadata.labels", {}), "does not enforce"),
    (put("Deployment/antiphon spec.selector.matchLabels", {"a": "b"}), "does not match its own pods"),
    (put("Service/antiphon spec.selector", {"app": "antiphon"}), "selects no pods"),
    (put("PodDisruptionBudget/antiphon spec.selector.matchLabels", {"app": "antiphon"}), "selects no pods"),
    (put("NetworkPolicy/antiphon spec.podSelector.matchLabels", {"app": "antiphon"}), "selects no pods"),
    (put(f"{POD}.topologySpreadConstraints.0.labelSelector.matchLabels", {"app": "antiphon"}), "spreads pods other than its own"),
    (put("Service/antiphon spec.ports.0.targetPort", "http"), "has no port http"),
    (put("Ingress/antiphon spec.rules.0.http.paths.0.backend.service.name", "antiphn"), "no Service antiphn"),
    (put("Ingress/antiphon spec.rules.0.http.paths.0.backend.service.port", {"name": "http"}), "no Service antiphon with port"),
    (put("Ingress/antiphon spec.rules.0.http.paths.0.path", "/"), "clients ask for /socket.io"),
    (put(f"{FIRST}.readinessProbe.httpGet.port", "http"), "asks port http"),
    (put("NetworkPolicy/antiphon spec.ingress.0.ports.0.port", "http"), "have no port http"),
    (put("NetworkPolicy/antiphon spec.egress.0.ports.0.port", 6380), "port 6380"),
    (put(f"{POD}.serviceAccountName", "default"), "no ServiceAccount default"),
    (drop("ServiceAccount/antiphon automountServiceAccountToken"), "gets a token"),
    (drop(f"{POD}.automountServiceAccountToken"), "gets a token"),
    (put(f"{POD}.volumes.0.configMap.name", "config"), "no ConfigMap config"),
    (put(f"{FIRST}.volumeMounts.0.name", "settings"), "mounted or there, but not both"),
    (put("StatefulSet/redis spec.serviceName", "cache"), "no Service cache"),
    (put("StatefulSet/redis spec.template.spec.containers.0.env.0.valueFrom.secretKeyRef.key", "pass"), "k8s/README.md"),
    (put("StatefulSet/redis spec.template.spec.containers.0.env.0", {"name": "REDIS_PASSWORD", "value": "x"}), "not from a Secret"),
    (put(f"{FIRST}.image", "antiphon"), "no name with a tag"),
    (put(f"{FIRST}.image", "Antiphon:1"), "no name with a tag"),
    (put(f"{FIRST}.image", "antiphon:latest"), "no name with a tag"),
    (put(f"{FIRST}.resources.requests.memory", "512MiB"), "no quantity"),
    (put(f"{FIRST}.resources.requests.memory", "2Gi"), "below what is requested"),
    (drop(f"{FIRST}.resources.requests.cpu"), "requests no cpu"),
    (drop(f"{FIRST}.resources.limits"), "no limit of memory"),
    (variable("ANTIPHON__SERVER__MAX_CONNECTIONS", "40000"), "below what server.max_connections take"),
    (variable("ANTIPHON__LIMITS__MEMORY", "600MiB"), "below what server.max_connections take"),
    (variable("ANTIPHON__LIMITS__MEMORY", "1GB"), "leaves too little"),
    (variable("ANTIPHON__SERVER__MAX_CONNECTIONS_PER_IP", "20000"), "take every place"),
    (variable("ANTIPHON__LIMITS__MAX_UNCONNECTED_SESSIONS", "20000"), "leaves no places"),
    (variable("ANTIPHON__SERVER__KEEP_ALIVE_TIMEOUT", "60s"), "keep idle connections"),
    (replaced("ConfigMap/antiphon", "rate =", "#rate ="), "has no rate"),
    (replaced("ConfigMap/antiphon", "max_bytes =", "#max_bytes =", "max_message_bytes =", "#max_message_bytes ="), "has no size"),
    (drop("StatefulSet/redis spec.template.spec.volumes.2.emptyDir.sizeLimit"), "no bound"),
    (drop(f"{FIRST}.livenessProbe"), "no livenessProbe"),
    (put(f"{FIRST}.readinessProbe.tcpSocket", {"port": "admin"}), "2 handlers"),
    (drop(f"{FIRST}.readinessProbe.httpGet"), "0 handlers"),
    (put(f"{FIRST}.livenessProbe.httpGet.path", "/readyz"), "does not ask /healthz"),
    (drop(f"{FIRST}.livenessProbe.terminationGracePeriodSeconds"), "its clients are kept for 150 s"),
    (put(f"{FIRST}.livenessProbe.periodSeconds", 10), "its clients are kept for 50 s"),
    (put(f"{FIRST}.livenessProbe.periodSeconds", 2), "killed after 6 s"),
    (put(f"{FIRST}.livenessProbe.failureThreshold", 1), "when it is only busy"),
    (put(f"{POD}.hostNetwork", True), "hostNetwork"),
    (put(f"{POD}.securityContext", {}), "may run as root"),
    (put(f"{POD}.securityContext.runAsUser", 0), "runs as root"),
    (drop(f"{POD}.securityContext.seccompProfile"), "seccomp"),
    (put(f"{FIRST}.securityContext.capabilities", {"drop": ["NET_RAW"]}), "keeps capabilities"),
    (drop(f"{FIRST}.securityContext.allowPrivilegeEscalation"), "may gain privileges"),
    (put(f"{FIRST}.securityContext.privileged", True), "is privileged"),
    (drop(f"{FIRST}.securityContext.readOnlyRootFilesystem"), "may write"),
    (put(f"{POD}.volumes.0", {"name": "config", "hostPath": {"path": "/etc"}}), "hostPath"),
    (variable("ANTIPHON__SERVER__LISTN", "0.0.0.0:5000"), "ANTIPHON__SERVER__LISTN"),
    (variable("ANTIPHON__SERVER__MAX_CONNECTIONS", "many"), "MAX_CONNECTIONS"),
    (variable("ANTIPHON_SERVER_LISTEN", "0.0.0.0:5000"), "two underscores"),
    (variable("ANTIPHON__ADMIN__LISTEN", "127.0.0.1:9464"), "the node listens on 127.0.0.1:9464"),
    (variable("ANTIPHON__SERVER__LISTEN", "0.0.0.0:8080"), "port clients is 5000"),
    (variable("ANTIPHON__REDIS__URL", "redis://cache:6379"), "no Service cache"),
    (variable("ANTIPHON__REDIS__PASSWORD", "secret"), "not from a Secret"),
    (drop(f"{POD}.enableServiceLinks"), "enableServiceLinks"),
    (put(f"{FIRST}.args", []), "no workload is started with"),
    (put(f"{POD}.terminationGracePeriodSeconds", 20), "killed after 20 s"),
    (put(f"{POD}.terminationGracePeriodSeconds", 40), "AntiphonDrainStuck fires after"),
    (variable("ANTIPHON__DRAIN__DEADLINE", "150s"), "may take 152 s"),
    (put(f"{FIRST}.lifecycle", {"preStop": {"exec": {"command": ["sleep", "5"]}}}), "no shell"),
    (put(f"{FIRST}.lifecycle", {"preStop": {"sleep": {"seconds": 100}}}), "may take 127 s"),
    (put("Deployment/antiphon spec.strategy.rollingUpdate.maxUnavailable", 1), "takes a node away"),
    (put("HorizontalPodAutoscaler/antiphon spec.scaleTargetRef.name", "gateway"), "no Deployment gateway"),
    (put("HorizontalPodAutoscaler/antiphon spec.minReplicas", 20), "minReplicas 20"),
    (put("Deployment/antiphon spec.replicas", 3), "undo what the autoscaler did"),
    (put("HorizontalPodAutoscaler/antiphon spec.metrics.0.type", "Pods"), "without its details"),
    (put("PodDisruptionBudget/antiphon spec.minAvailable", 2), "one of minAvailable and maxUnavailable"),
    (put("PodDisruptionBudget/antiphon spec.maxUnavailable", 0), "lets nobody be evicted"),
    (gone("PodDisruptionBudget", "antiphon"), "0 PodDisruptionBudgets"),
    (gone("NetworkPolicy", "default-deny"), "no NetworkPolicy denies"),
    (put("NetworkPolicy/default-deny spec.policyTypes", ["Ingress"]), "no NetworkPolicy denies"),
    (put("NetworkPolicy/antiphon spec.policyTypes", ["Ingress"]), "do not apply"),
    (drop("NetworkPolicy/antiphon spec.ingress.0.from"), "lets everybody in"),
    (drop("NetworkPolicy/antiphon spec.ingress.1.from.0.podSelector"), "reach the admin port"),
    (drop("NetworkPolicy/antiphon spec.egress.1"), "may not ask for names"),
    (drop("NetworkPolicy/antiphon spec.egress.0"), "may not reach StatefulSet/redis"),
    (gone("NetworkPolicy", "redis"), "does not let Deployment/antiphon in"),
    (put("NetworkPolicy/antiphon spec.ingress.0.from.0.namespaceSelector.matchLabels", {"kubernetes.io/metadata.name": "nginx"}), "lets ingress-nginx in"),
    (gone("Ingress", "antiphon"), "0 ways in"),
    (annotation("proxy-read-timeout", "50"), "proxy-read-timeout"),
    (annotation("proxy-body-size", "128k"), "proxy-body-size"),
    (annotation("affinity", "none"), "do not stay with their node"),
    (annotation("proxy-buffering", "on"), "held back"),
)

# The same in another overlay than the base.
COMPONENT_MISTAKES = (
    ("with-podmonitor", put("PodMonitor/antiphon spec.selector.matchLabels", {"app": "antiphon"}), "selects no pods"),
    ("with-podmonitor", put("PodMonitor/antiphon spec.podMetricsEndpoints.0.port", "metrics"), "asks port metrics"),
    ("with-podmonitor", drop("PodMonitor/antiphon spec.podMetricsEndpoints.0.authorization"), "has no token"),
    ("with-podmonitor", drop("PodMonitor/antiphon metadata.labels"), "passes it by"),
    ("with-podmonitor", put("PodMonitor/antiphon metadata.name", "nodes"), "do not know its job"),
    ("with-alerts", put("PrometheusRule/antiphon apiVersion", "monitoring.coreos.com/v1beta1"), "apiVersion"),
    ("with-alerts", drop("PrometheusRule/antiphon metadata.labels.release"), "passes it by"),
    ("with-alerts", put("PrometheusRule/antiphon spec.groups.1.rules.0.for", "1m"), "other rules than"),
    ("with-managed-redis", drop("NetworkPolicy/antiphon spec.egress.0.to.1"), "only over one of IPv4 and IPv6"),
    ("with-managed-redis", drop("NetworkPolicy/antiphon spec.egress.0"), "may not reach a Redis elsewhere"),
    ("with-traces", drop("NetworkPolicy/antiphon spec.egress.2"), "may not reach the collector"),
    ("with-traces", put("NetworkPolicy/antiphon spec.egress.2.ports.0.port", 4317), "may not reach the collector"),
    ("with-traces", variable("ANTIPHON__TRACES__ENDPOINT", "http://otel-collector.traces:4318/v1/traces"), "may not reach the collector"),
    ("with-traces", variable("ANTIPHON__TRACES__ENDPOINT", "http://otel-collector:4318/v1/traces"), "is not http://SERVICE.NAMESPACE"),
    ("with-gateway-api", put("HTTPRoute/antiphon apiVersion", "gateway.networking.k8s.io/v1beta1"), "apiVersion"),
    ("with-gateway-api", put("HTTPRoute/antiphon spec.parentRefs.0.name", "public"), "no Gateway public"),
    ("with-gateway-api", put("HTTPRoute/antiphon spec.rules.0.backendRefs.0.port", 5000), "with port 5000"),
    ("with-gateway-api", put("HTTPRoute/antiphon spec.rules.0.matches.0.path.value", "/"), "clients ask for /socket.io"),
    ("with-gateway-api", drop("HTTPRoute/antiphon spec.rules.0.timeouts"), "ends WebSockets"),
    ("with-gateway-api", put("HTTPRoute/antiphon spec.rules.0.sessionPersistence", {"type": "Cookie"}), "experimental"),
    ("with-gateway-api", put("Service/antiphon spec.ports.0.appProtocol", "http"), "speaks WebSocket"),
    ("with-gateway-api", put("BackendTrafficPolicy/antiphon spec.targetRefs.0.name", "nodes"), "no HTTPRoute nodes"),
    ("with-gateway-api", gone("BackendTrafficPolicy", "antiphon"), "do not stay with their node"),
    ("with-gateway-api", drop("BackendTrafficPolicy/antiphon spec.timeout"), "keeps idle connections"),
    ("with-gateway-api", put("BackendTrafficPolicy/antiphon spec.timeout.http.connectionIdleTimeout", "2m"), "keeps idle connections"),
    ("with-gateway-api", drop("BackendTrafficPolicy/antiphon spec.loadBalancer.consistentHash.cookie.ttl"), "do not stay with their node"),
    ("with-gateway-api", put("NetworkPolicy/antiphon spec.ingress.0.from.0.namespaceSelector.matchLabels", {"kubernetes.io/metadata.name": "ingress-nginx"}), "lets envoy-gateway-system in"),
    ("with-gateway-api", gone("Gateway", "antiphon"), "0 ways in"),
    ("production", put("PodMonitor/antiphon metadata.labels.release", "prometheus"), "two Prometheuses"),
)

COMPOSE_MISTAKES = (
    ("a published node", lambda file: file["services"]["node"].update(ports=["9464:9464"]), "node: is published"),
    ("Prometheus for everybody", lambda file: file["services"]["prometheus"].update(ports=["9090:9090"]), "published to everybody"),
    ("a short grace period", lambda file: file["services"]["node"].update(stop_grace_period="20s"), "killed after 20s"),
    ("a variable with a mistake", lambda file: file["services"]["node"]["environment"].update(ANTIPHON__REDIS__URI="x"), "ANTIPHON__REDIS__URI"),
    ("loopback in a container", lambda file: file["services"]["node"]["environment"].update(ANTIPHON__ADMIN__LISTEN="127.0.0.1:9464"), "admin.listen"),
    ("two passwords", lambda file: file["services"]["redis"]["environment"].update(REDIS_PASSWORD="other"), "another password"),
    ("two tokens", lambda file: file["services"]["prometheus"]["environment"].update(ADMIN_TOKEN="other"), "another token"),
    ("Redis within reach", lambda file: file["networks"]["redis"].pop("internal"), "leads out"),
    ("a node within reach", lambda file: file["services"]["node"]["networks"].update(public=None), "no business"),
    ("too many connections", lambda file: file["services"]["node"]["environment"].update(ANTIPHON__SERVER__MAX_CONNECTIONS="100000"), "server.max_connections take"),
    ("as many as the node takes by default", lambda file: file["services"]["node"]["environment"].pop("ANTIPHON__SERVER__MAX_CONNECTIONS"), "server.max_connections take"),
    ("as much for one address", lambda file: file["services"]["node"]["environment"].pop("ANTIPHON__SERVER__MAX_CONNECTIONS_PER_IP"), "take every place"),
    ("as many that never connect", lambda file: file["services"]["node"]["environment"].pop("ANTIPHON__LIMITS__MAX_UNCONNECTED_SESSIONS"), "leaves no places"),
    ("too much for slow clients", lambda file: file["services"]["node"]["environment"].update(ANTIPHON__LIMITS__MEMORY="900MB"), "leaves too little"),
    ("idle connections that end too soon", lambda file: file["services"]["node"]["environment"].update(ANTIPHON__SERVER__KEEP_ALIVE_TIMEOUT="10s"), "keeps idle connections"),
    ("a small Redis", lambda file: file["services"]["redis"]["deploy"]["resources"]["limits"].update(memory="256m"), "what it may hold"),
    ("a log without end", lambda file: file["services"]["balancer"].pop("logging"), "its log has no bound"),
    ("memory without end", lambda file: file["services"]["prometheus"].pop("deploy"), "its memory has no bound"),
    ("any version", lambda file: file["services"]["prometheus"].update(image="prom/prometheus:latest"), "of its own"),
    ("a container that may write", lambda file: file["services"]["redis"].pop("read_only"), "more than it needs"),
    ("a file that is not there", lambda file: file["services"]["node"].update(volumes=["./deploy/no.toml:/x:ro"]), "no.toml is not there"),
)


def selfcheck(file, clusters):
    missed = 0

    def judge(what, expected, said):
        nonlocal missed
        if not any(expected in complaint for complaint in said):
            missed += 1
            print(f"MISSED: {what}: nobody says {expected!r}, but {said}")

    in_base = [("k8s", change, expected) for change, expected in MISTAKES]
    for overlay, (what, change), expected in (*in_base, *COMPONENT_MISTAKES):
        broken = copy.deepcopy(clusters[overlay])
        change(broken)
        judge(f"{overlay}: {what}", expected, complaints(broken))
    for what, change, expected in COMPOSE_MISTAKES:
        broken = copy.deepcopy(file)
        change(broken)
        judge(what, expected, list(compose(broken)))
    made = len(in_base) + len(COMPONENT_MISTAKES) + len(COMPOSE_MISTAKES)
    print(f"{made - missed} of {made} mistakes made on purpose were found")
    return missed


def main():
    if sys.argv[1:] == ["update"]:
        for source, target, made in COPIES:
            (ROOT / target).write_text(made((ROOT / source).read_text()))
        return False
    command, file, *rendered = sys.argv[1:]
    file = yaml.safe_load(Path(file).read_text())
    clusters = {Path(path).stem: Cluster(yaml.safe_load_all(Path(path).read_text())) for path in rendered}
    if command == "selfcheck":
        return bool(selfcheck(file, clusters))
    wrong = [f"docker-compose.yml: {complaint}" for complaint in compose(file)]
    for name, cluster in clusters.items():
        wrong += [f"{name}: {complaint}" for complaint in complaints(cluster)]
    for source, target, made in COPIES:
        if (ROOT / target).read_text() != made((ROOT / source).read_text()):
            wrong.append(f"{target} is no copy of {source}: deploy/test/manifests update")
    print("\n".join(wrong) or f"docker-compose.yml and {len(clusters)} overlays fit together")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
