import assert from "node:assert/strict";
import { test } from "node:test";

import { makeChart } from "../../web/lib/chart.js";
import { makeExtension } from "../../web/lib/extension.js";
import { outputsOf, remount } from "../../web/lib/nodes.js";
import { sizeOf, warningOf } from "../../web/lib/sizes.js";
import { makeOutcome } from "../../web/lib/outcome.js";
import { makeReading } from "../../web/lib/reading.js";
import { CSS } from "../../web/lib/style.js";
import { textsOf } from "../../web/lib/texts.js";
import { makeView } from "../../web/lib/view.js";
import { fakeDocument, find } from "./fakes.js";

const TRACE = { threshold: [[1], [2]], clipped: [[0], [0.1]], frames: 0, width: 64, height: 48, seconds: 1.5 };
const file = (name) => ({ filename: `${name}.png`, subfolder: "", type: "temp" });
const STAGES = [
  { stage: "64", width: 64, height: 64, images: [file("a")] },
  { stage: "256", width: 256, height: 256, images: [file("c")] },
];
const say = textsOf("en");

function node(comfyClass, values = {}, sources = {}, more = {}) {
  const names = Object.keys(sources);
  return {
    comfyClass,
    widgets: Object.entries(values).map(([name, value]) => ({ name, value })),
    inputs: names.map((name) => ({ name })),
    getInputNode: (i) => sources[names[i]],
    ...more,
  };
}

const base = (width, height) => node("ImagenBaseSample", { width, height });
const OUTPUTS = ["text_encoder", "base", "sr256", "sr1024"].map((name) => ({ name }));
const loader = (cascade) => node("ImagenLoadCascade", { cascade }, {}, { type: "ImagenLoadCascade", outputs: OUTPUTS });
const larger = (kind, image, more, stage = loader("emoji")) =>
  node(kind, { tile: 0 }, { image, stage }, { getInputLink: () => ({ origin_slot: 2 }), ...more });

test("a picture's size is known through the stages before a run, past a bypassed one too", () => {
  const sr256 = larger("ImagenSR256", base(64, 48));
  assert.deepEqual(sizeOf(larger("ImagenSR1024", sr256)), [1024, 768]);
  assert.deepEqual(sizeOf(larger("ImagenSR1024", larger("ImagenSR256", base(64, 48), { mode: 4 }))), [256, 192]);
  const loaded = node("LoadImage", {}, {}, { imgs: [{ naturalWidth: 900, naturalHeight: 600 }] });
  assert.deepEqual(sizeOf(larger("ImagenSR256", loaded)), [3600, 2400]);
  assert.equal(sizeOf(larger("ImagenSR256", node("Unknown"))), null);
  assert.equal(sizeOf(larger("ImagenSR256", undefined)), null);
});

test("how many times a stage enlarges is known of the bundled cascade alone: of others the most is warned of", () => {
  const through = (source) => node("ImagenLoadLoRA", {}, { stage: source }, { type: "ImagenLoadLoRA", getInputLink: () => ({ origin_slot: 2 }) });
  const from = (stage) => larger("ImagenSR256", base(1024, 1024), {}, stage);
  assert.deepEqual(sizeOf(from(through(loader("emoji")))), [4096, 4096]);
  for (const other of [loader("mine"), through(loader("mine")), { type: "ImagenLoadStage" }, null]) {
    assert.equal(sizeOf(from(other)), null);
    assert.match(warningOf(from(other), say), /up to 4096 x 4096/);
  }
});

test("sizes far from 64 and huge results are warned of, usual ones are not", () => {
  assert.match(warningOf(base(512, 512), say), /Far from 64.*512 x 512/);
  assert.match(warningOf(base(16, 16), say), /16 x 16/);
  for (const usual of [base(64, 64), base(96, 64), larger("ImagenSR256", base(64, 64))])
    assert.equal(warningOf(usual, say), "");
  const huge = larger("ImagenSR1024", larger("ImagenSR256", base(256, 256)));
  assert.match(warningOf(huge, say), /4096 x 4096/);
  huge.widgets[0].value = 512;
  assert.equal(warningOf(huge, say), "", "tiles were chosen");
});

