"use strict";

// ---- Reading. A report may miss anything and hold anything: what is not as it should be counts as absent. ----

// Beyond these no count, byte or microsecond is real, and sums and axes would run out of what a number can hold.
const NUMBER_MAX = 1e21;
const NUMBER_MIN = 1e-9;
// Thirty years: a time beyond it would leave the rest of the run no width in the charts.
const SECONDS_MAX = 1e9;
// A run of hours has tens of thousands of seconds, a bad one as many culprits; nobody reads so many rows.
const ROWS_MAX = 1000;

function number(value) {
  if (typeof value !== "number" || Math.abs(value) > NUMBER_MAX) return null;
  return Math.abs(value) < NUMBER_MIN ? 0 : value;
}
const seconds = (value) => (number(value) !== null && Math.abs(value) <= SECONDS_MAX ? value : null);
const text = (value) =>
  typeof value === "string" && value.trim() !== "" ? value : typeof value === "number" ? String(value) : null;
const isRecord = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const record = (value) => (isRecord(value) ? value : {});
const list = (value) => (Array.isArray(value) ? value : []);
const records = (value) => list(value).filter(isRecord);
const counts = (value) => Object.entries(record(value)).filter(([, count]) => number(count) !== null);
const known = (values) => values.filter((value) => value !== null);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const sumKnown = (values) => (known(values).length ? sum(known(values)) : null);

// ---- Writing numbers. The page is in English whatever the reader's language, so its numbers are too. ----

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const rough = (value) => String(Number(value.toPrecision(3)));
const count = (value) => (Math.abs(value) < 1e15 ? grouped.format(value) : value.toExponential(2));
const fraction = (value) => (Math.abs(value) < 100 ? rough(value) : count(value));
const plural = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;

function scaled(units, smallest) {
  return (value) => {
    let [size, name] = units[0];
    for (const [unit, unitName] of units) {
      if (Math.abs(value) >= unit) [size, name] = [unit, unitName];
    }
    const whole = Math.abs(value / size);
    const shown = whole < 1000 ? rough(value / size) : whole < 1e6 ? count(value / size) : (value / size).toExponential(1);
    return value === 0 ? `0${smallest}` : `${shown}${name}`;
  };
}
const compact = scaled([[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"]], "");
const micros = scaled([[1, " µs"], [1e3, " ms"], [1e6, " s"]], " µs");
const bytes = scaled([[1, " B"], [1024, " KiB"], [1024 ** 2, " MiB"], [1024 ** 3, " GiB"], [1024 ** 4, " TiB"]], " B");
const cpu = (value) => `${fraction(value * 100)} %`;
const percent = (value) => `${Number(value.toFixed(6))} %`;
const duration = (value) => (Math.abs(value) >= 600 && Math.abs(value) < 1e7 ? clock(value) : `${Math.abs(value) < 600 ? rough(value) : count(value)} s`);

function clock(value) {
  const whole = Math.round(Math.abs(value));
  const two = (part) => String(part).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, two(whole % 60)];
  return `${value < 0 ? "−" : ""}${hours ? `${hours}:${two(minutes)}` : minutes}:${rest}`;
}

// ---- Elements. Strings become text nodes, so that no text of a report is ever read as HTML. ----

const drawing = document.querySelector("template").content.firstElementChild;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(drawing.namespaceURI, name), attributes, children);

// A line may end between the words of a command, not within "--rate".
function code(command) {
  return html("code", {}, ...command.split(" ").flatMap((word) => [html("span", {}, word), " "]));
}

// ---- The verdict ----

const SIGNS = {
  good: "M4 13 L10 19 L20 5",
  bad: "M5 5 L19 19 M19 5 L5 19",
  odd: "M12 4 V13 M12 19 V19.2",
};

function verdict(report) {
  const expectations = records(report.expectations);
  const broken = expectations.filter((expectation) => expectation.held !== true).length;
  const early = report.ended_early === true;
  const [mood, headline] =
    report.passed === false ? ["bad", early ? "Ended early, and failed" : "Failed"]
    : early ? ["odd", "Ended early"]
    : expectations.length === 0 ? ["odd", "Measured"]
    : report.passed === true ? ["good", "Passed"]
    : ["odd", "No verdict"];
  let summary = "Nothing was expected of this run.";
  if (expectations.length) {
    const all = expectations.length === 1 ? "The one expectation" : `All ${count(expectations.length)} expectations`;
    summary = broken
      ? `${count(broken)} of ${plural(expectations.length, "expectation")} did not hold.`
      : `${all} held${early ? " until then" : ""}.`;
  }
  const ran = list(report.seconds).length;
  const planned = seconds(record(report.plan).duration_s);
  const stopped = `Stopped after ${duration(ran)}${planned === null ? "" : ` of ${duration(planned)}`}.`;
  const words = html("div", { class: mood },
    html("h2", {}, svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: SIGNS[mood] })), headline),
    early ? html("p", {}, stopped) : null,
    html("p", {}, summary));
  const held = ({ held }) =>
    held === true ? html("span", { class: "good-text" }, "✓ held")
    : held === false ? html("span", { class: "bad-text" }, "✗ did not hold")
    : html("span", { class: "odd-text" }, "not known");
  const checks = table(null, "What was expected, and whether it held", [
    ["Expected", "", ({ what }) => text(what)],
    ["Held", "", held],
    ["Actual", "", ({ actual }) => text(actual)],
  ], expectations);
  return html("section", { class: `card verdict ${mood}${checks ? " checked" : ""}`, "aria-label": "Verdict" }, words, checks);
}

