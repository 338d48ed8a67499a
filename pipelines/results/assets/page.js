"use strict";
// Everything shown comes from the JSON block; text goes in by textContent, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const COSTS = data.costs, QUALITIES = data.qualities;
const TIMED = data.points.some((point) => point.time_saved);
const POOLED = "#0072B2", DENSE = "#D55E00", CONSTANT = "#9A6700", OTHER = "#6E7781", KNEE = "#1b1f24";
const OUTSIDE = ["#009E73", "#CC79A7", "#56B4E9", "#7D4698"];
const OUTSIDE_SHAPES = ["triangle-up", "cross", "star", "pentagon"];
// Only buttons that stay on this machine.
const PLOT_OPTIONS = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
let chosen = null;

const percent = (fraction) => (100 * fraction).toFixed(2) + " %";
const withError = (point, split) => {
  const top1 = point["top1_" + split], error = point[split + "_error"];
  return top1 === null ? "–" : (100 * top1).toFixed(2) + (error ? " ± " + (100 * error).toFixed(2) : "");
};
const number = (value) => value === null || value === undefined ? "–" : String(+(+value).toPrecision(4));
// Plotly reads a few tags in hover texts.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

function known(point) {
  const cost = point.costs[byId("cost").value], quality = point[byId("quality").value];
  return cost !== undefined && cost !== null && quality !== null;
}
const cost = (point) => point.costs[byId("cost").value];
const top1 = (point) => point[byId("quality").value];

// The front on the chosen axes: cheapest first, each better than all before.
function frontOf(points) {
  const sorted = [...points].sort((a, b) => cost(a) - cost(b) || top1(b) - top1(a));
  let best = -Infinity;
  return sorted.filter((point) => top1(point) > best && (best = top1(point), true));
}

function groups() {
  const finished = data.points.filter((p) => p.finished && known(p));
  const front = frontOf(finished);
  const onFront = new Set(front.map((p) => p.id));
  return {
    front,
    pooled: front.filter((p) => p.kind === "final"),
    dense: finished.filter((p) => p.kind === "dense"),
    constant: finished.filter((p) => p.kind === "constant"),
    dominated: finished.filter((p) => p.kind === "final" && !onFront.has(p.id)),
    stopped: data.points.filter((p) => ["stopped", "paused"].includes(p.status) && known(p)),
  };
}

function trace(name, points, marker) {
  const error = byId("quality").value === "top1_minival" ? "minival_error" : "val_error";
  return {
    name, type: "scatter", mode: "markers", marker: { line: { width: 1.5 }, ...marker },
    x: points.map(cost), y: points.map((p) => 100 * top1(p)), customdata: points.map((p) => p.id),
    error_y: { type: "data", array: points.map((p) => p[error] ? 100 * p[error] : 0),
      visible: points.some((p) => p[error]), thickness: 1, width: 3, color: marker.color },
    text: points.map((p) => plain(p.id) + " · width " + p.width
      + (p.keep_rate ? " · keep rate " + p.keep_rate : "") + "<br>" + plain(p.compact)),
    hovertemplate: "%{text}<br>%{x:.4g} " + plain(COSTS[byId("cost").value].unit)
      + " · %{y:.2f} %<extra></extra>",
  };
}

function drawChart() {
  const g = groups();
  if (typeof Plotly === "undefined" || !data.points.some(known)) {
    byId("chart").innerHTML = "";
    const note = document.createElement("p");
    note.id = "empty";
    note.textContent = "No finished model yet.";
    byId("chart").append(note);
    return g;
  }
  const stairs = { type: "scatter", mode: "lines", name: "front", hoverinfo: "skip",
    line: { shape: "hv", color: POOLED, width: 2 }, x: g.front.map(cost),
    y: g.front.map((p) => 100 * top1(p)) };
  if (g.front.length) {
    const right = Math.max(...data.points.filter(known).map(cost));
    stairs.x.push(right);
    stairs.y.push(stairs.y[stairs.y.length - 1]);
  }
  const traces = [stairs];
  if (byId("stopped").checked)
    traces.push(trace("stopped early", g.stopped, { symbol: "x-thin", size: 9, color: OTHER, line: { width: 2, color: OTHER } }));
  if (byId("dominated").checked)
    traces.push(trace("dominated", g.dominated, { symbol: "circle-open", size: 9, color: OTHER }));
  data.others.forEach((other, i) => {
    const points = other.points.filter(known);
    if (points.length) traces.push(trace(other.name, points,
      { symbol: OUTSIDE_SHAPES[i % 4], size: 10, color: OUTSIDE[i % 4] }));
  });
  if (g.constant.length)
    traces.push(trace("constant keep-rate", g.constant, { symbol: "diamond", size: 11, color: CONSTANT }));
  traces.push(trace("dense widths", g.dense, { symbol: "square", size: 11, color: DENSE }));
  traces.push(trace("pooled, on the front", g.pooled, { symbol: "circle", size: 11, color: POOLED }));
  const knee = data.points.find((p) => p.knee && known(p));
  if (knee) traces.push({ ...trace("knee", [knee], { symbol: "circle-open", size: 22, color: KNEE }), error_y: {} });
  const picked = data.points.find((p) => p.id === chosen && known(p));
  if (picked) traces.push({ ...trace("chosen", [picked], { symbol: "square-open", size: 26, color: KNEE }),
    error_y: {}, hoverinfo: "skip", hovertemplate: null });
  Plotly.react("chart", traces, {
    margin: { l: 56, r: 12, t: 34, b: 48 }, hovermode: "closest", font: { size: 13, color: "#1b1f24" },
    xaxis: { title: { text: COSTS[byId("cost").value].title }, gridcolor: "#eaeef2", zeroline: false, rangemode: "tozero" },
    yaxis: { title: { text: QUALITIES[byId("quality").value] + ", %" }, gridcolor: "#eaeef2", zeroline: false },
    showlegend: false, uirevision: byId("cost").value + byId("quality").value,
  }, PLOT_OPTIONS);
  drawLegend();
  return g;
}