test("a stage in the place of another kind is warned of, behind a LoRA too", () => {
  const wired = (kind, stage, slot) =>
    node(kind, {}, { stage }, { type: kind, getInputLink: () => ({ origin_slot: slot }) });
  for (const [kind, right, wrong] of [["ImagenBaseSample", [1], [2, 3]], ["ImagenSR256", [2, 3], [1]]]) {
    const warned = (slot) => [
      warningOf(wired(kind, loader("emoji"), slot), say),
      warningOf(wired(kind, wired("ImagenLoadLoRA", loader("emoji"), slot), 0), say),
    ];
    for (const slot of right) assert.deepEqual(warned(slot), ["", ""]);
    for (const slot of wrong)
      for (const text of warned(slot)) assert.match(text, new RegExp(`${OUTPUTS[slot].name} is of another kind`));
  }
  assert.equal(warningOf(wired("ImagenBaseSample", { type: "ImagenLoadStage" }, 0), say), "");
});

test("a picture of which nothing would be kept is warned of", () => {
  const picture = { comfyClass: "LoadImage" };
  for (const [kind, name] of [["ImagenBaseSample", "image"], ["ImagenSR256", "original"]]) {
    const drawn = (strength, more) => node(kind, { strength }, { [name]: picture, ...more });
    assert.match(warningOf(drawn(1), say), new RegExp(`keeps nothing of ${name}`));
    assert.equal(warningOf(drawn(0.7), say), "");
    assert.equal(warningOf(drawn(1, { mask: picture }), say), "");
    assert.equal(warningOf(node(kind, { strength: 1 }, { [name]: null }), say), "");
  }
  assert.equal(warningOf(node("ImagenSR256", { strength: 1 }, { image: picture }), say), "");
});

test("a warning takes the hint's place, and stays above a chart", () => {
  const chart = makeChart(fakeDocument(), String);
  const hint = () => find(chart.element, "imagen-hint")[0].textContent;
  assert.equal(hint(), say.chartHint);
  assert.equal(chart.warn("careful"), true);
  assert.equal(chart.warn("careful"), false);
  assert.equal(hint(), "careful");
  chart.show({ imagen_trace: [TRACE] });
  assert.equal(hint(), "careful");
  chart.warn("");
  assert.equal(hint(), "");
});

test("size and seconds stand under the chart; cleared, the hint is back", () => {
  const chart = makeChart(fakeDocument(), String);
  const low = chart.height();
  chart.show({ imagen_trace: [TRACE] });
  assert.equal(find(chart.element, "imagen-done")[0].textContent, "64 × 48 · 1.5 s");
  chart.clear();
  assert.equal(chart.height(), low);
  assert.equal(find(chart.element, "imagen-hint")[0].textContent, say.chartHint);
});

test("a recreated node's panel takes the place of the one that still hangs there", () => {
  const swapped = [];
  const old = { replaceWith: (mine) => swapped.push(mine) };
  const asked = [];
  const document = {
    querySelectorAll: (selector) => (asked.push(selector), [{ querySelector: () => old }]),
  };
  const mine = { isConnected: false };
  remount(document, { id: 7, imagenPanel: { element: mine } });
  assert.deepEqual([swapped, asked], [[mine], ['[data-node-id="7"]']]);
  mine.isConnected = true;
  remount(document, { id: 7, imagenPanel: { element: mine } });
  assert.equal(swapped.length, 1);
});

test("the last run of the same graph is found in the server's history", () => {
  const run = (id, outputs) => ({ prompt: [0, "x", {}, { extra_pnginfo: { workflow: { id } } }, []], outputs });
  const history = { a: run("g", { 1: "a" }), b: run("other", { 1: "b" }), c: run("g", { 1: "c" }), d: { prompt: [] } };
  assert.deepEqual(outputsOf(history, "g"), { 1: "c" });
  assert.equal(outputsOf(history, "none"), null);
  assert.equal(outputsOf({ d: { prompt: [], outputs: 4 } }, undefined), null);
});

test("what a node kept from an earlier run is found there: the last run's own outputs lack it", () => {
  const run = (number, text, outputs, cached = []) => ({
    prompt: [number, "x", { 4: { class_type: "T5", inputs: { text } } }, { extra_pnginfo: { workflow: { id: "g" } } }],
    outputs,
    status: { messages: [["execution_cached", { nodes: cached }]] },
  });
  const before = { a: run(1, "red", { 4: "red read" }), b: run(2, "blue", { 4: "blue read" }) };
  const last = (...given) => outputsOf({ ...before, c: run(3, ...given) }, "g");
  assert.deepEqual(last("red", { 5: "chart" }, ["4"]), { 4: "red read", 5: "chart" });
  assert.deepEqual(last("red", { 5: "chart" }), { 5: "chart" }, "broken off before it came to the node");
  assert.deepEqual(last("green", { 5: "chart" }, ["4"]), { 5: "chart" }, "of a run that is forgotten");
  assert.deepEqual(last("red", { 4: "sent again" }, ["4"]), { 4: "sent again" });
});

