"use strict";
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const touch = matchMedia("(pointer: coarse)").matches;

function draw(id, traces, layout, label) {
  const axis = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), ticks: "outside", tickcolor: css("--line"), automargin: true, fixedrange: touch };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") };
  const title = (text) => ({ text, font: { size: 12, color: css("--quiet") }, standoff: 10 });
  const { xaxis = {}, yaxis = {}, ...rest } = layout;
  const axes = [xaxis, yaxis].map((own) => ({ ...axis, ...own, title: own.title ? title(own.title) : undefined }));
  $(id).setAttribute("role", "img");
  $(id).setAttribute("aria-label", label);
  return Plotly.react(id, traces, {
    font, margin: { l: 60, r: 20, t: 10, b: 45 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, align: "left" },
    xaxis: axes[0], yaxis: axes[1], ...rest,
  }, { responsive: true, displayModeBar: false });
}

const ofBenchmark = (variant, benchmark) => (benchmark ? variant.scores[benchmark].psnr : variant.mean);
const spreadOf = (variant, benchmark) => (benchmark ? variant.scores[benchmark].spread : variant.spread) ?? 0;
const psnrTitle = (benchmark) => {
  const luma = Object.entries(board().luma).every(([name, is]) => is || (benchmark && name !== benchmark));
  return `PSNR${luma ? "-Y" : ""}, ${benchmark || "mean of benchmarks"} (dB)`;
};
const benchmarks = (group) => [...(group.benchmarks.length > 1 ? [["", "mean of all"]] : []), ...group.benchmarks.map((name) => [name, name])];

// Names beside their points, each at the first place where it covers neither a point nor another name.
function labels(points, all, range, plot) {
  const [width, height] = [plot.clientWidth - 80, plot.clientHeight - 55];
  const across = (x) => ((x - range.x[0]) / (range.x[1] - range.x[0])) * width;
  const down = (y) => ((range.y[1] - y) / (range.y[1] - range.y[0])) * height;
  const taken = all.map(({ at, y }) => [across(at) - 7, down(y) - 7, across(at) + 7, down(y) + 7]);
  const places = [0, 15, -15, 30, -30, 45, -45, 60, -60].flatMap((shift) => [[16, shift], [-16, shift]]);
  return points.map((point) => {
    const long = 6.4 * point.text.length;
    const box = ([ax, ay]) => {
      const x = across(point.at) + (ax < 0 ? ax - long : ax);
      return [x, down(point.y) + ay - 7, x + long, down(point.y) + ay + 7];
    };
    const free = ([left, top, right, bottom]) => left > 0 && right < width + 15 && top > -5 && bottom < height && !taken.some((other) => left < other[2] && right > other[0] && top < other[3] && bottom > other[1]);
    const place = places.find((place) => free(box(place))) ?? places[0];
    taken.push(box(place));
    return {
      x: point.at, y: point.y, text: escaped(point.text), ax: place[0], ay: place[1], xanchor: place[0] < 0 ? "right" : "left", showarrow: true, arrowhead: 0,
      arrowwidth: 0.7, arrowcolor: css("--quiet"), standoff: 5, font: { size: 11, color: point.strong ? css("--ink") : css("--quiet") },
    };
  });
}

// 1, 2 and 5 times powers of ten, with the units' letters.
function roundTicks([low, high]) {
  const short = (x) => [[1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]].map(([of, unit]) => x >= of && `${+(x / (of || 1)).toPrecision(3)}${unit}`).find(Boolean);
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, k) => 10 ** (Math.floor(low) + k));
  const tickvals = powers.flatMap((power) => [1, 2, 5].map((x) => x * power)).filter((x) => Math.log10(x) >= low && Math.log10(x) <= high);
  return { tickvals, ticktext: tickvals.map(short) };
}