// ---- What was run ----

function definition(name, value, wide = false) {
  return value === null ? null : html("div", wide ? { class: "wide" } : {}, html("dt", {}, name), html("dd", {}, value));
}
const joined = (parts, between = ", ") => known(parts).join(between) || null;
const and = (value, show) => (value === null ? null : show(value));

function whatWasRun(report) {
  const plan = record(report.plan);
  const machine = record(report.machine);
  const cores = and(number(machine.cores), (value) => plural(value, "core"));
  const memory = and(number(machine.memory_bytes), (value) => (value ? bytes(value) : null));
  const pacing = joined([
    and(number(plan.rate), (value) => joined([fraction(value), and(number(plan.rate_to), fraction)], " to ") + " messages/s, open loop"),
    and(number(plan.in_flight), (value) => `${count(value)} in flight, closed loop`),
  ], "; ");
  const lasted = joined([
    and(seconds(plan.duration_s), duration),
    and(seconds(plan.warm_up_s), (value) => (value ? `after ${duration(value)} of warm-up` : null)),
  ]);
  const spoken = joined([text(plan.transport), and(text(plan.eio), (value) => `Engine.IO ${value}`)]);
  const command = text(report.command);
  const targets = known(list(plan.urls).map(text));
  const rows = [
    definition("Command", command && code(command), true),
    definition("Targets", targets.length ? html("ul", {}, ...targets.map((url) => html("li", {}, url))) : null, true),
    definition("Scenario", text(report.scenario)),
    definition("Started", and(text(report.started), (value) => value.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)Z$/, "$1 $2 UTC"))),
    definition("Commit", text(report.commit)),
    definition("Machine", joined([text(machine.cpu), cores, memory])),
    definition("Kernel", text(machine.kernel)),
    definition("Clients", joined([
      and(number(plan.clients), count),
      and(number(plan.senders), (value) => (value ? `${count(value)} of them sending` : null)),
    ])),
    definition("Client threads", and(number(plan.threads), count)),
    definition("Pacing", pacing),
    definition("Message", and(number(plan.bytes), (value) => (value ? plural(value, "byte") : null))),
    definition("Duration", lasted),
    definition("Transport", spoken),
  ];
  return known(rows).length ? section("What was run", html("dl", { class: "card plan" }, ...rows)) : null;
}

// ---- Key figures ----

