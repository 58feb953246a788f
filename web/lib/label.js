// ComfyUI's canvas writes the size of a preview below it and draws none larger than it is, so small images are
// sent enlarged. Here what is written becomes the size of the image itself, or nothing where that is not known.

const PREVIEW = "$$canvas-image-preview";
const SIZE = /^\d+ × \d+$/;

// node     whose previews they are
// sizeOf   () => [width, height] of its image, or null where that is not known
export function labelPreviews(node, sizeOf) {
  const before = node.onDrawForeground; // called before the widgets are drawn
  node.onDrawForeground = function (...given) {
    before?.apply(this, given);
    const widget = this.widgets?.find((each) => each.name === PREVIEW);
    if (!widget?.drawWidget || widget.imagenSized) return;
    const draw = widget.drawWidget;
    widget.imagenSized = true;
    widget.drawWidget = function (context, ...more) {
      context.fillText = (text, ...place) =>
        Object.getPrototypeOf(context).fillText.call(context, SIZE.test(text) ? told() : text, ...place);
      try {
        return draw.call(this, context, ...more);
      } finally {
        delete context.fillText;
      }
    };
  };
  const told = () => {
    const size = sizeOf();
    return size?.every((side) => side > 0) ? size.join(" × ") : "";
  };
}