function drawCost() {
  const [benchmark, kind] = [$("cost-benchmark").value, $("cost-kind").value];
  const unit = kind === "flops" ? 1e9 : 1;
  const titles = { parameters: "parameters", flops: "GFLOPs", seconds: "seconds of training, each on its own machine" };
  const has = (group) => (benchmark ? group.benchmarks.includes(benchmark) : group.benchmarks.join() === board().benchmarks.join());
  const points = [];
  data.groups.forEach((group, index) => {
    if (group.scale !== board().scale || !has(group)) return;
    group.variants.forEach((variant, place) => {
      if (!variant[kind]) return;
      const own = index === current;
      points.push({
        x: variant[kind] / unit, y: ofBenchmark(variant, benchmark), own, text: variant.name, strong: own,
        labelled: own ? place === 0 || variant.name === group.baseline : place === 0,
        symbol: symbol(place) + (own ? "" : "-open"), colour: own ? colour(place) : css("--quiet"), size: own ? 11 : 9,
        hover: `${variant.name}${own ? "" : ` (${group.title}; other conditions)`}`,
      });
    });
  });
  for (const other of board().others) {
    const scores = board().benchmarks.map((name) => other.psnr[name]);
    const y = benchmark ? other.psnr[benchmark] : scores.every((x) => x != null) ? mean(scores) : null;
    if (!other[kind] || y == null) continue;
    points.push({ x: other[kind] / unit, y, text: other.name, labelled: true, symbol: "circle", colour: css("--quiet"), size: 7, hover: other.name });
  }
  const [xs, ys] = [points.map((point) => point.x), points.map((point) => point.y)];
  const log = Math.max(...xs) / Math.min(...xs) > 4;
  const at = (x) => (log ? Math.log10(x) : x);
  for (const point of points) point.at = at(point.x);
  const pad = (low, high, share) => [low - share * (high - low || 1), high + share * (high - low || 1)];
  const range = { x: pad(at(Math.min(...xs)), at(Math.max(...xs)), 0.12), y: pad(Math.min(...ys), Math.max(...ys), 0.1) };
  const trace = {
    type: "scatter", mode: "markers", x: xs, y: ys, text: points.map((point) => `${escaped(point.hover)}<br>${point.y.toFixed(3)} dB, ${point.x.toLocaleString("en")}`),
    hovertemplate: "%{text}<extra></extra>",
    marker: { opacity: 1, size: points.map((point) => point.size), symbol: points.map((point) => point.symbol), color: points.map((point) => point.colour), line: { width: points.map((point) => (point.own ? 0 : 1.2)), color: points.map((point) => point.colour) } },
  };
  draw("cost-plot", [trace], {
    xaxis: { title: titles[kind], type: log ? "log" : "linear", range: range.x, ...(log ? roundTicks(range.x) : {}) }, yaxis: { title: psnrTitle(benchmark), range: range.y },
    annotations: labels(points.filter((point) => point.labelled), points, range, $("cost-plot")),
  }, `PSNR against ${titles[kind]} of ${points.length} networks; the tables have the values`);
}

const shownSetting = (key) => key.replace(/^method\./, "");
const isNumber = (key) => board().variants.every(({ settings }) => settings[key] === undefined || typeof settings[key] === "number");
const distinct = (key) => [...new Set(board().variants.map(({ settings }) => settings[key]).filter((x) => x !== undefined))].sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))));

