// A panel of lines of text, which holds a hint until there is something to show.
import { element } from "./elements.js";

const EMPTY_HEIGHT = 44; // with ComfyUI's margin of 10 around the element

// name     of its CSS class
// hint     what it holds before a run
// stopped  what it holds after a run that was stopped while the node was at work; the hint where it is left out
// height   of the panel when it is filled
// lines    CSS classes of its lines
// fill     (lines, output) -> whether the node's output had something to show
export function makePanel(document, say, { name, hint: before, stopped = before, height: full, lines, fill }) {
  const root = element(document, "div", `imagen-panel ${name}`);
  const hint = element(document, "div", "imagen-hint", root);
  const places = lines.map((line) => element(document, "div", line, root));
  let shown = false;
  let atWork = false;
  hint.textContent = before;
  const height = () => (shown ? full : EMPTY_HEIGHT);
  return {
    element: root,
    height,
    maxHeight: height,
    fixed: true,
    filled: () => shown,
    // running   whether the node is at work now
    // failed    whether its run ended in an error
    clear(running = false, failed = false) {
      shown = false;
      hint.textContent = running ? say.running : atWork && !failed ? stopped : before;
      atWork = running;
      root.classList.remove("imagen-filled");
    },
    // output   of the node; whether there was something to show
    show(output) {
      if (!fill(places, output)) return false;
      shown = true;
      atWork = false;
      root.classList.add("imagen-filled");
      hint.textContent = "";
      return true;
    },
  };
}