function keyFigures(report) {
  const totals = record(report.totals);
  const latency = record(report.latency_us);
  const connect = record(report.connect_us);
  const servers = records(report.servers);
  const total = (name) => number(totals[name]);
  // In a run without messages "0 lost" would claim what nobody tried.
  const messages = ["sent", "expected", "delivered"].some((name) => total(name));
  const timed = number(latency.count) !== 0;
  const figure = (name, value, show, hint = null, bad = false) =>
    value === null ? null
    : html("div", { class: bad ? "card bad" : "card" }, html("dt", {}, name), html("dd", { class: show(value).length > 11 ? "long" : null }, show(value)), hint && html("dd", {}, hint));
  const trouble = (name, key, hint, always) => {
    const value = total(key);
    return value || (always && messages) ? figure(name, value, count, hint, value > 0) : null;
  };
  const delay = (name, key) => (timed ? figure(name, number(latency[key]), micros) : null);

  const spent = sumKnown(servers.map(({ cpu_s }) => number(cpu_s)));
  const perDelivery = servers.length === 1 ? number(servers[0].cpu_us_per_delivery)
    : and(spent, (value) => (total("delivered") ? (value * 1e6) / total("delivered") : null));
  const largest = sumKnown(servers.map(({ rss_max_bytes }) => number(rss_max_bytes)));
  const processes = servers.length > 1 ? `${count(servers.length)} processes together` : null;
  const grown = sumKnown(servers.map(({ rss_start_bytes, rss_max_bytes }) => (number(rss_max_bytes) ?? 0) - (number(rss_start_bytes) ?? 0)));
  const clients = number(record(report.plan).clients);
  const distinct = [
    messages ? figure("Messages sent", total("sent"), count, and(total("messages_per_s"), (value) => `${fraction(value)} a second`)) : null,
    messages ? figure("Deliveries", total("delivered"), count, and(total("expected"), (value) => `of ${count(value)} expected`)) : null,
    messages ? figure("Deliveries a second", total("deliveries_per_s"), fraction) : null,
    delay("Latency, median", "p50"),
    delay("Latency, p99", "p99"),
    delay("Latency, p99.9", "p999"),
    delay("Latency, largest", "max"),
    trouble("Lost", "lost", "should have come, never did", true),
    number(totals.lost) ? trouble("Lost, unaccounted", "unaccounted", "no node's counters say why", true) : null,
    trouble("Reordered", "reordered", "came after a later one", true),
    trouble("Duplicated", "duplicated", "came more than once", true),
    trouble("Late", "late", "took longer than they may", false),
    trouble("Unsent", "unsent", "their senders could not send", false),
    messages ? figure("Not connected", total("not_connected"), count, "receiver was away at the time") : null,
    trouble("Foreign", "foreign", "nobody sent these", false),
    trouble("Refused", "refused", "the server turned them down", false),
    figure("Connections", total("connects"), count, and(seconds(connect.all_connected_after_s), (value) => (value ? `all after ${duration(value)}` : null))),
    trouble("Failed to connect", "connect_failures", null, false),
    number(connect.count) ? figure("Time to connect, p99", number(connect.p99), micros, and(number(connect.p50), (value) => `median ${micros(value)}`)) : null,
    figure("Reconnects", total("reconnects"), count),
    messages && perDelivery ? figure("Server CPU a delivery", perDelivery, micros, processes) : null,
    spent ? figure("Server CPU", spent, duration, processes ?? "in all") : null,
    largest ? figure("Server memory, largest", largest, bytes, processes ?? "resident (RSS)") : null,
    // Only of idle connections: messages take memory of their own.
    !messages && clients > 0 && grown > 0 ? figure("Server memory a client", grown / clients, bytes, "largest less start, by clients") : null,
  ];
  return known(distinct).length ? section("Key figures", html("dl", { class: "figures" }, ...distinct)) : null;
}

// ---- Axes: what each answers is where a value lies (0 to 1) and which values are worth a line. ----

function niceStep(raw) {
  const size = 10 ** Math.floor(Math.log10(raw));
  const lead = raw / size;
  return (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10) * size;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : null;
}

function valueAxis(series, { unit = () => 1, smallest = 0, logarithmic = false }) {
  const values = series.flatMap(({ values }) => values);
  const positive = extent(values.filter((value) => value > 0));
  // Where the largest is tens of times the smallest, the small ones would lie flat on a linear axis.
  if (logarithmic && positive && positive[1] / positive[0] > 30) return logAxis(...positive);
  const top = Math.max(positive ? positive[1] : 0, smallest) || 1;
  const size = unit(top);
  const step = Math.max(niceStep(top / size / 4) * size, smallest);
  const lines = Math.ceil(top / step - 1e-9);
  return {
    logarithmic: false,
    place: (value) => Math.max(value, 0) / (lines * step),
    ticks: Array.from({ length: lines + 1 }, (_, index) => index * step),
  };
}

function logAxis(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high) - 1e-9)];
  const every = Math.ceil((last - first) / 6);
  const ticks = [];
  for (let decade = first; decade <= last; decade += every) {
    for (const lead of last - first <= 2 ? [1, 2, 5] : [1]) ticks.push(lead * 10 ** decade);
  }
  // The axis ends at the lines around the data, not at whole decades: two thirds of it would be empty otherwise.
  const bottom = ticks.filter((tick) => tick <= low).pop() ?? low;
  const top = ticks.find((tick) => tick >= high) ?? high;
  return {
    logarithmic: true,
    place: (value) => Math.log(Math.max(value, bottom) / bottom) / Math.log(top / bottom),
    ticks: ticks.filter((tick) => tick >= bottom && tick <= top),
  };
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

