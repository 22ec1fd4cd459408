"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);

// Okabe and Ito's colours for all kinds of colour vision, without yellow; the marker tells the same.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A"];
const GLYPHS = ["●", "■", "◆", "▲", "▼", "★", "✚", "✖"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross", "x"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const colour = (place) => COLOURS[place % COLOURS.length];
const symbol = (place) => SYMBOLS[place % SYMBOLS.length];
const dash = (place) => DASHES[Math.floor(place / COLOURS.length) % DASHES.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Plotly shows a part of HTML in its texts.
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const signed = (x, digits = 3) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

let current = 0; // the group that the plots show
const board = () => data.groups[current];
// The leaders and the baseline of each group, until somebody chooses others.
const chosen = data.groups.map((group) => {
  const few = new Set(group.variants.slice(0, 7).map((_, place) => place));
  const baseline = group.variants.findIndex((variant) => variant.name === group.baseline);
  return baseline < 0 ? few : few.add(baseline);
});

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function fill(select, options, value) {
  if (!select) return;
  const before = value ?? select.value;
  select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, textContent: text })));
  if (options.some(([key]) => String(key) === String(before))) select.value = before;
}

const listeners = { group: [], shown: [], theme: [] };
const tell = (what) => listeners[what].forEach((listener) => listener());

function paintGlyphs() {
  for (const glyph of document.querySelectorAll(".glyph[data-variant]")) {
    const place = Number(glyph.dataset.variant);
    glyph.textContent = GLYPHS[place % GLYPHS.length];
    glyph.style.color = colour(place);
    glyph.setAttribute("aria-hidden", "true");
  }
}

function paintLegends() {
  for (const legend of document.querySelectorAll("[data-legend]")) {
    const show = (places) => {
      chosen[current] = new Set(places);
      paintLegends();
      tell("shown");
    };
    const all = board().variants.map((_, place) => place);
    const labels = all.map((place) => {
      const box = element("input", { type: "checkbox", checked: chosen[current].has(place) });
      box.addEventListener("change", () => {
        show(all.filter((other) => (other === place ? box.checked : chosen[current].has(other))));
        document.querySelectorAll("[data-legend]").forEach((other) => {
          if (other === legend) other.querySelectorAll("input")[place].focus();
        });
      });
      const glyph = element("span", { className: "glyph" });
      glyph.dataset.variant = place;
      return element("label", {}, box, glyph, board().variants[place].name);
    });
    const buttons = [["all", all], ["none", []]].map(([text, places]) => {
      const button = element("button", { type: "button", textContent: text });
      button.addEventListener("click", () => show(places));
      return button;
    });
    legend.replaceChildren(...labels, ...buttons);
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", "Variants shown");
  }
  paintGlyphs();
}

function sortBy(button) {
  const head = button.closest("th");
  const body = button.closest("table").tBodies[0];
  const place = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : head.className === "text";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.children[place].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what has no value comes last
    const order = button.dataset.sort === "text" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return up ? order : -order;
  });
  body.append(...rows);
}

function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("mtkd_lightning_theme", theme); } catch { /* a file opened from a mail has no storage */ }
  tell("theme");
}

try {
  const theme = localStorage.getItem("mtkd_lightning_theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* as above */ }
$("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => tell("theme"));
document.addEventListener("click", (event) => {
  const button = event.target.closest("thead button[data-sort]");
  if (button) sortBy(button);
});
paintGlyphs();
if (data.groups.length > 1) {
  $("chooser").hidden = false;
  fill($("group"), data.groups.map((group, index) => [index, `${group.title} (${group.fingerprint.slice(0, 8)})`]), 0);
  $("group").addEventListener("change", () => {
    current = Number($("group").value);
    paintLegends();
    tell("group");
  });
}
if (data.groups.length) paintLegends();