function page() {
  const heard = {};
  const graph = { id: "g", _nodes: [], getNodeById: (id) => graph._nodes.find((each) => each.id === id) };
  const app = { rootGraph: graph, canvas: { graph } };
  const api = {
    apiURL: (path) => path,
    addEventListener: (name, call) => (heard[name] = call),
    fetchApi: async (path) => ({ ok: path.startsWith("/history"), json: async () => api.history }),
  };
  const window = { document: fakeDocument(), setTimeout() {}, LGraphCanvas: { link_type_colors: {} } };
  window.setInterval = (call) => (window.tick = call);
  const extension = makeExtension(app, api, window);
  extension.setup();
  const add = (id, comfyClass) => {
    const made = { id, comfyClass, widgets: [], size: [140, 60], computeSize: () => [140, 60] };
    made.setSize = (size) => (made.size = size);
    made.addDOMWidget = (name, type, element, options) => ({ name, element, options });
    graph._nodes.push(made);
    extension.nodeCreated(made);
    return made;
  };
  window.graphOf = graph;
  return { extension, api, add, heard, window };
}

test("a run that begins or is broken off leaves no chart of the run before", () => {
  const { add, heard } = page();
  const [first, second, third] = [1, 2, 3].map((id) => add(id, "ImagenSR256"));
  for (const each of [first, second, third]) each.onExecuted({ imagen_trace: [TRACE] });
  const filled = () => [first, second, third].map((each) => each.imagenPanel.height() > 100);
  heard.executing({ detail: "2" });
  assert.deepEqual(filled(), [true, false, true]);
  heard.execution_interrupted({ detail: { executed: ["1"] } });
  assert.deepEqual(filled(), [true, false, false]);
});

test("after F5 the panels show what the server still knows, once", async () => {
  const { extension, api, add } = page();
  const made = add(5, "ImagenBaseSample");
  api.history = { a: { prompt: [0, "x", {}, { extra_pnginfo: { workflow: { id: "g" } } }], outputs: { 5: { imagen_trace: [TRACE] } } } };
  extension.afterConfigureGraph();
  for (let i = 0; i < 9; i++) await Promise.resolve();
  assert.ok(made.imagenPanel.height() > 100);
  made.imagenPanel.clear();
  extension.afterConfigureGraph();
  for (let i = 0; i < 9; i++) await Promise.resolve();
  assert.ok(made.imagenPanel.height() < 100);
});

test("what was kept from an earlier run stays when a run is broken off", () => {
  const { add, heard } = page();
  const [kept, broken] = [add(1, "ImagenT5Encode"), add(2, "ImagenSR256")];
  kept.onExecuted({ imagen_reading: [{ text: "a pear", tokens: 2, limit: 9 }] });
  heard.execution_cached({ detail: { nodes: ["1"] } });
  heard.executing({ detail: "2" });
  heard.execution_interrupted({ detail: { executed: [] } });
  assert.deepEqual([kept, broken].map((each) => each.imagenPanel.filled()), [true, false]);
});

test("the end of a run fills panels of nodes that it did not run again, where the server does not send theirs", async () => {
  const { api, add, heard } = page();
  const [text, chart] = [add(4, "ImagenT5Encode"), add(5, "ImagenBaseSample")];
  const reading = (said) => ({ imagen_reading: [{ text: said, tokens: 2, limit: 9 }] });
  const extra = { extra_pnginfo: { workflow: { id: "g" } } };
  const prompt = [0, "x", { 4: { class_type: "ImagenT5Encode", inputs: {} } }, extra];
  const messages = [["execution_cached", { nodes: ["4"] }]];
  api.history = {
    a: { prompt, outputs: { 4: reading("a pear") }, status: { messages: [] } },
    b: { prompt, outputs: { 5: { imagen_trace: [TRACE] } }, status: { messages } },
  };
  heard.execution_cached({ detail: { nodes: ["4"] } });
  heard.executing({ detail: "5" });
  assert.equal(text.imagenPanel.filled(), false);
  chart.onExecuted({ imagen_trace: [{ ...TRACE, seconds: 9 }] });
  heard.executing({ detail: null });
  for (let i = 0; i < 9; i++) await Promise.resolve();
  assert.equal(text.imagenPanel.filled(), true);
  assert.match(find(chart.imagenPanel.element, "imagen-done")[0].textContent, /9 s/, "what is shown stays");
});

