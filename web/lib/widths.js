// How wide a node must be for its title and for the names and choices in it to be read. ComfyUI makes a node as wide as
// its names alone, then cuts the name beside a long choice.

const TITLE = ["14px Inter, sans-serif", 64]; // font; what ComfyUI leaves free beside the text, in pixels
const WIDGET = ["12px Inter, sans-serif", 94];
const MOST = 400; // pixels; a longer file name is cut

// document   makes the canvas that measures
export function leastWidth(document, node) {
  const context = document.createElement("canvas").getContext?.("2d");
  if (!context) return 0;
  const measure = (text, [font, beside]) => {
    context.font = font;
    return Math.ceil(context.measureText(text).width) + beside;
  };
  const combos = (node.widgets ?? []).filter((widget) => Array.isArray(widget.options?.values));
  const choices = combos.flatMap((widget) =>
    [widget.value, ...widget.options.values].map((value) => measure(`${widget.label ?? widget.name}${value}`, WIDGET)),
  );
  return Math.min(MOST, Math.max(measure(node.title ?? "", TITLE), ...choices));
}