function drawSweep() {
  const [benchmark, key] = [$("sweep-benchmark").value, $("sweep-key").value];
  const values = distinct(key);
  const numeric = isNumber(key);
  const log = numeric && values[0] > 0 && values.at(-1) / values[0] >= 8;
  const at = (x) => (numeric ? x : values.indexOf(x));
  const varied = board().variants.map((variant, place) => ({ variant, place })).filter(({ variant }) => variant.settings[key] !== undefined);
  const families = new Map();
  for (const entry of varied) {
    const others = JSON.stringify(board().varied.filter((other) => other !== key).map((other) => entry.variant.settings[other] ?? null));
    families.set(others, [...(families.get(others) ?? []), entry]);
  }
  const lines = [...families.values()].filter((family) => family.length > 1).map((family) => {
    const sorted = family.sort((a, b) => at(a.variant.settings[key]) - at(b.variant.settings[key]));
    return { type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: css("--quiet"), width: 1 }, x: sorted.map(({ variant }) => at(variant.settings[key])), y: sorted.map(({ variant }) => ofBenchmark(variant, benchmark)) };
  });
  const points = {
    type: "scatter", mode: "markers", x: varied.map(({ variant }) => at(variant.settings[key])), y: varied.map(({ variant }) => ofBenchmark(variant, benchmark)),
    error_y: { type: "data", array: varied.map(({ variant }) => spreadOf(variant, benchmark)), color: css("--quiet"), thickness: 1, width: 3 },
    text: varied.map(({ variant }) => `${escaped(variant.name)}<br>${escaped(shownSetting(key))} ${escaped(variant.settings[key])}<br>${ofBenchmark(variant, benchmark).toFixed(3)} dB`), hovertemplate: "%{text}<extra></extra>",
    marker: { opacity: 1, size: 11, symbol: varied.map(({ place }) => symbol(place)), color: varied.map(({ place }) => colour(place)) },
  };
  const ticks = values.length <= 12 ? { tickvals: values.map(at), ticktext: values.map((x) => escaped(x)) } : {};
  const base = board().variants.find((variant) => variant.name === board().baseline);
  const level = base && base.settings[key] === undefined ? ofBenchmark(base, benchmark) : null;
  draw("sweep-plot", [...lines, points], {
    xaxis: { title: escaped(shownSetting(key)), type: log ? "log" : "linear", ...ticks, ...(numeric ? {} : { range: [-0.5, values.length - 0.5] }) }, yaxis: { title: psnrTitle(benchmark) },
    ...(level === null ? {} : { margin: { l: 60, r: 30 + 6 * board().baseline.length, t: 10, b: 45 } }),
    shapes: level === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: css("--quiet"), width: 1, dash: "dash" } }],
    annotations: level === null ? [] : [{ xref: "paper", x: 1, xanchor: "left", y: level, text: escaped(board().baseline), showarrow: false, font: { size: 11, color: css("--quiet") } }],
  }, `PSNR against ${key} of ${varied.length} variants`);
}

function drawParallel() {
  const benchmark = $("sweep-benchmark").value;
  const keys = board().varied.slice(0, 7);
  $("parallel").hidden = keys.length < 2;
  if (keys.length < 2) return;
  $("parallel-plot").style.minWidth = `${6.5 * (keys.length + 1)}rem`;
  const scores = board().variants.map((variant) => ofBenchmark(variant, benchmark));
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const share = (score) => (most > least ? (score - least) / (most - least) : 1);
  const tint = (score) => CIVIDIS[Math.round((isDark() ? 0.35 + 0.65 * share(score) : 0.85 * share(score)) * (CIVIDIS.length - 1))];
  const height = (key, value) => {
    if (value === undefined) return -0.14;
    const values = distinct(key);
    return values.length > 1 ? values.indexOf(value) / (values.length - 1) : 0.5;
  };
  const order = board().variants.map((_, place) => place).sort((a, b) => scores[a] - scores[b]); // the best on top
  const traces = order.map((place) => {
    const variant = board().variants[place];
    return {
      type: "scatter", mode: "lines+markers", x: [...keys.keys(), keys.length], y: [...keys.map((key) => height(key, variant.settings[key])), share(scores[place])],
      line: { color: tint(scores[place]), width: place === 0 ? 4 : 2 }, marker: { size: 6, symbol: symbol(place) },
      text: Array(keys.length + 1).fill(`${escaped(variant.name)}<br>${scores[place].toFixed(3)} dB<br>${keys.map((key) => `${escaped(shownSetting(key))} ${escaped(variant.settings[key] ?? "–")}`).join("<br>")}`), hovertemplate: "%{text}<extra></extra>",
    };
  });
  const text = (x, y, label, more = {}) => ({ x, y, text: label, showarrow: false, xanchor: "left", xshift: 7, font: { size: 11, color: css("--quiet") }, bgcolor: css("--paper"), borderpad: 1, ...more });
  const annotations = keys.flatMap((key, x) => {
    const values = distinct(key);
    const shown = values.length <= 8 ? values : [values[0], values.at(-1)];
    const absent = board().variants.some(({ settings }) => settings[key] === undefined);
    const short = (value) => escaped(String(value).length > 18 ? `${String(value).slice(0, 17)}…` : value);
    return [...shown.map((value) => text(x, height(key, value), short(value))), ...(absent ? [text(x, -0.14, "–")] : [])];
  });
  annotations.push(text(keys.length, 1, most.toFixed(2)), text(keys.length, 0, least.toFixed(2)));
  [...keys.map(shownSetting), "PSNR"].forEach((name, x) => {
    const parts = name.split(".");
    annotations.push(text(x, 1.06, `${escaped(parts.slice(0, -1).join("."))}<br>${escaped(parts.at(-1))}`, { xanchor: "center", yanchor: "bottom", xshift: 0, font: { size: 11, color: css("--ink") } }));
  });
  draw("parallel-plot", traces, {
    margin: { l: 40, r: 70, t: 10, b: 10 }, xaxis: { visible: false, range: [-0.3, keys.length + 0.3] }, yaxis: { visible: false, range: [-0.22, 1.25] },
    shapes: [...keys, ""].map((_, x) => ({ type: "line", x0: x, x1: x, y0: -0.18, y1: 1.03, line: { color: css("--line"), width: 1 }, layer: "below" })), annotations,
  }, `Settings of ${board().variants.length} variants and their PSNR`);
}

