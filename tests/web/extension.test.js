import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { freePlace, NODES } from "../../web/lib/cascade.js";
import { makeExtension } from "../../web/lib/extension.js";
import { findNode } from "../../web/lib/nodes.js";
import { COLOURS } from "../../web/lib/wires.js";
import { fakeDocument, fakeGraph, find } from "./fakes.js";

const SCHEMA = JSON.parse(readFileSync(new URL("../nodes/schema.json", import.meta.url), "utf8"));
const NAMES = {
  ImagenLoadCascade: ["text_encoder", "base", "sr256", "sr1024"],
  ImagenDynamicThreshold: ["guidance"],
  ImagenT5Encode: ["text"],
  ImagenCascadeView: [],
};
const TYPES = Object.fromEntries(
  Object.entries(SCHEMA).map(([type, { inputs }]) => [
    type,
    { inputs: inputs.map((input) => input[1]), outputs: NAMES[type] ?? ["image"] },
  ]),
);
TYPES.SaveImage = { inputs: ["images", "filename_prefix"], outputs: [] };

function setUp() {
  const { graph, LiteGraph } = fakeGraph(TYPES);
  const done = [];
  const app = {
    canvas: { graph, default_connection_color_byType: {} },
    extensionManager: { command: { execute: (id) => done.push(id) } },
    rootGraph: { getNodeById: (id) => graph.nodes.find((node) => node.id === id) },
  };
  const frames = [];
  const page = { document: fakeDocument(), LiteGraph, LGraphCanvas: { link_type_colors: {} } };
  page.requestAnimationFrame = (call) => frames.push(call);
  const heard = {};
  const api = { apiURL: (path) => path, addEventListener: (name, call) => (heard[name] = call) };
  return { app, api, page, graph, done, frames, heard, extension: makeExtension(app, api, page) };
}

function nodeOf(comfyClass) {
  return {
    comfyClass,
    widgets: [],
    size: [300, 100],
    computeSize: () => [300, 250],
    setSize(size) { this.size = size; },
    addDOMWidget(name, type, element, options) {
      const widget = { name, type, element, options };
      this.widgets.push(widget);
      return widget;
    },
  };
}

const TRACE = { imagen_trace: [{ threshold: [[1]], clipped: [[0]], frames: 0 }] };

test("panels have no value, in the prompt or in the file", () => {
  const { extension } = setUp();
  for (const kind of ["ImagenBaseSample", "ImagenSR256", "ImagenSR1024", "ImagenCascadeView"]) {
    const node = nodeOf(kind);
    extension.nodeCreated(node);
    assert.equal(node.widgets.length, 1, kind);
    assert.equal(node.widgets[0].serialize, false);
    assert.equal(node.widgets[0].options.serialize, false);
  }
});

test("other nodes are left alone", () => {
  const node = nodeOf("KSampler");
  setUp().extension.nodeCreated(node);
  assert.deepEqual([node.widgets, node.onExecuted, node.hideOutputImages], [[], undefined, undefined]);
});

test("a result is shown, makes room for itself, and reaches what listened before", () => {
  const node = nodeOf("ImagenBaseSample");
  const heard = [];
  node.onExecuted = (output) => heard.push(output);
  setUp().extension.nodeCreated(node);
  node.onExecuted(TRACE);
  assert.deepEqual(heard, [TRACE]);
  assert.deepEqual(node.size, [300, 250]);
  assert.equal(find(node.widgets[0].element, "imagen-line").length, 2);
});

class Context {
  written = [];
  fillText(text) { this.written.push(text); }
}

test("below a preview stands the size of the image, not of the enlarged preview", () => {
  const node = Object.assign(nodeOf("ImagenBaseSample"), { inputs: [] });
  let background = 0;
  node.onDrawForeground = () => background++;
  setUp().extension.nodeCreated(node);
  node.onDrawForeground(); // there is no preview yet
  const preview = {
    name: "$$canvas-image-preview",
    drawWidget(context) {
      context.fillText("256 × 256", 1, 2);
      context.fillText("1/4", 1, 2);
    },
  };
  node.widgets.push(preview);
  const drawn = () => {
    const context = new Context();
    for (let i = 0; i < 2; i++) node.onDrawForeground();
    preview.drawWidget(context, {});
    context.fillText("256 × 256"); // whoever draws next
    return context.written;
  };
  assert.deepEqual(drawn(), ["", "1/4", "256 × 256"], "nothing tells the size: none is said");
  node.widgets.push({ name: "width", value: 64 }, { name: "height", value: 48 });
  assert.deepEqual(drawn(), ["64 × 48", "1/4", "256 × 256"], "before a run");
  node.onExecuted({ imagen_trace: [{ ...TRACE.imagen_trace[0], width: 96, height: 64 }] });
  assert.deepEqual(drawn(), ["96 × 64", "1/4", "256 × 256"], "after it");
  assert.equal(background, 7);
});

