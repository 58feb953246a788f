// One line of what a node's run came to.
import { element } from "./elements.js";
import { textsOf } from "./texts.js";

const EMPTY_HEIGHT = 44; // with ComfyUI's margin of 10 around the element
const HEIGHT = 60;

export function makeOutcome(document, say = textsOf("en")) {
  const root = element(document, "div", "imagen-panel imagen-outcome");
  const hint = element(document, "div", "imagen-hint", root);
  const text = element(document, "div", "imagen-text", root);
  let shown = false;
  hint.textContent = say.outcomeHint;
  const height = () => (shown ? HEIGHT : EMPTY_HEIGHT);
  return {
    element: root,
    height,
    maxHeight: height,
    filled: () => shown,
    // running   whether the node is at work now
    clear(running = false) {
      shown = false;
      hint.textContent = running ? say.running : say.outcomeHint;
      root.classList.remove("imagen-filled");
    },
    // output   of the node; whether there was something to show
    show(output) {
      const told = output?.text?.at(-1);
      if (!told) return false;
      shown = true;
      root.classList.add("imagen-filled");
      hint.textContent = "";
      text.textContent = told;
      return true;
    },
  };
}
