// The whole cascade as a graph: what stands where, and what is wired to what.
import { nodesOf } from "./nodes.js";

// name: [node type, column, row in pixels, {input: [name, output]}]
export const NODES = {
  loader: ["ImagenLoadCascade", 0, 0, {}],
  guidance: ["ImagenDynamicThreshold", 0, 260, {}],
  text: ["ImagenT5Encode", 1, 0, { text_encoder: ["loader", "text_encoder"] }],
  base: [
    "ImagenBaseSample",
    2,
    0,
    { stage: ["loader", "base"], text: ["text", "text"], guidance: ["guidance", "guidance"] },
  ],
  sr256: [
    "ImagenSR256",
    3,
    0,
    { stage: ["loader", "sr256"], image: ["base", "image"], text: ["text", "text"] },
  ],
  sr1024: [
    "ImagenSR1024",
    4,
    0,
    { stage: ["loader", "sr1024"], image: ["sr256", "image"], text: ["text", "text"] },
  ],
  view: [
    "ImagenCascadeView",
    5,
    0,
    {
      image_64: ["base", "image"],
      image_256: ["sr256", "image"],
      image_1024: ["sr1024", "image"],
    },
  ],
  save: ["SaveImage", 6, 0, { images: ["sr1024", "image"] }],
};

const COLUMN = 360;
const WIDTH = 310;
const HEIGHTS = { text: 220, view: 500 };
const GAP = 90;

// Where a new graph does not cover another: left edge and lower edge of what is there.
export function freePlace(nodes) {
  if (!nodes.length) return [60, 90];
  const left = Math.min(...nodes.map((node) => node.pos[0]));
  const bottom = Math.max(...nodes.map((node) => node.pos[1] + node.size[1]));
  return [left, bottom + GAP];
}

// LiteGraph   makes nodes
// graph       takes them
export function buildCascade(LiteGraph, graph) {
  const [x, y] = freePlace(nodesOf(graph));
  const made = {};
  for (const [name, [type, column, row]] of Object.entries(NODES)) {
    const node = LiteGraph.createNode(type);
    node.pos = [x + column * COLUMN, y + row];
    node.setSize([WIDTH, HEIGHTS[name] ?? node.computeSize()[1]]);
    graph.add(node);
    made[name] = node;
  }
  for (const [name, [, , , wires]] of Object.entries(NODES))
    for (const [input, [from, output]] of Object.entries(wires))
      made[from].connect(slot(made[from].outputs, output), made[name], slot(made[name].inputs, input));
}

function slot(slots, name) {
  const index = slots.findIndex((entry) => entry.name === name);
  if (index < 0) throw new Error(`no slot ${name}; the nodes are newer or older than this file`);
  return index;
}
