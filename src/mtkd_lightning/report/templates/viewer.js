"use strict";
// The pixels of a picture's tiles, decoded once: RGBA, and Y in float64 as the protocol computes it.
const decoded = new Map();
const RAMP = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
let region = null; // left, top, width, height in pixels of the window
let scene = null;

async function decode(tile) {
  const image = new Image();
  image.src = `data:image/webp;base64,${tile.data}`;
  await image.decode();
  const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { width, height, data: pixels } = context.getImageData(0, 0, canvas.width, canvas.height);
  const y = new Float64Array(width * height);
  for (let i = 0; i < y.length; i++) y[i] = 16 + (65.481 * pixels[4 * i] + 128.553 * pixels[4 * i + 1] + 24.966 * pixels[4 * i + 2]) / 255;
  return { ...tile, width, height, pixels, y };
}

function tilesOf(index) {
  if (!decoded.has(index)) decoded.set(index, Promise.all(data.pictures[index].tiles.map(decode)));
  return decoded.get(index);
}

function variantOf(tile) {
  if (!tile.label) return null;
  const [group, name] = [Number(tile.label.split("/", 1)[0]), tile.label.slice(tile.label.indexOf("/") + 1)];
  return { group, name, place: data.groups[group].variants.findIndex((variant) => variant.name === name) };
}

const nameOf = (tile) => variantOf(tile)?.name ?? (tile.network === "LR" ? "LR, nearest" : tile.network);
const isLuma = () => data.groups.find(({ luma }) => scene.benchmark in luma)?.luma[scene.benchmark] ?? true;

function eachPixel([left, top, width, height], stride, visit) {
  for (let row = top; row < top + height; row++) for (let i = row * stride + left; i < row * stride + left + width; i++) visit(i);
}

function regionPsnr(tile, truth, area) {
  let sum = 0;
  const channels = isLuma() ? 1 : 3;
  eachPixel(area, truth.width, (i) => {
    if (channels === 1) sum += (tile.y[i] - truth.y[i]) ** 2;
    else for (let c = 0; c < 3; c++) sum += (tile.pixels[4 * i + c] - truth.pixels[4 * i + c]) ** 2;
  });
  return 10 * Math.log10((255 ** 2 * area[2] * area[3] * channels) / sum);
}

