import assert from "node:assert/strict";
import { test } from "node:test";

import { indexAt, makeChart, niceTop, paths, readout, spread } from "../../web/lib/chart.js";
import { fakeDocument, find } from "./fakes.js";

const TRACE = {
  threshold: [[1, 1], [1.5, 2.5], [1.2, 1.4]],
  clipped: [[0, 0], [0.01, 0.03], [0.004, 0.006]],
  frames: 3,
  strip: { filename: "strip.png", subfolder: "", type: "temp" },
};
const urlOf = (file) => `/view?filename=${file.filename}`;
const filled = (trace = TRACE) => {
  const chart = makeChart(fakeDocument(), urlOf);
  chart.show({ imagen_trace: [trace] });
  return chart;
};
const text = (chart, name) => find(find(chart.element, "imagen-head")[0], name)[0].textContent;

test("a batch is drawn as its mean, and a band from its least to its greatest", () => {
  assert.deepEqual(spread([[1, 3]]), [{ mean: 2, least: 1, greatest: 3 }]);
  const { line, band } = paths(spread([[1, 1], [1, 3]]), 1, 3);
  assert.equal(line, "M0 100L100 50");
  assert.equal(band, "M0 100L100 0L100 100L0 100Z");
});

test("one step is a line across", () => {
  assert.equal(paths(spread([[2]]), 1, 3).line, "M0 50L50 50");
});

test("axes end at 1, 2 or 5 times a power of ten", () => {
  assert.deepEqual(
    [1.3, 2, 2.1, 7, 0.004, 0.3].map((value) => niceTop(value, 0.001)),
    [2, 2, 5, 10, 0.005, 0.5],
  );
  assert.equal(niceTop(0, 2), 2);
});

test("the last step is written out until the pointer asks for another", () => {
  const chart = filled();
  assert.equal(text(chart, "imagen-s"), "s 1.30");
  assert.equal(text(chart, "imagen-clipped"), "clipped 0.50 %");
  const plot = find(chart.element, "imagen-plot")[0];
  plot.listeners.pointermove({ clientX: 110, currentTarget: plot });
  assert.equal(text(chart, "imagen-step"), "step 2/3");
  assert.equal(text(chart, "imagen-s"), "s 2.00");
  assert.equal(find(plot, "imagen-cursor")[0].attributes.d, "M50 0V100");
  plot.listeners.pointerleave();
  assert.equal(text(chart, "imagen-step"), "step 3/3");
});

test("the filmstrip is the file that the node named", () => {
  const strip = find(filled().element, "imagen-strip")[0];
  assert.equal(strip.style.backgroundImage, 'url("/view?filename=strip.png")');
  assert.equal(strip.style["--frames"], 3);
});

test("without a threshold there is a filmstrip and no chart", () => {
  const chart = filled({ ...TRACE, threshold: [], clipped: [] });
  assert.equal(text(chart, "imagen-s"), "no threshold");
  assert.equal(find(chart.element, "imagen-line").length, 0);
  assert.deepEqual(readout([], [], 0).step, "");
});

test("the panel is one line until there is something to show, and ignores other outputs", () => {
  const chart = makeChart(fakeDocument(), urlOf);
  const low = chart.height();
  assert.equal(chart.show({ images: [] }), false);
  assert.equal(chart.height(), low);
  assert.equal(chart.show({ imagen_trace: [TRACE] }), true);
  assert.equal(chart.height(), chart.maxHeight());
  assert.ok(chart.height() > low + 100);
});

test("a place along the row means the thing under it", () => {
  assert.deepEqual([-1, 0, 0.34, 0.99, 1].map((f) => indexAt(f, 3)), [0, 0, 1, 2, 2]);
});

test("a step without numbers is left out and said", () => {
  const rows = spread([[1, 3], [null, null], [null, 2]]);
  assert.deepEqual(rows[1], { mean: null, least: null, greatest: null });
  assert.deepEqual(rows[2], { mean: 2, least: 2, greatest: 2 });
  assert.equal(paths(rows, 1, 3).line, "M0 50L100 50");
  assert.deepEqual(paths([rows[1]], 1, 3), { line: "", band: "" });
  assert.equal(readout(rows, rows, 1).s, "s not a number");
});
