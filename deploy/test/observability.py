"""What promtool cannot know of the dashboard, the rules and the runbook: that they speak of what a node shows.

Writes every expression of the dashboard as a rule into the directory given, for promtool to parse.
Needs Python's yaml (Debian: python3-yaml) and nothing else.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "crates/metrics/METRICS.md"
PROMETHEUS = ROOT / "deploy/prometheus"
# The first goes to Kubernetes too; the second is about the balancer, which Compose alone has.
RULES = [PROMETHEUS / "rules.yml", PROMETHEUS / "haproxy.yml"]
BALANCER = ROOT / "deploy/haproxy/haproxy.cfg"
COMPOSE = ROOT / "docker-compose.yml"
DEFAULTS = ROOT / "crates/gateway/config/default.toml"
K8S = ROOT / "k8s/base"
DEPLOYMENT = K8S / "deployment.yaml"
RUNBOOK = ROOT / "deploy/RUNBOOK.md"
DASHBOARDS = ROOT / "deploy/grafana/dashboards"

# What every series has from the scrape.
TARGET_LABELS = {"job", "instance"}
# What Prometheus itself makes.
BUILTIN = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
# Of what HAProxy's exporter shows, that which is used; deploy/test/compose reads it from a real one.
HAPROXY = {"haproxy_backend_active_servers": {"proxy"}}

problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


class Metrics:
    """METRICS.md: for each series its labels, and for each of these its values, where they are known."""

    def __init__(self):
        self.labels, self.values = BUILTIN | HAPROXY, {}
        backends = set(re.findall(r"^backend (\w+)", BALANCER.read_text(), re.M))
        self.values |= {(name, "proxy"): backends for name in HAPROXY}
        text = METRICS.read_text()
        for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", text, re.M):
            labels = set(re.findall(r"`(\w+)`", labels))
            if kind == "histogram":
                self.labels.update({f"{name}_sum": labels, f"{name}_count": labels})
                self.labels[f"{name}_bucket"] = labels | {"le"}
            else:
                self.labels[name] = labels
        for label, name, items in re.findall(r"^`(\w+)` of `(\w+)`:\n\n((?:- `.*\n)+)", text, re.M):
            self.values[name, label] = set(re.findall(r"^- `([^`]+)`", items, re.M))
        if len(self.labels) < 50 or len(self.values) < 10:
            sys.exit(f"{METRICS} is not written as this script reads it")

    def record(self, rule, expr_labels):
        """A recording rule makes a series of its own."""
        own = rule.get("labels", {})
        self.labels.setdefault(rule["record"], set()).update(expr_labels, own)
        for label, value in own.items():
            self.values.setdefault((rule["record"], label), set()).add(value)


TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<duration>\[[^\]]*\])|(?P<number>\d[\w.]*)
    |(?P<name>[A-Za-z_:$][\w:]*)|(?P<op>=~|!~|!=|[{}(),=]|[^\s\w])""",
    re.X,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}


def read(expr):
    """The series of an expression with their matchers, and the labels that it groups by."""
    tokens = [(m.lastgroup, m.group()) for m in TOKEN.finditer(expr)]
    series, grouped, i = [], set(), 0
    while i < len(tokens):
        kind, text = tokens[i]
        following = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        if kind == "name" and text in GROUPING:
            if following == "(":
                end = next(n for n in range(i, len(tokens)) if tokens[n][1] == ")")
                grouped |= {label for kind, label in tokens[i + 2 : end] if kind == "name"}
                i = end
        elif kind == "name" and text not in WORDS and following not in GROUPING and following != "(":
            matchers = []
            if following == "{":
                end = next(n for n in range(i, len(tokens)) if tokens[n][1] == "}")
                inner = [t for _, t in tokens[i + 2 : end]]
                matchers = [tuple(inner[n : n + 3]) for n in range(0, len(inner), 4)]
                i = end
            series.append((text, [(label, op, value[1:-1]) for label, op, value in matchers]))
        i += 1
    return series, grouped


def check_expr(where, expr, metrics):
    """Says what is wrong; returns the labels that the series of the expression have."""
    series, grouped = read(expr)
    if not series:
        wrong(where, f"no metric in {expr!r}")
    every = set(TARGET_LABELS)
    for name, matchers in series:
        if name not in metrics.labels:
            wrong(where, f"there is no metric {name}")
            continue
        every |= metrics.labels[name]
        for label, op, value in matchers:
            if label not in metrics.labels[name] | TARGET_LABELS and name not in BUILTIN:
                wrong(where, f"{name} has no label {label}")
            check_values(where, name, label, op, value, metrics)
    # label_replace makes labels.
    made = set(re.findall(r'label_replace\(.*?, "(\w+)", ', expr))
    for label in grouped - every - made - ({"instance"} if "ALERTS" in expr else set()):
        wrong(where, f"groups by {label}, which none of its metrics has")
    return every


