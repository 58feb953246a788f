// Colours of the pack's own wires.

export const COLOURS = {
  IMAGEN_TEXT_ENCODER: "#e8b04b",
  IMAGEN_TEXT: "#f2d16b",
  IMAGEN_STAGE: "#b48be4",
  IMAGEN_GUIDANCE: "#5fc9a8",
  IMAGEN_LORA: "#e58fb1",
  IMAGEN_CROP: "#7fc4d6",
  IMAGEN_DATASET: "#7fb3e6",
};

// canvas         colours of slots, by type
// LGraphCanvas   colours of links, by type
// document       CSS variables, which Nodes 2.0 takes the slots' colours from
// Whether a colour had been lost: a palette paints over every wire that it does not know.
export function paintWires(canvas, LGraphCanvas, document) {
  const lost = Object.keys(COLOURS).some((type) => LGraphCanvas?.link_type_colors?.[type] !== COLOURS[type]);
  for (const [type, colour] of Object.entries(COLOURS)) {
    if (canvas?.default_connection_color_byType)
      canvas.default_connection_color_byType[type] = colour;
    if (LGraphCanvas?.link_type_colors) LGraphCanvas.link_type_colors[type] = colour;
    document?.body?.style.setProperty(`--color-datatype-${type}`, colour);
  }
  return lost;
}
