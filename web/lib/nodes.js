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