def check_values(where, name, label, op, value, metrics):
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    known = metrics.values.get((name, label)) or metrics.values.get((base, label))
    if label == "alertname":
        known = metrics.alerts
    if known is None or "$" in value:
        return
    for pattern in value.split("|") if op in ("=~", "!~") else [re.escape(value)]:
        if not any(re.fullmatch(pattern, one) for one in known):
            wrong(where, f"{name} has no {label} {pattern}")


def check_rules(metrics):
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    rules = [rule for group in groups for rule in group["rules"]]
    if yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"] != [path.name for path in RULES]:
        wrong("prometheus.yml", f"rule_files are not {', '.join(path.name for path in RULES)}")
    if "haproxy" in RULES[0].read_text():
        wrong(RULES[0].name, "haproxy is not there on Kubernetes")
    names = [group["name"] for group in groups]
    for name in set(names):
        if names.count(name) > 1:
            wrong("rules", f"there are several groups {name}")
    metrics.alerts = {rule["alert"] for rule in rules if "alert" in rule}
    for rule in rules:
        if "record" in rule:
            metrics.record(rule, check_expr(rule["record"], rule["expr"], metrics))
    for rule in rules:
        name = rule.get("alert")
        if not name:
            continue
        check_expr(name, rule["expr"], metrics)
        if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
            wrong(name, "severity is page or ticket")
        notes = rule.get("annotations", {})
        for note in ("summary", "description", "runbook_url"):
            if note not in notes:
                wrong(name, f"has no {note}")
        if "{{ $labels.instance }}" in str(notes):
            wrong(name, "names an address, where it could name the pod")
        if notes.get("runbook_url") != f"deploy/RUNBOOK.md#{name.lower()}":
            wrong(name, "runbook_url is not its section of deploy/RUNBOOK.md")
    check_numbers({rule["alert"]: rule for rule in rules if "alert" in rule})
    check_tests(metrics)
    check_commands(RUNBOOK.read_text(), metrics.alerts)
    sections = re.findall(r"^## (Antiphon\w+)$", RUNBOOK.read_text(), re.M)
    for name in metrics.alerts - set(sections):
        wrong(name, "has no section in RUNBOOK.md")
    for name in set(sections) - metrics.alerts:
        wrong("RUNBOOK.md", f"{name} is no alert")
    for name in metrics.alerts:
        section = RUNBOOK.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for part in ("**Meaning.**", "**Check.**", "**Act.**"):
            if name in sections and part not in section:
                wrong("RUNBOOK.md", f"{name} lacks {part}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def check_numbers(rules):
    """What a rule takes for granted of how nodes are run."""
    exprs = {name: rule["expr"] for name, rule in rules.items()}
    node = yaml.safe_load(COMPOSE.read_text())["services"]["node"]
    if not exprs["AntiphonNodeMissing"].endswith(f" < {node['deploy']['replicas']}"):
        wrong("AntiphonNodeMissing", "docker-compose.yml starts another number of nodes")
    # deploy/test/manifests looks at Kubernetes. A scrape and an evaluation pass before it is noticed, 5 s each.
    drain = tomllib.loads(DEFAULTS.read_text())["drain"]
    stuck, grace = seconds(rules["AntiphonDrainStuck"]["for"]), seconds(node["stop_grace_period"])
    if not seconds(drain["deadline"]) + 1 < stuck < grace - 10:
        wrong("AntiphonDrainStuck", f"fires after {stuck} s, but a drain may take {drain['deadline']}, and after {grace} s a node is killed")
    container = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"][0]
    for file, limits in ((COMPOSE, node["deploy"]["resources"]["limits"]), (DEPLOYMENT, container["resources"]["limits"])):
        number, unit = re.fullmatch(r"(\d+)(\w+)", limits["memory"]).groups()
        limit = int(number) * {"m": 2**20, "Mi": 2**20, "g": 2**30, "Gi": 2**30}[unit]
        if f" / {limit} > " not in exprs["AntiphonMemoryNearLimit"]:
            wrong("AntiphonMemoryNearLimit", f"{file.name} has another limit, {limit} bytes")


def check_commands(text, alerts):
    """What the runbook's commands name."""
    for name in set(re.findall(r"\bAntiphon[A-Z]\w+", text)) - alerts:
        wrong("RUNBOOK.md", f"{name} is no alert")
    documents = [doc for path in K8S.glob("*.yaml") for doc in yaml.safe_load_all(path.read_text())]
    there = {(doc["kind"], doc["metadata"]["name"]) for doc in documents if "metadata" in doc}
    for word, kind in (("deployment/", "Deployment"), ("hpa ", "HorizontalPodAutoscaler")):
        for name in re.findall(rf"\b{word}(\w+)", text):
            if (kind, name) not in there:
                wrong("RUNBOOK.md", f"there is no {kind} {name}")
    for name in re.findall(r"\b(?:exec|pod) (\w+)-0\b", text):
        if ("StatefulSet", name) not in there:
            wrong("RUNBOOK.md", f"there is no StatefulSet {name}")
    node = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"][0]
    secrets = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in node["env"]]
    for name, key in re.findall(r"get secret (\S+) -o jsonpath='\{\.data\.(\w+)\}'", text):
        if {"name": name, "key": key} not in secrets:
            wrong("RUNBOOK.md", f"nodes have no Secret {name} with {key}")
    for variable in re.findall(r"^ *(\w+)=\S* docker compose", text, re.M) + re.findall(r"printenv (\w+)", text):
        if f"${{{variable}" not in COMPOSE.read_text():
            wrong("RUNBOOK.md", f"docker-compose.yml does not read {variable}")
    # An autoscaler sets the number back.
    if re.search(r"kubectl .*\bscale ", text):
        wrong("RUNBOOK.md", "kubectl scale does not last")


