// Two runs in one picture: the kept one left of a line that can be moved, this one right of it.
import { element } from "./elements.js";

// Moves the line: an input that lies over the picture and cannot be seen, for pointers and keys alike.
// onMove   gets where the line is, 0..1 from the left
export function splitBar(document, say, onMove) {
  const made = element(document, "input", "imagen-split");
  for (const [name, value] of Object.entries({ type: "range", min: 0, max: 1, step: 0.005 })) made[name] = value;
  made.value = 0.5;
  made.setAttribute("aria-label", say.split);
  made.addEventListener("input", () => onMove(Number(made.value)));
  for (const name of ["pointerdown", "keydown"]) made.addEventListener(name, (event) => event.stopPropagation());
  return made;
}

// What lies over a stage's picture while another run is kept.
// layer   the kept run's picture
export function cover(document, layer, split, say) {
  layer.className += " imagen-pinned";
  const label = (name, text) => {
    const made = element(document, "span", `imagen-label ${name}`);
    made.textContent = text;
    return made;
  };
  const line = element(document, "div", "imagen-divider");
  return [layer, line, label("imagen-kept", say.kept), label("imagen-now", say.now), split];
}

// Which of the two runs is at the place that the loupe looks at.
export function sideOf({ pinned, place, split }) {
  return pinned && place[0] < split ? "pinned" : "now";
}