test("outputs of the past come back to their nodes", () => {
  const { extension, graph } = setUp();
  const node = Object.assign(nodeOf("ImagenSR256"), { id: 7 });
  graph.nodes.push(node);
  extension.nodeCreated(node);
  extension.onNodeOutputsUpdated({ 7: TRACE, 99: TRACE });
  assert.equal(find(node.widgets[0].element, "imagen-line").length, 2);
});

test("nodes are found in subgraphs, by definition and by instance", () => {
  const inner = { id: 7 };
  const subgraph = { getNodeById: (id) => (id === 7 ? inner : null) };
  const root = {
    getNodeById: (id) => (id === 12 ? { id, subgraph } : null),
    subgraphs: new Map([["9f3a", subgraph]]),
  };
  assert.equal(findNode(root, "9f3a:7"), inner);
  assert.equal(findNode(root, "12:7"), inner);
  assert.equal(findNode(root, "7"), undefined);
  assert.equal(findNode(root, "none:7"), undefined);
});

test("every wire of the pack has its own colour, everywhere that colours are read", () => {
  const { extension, app, page } = setUp();
  extension.setup();
  const types = Object.keys(COLOURS);
  assert.equal(new Set(Object.values(COLOURS)).size, types.length);
  const declared = Object.values(SCHEMA).flatMap((node) => [...node.outputs, ...node.inputs.map((i) => i[2])]);
  for (const type of new Set(declared.filter((each) => String(each).startsWith("IMAGEN_"))))
    assert.ok(types.includes(type), `${type} has no colour`);
  for (const type of types) {
    assert.equal(app.canvas.default_connection_color_byType[type], COLOURS[type]);
    assert.equal(page.LGraphCanvas.link_type_colors[type], COLOURS[type]);
    assert.equal(page.document.body.style[`--color-datatype-${type}`], COLOURS[type]);
  }
});

test("the command drops the whole cascade, wired, and shows it", () => {
  const { extension, graph, done, frames } = setUp();
  extension.commands[0].function();
  assert.equal(graph.nodes.length, Object.keys(NODES).length);
  assert.deepEqual(done, [], "nodes have no sizes before they were drawn");
  for (let i = 0; i < 2; i++) frames.shift()();
  assert.deepEqual(done, ["Comfy.Canvas.FitView"]);
  const view = graph.nodes.find((node) => node.type === "ImagenCascadeView");
  assert.deepEqual(view.wires.map(([from]) => from.type), ["ImagenBaseSample", "ImagenSR256", "ImagenSR1024"]);
  const sr256 = graph.nodes.find((node) => node.type === "ImagenSR256");
  const stage = sr256.wires[sr256.inputs.findIndex((input) => input.name === "stage")];
  assert.deepEqual([stage[0].type, stage[1]], ["ImagenLoadCascade", 2]);
  assert.deepEqual(extension.menuCommands[0].commands, [extension.commands[0].id]);
});

test("a new cascade lands below what is there", () => {
  assert.deepEqual(freePlace([]), [60, 90]);
  assert.deepEqual(freePlace([{ pos: [5, 10], size: [100, 40] }, { pos: [-3, 0], size: [9, 9] }]), [-3, 140]);
});

const REFUSED = "custom_validation_failed";
const fault = (argument, text) => ({
  type: REFUSED, message: "Custom validation failed for node", details: `${argument} - ${text}`, extra_info: { input_name: argument },
});
const answer = () => ({
  node_errors: {
    1: { class_type: "ImagenBaseSample", errors: [fault("input_types", "stage: expected a base stage")] },
    2: { class_type: "ImagenXYPlot", errors: ["columns", "rows"].map((each) => fault(each, "row_values: expected numbers")) },
    3: { class_type: "ImagenLoadCascade", errors: [fault("cascade", "'x' is not there; choose: emoji")] },
    4: { class_type: "LoadImage", errors: [fault("image", "Invalid image file: x.png")] },
  },
});
const said = ({ node_errors }) =>
  Object.values(node_errors).map(({ errors }) => errors.map((e) => [e.type, e.extra_info.input_name, e.details]));
const TOLD = "exception_during_inner_validation";
const REWORDED = [
  [[TOLD, "stage", "expected a base stage"]],
  [[TOLD, "row_values", "expected numbers"]],
  [[TOLD, "cascade", "'x' is not there; choose: emoji"]],
  [[REFUSED, "image", "image - Invalid image file: x.png"]],
];

test("a refusal names the input, once, with what to do", async () => {
  const { extension, api } = setUp();
  const refused = Object.assign(new Error("refused"), { response: answer() });
  api.queuePrompt = async () => { throw refused; };
  extension.setup();
  await assert.rejects(api.queuePrompt(0, {}), refused);
  assert.deepEqual(said(refused.response), REWORDED);
});

test("a refusal beside outputs that run is reworded too", async () => {
  const { extension, api } = setUp();
  api.queuePrompt = async (number) => ({ number, ...answer() });
  extension.setup();
  const answered = await api.queuePrompt(3);
  assert.equal(answered.number, 3);
  assert.deepEqual(said(answered), REWORDED);
});