// The two runs of every seed that both variants have.
const sharedSeeds = (a, b) => a.runs.flatMap((run) => b.runs.filter(({ seed }) => seed === run.seed).map((other) => [run, other]));

// PSNR of a variant less that of another, by picture, over the seeds that both have: as comparison.differences.
function pairedDifferences(a, b, benchmark) {
  const pairs = sharedSeeds(a, b);
  return pairs.length ? board().images[benchmark].map((_, i) => mean(pairs.map(([x, y]) => x.psnr[benchmark][i] - y.psnr[benchmark][i]))) : [];
}

function drawPaired() {
  const [i, j, benchmark] = [Number($("paired-a").value), Number($("paired-b").value), $("paired-benchmark").value];
  const [a, b] = [board().variants[i], board().variants[j]];
  const values = pairedDifferences(a, b, benchmark);
  const found = board().intervals[benchmark][`${Math.min(i, j)}-${Math.max(i, j)}`];
  const bounds = found && (i < j ? found : [-found[0], -found[2], -found[1]]);
  const entries = values.map((value, k) => ({ value, image: board().images[benchmark][k] })).sort((x, y) => x.value - y.value);
  const better = values.filter((x) => x > 0).length;
  const bySeed = sharedSeeds(a, b).map(([x, y]) => mean(x.psnr[benchmark]) - mean(y.psnr[benchmark]));
  $("paired-text").textContent = i === j ? "Choose two different variants." : !values.length ? "They have no seed in common."
    : `${a.name} less ${b.name} on ${benchmark}: ${signed(mean(values))} dB${bounds ? ` [${signed(bounds[1])}, ${signed(bounds[2])}]` : ""}, better on ${better} of ${values.length} pictures and with ${bySeed.filter((x) => x > 0).length} of ${bySeed.length} seeds.`;
  const few = entries.length <= ($("paired-plot").clientWidth > 600 ? 40 : 15);
  const place = [...entries.keys()];
  const trace = {
    type: "bar", x: place, y: entries.map(({ value }) => value), marker: { color: entries.map(({ value }) => (value < 0 ? COLOURS[1] : COLOURS[5])) },
    width: entries.length < 8 ? 0.4 : 0.8, text: entries.map(({ image, value }) => `${escaped(image)}<br>${signed(value)} dB`), textposition: "none", hovertemplate: "%{text}<extra></extra>",
  };
  const ticks = few ? { tickvals: place, ticktext: entries.map(({ image }) => escaped(image)), ticks: "" } : { showticklabels: false, ticks: "", title: `${entries.length} pictures, by difference` };
  draw("paired-plot", [trace], {
    xaxis: { ...ticks, showgrid: false, range: [-0.7, Math.max(entries.length - 0.3, 1)] }, yaxis: { title: "difference of PSNR (dB)", zeroline: true, zerolinecolor: css("--quiet"), rangemode: "tozero" },
    shapes: !bounds ? [] : [
      { type: "rect", xref: "paper", x0: 0, x1: 1, y0: bounds[1], y1: bounds[2], fillcolor: css("--ink"), opacity: 0.12, line: { width: 0 }, layer: "below" },
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: bounds[0], y1: bounds[0], line: { color: css("--ink"), width: 1.5 } },
    ],
  }, $("paired-text").textContent);
}