function timeTicks([from, to], wanted) {
  const raw = (to - from) / wanted;
  const step = TIME_STEPS.find((candidate) => candidate >= raw) ?? niceStep(raw / 86400) * 86400;
  const show = to - from > 300 ? clock : (value) => `${value} s`;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push([at, show(at)]);
  return ticks;
}

// ---- Charts ----

const HEIGHT = 230;
const MARGIN = { left: 62, right: 16, top: 24, bottom: 24 };
// Half a sheet of A4, in CSS pixels.
const PRINT_WIDTH = 340;
const COLOURS = 8;
// Colours times dashes: more lines than this could not be told apart.
const SERIES_MAX = COLOURS * 3;

// Keeps, for every pixel column, the first, last, lowest and highest point: what is left draws the same picture,
// and no single bad second of a long run is lost.
function thinned(points, columns) {
  if (points.length <= columns * 4) return points;
  const kept = [];
  for (let column = 0; column < columns; column++) {
    const part = points.slice(Math.floor((column * points.length) / columns), Math.floor(((column + 1) * points.length) / columns));
    let [low, high] = [part[0], part[0]];
    for (const point of part) {
      if (point[1] < low[1]) low = point;
      if (point[1] > high[1]) high = point;
    }
    kept.push(...new Set([part[0], low, high, part[part.length - 1]].sort((a, b) => a[0] - b[0])));
  }
  return kept;
}

