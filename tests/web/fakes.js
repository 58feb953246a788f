// A document, a graph and nodes that are just enough for the panels.

export function fakeDocument() {
  const make = (tag) => ({
    tag,
    className: "",
    textContent: "",
    children: [],
    attributes: {},
    listeners: {},
    style: { setProperty(name, value) { this[name] = value; } },
    classList: { added: new Set(), add(name) { this.added.add(name); }, remove(name) { this.added.delete(name); } },
    focus() { document.activeElement = this; },
    append(...more) { this.children.push(...more); },
    replaceChildren(...more) { this.children = more; },
    setAttribute(name, value) { this.attributes[name] = String(value); },
    addEventListener(name, call) { this.listeners[name] = call; },
    getBoundingClientRect: () => ({ left: 10, top: 20, width: 200, height: 100 }),
    querySelector(selector) { return this.querySelectorAll(selector)[0]; },
    querySelectorAll(selector) { return all(this).filter((each) => named(each, selector.slice(1))); },
  });
  const document = { createElement: make, createElementNS: (_, tag) => make(tag), head: make("head"), body: make("body") };
  document.boxes = {}; // elements of the page, by selector
  document.querySelectorAll = (selector) => document.boxes[selector] ?? [];
  return document;
}

const named = (each, name) =>
  `${each.className} ${each.attributes.class ?? ""}`.split(" ").includes(name);

export const all = (root) => root.children.flatMap((child) => [child, ...all(child)]);

export const find = (root, name) => all(root).filter((each) => named(each, name));

// A node type's slots, as far as the command wires them.
export function fakeGraph(types) {
  const graph = { nodes: [], add(node) { this.nodes.push(node); node.graph = this; } };
  const LiteGraph = {
    createNode: (type) => ({
      type,
      size: [200, 100],
      inputs: types[type].inputs.map((name) => ({ name })),
      outputs: types[type].outputs.map((name) => ({ name })),
      wires: [],
      setSize(size) { this.size = size; },
      computeSize: () => [200, 100],
      connect(output, node, input) { node.wires[input] = [this, output]; },
    }),
  };
  return { graph, LiteGraph };
}