function paint(canvas, width, height, pixel) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [red, green, blue] = pixel(x, y);
      image.data.set([red, green, blue, 255], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function paintTile(canvas, tile, [left, top, width, height]) {
  const by = tile.network === "LR" ? scene.scale : 1; // the same region, each LR pixel enlarged to a square
  return paint(canvas, width, height, (x, y) => {
    const i = 4 * (Math.floor((top + y) / by) * tile.width + Math.floor((left + x) / by));
    return tile.pixels.subarray(i, i + 3);
  });
}

function ramp(share) {
  const at = Math.min(share, 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((x, c) => x + (at - low) * (RAMP[low + 1][c] - x));
}

function shownTiles() {
  return scene.decoded.filter((tile) => {
    const variant = variantOf(tile);
    return !variant || (variant.group === current && chosen[current].has(variant.place));
  });
}

function updateTiles() {
  const truth = scene.decoded.find(({ network }) => network === "HR");
  const tiles = shownTiles();
  const scored = tiles.filter(({ network }) => network !== "LR" && network !== "HR");
  const psnr = new Map(scored.map((tile) => [tile, regionPsnr(tile, truth, region)]));
  const students = scored.filter((tile) => tile.label);
  const best = Math.max(...students.map((tile) => psnr.get(tile)));
  let most = 0;
  const errors = $("errors").checked;
  if (errors) for (const tile of scored) eachPixel(region, truth.width, (i) => { most = Math.max(most, Math.abs(tile.y[i] - truth.y[i])); });
  most = Math.ceil(most) || 1;
  $("tiles").replaceChildren(...tiles.map((tile) => {
    const figure = element("figure", { className: students.length > 1 && psnr.get(tile) === best && tile.label ? "best" : "" });
    figure.append(paintTile(element("canvas"), tile, region));
    if (errors && psnr.has(tile)) {
      const [left, top, width, height] = region;
      figure.append(paint(element("canvas"), width, height, (x, y) => {
        const i = (top + y) * truth.width + left + x;
        return ramp(Math.abs(tile.y[i] - truth.y[i]) / most);
      }));
    }
    const caption = element("figcaption");
    const variant = variantOf(tile);
    if (variant) {
      const glyph = element("span", { className: "glyph" });
      glyph.dataset.variant = variant.place;
      caption.append(glyph);
    }
    const value = psnr.get(tile);
    const text = tile.network === "HR" ? "ground truth" : value === undefined ? `x${scene.scale} smaller` : value === Infinity ? "identical" : `${value.toFixed(2)} dB`;
    caption.append(nameOf(tile), element("b", { textContent: text }));
    for (const canvas of figure.querySelectorAll("canvas")) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${nameOf(tile)}, ${text}`);
    }
    figure.dataset.network = tile.label ?? tile.network;
    if (value !== undefined) figure.dataset.psnr = value;
    figure.append(caption);
    return figure;
  }));
  paintGlyphs();
  $("scale-bar").hidden = !errors;
  $("scale-most").textContent = most;
}

let pending = false;
function setRegion(area) {
  const [, , height, width] = scene.window;
  const size = [area[2], area[3]].map((x, k) => Math.min(Math.max(Math.round(x), 8), k ? height : width));
  region = [Math.min(Math.max(Math.round(area[0]), 0), width - size[0]), Math.min(Math.max(Math.round(area[1]), 0), height - size[1]), ...size];
  const share = (x, of) => `${(100 * x) / of}%`;
  Object.assign($("box").style, { left: share(region[0], width), top: share(region[1], height), width: share(region[2], width), height: share(region[3], height) });
  $("region").textContent = `Region of ${region[2]} × ${region[3]} pixels at ${region[0]}, ${region[1]}`;
  if (!pending) requestAnimationFrame(() => { pending = false; updateTiles(); });
  pending = true;
}

function paintStage() {
  const tile = scene.decoded.find(({ network }) => network === $("stage-network").value) ?? scene.decoded[0];
  paintTile($("stage-canvas"), tile, [0, 0, scene.window[3], scene.window[2]]);
}

async function showPicture() {
  const index = Number($("picture").value);
  const tiles = await tilesOf(index);
  if (index !== Number($("picture").value)) return; // another was chosen meanwhile
  scene = { ...data.pictures[index], decoded: tiles };
  const networks = tiles.map((tile) => [tile.network, nameOf(tile)]);
  fill($("stage-network"), networks.filter(([key]) => key !== "LR"), $("stage-network").value || "HR");
  const students = tiles.filter((tile) => tile.label);
  const full = networks.filter(([key]) => key !== "LR");
  fill($("wavelet-a"), full, $("wavelet-a").value || "HR");
  fill($("wavelet-b"), full, $("wavelet-b").value || students[0]?.network);
  paintStage();
  const [, , height, width] = scene.window;
  const side = Math.min(64, width, height);
  setRegion([(width - side) / 2, (height - side) / 2, side, side]);
  drawBands();
}

function pointed(event) {
  const { left, top, width, height } = $("stage-canvas").getBoundingClientRect();
  return [((event.clientX - left) / width) * scene.window[3], ((event.clientY - top) / height) * scene.window[2]];
}

function startViewer() {
  fill($("picture"), data.pictures.map(({ benchmark, image }, index) => [index, `${benchmark}, ${image}`]), 0);
  let anchor = null;
  $("stage").addEventListener("pointerdown", (event) => {
    if (!scene || event.button) return;
    anchor = pointed(event);
    $("stage").setPointerCapture(event.pointerId);
  });
  $("stage").addEventListener("pointermove", (event) => {
    if (!anchor) return;
    const [x, y] = pointed(event);
    setRegion([Math.min(x, anchor[0]), Math.min(y, anchor[1]), Math.abs(x - anchor[0]), Math.abs(y - anchor[1])]);
  });
  for (const end of ["pointerup", "pointercancel"]) $("stage").addEventListener(end, () => { anchor = null; });
  $("stage").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (!scene || (!move && event.key !== "Home")) return;
    event.preventDefault();
    const [left, top, width, height] = region;
    if (!move) setRegion([0, 0, scene.window[3], scene.window[2]]);
    else if (event.shiftKey) setRegion([left, top, width + move[0], height + move[1]]);
    else setRegion([left + move[0], top + move[1], width, height]);
  });
  $("picture").addEventListener("change", showPicture);
  $("stage-network").addEventListener("change", paintStage);
  $("errors").addEventListener("change", updateTiles);
  for (const id of ["wavelet-a", "wavelet-b"]) $(id).addEventListener("change", drawBands);
  for (const what of ["group", "shown"]) listeners[what].push(() => scene && updateTiles());
  return showPicture();
}

// One level of Haar on Y: LL, LH, HL, HH of each 2x2 block, normalised as in losses/wavelet.py.
function haar({ y, width, height }) {
  const size = (width / 2) * (height / 2);
  const bands = { LL: new Float64Array(size), LH: new Float64Array(size), HL: new Float64Array(size), HH: new Float64Array(size) };
  for (let row = 0, k = 0; row < height; row += 2) {
    for (let column = 0; column < width; column += 2, k++) {
      const i = row * width + column;
      const [a, b, c, d] = [y[i], y[i + 1], y[i + width], y[i + width + 1]];
      bands.LL[k] = (a + b + c + d) / 2;
      bands.LH[k] = (a + b - c - d) / 2;
      bands.HL[k] = (a - b + c - d) / 2;
      bands.HH[k] = (a - b - c + d) / 2;
    }
  }
  return bands;
}

function drawBands() {
  const found = ["a", "b"].map((side) => {
    const tile = scene.decoded.find(({ network }) => network === $(`wavelet-${side}`).value);
    const bands = haar(tile);
    const [width, height] = [tile.width / 2, tile.height / 2];
    paint($(`bands-${side}`), tile.width, tile.height, (x, y) => {
      const name = (y < height ? ["LL", "LH"] : ["HL", "HH"])[x < width ? 0 : 1];
      const value = bands[name][(y % height) * width + (x % width)];
      return Array(3).fill(name === "LL" ? value / 2 : 128 + 4 * value);
    });
    $(`bands-${side}-name`).textContent = nameOf(tile);
    $(`bands-${side}`).setAttribute("aria-label", `Wavelet bands of ${nameOf(tile)}`);
    return bands;
  });
  const distance = (name) => mean(Array.from(found[0][name], (x, k) => Math.abs(x - found[1][name][k]))).toFixed(3);
  $("bands-text").textContent = `Mean distance of the bands, in levels: ${["LL", "LH", "HL", "HH"].map((name) => `${name} ${distance(name)}`).join(", ")}.`;
}

const viewerReady = data.pictures.length && data.groups.length ? startViewer() : Promise.resolve();