function drawCurves() {
  const key = $("curves-key").value;
  const runs = data.curves.filter((curve) => curve.group === current && chosen[current].has(curve.variant) && curve.series[key]);
  const traces = runs.map(({ variant, seed, series: { [key]: [steps, values] } }) => ({
    type: "scatter", mode: steps.length > 40 ? "lines" : "lines+markers", x: steps.map((step) => Math.min(step + 1, board().steps)), y: values,
    line: { color: colour(variant), width: 1.5, dash: dash(variant) }, marker: { size: 5, symbol: symbol(variant) },
    text: Array(steps.length).fill(`${escaped(board().variants[variant].name)}, seed ${seed}`), hovertemplate: "%{text}<br>step %{x}: %{y:.5g}<extra></extra>",
  }));
  const positive = traces.length > 0 && traces.every(({ y }) => y.every((x) => x > 0));
  const log = key.startsWith("train/") && positive;
  // The beginning of a training is far below its end, where curves differ: it may leave the plot below.
  const ends = traces.flatMap(({ y }) => y.slice(Math.floor(y.length / 4)));
  const [low, high] = [Math.min(...ends), Math.max(...traces.flatMap(({ y }) => y))];
  const range = key.startsWith("val/") && high > low ? { range: [low - 0.08 * (high - low), high + 0.05 * (high - low)] } : {};
  draw("curves-plot", traces, { xaxis: { title: "step" }, yaxis: { title: escaped(key), type: log ? "log" : "linear", ...range } }, `${key} by step of ${traces.length} runs`);
}

function prepareCharts() {
  const group = board();
  const variants = group.variants.map((variant, place) => [place, variant.name]);
  for (const id of ["cost-benchmark", "sweep-benchmark"]) fill($(id), benchmarks(group));
  fill($("sweep-key"), [...group.varied].sort((a, b) => isNumber(b) - isNumber(a)).map((key) => [key, shownSetting(key)]));
  fill($("paired-a"), variants, 0);
  const baseline = group.variants.findIndex(({ name }) => name === group.baseline);
  fill($("paired-b"), variants, baseline > 0 ? baseline : Math.min(1, variants.length - 1));
  fill($("paired-benchmark"), group.benchmarks.map((name) => [name, name]));
  const keys = [...new Set(data.curves.filter((curve) => curve.group === current).flatMap((curve) => Object.keys(curve.series)))];
  const rank = (key) => (key === "val/psnr" ? 0 : key.startsWith("val/") ? 1 : key.startsWith("train/") ? 2 : 3);
  fill($("curves-key"), keys.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b)).map((key) => [key, key]));
  $("sweep-body").hidden = !group.varied.length;
  $("sweep-none").hidden = group.varied.length > 0;
}

const CHARTS = [
  [drawCost, ["cost-benchmark", "cost-kind"], () => true],
  [drawSweep, ["sweep-benchmark", "sweep-key"], () => board().varied.length],
  [drawParallel, ["sweep-benchmark"], () => board().varied.length],
  [drawPaired, ["paired-a", "paired-b", "paired-benchmark"], () => true],
  [drawCurves, ["curves-key"], () => $("curves-key").options.length],
];

async function startCharts() {
  const packed = Uint8Array.from(atob($("plotly").textContent), (letter) => letter.charCodeAt(0));
  const source = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(element("script", { textContent: source }));
  const all = () => CHARTS.forEach(([drawing, , possible]) => possible() && drawing());
  prepareCharts();
  all();
  listeners.group.push(() => { prepareCharts(); all(); });
  listeners.theme.push(all);
  listeners.shown.push(() => $("curves-key").options.length && drawCurves());
  for (const [drawing, ids] of CHARTS) for (const id of ids) $(id).addEventListener("change", drawing);
}

// What a test waits for.
const chartsReady = data.groups.length ? startCharts().catch((error) => {
  for (const plot of document.querySelectorAll(".plot")) plot.textContent = `This plot cannot be drawn here (${error.message}); a browser of 2023 or newer can.`;
}) : Promise.resolve();
