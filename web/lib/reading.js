// How a prompt was read: with wildcards drawn, its tokens counted, and what was cut.
import { element } from "./elements.js";
import { textsOf } from "./texts.js";

const EMPTY_HEIGHT = 44; // with ComfyUI's margin of 10 around the element
const HEIGHT = 90;

export function makeReading(document, say = textsOf("en")) {
  const root = element(document, "div", "imagen-panel imagen-reading");
  const hint = element(document, "div", "imagen-hint", root);
  const text = element(document, "div", "imagen-text", root);
  const later = element(document, "div", "imagen-text", root);
  const count = element(document, "div", "imagen-done", root);
  const cut = element(document, "div", "imagen-warning", root);
  let shown = false;
  hint.textContent = say.readingHint;
  const height = () => (shown ? HEIGHT : EMPTY_HEIGHT);
  return {
    element: root,
    height,
    maxHeight: height,
    filled: () => shown,
    // running   whether the node is at work now
    clear(running = false) {
      shown = false;
      hint.textContent = running ? say.running : say.readingHint;
      root.classList.remove("imagen-filled");
    },
    // output   of the node; whether there was something to show
    show(output) {
      const reading = output?.imagen_reading?.at(-1);
      if (!reading) return false;
      shown = true;
      root.classList.add("imagen-filled");
      hint.textContent = "";
      text.textContent = reading.text || say.emptyPrompt;
      const changes = (reading.later ?? []).map((change) => say.change(change.from, change.text));
      later.textContent = changes.join(" · ");
      const weights = reading.weights ? ` · ${reading.weights}` : "";
      count.textContent = say.tokens(reading.tokens, reading.limit) + weights;
      cut.textContent = reading.cut ? say.cut(reading.cut) : "";
      return true;
    },
  };
}
