// The threshold s and the clipped fraction of each step, and x0 through the steps.
import { element, svg } from "./elements.js";
import { textsOf } from "./texts.js";

const EMPTY_HEIGHT = 44; // with ComfyUI's margin of 10 around the element
const WARNED_HEIGHT = 60;
const HEIGHT = 184;
const WARNING = 36; // two lines above a chart

// values by step and picture -> mean, least and greatest by step; null where none is a number (NaN is sent as null)
export function spread(rows) {
  return rows.map((row) => {
    const numbers = row.filter((value) => value !== null);
    if (!numbers.length) return { mean: null, least: null, greatest: null };
    return {
      mean: numbers.reduce((sum, value) => sum + value, 0) / numbers.length,
      least: Math.min(...numbers),
      greatest: Math.max(...numbers),
    };
  });
}

// The upper end of an axis: 1, 2 or 5 times a power of ten that holds the value.
export function niceTop(value, floor) {
  const wanted = Math.max(value, floor);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= wanted * (1 - 1e-9)) ?? 10);
}

// Paths in a box of 100 x 100: the line of the means and the band from least to greatest.
export function paths(points, low, high) {
  const x = (i) => (points.length === 1 ? 50 : (100 * i) / (points.length - 1));
  const y = (value) => 100 - (100 * (value - low)) / (high - low);
  const at = (i, value) => `${round(x(i))} ${round(y(value))}`;
  const drawn = points.map((point, i) => ({ ...point, i })).filter((point) => point.mean !== null);
  if (!drawn.length) return { line: "", band: "" };
  const line = drawn.map((point) => at(point.i, point.mean));
  const upper = drawn.map((point) => at(point.i, point.greatest));
  const lower = drawn.map((point) => at(point.i, point.least)).reverse();
  if (points.length === 1) line.unshift(`0 ${round(y(points[0].mean))}`);
  return { line: `M${line.join("L")}`, band: `M${[...upper, ...lower].join("L")}Z` };
}

const round = (value) => Math.round(value * 100) / 100;

// What is written above the chart for one step, counted from 0.
export function readout(threshold, clipped, i, say = textsOf("en")) {
  if (!threshold.length) return { step: "", s: say.noThreshold, clipped: "" };
  const step = say.step(i + 1, threshold.length);
  if (threshold[i].mean === null) return { step, s: say.notANumber, clipped: "" };
  const percent = 100 * clipped[i].mean;
  return {
    step,
    s: `s ${threshold[i].mean.toFixed(2)}`,
    clipped: say.clipped(percent.toFixed(percent < 10 ? 2 : 1)),
  };
}

// The index that a place along a row of `count` things means. fraction 0..1
export function indexAt(fraction, count) {
  return Math.max(0, Math.min(count - 1, Math.floor(fraction * count)));
}

export function makeChart(document, urlOf, say = textsOf("en")) {
  const root = element(document, "div", "imagen-panel imagen-chart");
  const hint = element(document, "div", "imagen-hint", root);
  const head = element(document, "div", "imagen-head", root);
  const labels = {
    s: element(document, "span", "imagen-s", head),
    clipped: element(document, "span", "imagen-clipped", head),
    step: element(document, "span", "imagen-step", head),
  };
  const plot = element(document, "div", "imagen-plot", root);
  const strip = element(document, "div", "imagen-strip", root);
  const done = element(document, "div", "imagen-done", root);
  let shown = null;
  let warning = "";
  let running = false;

  function point(i) {
    const text = readout(shown.threshold, shown.clipped, i, say);
    for (const key of Object.keys(labels)) labels[key].textContent = text[key];
    const cursor = plot.querySelector(".imagen-cursor");
    const x = shown.threshold.length > 1 ? (100 * i) / (shown.threshold.length - 1) : 50;
    cursor?.setAttribute("d", `M${x} 0V100`);
  }

  function follow(event) {
    if (!shown?.threshold.length) return;
    const box = event.currentTarget.getBoundingClientRect();
    point(indexAt((event.clientX - box.left) / box.width, shown.threshold.length));
  }

  const leave = () => shown?.threshold.length && point(shown.threshold.length - 1);
  for (const part of [plot, strip]) {
    part.addEventListener("pointermove", follow);
    part.addEventListener("pointerleave", leave);
  }

  // The line that stands alone before a run, and above the chart where there is something to warn of.
  function speak() {
    hint.textContent = warning || (shown ? "" : running ? say.running : say.chartHint);
    hint.className = warning ? "imagen-hint imagen-warning" : "imagen-hint";
  }

  const height = () =>
    shown ? HEIGHT + (warning ? WARNING : 0) : warning ? WARNED_HEIGHT : EMPTY_HEIGHT;
  speak();
  return {
    element: root,
    height,
    maxHeight: height,
    filled: () => shown !== null,
    // [width, height] of the image that is shown; null where none is
    size: () => shown?.size ?? null,
    // text   to warn of before the run, or ""; whether that is new
    warn(text) {
      if (text === warning) return false;
      warning = text;
      speak();
      return true;
    },
    // Forget what was shown: the node runs again, or never came to its turn.
    // atWork   whether the node runs now
    clear(atWork = false) {
      shown = null;
      running = atWork;
      root.classList.remove("imagen-filled");
      speak();
    },
    // output   of the node; whether there was something to show
    show(output) {
      const trace = output?.imagen_trace?.at(-1);
      if (!trace) return false;
      const { width, height: rows, seconds } = trace;
      running = false;
      shown = { threshold: spread(trace.threshold), clipped: spread(trace.clipped), size: [width, rows] };
      root.classList.add("imagen-filled");
      speak();
      plot.replaceChildren(...drawing(document, shown));
      strip.style.backgroundImage = trace.strip ? `url("${urlOf(trace.strip)}")` : "";
      strip.style.setProperty("--frames", trace.frames || 1);
      done.textContent = width ? say.size(width, rows, seconds) : "";
      point(shown.threshold.length - 1);
      return true;
    },
  };
}

function drawing(document, { threshold, clipped }) {
  if (!threshold.length) return [];
  const top = niceTop(Math.max(...threshold.map((point) => point.greatest)), 2);
  const part = niceTop(Math.max(...clipped.map((point) => point.greatest)), 0.01);
  const s = paths(threshold, 1, top);
  const c = paths(clipped, 0, part);
  const box = svg(document, "svg", { viewBox: "-1 -3 102 106", preserveAspectRatio: "none" });
  for (const y of [0, 50, 100]) svg(document, "path", { class: "imagen-grid", d: `M0 ${y}H100` }, box);
  svg(document, "path", { class: "imagen-band imagen-clipped", d: c.band }, box);
  svg(document, "path", { class: "imagen-band imagen-s", d: s.band }, box);
  svg(document, "path", { class: "imagen-line imagen-clipped", d: c.line }, box);
  svg(document, "path", { class: "imagen-line imagen-s", d: s.line }, box);
  svg(document, "path", { class: "imagen-cursor", d: "M0 0V100" }, box);
  const ends = [
    ["imagen-end imagen-s imagen-top", String(top)],
    ["imagen-end imagen-s imagen-low", "1"],
    ["imagen-end imagen-clipped imagen-top", `${round(100 * part)} %`],
    ["imagen-end imagen-clipped imagen-low", "0"],
  ].map(([name, text]) => {
    const label = element(document, "span", name);
    label.textContent = text;
    return label;
  });
  return [box, ...ends];
}
