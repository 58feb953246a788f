// The node that an output belongs to, in subgraphs too.

// root   graph
// key    "7" in the root graph; "UUID:7" in a subgraph's definition; "12:7" in subgraph node 12
export function findNode(root, key) {
  const steps = String(key).split(":");
  let graph = root;
  for (const step of steps.slice(0, -1))
    graph = root?.subgraphs?.get?.(step) ?? nodeOf(graph, step)?.subgraph;
  return nodeOf(graph, steps.at(-1));
}

function nodeOf(graph, id) {
  return graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id)) ?? undefined;
}

// Put a node's panel where an older one of it hangs. Undo makes a node anew, but "Nodes 2.0" goes on showing
// the element of the node that is gone.
export function remount(document, node) {
  const mine = node.imagenPanel?.element;
  if (!mine || mine.isConnected) return;
  for (const box of document.querySelectorAll(`[data-node-id="${node.id}"]`)) {
    const old = box.querySelector(".imagen-panel");
    if (old) return old.replaceWith(mine);
  }
}

const OWN = "Imagen";

// Whether a node id is one of the pack's.
export const isOwnKind = (kind) => Boolean(kind?.startsWith(OWN));

export const nodesOf = (graph) => graph?.nodes ?? graph?._nodes ?? [];

// The nodes of a graph and of the subgraphs in it.
export function everyNode(graph) {
  return nodesOf(graph).flatMap((node) => [node, ...everyNode(node.subgraph)]);
}

// Take away the preview of a node whose run was stopped, until it runs again: ComfyUI leaves it, as if it were what
// the node made. An attribute, since "Nodes 2.0" writes the classes of its elements anew.
export function showStopped(document, node) {
  if (node.imagenStopped && node.imgs) node.imgs = undefined;
  for (const box of document.querySelectorAll(`[data-node-id="${node.id}"]`))
    box.toggleAttribute("data-imagen-stopped", Boolean(node.imagenStopped));
}

// The outputs of the last run of a graph that the server still knows; null = none. Older servers leave out those of
// nodes that it did not run again: they stand with the run that they are from.
// history   as /history answers
// id        of the graph
export function outputsOf(history, id) {
  const runs = Object.values(history ?? {}).reverse();
  const last = runs.findIndex((run) => id && run.prompt?.[3]?.extra_pnginfo?.workflow?.id === id);
  if (last < 0) return null;
  const outputs = { ...runs[last].outputs };
  for (const key of cachedIn(runs[last])) {
    const asked = askedOf(runs[last], key);
    const source = runs.slice(last + 1).find((run) => run.outputs?.[key] && askedOf(run, key) === asked);
    if (source) outputs[key] ??= source.outputs[key];
  }
  return outputs;
}

const askedOf = (run, key) => JSON.stringify(run.prompt?.[2]?.[key]);

const cachedIn = (run) =>
  run.status?.messages?.find(([name]) => name === "execution_cached")?.[1]?.nodes ?? [];