test("a view that is dropped from the search is as wide as a view", () => {
  assert.ok(page().add(1, "ImagenCascadeView").size[0] >= 300);
});

test("keys move the loupe, zoom, and change the stage; others pass", () => {
  const view = makeView(fakeDocument(), (each) => each.filename);
  view.show({ imagen_view: STAGES });
  const picture = find(view.element, "imagen-picture")[0];
  const press = (key) => {
    const kept = [];
    picture.listeners.keydown({ key, preventDefault: () => kept.push(1), stopPropagation: () => kept.push(2) });
    return kept.length === 2;
  };
  const pane = () => find(view.element, "imagen-loupe")[0].style;
  assert.equal(picture.tabIndex, 0);
  assert.ok(press("ArrowRight") && press("ArrowUp"));
  const [x, y] = pane().backgroundPosition.split(" ").map(parseFloat);
  assert.ok(x > 50 && y < 50);
  assert.ok(press("+"));
  assert.equal(pane().backgroundSize, "800% 800%");
  assert.ok(press("PageDown"));
  assert.equal(find(view.element, "imagen-on-top")[0].src, "a.png");
  assert.equal(press("Enter"), false);
});

test("a button that was pressed by key keeps the focus", () => {
  const document = fakeDocument();
  const view = makeView(document, (each) => each.filename);
  view.show({ imagen_view: STAGES });
  const bar = () => find(view.element, "imagen-bar")[0].children;
  document.activeElement = bar()[0];
  bar()[0].listeners.click();
  assert.equal(document.activeElement, bar()[0]);
  assert.notEqual(document.activeElement, undefined);
});

test("every text has its Chinese, punctuated as Chinese is", () => {
  const [english, chinese] = [textsOf("en"), textsOf("zh-TW")];
  assert.deepEqual(Object.keys(chinese), Object.keys(english));
  for (const [name, text] of Object.entries(chinese)) {
    const made = typeof text === "function" ? text(1, 2, 3) : text;
    assert.match(made, name === "size" ? /秒/ : /[\u4e00-\u9fff]/, name);
    assert.doesNotMatch(made, /[\u4e00-\u9fff][,:;.]/, name);
  }
});

