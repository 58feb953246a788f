// What ComfyUI's frontend is told: widgets under the nodes, colours of the wires, one command.
import { buildCascade } from "./cascade.js";
import { makeChart } from "./chart.js";
import { labelPreviews } from "./label.js";
import { everyNode, findNode, isOwnKind, nodesOf, outputsOf, remount, showStopped } from "./nodes.js";
import { sizeOf, warningOf } from "./sizes.js";
import { makeOutcome } from "./outcome.js";
import { makeReading } from "./reading.js";
import { rewordRefusals } from "./refusals.js";
import { CSS } from "./style.js";
import { textsOf } from "./texts.js";
import { makeView } from "./view.js";
import { leastWidth } from "./widths.js";
import { paintWires } from "./wires.js";

const CHARTED = ["ImagenBaseSample", "ImagenSR256", "ImagenSR1024"];
const READ = "ImagenT5Encode";
const TUNED = "ImagenFineTuneStage";
const VIEW = ["ImagenCascadeView", "ImagenSampleCascade"];
const COMMAND = "Imagen.NewCascade";
const VIEW_WIDTH = 340;
const WIDGET_GAP = 4; // pixels that ComfyUI leaves below a widget
const LOOK_AGAIN = 1000; // milliseconds

// app, api   of ComfyUI's frontend
// page       the window: its document, LiteGraph and LGraphCanvas
export function makeExtension(app, api, page) {
  const urlOf = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);
  const colour = () => paintWires(app.canvas, page.LGraphCanvas, page.document);

  const root = () => app.rootGraph ?? app.graph;
  const shownNodes = () => nodesOf(app.canvas?.graph ?? root());
  const panels = () => shownNodes().filter((node) => node.imagenPanel);
  const say = () => textsOf(app.extensionManager?.setting?.get?.("Comfy.Locale"));
  let fresh = true;
  let cached = []; // nodes that the run does not run again
  let fromStart = false; // whether this page has followed the run from its start: not so after F5 in the middle

  function restore(outputs) {
    for (const [key, output] of Object.entries(outputs ?? {})) show(findNode(root(), key), output);
  }

  // After F5 and in a new tab the frontend has forgotten what the server still knows. What is shown stays.
  async function recall() {
    const asked = root();
    const answer = await api.fetchApi?.("/history?max_items=32");
    const outputs = answer?.ok ? outputsOf(await answer.json(), asked?.id) : null;
    if (!outputs || asked !== root()) return;
    restore(Object.fromEntries(Object.entries(outputs).filter(([key]) => isEmpty(key))));
  }

  const isEmpty = (key) => findNode(root(), key)?.imagenPanel?.filled() === false;
  const tryRecall = () => recall().catch(() => {}); // an older server, or none: the panels stay empty

  function onExecuting({ detail }) {
    const id = detail?.node ?? detail;
    if (id && typeof id !== "object") begin(findNode(root(), id));
    else {
      if (!fromStart || cached.some(isEmpty)) tryRecall();
      fromStart = false;
    }
  }

  function begin(node) {
    node?.imagenPanel?.clear(true);
    if (node?.imagenStopped) mark(node, false);
  }

  function mark(node, stopped) {
    node.imagenStopped = stopped;
    if (shownNodes().includes(node)) showStopped(page.document, node);
    node.graph?.setDirtyCanvas?.(true, true);
  }

  function lookAgain() {
    if (colour()) app.canvas?.setDirty?.(true, true);
    for (const node of shownNodes()) if (node.imagenStopped) showStopped(page.document, node);
    for (const node of panels()) {
      remount(page.document, node);
      if (node.imagenPanel.warn?.(warningOf(node, say()))) fitIn(node);
    }
  }

  const clearRest = ({ detail }, failed = false) => {
    const done = new Set([...(detail?.executed ?? []), ...cached].map(String));
    for (const node of everyNode(root()).filter(isOwn).filter((each) => !done.has(String(each.id)))) {
      node.imagenPanel?.clear(false, failed);
      mark(node, true);
    }
  };

  return {
    name: "imagen.nodes",
    commands: [
      {
        id: COMMAND,
        label: "Imagen: new cascade",
        icon: "pi pi-sitemap",
        function: () => newCascade(app, page),
      },
    ],
    menuCommands: [{ path: ["Imagen"], commands: [COMMAND] }],
    setup() {
      const style = page.document.createElement("style");
      style.textContent = CSS;
      page.document.head.append(style);
      colour();
      api.addEventListener?.("execution_start", () => (fromStart = true));
      api.addEventListener?.("execution_cached", ({ detail }) => (cached = detail?.nodes ?? []));
      api.addEventListener?.("executing", onExecuting);
      api.addEventListener?.("execution_interrupted", (event) => clearRest(event));
      api.addEventListener?.("execution_error", (event) => clearRest(event, true));
      rewordRefusals(api);
      page.setInterval?.(lookAgain, LOOK_AGAIN);
    },
    nodeCreated(node) {
      const kind = kindOf(node);
      if (CHARTED.includes(kind)) {
        const chart = makeChart(page.document, urlOf, say());
        attach(node, "imagen_chart", chart);
        labelPreviews(node, () => chart.size() ?? sizeOf(node));
      }
      if (kind === READ) attach(node, "imagen_reading", makeReading(page.document, say()));
      if (kind === TUNED) attach(node, "imagen_outcome", makeOutcome(page.document, say()));
      if (VIEW.includes(kind)) {
        hideNativePreview(node);
        attach(node, "imagen_view", makeView(page.document, urlOf, say()));
        widen(node, VIEW_WIDTH);
      }
      if (isOwn(node)) widen(node, leastWidth(page.document, node));
    },
    afterConfigureGraph() {
      colour();
      restore(app.nodeOutputs);
      page.setTimeout?.(lookAgain, 100);
      if (fresh && panels().length) {
        fresh = false;
        tryRecall();
      }
    },
    onNodeOutputsUpdated: restore,
  };
}

