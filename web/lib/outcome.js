// One line of what a node's run came to.
import { makePanel } from "./panel.js";
import { textsOf } from "./texts.js";

export function makeOutcome(document, say = textsOf("en")) {
  return makePanel(document, say, {
    name: "imagen-outcome",
    hint: say.outcomeHint,
    stopped: say.outcomeStopped,
    height: 76, // a long path takes three lines
    lines: ["imagen-text"],
    fill([text], output) {
      const told = output?.text?.at(-1);
      if (told) text.textContent = told;
      return Boolean(told);
    },
  });
}