// A chart, its values at the pointer (or at the arrow keys), and the same in words.
//
// `xs` ascend; a hole wider than `gap` between two of them interrupts the lines, as a null value does. `linked`
// holds the charts that share one cursor.
function chart({ title, xs, gap, domain, ticks, when, series, show, axis, marks = [], area = false, rest = "highest", linked }) {
  const y = valueAxis(series, axis);
  const places = (width) => (x) => MARGIN.left + ((x - domain[0]) / (domain[1] - domain[0])) * (width - MARGIN.left - MARGIN.right);
  const level = (value) => HEIGHT - MARGIN.bottom - y.place(value) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const label = (value) => (value === null || value === undefined ? "–" : show(value));

  const extremes = series.map(({ values }) => extent(values));
  const look = (index) => `series c${index % COLOURS} dash${series[index].dash ?? Math.floor(index / COLOURS)}`;
  const restValue = (index) => label(extremes[index]?.[rest === "lowest" ? 0 : 1]);
  const words = series.map(({ name, values }, index) => {
    if (extremes[index] === null) return `${name}: no values.`;
    const [low, high] = extremes[index];
    return `${name}: lowest ${show(low)}, highest ${show(high)} at ${when(values.indexOf(high))}.`;
  });
  const heading = y.logarithmic ? [title, html("span", { class: "quiet" }, " · log axis")] : [title];
  const reading = html("li", { class: "when" });
  const readings = series.map(() => html("b"));
  const legend = html("ul", { class: linked ? "readout" : "readout shares", "aria-hidden": "true" }, reading, ...series.map(({ name }, index) =>
    html("li", {},
      svg("svg", { viewBox: "0 0 26 10" }, svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, class: look(index) })),
      html("span", {}, name), readings[index])));
  // A slider is what this is to who cannot see it: a place in the run to be moved, with the values there as its text.
  const plot = html("div", { class: "plot", role: "slider", tabindex: "0", "aria-label": `${title}: move to read the values`, "aria-valuemin": 0, "aria-valuemax": xs.length - 1 });
  const node = html("figure", { class: "card" },
    html("figcaption", {}, html("h3", {}, ...heading), html("span", { class: "unseen" }, words.join(" "))), legend, plot);

  let at = null;
  let width = 0;
  let layer = null;

  function lines(x) {
    return series.flatMap(({ values }, index) => {
      const runs = [];
      values.forEach((value, i) => {
        const last = runs[runs.length - 1];
        if (value === null) runs.push([]);
        else if (!last || (i > 0 && xs[i] - xs[i - 1] > gap)) runs.push([[x(xs[i]), level(value)]]);
        else last.push([x(xs[i]), level(value)]);
      });
      return runs.filter((run) => run.length).flatMap((run) => {
        const points = thinned(run, Math.ceil(width));
        const path = points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
        const [first, last] = [points[0][0].toFixed(1), points[points.length - 1][0].toFixed(1)];
        return [
          area ? svg("path", { class: `area f${index % COLOURS}`, d: `M${first} ${level(0)}L${path}L${last} ${level(0)}Z` }) : null,
          // A lone second has no length; the round ends of a line to itself make it a dot.
          svg("path", { class: points.length === 1 ? `series lone c${index % COLOURS}` : look(index), d: `M${path}${points.length === 1 ? "h0.01" : ""}` }),
        ].filter(Boolean);
      });
    });
  }

  function axes(x) {
    const parts = y.ticks.flatMap((tick) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: level(tick), y2: level(tick) }),
      svg("text", { x: MARGIN.left - 8, y: level(tick) + 4, "text-anchor": "end" }, (axis.show ?? show)(tick)),
    ]);
    const floor = HEIGHT - MARGIN.bottom;
    parts.push(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor }));
    let free = 0;
    for (const [value, name] of ticks(width)) {
      const half = name.length * 3.6;
      const middle = Math.min(x(value), width - half);
      if (middle - half < free) continue;
      free = middle + half + 8;
      parts.push(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: floor, y2: floor + 4 }));
      parts.push(svg("text", { x: middle, y: HEIGHT - 5, "text-anchor": "middle" }, name));
    }
    return parts;
  }

  // Faults so near to each other that their numbers would overlap share a label; a command is written only as far
  // as there is room for it, the table of faults has it whole.
  function faults(x) {
    const name = ([first, ...others]) => (others.length ? `${first.number}–${others[others.length - 1].number}` : String(first.number));
    const breadth = (group) => name(group).length * 7.5 + 8;
    const left = (group) => x(group[0].x) - breadth(group.slice(0, 1)) / 2;
    const groups = [];
    for (const mark of marks) {
      const last = groups[groups.length - 1];
      const free = last && left(last) + breadth([...last, mark]) + breadth([mark]) / 2 + 4;
      if (last && x(mark.x) < free) last.push(mark);
      else groups.push([mark]);
    }
    return groups.map((group, index) => {
      const box = breadth(group);
      const end = index + 1 < groups.length ? x(groups[index + 1][0].x) : width;
      const from = Math.min(left(group), width - box);
      const room = Math.floor((end - from - box - 16) / 6.8);
      const letters = Array.from(group.length === 1 ? group[0].text : "");
      const command = letters.length <= room ? letters.join("") : room > 3 ? `${letters.slice(0, room - 1).join("")}…` : "";
      return svg("g", { class: "fault" },
        ...group.map((mark) => svg("line", { x1: x(mark.x), x2: x(mark.x), y1: 18, y2: HEIGHT - MARGIN.bottom })),
        svg("rect", { x: from, y: 2, width: box, height: 16, rx: 4 }),
        svg("text", { class: "number", x: from + box / 2, y: 14, "text-anchor": "middle" }, name(group)),
        svg("text", { class: "command", x: from + box + 5, y: 14 }, command));
    });
  }

  function draw(pixels) {
    if (pixels === width || pixels === 0) return;
    width = pixels;
    const x = places(width);
    layer = svg("g");
    const picture = drawing.cloneNode();
    plot.replaceChildren(fill(picture, { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" }, [...axes(x), ...faults(x), ...lines(x), layer]));
    point(at);
  }

  function point(index) {
    at = index;
    reading.textContent = index === null ? rest : when(index);
    series.forEach(({ values }, s) => (readings[s].textContent = index === null ? restValue(s) : label(values[index])));
    plot.setAttribute("aria-valuenow", index ?? 0);
    plot.setAttribute("aria-valuetext", index === null ? words.join(" ")
      : `${when(index)}: ${series.map(({ name, values }) => `${name} ${label(values[index])}`).join(", ")}`);
    if (layer === null) return;
    layer.replaceChildren();
    if (index === null) return;
    const px = places(width)(xs[index]);
    layer.append(svg("line", { class: "cursor", x1: px, x2: px, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    series.forEach(({ values }, s) => {
      if (values[index] !== null) layer.append(svg("circle", { class: `dot f${s % COLOURS}`, cx: px, cy: level(values[index]), r: 4.5 }));
    });
  }

  const together = linked ?? [];
  together.push(point);
  const move = (index) => together.forEach((other) => other(index));

  const read = (event) => {
    const x = places(width);
    const px = ((event.clientX - plot.getBoundingClientRect().left) / plot.clientWidth) * width;
    let [low, high] = [0, xs.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (x(xs[middle]) < px) low = middle + 1;
      else high = middle;
    }
    move(low > 0 && px - x(xs[low - 1]) < x(xs[low]) - px ? low - 1 : low);
  };
  plot.addEventListener("pointermove", read);
  // A finger that taps never moved.
  plot.addEventListener("pointerdown", read);
  // A finger that lifts has not left: its reading stays until the next tap.
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && move(null));
  plot.addEventListener("focus", () => move(at ?? 0));
  plot.addEventListener("blur", () => move(null));
  plot.addEventListener("keydown", (event) => {
    const last = xs.length - 1;
    const here = at ?? 0;
    const to = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1,
      PageDown: here - 10, PageUp: here + 10, Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(Math.min(Math.max(to, 0), last));
  });
  new ResizeObserver(() => draw(plot.clientWidth)).observe(plot);
  // Paper has another width, and its size is not told: drawn for the screen the letters would shrink with the picture.
  addEventListener("beforeprint", () => draw(PRINT_WIDTH));
  addEventListener("afterprint", () => draw(plot.clientWidth));
  point(null);
  return node;
}

const COUNTS = { show: compact, smallest: 1 };
const LATENCY = { logarithmic: true };
const SHARE = {};
const MEMORY = { unit: (top) => [1024 ** 4, 1024 ** 3, 1024 ** 2, 1024].find((size) => top >= size) ?? 1 };

function faultsOf(report) {
  return records(report.faults).map((fault, index) => ({ ...fault, number: index + 1, t: seconds(fault.t) }));
}

function nameOf(report, pid) {
  const server = records(report.servers).find((server) => server.pid === pid);
  return joined([text(record(server).name), text(pid)], " ") ?? "server";
}

function secondsOf(report) {
  return records(report.seconds).filter(({ t }) => seconds(t) !== null).sort((a, b) => a.t - b.t);
}

function timeCharts(report, rows) {
  if (!rows.length) return [];
  const steps = rows.slice(1).map(({ t }, index) => t - rows[index].t).filter((step) => step > 0).sort((a, b) => a - b);
  const step = steps[Math.floor(steps.length / 2)] ?? 1;
  const marks = faultsOf(report).filter(({ t }) => t !== null).sort((a, b) => a.t - b.t)
    .map(({ t, number, command }) => ({ x: t, number, text: text(command) ?? "" }));
  const [from, to] = extent([...rows.map(({ t }) => t), ...marks.map(({ x }) => x)]);
  const domain = [from, Math.max(to, rows[rows.length - 1].t + step)];
  const linked = [];
  const column = (name, read) => ({ name, values: rows.map(read) });
  const plain = (name, key) => column(name, (row) => number(row[key]));
  const some = ({ values }) => values.some((value) => value);
  const any = ({ values }) => values.some((value) => value !== null);
  const timed = (title, series, options) => series.length ? chart({
    title, series, marks, linked, domain,
    // A second's values are drawn at its middle: what a fault at its start did is to the right of the fault's line.
    xs: rows.map(({ t }) => t + step / 2),
    gap: step * 1.5,
    ticks: (width) => timeTicks(domain, width / 80),
    when: (index) => (domain[1] - domain[0] > 300 ? clock(rows[index].t) : `second ${rough(rows[index].t)}`),
    ...options,
  }) : null;
  // In a second without deliveries there is no latency; the report's zero is not a very good one.
  const delay = (name, key) => column(name, (row) => (row.delivered === 0 ? null : number(row[key])));

  const sent = plain("sent", "sent");
  const delivered = plain("delivered", "delivered");
  const most = ({ values }) => extent(values)?.[1] ?? 0;
  const apart = most(delivered) > 5 * most(sent) || most(sent) > 5 * most(delivered);
  const perSecond = { show: count, axis: COUNTS };

  const pids = [...new Set(rows.flatMap(({ servers }) => records(servers).map(({ pid }) => pid)))].slice(0, SERIES_MAX - 1);
  const perServer = (key) => pids.map((pid) => column(nameOf(report, pid), ({ servers }) =>
    number(record(records(servers).find((server) => server.pid === pid))[key])));

  return known([
    timed("Latency over time", [delay("p50", "p50_us"), delay("p99", "p99_us"), delay("largest", "max_us")].filter(some), { show: micros, axis: LATENCY }),
    distribution(report),
    ...(apart
      // A broadcast's deliveries are a thousand times its messages; on one axis the messages would be a flat line.
      ? [timed("Deliveries a second", [delivered].filter(some), { ...perSecond, area: true }),
         timed("Messages sent a second", [sent].filter(some), { ...perSecond, area: true })]
      // Dashed: of an echo as much is sent as delivered, and the one line would hide the other.
      : [timed("Throughput, a second", [delivered, { ...sent, dash: 1 }].filter(some), perSecond)]),
    timed("Connections", [plain("connected", "connected")].filter(any), { show: count, axis: COUNTS, area: true, rest: "lowest" }),
    timed("Lost, by second", [plain("lost", "lost")].filter(some), { show: count, axis: COUNTS, area: true }),
    timed("CPU, of one core", [...perServer("cpu"), plain("clients", "client_cpu")].filter(any), { show: cpu, axis: SHARE }),
    timed("Server memory (RSS)", perServer("rss_bytes").filter(any), { show: bytes, axis: MEMORY }),
  ]);
}

// How far out a percentile is, in decades of 1 / (1 - p): 90 % is one, 99 % two, 99.9 % three.
const decades = (p) => -Math.log10(1 - p / 100);

function distribution(report) {
  const latency = record(report.latency_us);
  const pairs = list(latency.percentiles).map((pair) => list(pair).map(number))
    .filter(([p, value]) => p >= 0 && p <= 100 && p !== null && value !== null && value !== undefined);
  if (!pairs.length && number(latency.count) !== 0) {
    const named = [[50, latency.p50], [90, latency.p90], [99, latency.p99], [99.9, latency.p999], [100, latency.max]];
    pairs.push(...named.filter(([, value]) => number(value) !== null));
  }
  if (!pairs.length || number(latency.count) === 0) return null;
  pairs.sort((a, b) => a[0] - b[0]);
  const finite = pairs.filter(([p]) => p < 100).map(([p]) => decades(p));
  // The largest lies at infinity; it gets a place a little beyond the last percentile.
  const end = Math.max(finite[finite.length - 1] ?? 0, 1) + 0.3;
  const lines = [[0, "0 %"], [decades(50), "50 %"]];
  for (let decade = 1; decade <= end; decade++) lines.push([decade, percent(100 - 10 ** (2 - decade))]);
  return chart({
    title: "Latency by percentile",
    xs: pairs.map(([p]) => (p < 100 ? decades(p) : end)),
    gap: Infinity,
    domain: [0, end],
    ticks: () => lines,
    when: (index) => (pairs[index][0] < 100 ? `${percent(pairs[index][0])} within` : "all within"),
    series: [{ name: "latency", values: pairs.map(([, value]) => value) }],
    show: micros,
    axis: LATENCY,
  });
}

// ---- Tables ----

// Columns: name, class ("number", "broad"), what a row shows there (null: nothing known). Empty columns are left out.
function table(note, name, columns, rows) {
  if (!rows.length) return null;
  const shown = rows.slice(0, ROWS_MAX);
  const cells = columns.map(([head, kind, read]) => ({ head, kind, values: shown.map(read) })).filter(({ values }) => known(values).length);
  if (!cells.length) return null;
  const more = rows.length > shown.length ? ` The first ${count(shown.length)} of ${count(rows.length)}; the JSON report has them all.` : "";
  const caption = note === null ? html("caption", { class: "unseen" }, name) : html("caption", {}, html("span", {}, note + more));
  // Scrolls sideways on a narrow screen, so it must be reachable by keys.
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, html("table", {},
    caption,
    html("thead", {}, html("tr", {}, ...cells.map(({ head, kind }) => html("th", { scope: "col", class: kind }, head)))),
    html("tbody", {}, ...shown.map((_, row) => html("tr", {}, ...cells.map(({ kind, values }) => html("td", { class: kind }, values[row] ?? "–")))))));
}

function reasons(value) {
  const entries = counts(value).map(([reason, times]) => html("li", {}, html("bdi", {}, text(reason) ?? "no reason given"), `: ${count(times)}`));
  return entries.length ? html("ul", {}, ...entries) : null;
}
const cell = (key, show, read = number) => (row) => and(read(row[key]), show);
const same = (value) => value;

function culprits(report) {
  return titledTable("Culprits", "Receivers whose messages went wrong, and whose messages they were.", [
    ["Receiver", "number", cell("receiver", same, text)],
    ["Sender", "number", cell("sender", same, text)],
    ["What", "", cell("what", same, text)],
    ["How many", "number", cell("count", count)],
    ["First message's number", "number", cell("first_number", count)],
  ], records(report.culprits));
}

function disconnects(report) {
  const rows = counts(record(report.totals).disconnects).sort((a, b) => b[1] - a[1]);
  return titledTable("Disconnects", "Connections that ended before the run did, by reason.", [
    ["Reason", "broad", ([reason]) => text(reason) ?? "no reason given"],
    ["How many", "number", ([, times]) => count(times)],
  ], rows);
}

function books(report) {
  const balance = ({ balanced }) =>
    balanced === true ? html("span", { class: "good-text" }, "✓ yes")
    : balanced === false ? html("span", { class: "bad-text" }, "✗ no")
    : null;
  return titledTable("Books", "What each node counted: what should have reached a client was delivered, or is accounted for.", [
    ["Node", "broad", cell("admin", same, text)],
    ["Delivered", "number", cell("delivered", count)],
    ["Undelivered", "", ({ undelivered }) => reasons(undelivered)],
    ["Lost between nodes", "", (book) => reasons(book.between_nodes)],
    ["Of other nodes, not heard", "number", cell("unheard", count)],
    ["Lost with these", "number", cell("accounted", count)],
    ["Closed", "", ({ closed }) => reasons(closed)],
    ["Balanced", "", balance],
    ["Difference", "number", cell("difference", count)],
    ["Could not be asked", "broad", cell("error", same, text)],
  ], records(report.books));
}

function faults(report) {
  const exit = ({ exit }) => and(number(exit), (code) => (code === 0 ? "0" : html("span", { class: "bad-text" }, String(code))));
  return titledTable("Faults", "What was done to the system during the run; the numbers are those in the charts.", [
    ["No.", "number", ({ number }) => String(number)],
    ["At", "number", cell("t", duration, same)],
    ["Command", "broad", ({ command }) => and(text(command), code)],
    ["Exit code", "number", exit],
    ["Took", "number", cell("took_s", duration, seconds)],
  ], faultsOf(report));
}

function servers(report) {
  return titledTable("Server processes", "CPU time and resident memory over the whole run.", [
    ["Name", "", cell("name", same, text)],
    ["Pid", "number", cell("pid", same, text)],
    ["CPU", "number", cell("cpu_s", duration, seconds)],
    ["CPU a delivery", "number", ({ cpu_us_per_delivery }) => and(number(cpu_us_per_delivery), (value) => (value ? micros(value) : null))],
    ["RSS at start", "number", cell("rss_start_bytes", bytes)],
    ["largest", "number", cell("rss_max_bytes", bytes)],
    ["at end", "number", cell("rss_end_bytes", bytes)],
  ], records(report.servers));
}

// The charts' values as text. Filled when opened: most readers never do.
function everySecond(rows) {
  if (!rows.length) return null;
  const latency = (key) => (row) => (row.delivered === 0 ? null : and(number(row[key]), micros));
  const together = (key, show) => ({ servers }) => and(sumKnown(records(servers).map((server) => number(server[key]))), show);
  const details = html("details", {}, html("summary", {}, "The charts' values as a table, second by second"));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    details.append(table("One row a second.", "Every second", [
      ["Second", "number", ({ t }) => rough(t)],
      ["Connected", "number", cell("connected", count)],
      ["Sent", "number", cell("sent", count)],
      ["Delivered", "number", cell("delivered", count)],
      ["Lost", "number", cell("lost", count)],
      ["p50", "number", latency("p50_us")],
      ["p99", "number", latency("p99_us")],
      ["Largest", "number", latency("max_us")],
      ["Server CPU", "number", together("cpu", cpu)],
      ["Server RSS", "number", together("rss_bytes", bytes)],
      ["Client CPU", "number", cell("client_cpu", cpu)],
    ], rows));
  });
  return details;
}

// ---- The page ----

function section(title, ...content) {
  return html("section", {}, html("h2", {}, title), ...content);
}

function titledTable(title, note, columns, rows) {
  const body = table(note, title, columns, rows);
  return body && section(title, body);
}

function charts(report) {
  const rows = secondsOf(report);
  const figures = rows.length ? timeCharts(report, rows) : known([distribution(report)]);
  return figures.length ? section("Charts", html("div", { class: "charts" }, ...figures), everySecond(rows)) : null;
}

function page(report) {
  const title = text(report.title) ?? text(report.scenario) ?? "Load test";
  document.title = `${title} – load test report`;
  const tables = known([culprits(report), disconnects(report), books(report), faults(report), servers(report)]);
  const other = report.format === 1 ? null
    : html("p", { class: "odd-text" }, "This report is not of format 1, the one this page reads; what follows may be incomplete.");
  return known([
    html("header", {}, html("p", { class: "quiet" }, "Load test report"), html("h1", {}, title)),
    other,
    verdict(report),
    whatWasRun(report),
    keyFigures(report),
    charts(report),
    tables.length ? html("div", { class: "tables" }, ...tables) : null,
  ]);
}

function parsed() {
  try {
    return record(JSON.parse(document.getElementById("report").textContent));
  } catch {
    return null;
  }
}

const report = parsed();
document.querySelector("main").replaceChildren(
  ...(report ? page(report) : [html("h1", {}, "Load test report"), html("p", { class: "bad-text" }, "The report inside this page is not JSON.")]));