// A widget that is only looked at: neither the prompt nor the file holds a value of it.
function attach(node, name, panel) {
  const widget = node.addDOMWidget(name, name, panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: panel.height,
    getMaxHeight: panel.maxHeight,
  });
  widget.serialize = false;
  if (panel.fixed) keepHeight(widget, panel);
  node.imagenPanel = panel;
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.call(this, output);
    show(this, output);
  };
}

// "Nodes 2.0" shares the room that is left in a node among all widgets that compute a layout, whatever their most.
function keepHeight(widget, panel) {
  widget.computeLayoutSize = undefined;
  widget.computeSize = () => [0, panel.height() - WIDGET_GAP];
}

function show(node, output) {
  if (node?.imagenPanel?.show(output)) fitIn(node);
}

function widen(node, width) {
  if (node.size[0] < width) node.setSize([width, node.size[1]]);
}

function fitIn(node) {
  const least = node.computeSize?.();
  if (least && node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
  node.graph?.setDirtyCanvas?.(true, true);
}

// The view shows the same files, so that ComfyUI's own preview below it would be a second copy.
function hideNativePreview(node) {
  node.hideOutputImages = true; // newer frontends
  node.onDrawBackground = () => {}; // older ones draw the preview here
}

function newCascade(app, page) {
  const graph = app.canvas.graph;
  graph.beforeChange?.();
  buildCascade(page.LiteGraph, graph);
  graph.afterChange?.();
  // Nodes have their sizes when they have been drawn once, and the view is moved once more after that.
  const fit = () => app.extensionManager?.command?.execute?.("Comfy.Canvas.FitView");
  page.requestAnimationFrame(() => page.requestAnimationFrame(fit));
}

const kindOf = (node) => node.comfyClass ?? node.constructor?.comfyClass;
const isOwn = (node) => isOwnKind(kindOf(node));