// As text below the chart: Plotly's own legend eats a phone's whole chart.
function drawLegend() {
  const entries = [["●", POOLED, "pooled, on the front"], ["■", DENSE, "dense widths"],
    ...(data.points.some((p) => p.kind === "constant") ? [["◆", CONSTANT, "constant keep-rate"]] : []), ["◯", KNEE, "knee"], ["□", KNEE, "chosen"]];
  if (byId("dominated").checked) entries.push(["○", OTHER, "dominated"]);
  if (byId("stopped").checked) entries.push(["✕", OTHER, "stopped early"]);
  data.others.forEach((other, i) => entries.push([["▲", "✚", "★", "⬟"][i % 4], OUTSIDE[i % 4], other.name]));
  byId("legend").replaceChildren(...entries.map(([symbol, colour, name]) => {
    const entry = document.createElement("li"), sign = document.createElement("span");
    sign.textContent = symbol;
    sign.style.color = colour;
    entry.append(sign, " " + name);
    return entry;
  }));
}

function show(id) {
  const point = data.points.find((p) => p.id === id);
  if (!point) return;
  byId("model-name").textContent = point.id + (point.knee ? " (knee)" : "");
  const facts = ["width " + point.width, point.method === "none" ? "dense" : point.method,
    ...(point.keep_rate ? ["constant keep rate " + point.keep_rate] : []),
    number(point.costs.gmacs) + " GMACs (" + Math.round(point.percent_of_dense) + " % of dense)"];
  if (point.top1_minival !== null) facts.push("top-1 " + percent(point.top1_minival) + " minival"
    + (point.minival_error ? " ± " + (100 * point.minival_error).toFixed(2) : ""));
  if (point.top1_val !== null) facts.push(percent(point.top1_val) + " val"
    + (point.val_error ? " ± " + (100 * point.val_error).toFixed(2) : ""));
  if (point.seeds > 1) facts.push("mean of " + point.seeds + " seeds");
  for (const [key, value] of Object.entries(point.costs))
    if (key !== "gmacs") facts.push(number(value) + " " + COSTS[key].unit);
  if (point.time_saved) facts.push(point.time_saved);
  byId("model-facts").textContent = facts.join(" · ");
  const bars = byId("bars");
  bars.className = point.kind;
  bars.replaceChildren(...point.schedule.map((kept, i) => {
    const row = document.createElement("li"), label = document.createElement("span");
    const track = document.createElement("span"), bar = document.createElement("div");
    const count = document.createElement("span");
    label.className = "block"; label.textContent = i + 1;
    track.className = "track"; bar.className = "kept";
    bar.style.width = (100 * kept / Math.max(data.patches, 1)) + "%";
    count.textContent = kept;
    row.setAttribute("aria-label", "block " + (i + 1) + ": " + kept + " of " + data.patches + " tokens");
    track.append(bar);
    row.append(label, track, count);
    return row;
  }));
  // A line may end between words only, not within --format.
  byId("command").replaceChildren(...(point.command || "no checkpoint to take away").split(" ").flatMap((word, i) => {
    const part = document.createElement("span");
    part.textContent = word;
    return i ? [" ", part] : [part];
  }));
  byId("copy").disabled = !point.command;
  byId("model-reason").textContent = point.reason ? point.status + ": " + point.reason : "";
}

