// What ComfyUI's frontend is told: widgets under the nodes, colours of the wires, one command.
import { buildCascade } from "./cascade.js";
import { makeChart } from "./chart.js";
import { findNode } from "./nodes.js";
import { CSS } from "./style.js";
import { makeView } from "./view.js";
import { paintWires } from "./wires.js";

const CHARTED = ["ImagenBaseSample", "ImagenSR256", "ImagenSR1024"];
const VIEW = "ImagenCascadeView";
const COMMAND = "Imagen.NewCascade";

// app, api   of ComfyUI's frontend
// page       the window: its document, LiteGraph and LGraphCanvas
export function makeExtension(app, api, page) {
  const urlOf = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);
  const colour = () => paintWires(app.canvas, page.LGraphCanvas, page.document);

  function restore(outputs) {
    for (const [key, output] of Object.entries(outputs ?? {}))
      show(findNode(app.rootGraph ?? app.graph, key), output);
  }

  return {
    name: "imagen.nodes",
    commands: [
      {
        id: COMMAND,
        label: "Imagen: new cascade",
        icon: "pi pi-sitemap",
        function: () => newCascade(app, page.LiteGraph),
      },
    ],
    menuCommands: [{ path: ["Imagen"], commands: [COMMAND] }],
    setup() {
      const style = page.document.createElement("style");
      style.textContent = CSS;
      page.document.head.append(style);
      colour();
      // The palette paints over every wire that it does not know, a moment after the event.
      app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", () =>
        page.setTimeout(colour, 500),
      );
    },
    nodeCreated(node) {
      const kind = node.comfyClass ?? node.constructor?.comfyClass;
      if (CHARTED.includes(kind)) attach(node, "imagen_chart", makeChart(page.document, urlOf));
      if (kind === VIEW) {
        hideNativePreview(node);
        attach(node, "imagen_view", makeView(page.document, urlOf));
      }
    },
    afterConfigureGraph() {
      colour();
      restore(app.nodeOutputs);
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
  node.imagenPanel = panel;
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.call(this, output);
    show(this, output);
  };
}

function show(node, output) {
  if (!node?.imagenPanel || !node.imagenPanel.show(output)) return;
  const least = node.computeSize?.();
  if (least && node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
  node.graph?.setDirtyCanvas?.(true, true);
}

// The view shows the same files, so that ComfyUI's own preview below it would be a second copy.
function hideNativePreview(node) {
  node.hideOutputImages = true; // newer frontends
  node.onDrawBackground = () => {}; // older ones draw the preview here
}

function newCascade(app, LiteGraph) {
  const graph = app.canvas.graph;
  graph.beforeChange?.();
  buildCascade(LiteGraph, graph);
  graph.afterChange?.();
  app.extensionManager?.command?.execute?.("Comfy.Canvas.FitView");
}
