// How a prompt was read: with wildcards drawn, its tokens counted, and what was cut.
import { makePanel } from "./panel.js";
import { textsOf } from "./texts.js";

export function makeReading(document, say = textsOf("en")) {
  return makePanel(document, say, {
    name: "imagen-reading",
    hint: say.readingHint,
    height: 90,
    lines: ["imagen-text", "imagen-text", "imagen-done", "imagen-warning"],
    fill([text, later, count, cut], output) {
      const reading = output?.imagen_reading?.at(-1);
      if (!reading) return false;
      text.textContent = reading.text || say.emptyPrompt;
      const changes = (reading.later ?? []).map((change) => say.change(change.from, change.text));
      later.textContent = changes.join(" · ");
      const weights = reading.weights ? ` · ${reading.weights}` : "";
      count.textContent = say.tokens(reading.tokens, reading.limit) + weights;
      cut.textContent = reading.cut ? say.cut(reading.cut) : "";
      return true;
    },
  });
}