def test_of(path):
    return path.with_name(f"{path.stem}_test.yml")


def check_tests(metrics):
    fires, quiet = set(), set()
    tests = [test for path in RULES for test in yaml.safe_load(test_of(path).read_text())["tests"]]
    for test in tests:
        for case in test.get("alert_rule_test", []):
            (fires if case.get("exp_alerts") else quiet).add(case["alertname"])
        for series in test["input_series"]:
            check_expr(f"test {test['name']!r}", series["series"], Loose(metrics))
    for kind, names in (("that it fires", fires), ("that it does not", quiet)):
        for name in metrics.alerts - names:
            wrong(name, f"no test shows {kind}")
        for name in names - metrics.alerts:
            wrong("tests", f"{name} is no alert")


class Loose:
    """As Metrics, with labels that scrapes may add."""

    def __init__(self, metrics):
        self.labels = {name: labels | {"pod"} for name, labels in metrics.labels.items()}
        self.values, self.alerts = metrics.values, metrics.alerts


def check_dashboard(path, metrics):
    dashboard, exprs, ids, taken = json.loads(path.read_text()), [], set(), {}
    text, where = path.read_text(), path.name
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    for name in set(re.findall(r"\$\{?(\w+)\}?", text)) - variables - {"__all"}:
        wrong(where, f"there is no variable ${name}")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            exprs.append((f"variable {variable['name']}", re.sub(r"^label_values\((.*), \w+\)$", r"\1", variable["query"]["query"])))
    for note in dashboard["annotations"]["list"]:
        if "expr" in note:
            exprs.append((f"annotation {note['name']}", note["expr"]))
    for panel in dashboard["panels"]:
        title = panel["title"]
        if panel["id"] in ids:
            wrong(where, f"{title}: the id {panel['id']} is taken")
        ids.add(panel["id"])
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            wrong(where, f"{title}: reaches beyond the right edge")
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if taken.setdefault(cell, title) != title:
                wrong(where, f"{title} lies over {taken[cell]}")
                break
        if panel["type"] == "row":
            continue
        if "libraryPanel" in panel:
            wrong(where, f"{title}: a library panel is not in the file")
        if not panel.get("description"):
            wrong(where, f"{title}: no description")
        if panel["type"] in ("stat", "timeseries") and not panel["fieldConfig"]["defaults"].get("unit"):
            wrong(where, f"{title}: no unit")
        for alert in set(re.findall(r"\bAntiphon[A-Z]\w+", panel.get("description", ""))) - metrics.alerts:
            wrong(where, f"{title}: {alert} is no alert")
        if not panel.get("targets"):
            wrong(where, f"{title}: no targets")
        for target in panel.get("targets", []):
            if target.get("expr"):
                exprs.append((title, target["expr"]))
            else:
                wrong(where, f"{title}: a target without an expression")
    for title, expr in exprs:
        check_expr(f"{where}: {title}", expr, metrics)
    return [expr.replace("$__rate_interval", "1m") for _, expr in exprs]


def main(directory):
    metrics = Metrics()
    check_rules(metrics)
    dashboards = sorted(DASHBOARDS.glob("*.json"))
    if not dashboards:
        wrong(DASHBOARDS, "no dashboard")
    exprs = [expr for path in dashboards for expr in check_dashboard(path, metrics)]
    rules = [{"record": f"dashboard:expr{number}", "expr": expr} for number, expr in enumerate(exprs)]
    # Strings as JSON writes them are YAML as well.
    Path(directory, "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(metrics.alerts)} alerts, {len(exprs)} expressions of dashboards: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