test("colours are the theme's: none is written out but for mixing, and over pictures", () => {
  const loose = CSS.split("\n").filter((line) => /#[0-9a-f]{3,8}\b/i.test(line) && !/var\(|imagen-mark/.test(line));
  assert.deepEqual(loose, []);
});

test("wires that another palette painted over get their colours back", () => {
  const { window } = page();
  const colours = window.LGraphCanvas.link_type_colors;
  const own = colours.IMAGEN_TEXT;
  assert.ok(own);
  window.LGraphCanvas.link_type_colors = {};
  window.tick();
  assert.equal(window.LGraphCanvas.link_type_colors.IMAGEN_TEXT, own);
});

test("what was read of a prompt is shown, with its tokens, and what was cut stands out", () => {
  const reading = makeReading(fakeDocument(), say);
  const of = (name) => find(reading.element, name)[0].textContent;
  assert.equal(of("imagen-hint"), say.readingHint);
  const told = { text: "a red apple", tokens: 5, limit: 32, weights: "red 1.2", cut: "and more" };
  assert.equal(reading.show({ imagen_reading: [told] }), true);
  assert.deepEqual(
    [of("imagen-text"), of("imagen-done"), of("imagen-warning")],
    ["a red apple", "5 of 32 tokens · red 1.2", "Too long, not read: and more"],
  );
  const later = [{ from: 0.4, text: "a pear" }];
  reading.show({ imagen_reading: [{ ...told, later }] });
  assert.equal(find(reading.element, "imagen-text")[1].textContent, "from 40 %: a pear");
  reading.show({ imagen_reading: [{ ...told, text: "", weights: "", cut: "" }] });
  assert.equal(find(reading.element, "imagen-text")[1].textContent, "");
  assert.deepEqual([of("imagen-text"), of("imagen-warning")], [say.emptyPrompt, ""]);
  assert.equal(reading.show({ text: ["x"] }), false);
});

test("what a training came to stands under its node until it runs again", () => {
  const { add, heard } = page();
  const made = add(3, "ImagenFineTuneStage");
  const said = (name) => find(made.imagenPanel.element, name)[0].textContent;
  assert.equal(said("imagen-hint"), say.outcomeHint);
  made.onExecuted({ text: ["runs/mine: step 250, loss 0.0312"], images: [] });
  assert.deepEqual([said("imagen-text"), said("imagen-hint")], ["runs/mine: step 250, loss 0.0312", ""]);
  assert.ok(made.imagenPanel.height() > makeOutcome(fakeDocument()).height());
  heard.executing({ detail: "3" });
  assert.equal(made.imagenPanel.filled(), false);
});

test("a node at work is not told to run, one that was broken off is", () => {
  const { add, heard } = page();
  const kinds = { ImagenBaseSample: "chartHint", ImagenT5Encode: "readingHint", ImagenFineTuneStage: "outcomeStopped" };
  for (const [id, [kind, hint]] of Object.entries(Object.entries(kinds))) {
    const made = add(id, kind);
    const said = () => find(made.imagenPanel.element, "imagen-hint")[0].textContent;
    heard.executing({ detail: id });
    assert.equal(said(), say.running, kind);
    heard.execution_interrupted({ detail: { executed: [] } });
    assert.equal(said(), say[hint], kind);
    heard.executing({ detail: id });
    heard.execution_error({ detail: { executed: [] } });
    assert.equal(said(), say[hint.replace("Stopped", "Hint")], kind);
  }
  const view = add(9, "ImagenSampleCascade");
  heard.executing({ detail: 9 });
  assert.equal(find(view.imagenPanel.element, "imagen-bar")[0].textContent, say.running);
});

test("a preview that a stopped run left is gone until the node runs again, in subgraphs too", () => {
  const { add, heard, window } = page();
  const outer = { id: 9, subgraph: { _nodes: [] } };
  const [done, stopped, inner] = [1, 2, 3].map((id) => add(id, "ImagenBaseSample"));
  const graph = window.graphOf;
  graph._nodes.push(outer);
  outer.subgraph._nodes.push(graph._nodes.splice(2, 1)[0]);
  const foreign = add(4, "KSampler");
  const marks = {};
  for (const each of [done, stopped, foreign]) {
    each.imgs = ["preview"];
    const toggleAttribute = (name, on) => (marks[each.id] = on && name);
    window.document.boxes[`[data-node-id="${each.id}"]`] = [{ toggleAttribute, querySelector: () => null }];
  }
  heard.execution_interrupted({ detail: { executed: ["1"] } });
  assert.deepEqual(marks, { 2: "data-imagen-stopped" });
  assert.deepEqual([done, stopped, foreign].map((each) => each.imgs?.length), [1, undefined, 1]);
  assert.ok(inner.imagenStopped);
  stopped.imgs = ["a late preview"];
  window.tick();
  assert.equal(stopped.imgs, undefined);
  heard.executing({ detail: "2" });
  assert.equal(marks[2], false);
  assert.match(CSS, /\[data-imagen-stopped\]\) \.image-preview/);
});

test("after F5 in the middle of a run its end fills what ran before, and no run asks the server without need", async () => {
  const { api, add, heard } = page();
  const text = add(4, "ImagenT5Encode");
  const run = { prompt: [0, "x", {}, { extra_pnginfo: { workflow: { id: "g" } } }], outputs: { 4: { imagen_reading: [{ text: "a pear", tokens: 2, limit: 9 }] } } };
  api.history = { a: run };
  const end = async () => {
    heard.executing({ detail: null });
    for (let i = 0; i < 9; i++) await Promise.resolve();
    return text.imagenPanel.filled();
  };
  heard.execution_start({ detail: {} });
  assert.equal(await end(), false);
  heard.executing({ detail: "5" });
  assert.equal(await end(), true);
});

test("warnings call slots and widgets what the frontend shows them as", () => {
  const chinese = textsOf("zh");
  const outputs = OUTPUTS.map((each) => ({ ...each, localized_name: `那个${each.name}` }));
  const sampler = node("ImagenBaseSample", { strength: 1 }, { stage: { type: "ImagenLoadCascade", widgets: [], outputs } }, { getInputLink: () => ({ origin_slot: 2 }) });
  sampler.inputs[0].localized_name = "阶段模型";
  assert.equal(warningOf(sampler, chinese), "阶段模型：那个sr256 属于另一类；请连接级联的 那个base。");
  const started = node("ImagenBaseSample", { strength: 1 }, { image: { type: "LoadImage" } });
  Object.assign(started.inputs[0], { localized_name: "图像" });
  Object.assign(started.widgets[0], { label: "强度" });
  assert.match(warningOf(started, chinese), /^强度 为 1.00 时不保留 图像/);
});