function choose(id) {
  chosen = id;
  show(id);
  const { front } = drawChart();
  const at = front.findIndex((p) => p.id === id);
  byId("cheaper").disabled = at === 0 || !front.length;
  byId("better").disabled = at === front.length - 1 || !front.length;
  for (const row of byId("rows").children) row.classList.toggle("chosen", row.dataset.id === id);
}

// One step along the front; from a point beside it, to the nearest on that side.
function step(direction) {
  const { front } = groups(), now = data.points.find((p) => p.id === chosen);
  if (!front.length || !now) return;
  const side = front.filter((p) => direction < 0 ? cost(p) < cost(now) : cost(p) > cost(now));
  if (side.length) choose(side[direction < 0 ? side.length - 1 : 0].id);
}

function fillTable() {
  const columns = ["model", "status", "width", "patch tokens per block", ...Object.values(COSTS).map((c) => c.column),
    "% of dense", "minival, %", "val, %", ...(TIMED ? ["time against dense"] : [])];
  byId("head").replaceChildren(...columns.map((name, i) => {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    if (i === 1 || i === 3 || name === "time against dense") cell.className = "text";
    return cell;
  }));
  byId("rows").replaceChildren(...data.points.map((point) => {
    const row = document.createElement("tr"), button = document.createElement("button");
    row.dataset.id = point.id;
    button.type = "button";
    button.textContent = point.id;
    button.addEventListener("click", () => choose(point.id));
    const status = point.knee ? "★ knee" : point.pareto ? "★ front" : point.finished ? "dominated" : point.status;
    const cells = [button, status, point.width, point.compact, ...Object.keys(COSTS).map((key) => number(point.costs[key])),
      point.percent_of_dense.toFixed(0), ...["minival", "val"].map((split) => withError(point, split)),
      ...(TIMED ? [point.time_saved || "–"] : [])];
    row.append(...cells.map((content, i) => {
      const cell = document.createElement("td");
      cell.append(content);
      if (i === 1 || i === 3 || (TIMED && i === cells.length - 1)) cell.className = "text";
      return cell;
    }));
    return row;
  }));
}

function drawProgress() {
  byId("progress-section").hidden = data.history.length === 0;
  if (!data.history.length || typeof Plotly === "undefined") return;
  Plotly.newPlot("progress", [{ type: "scatter", mode: "lines+markers", line: { shape: "hv", color: POOLED },
    x: data.history.map((h) => h.device_seconds), y: data.history.map((h) => h.hypervolume),
    hovertemplate: "%{y:.4f} after %{x:.0f} device-seconds<extra></extra>" }], {
    margin: { l: 56, r: 12, t: 34, b: 44 }, font: { size: 13, color: "#1b1f24" },
    xaxis: { title: { text: "device-seconds of training" }, gridcolor: "#eaeef2", zeroline: false, rangemode: "tozero" },
    yaxis: { title: { text: "hypervolume" }, gridcolor: "#eaeef2", zeroline: false },
  }, PLOT_OPTIONS);
}

function fillSelect(select, options) {
  select.replaceChildren(...Object.entries(options).map(([value, text]) => new Option(text, value)));
}

byId("title").textContent = data.title;
byId("summary").textContent = data.summary;
byId("footer").textContent = data.footer;
byId("note").textContent = data.note;
fillSelect(byId("cost"), Object.fromEntries(Object.entries(COSTS).map(([k, c]) => [k, c.title])));
fillSelect(byId("quality"), QUALITIES);
fillTable();
for (const id of ["cost", "quality", "dominated", "stopped"])
  byId(id).addEventListener("change", () => choose(chosen));
byId("cheaper").addEventListener("click", () => step(-1));
byId("better").addEventListener("click", () => step(1));
byId("copy").addEventListener("click", async () => {
  const code = byId("command");
  try {
    await navigator.clipboard.writeText(code.textContent);
    byId("copy").textContent = "copied";
    setTimeout(() => { byId("copy").textContent = "copy"; }, 1500);
  } catch {
    // Inside MLflow's sandboxed frame there is no clipboard: select it for Ctrl-C.
    getSelection().selectAllChildren(code);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest && event.target.closest("select, input")) return;
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else return;
  event.preventDefault();
});
const first = data.points.find((p) => p.knee) || data.points[0];
if (first) choose(first.id); else drawChart();
byId("panel").hidden = !first;
if (byId("chart").on) {
  byId("chart").on("plotly_hover", (event) => show(event.points[0].customdata));
  byId("chart").on("plotly_unhover", () => show(chosen));
  byId("chart").on("plotly_click", (event) => choose(event.points[0].customdata));
}
drawProgress();
