// The stages over each other, and a loupe that shows the same place in each of them.
import { element } from "./elements.js";

const HEIGHT = 360;
const ZOOMS = [2, 4, 8];
const CRISP = 256; // pixels; wider pictures are shown smaller than they are, and would alias

// Where a picture lies behind a square loupe, in CSS percentages of it.
// fx, fy   place to look at, 0..1 of the picture
// aspect   width / height of the picture
// zoom     how often the loupe's side fits into the picture's shorter side
export function behindLoupe(fx, fy, aspect, zoom) {
  const width = zoom * Math.max(1, aspect);
  const height = zoom * Math.max(1, 1 / aspect);
  const along = (f, side) =>
    side <= 1 ? 50 : 100 * Math.max(0, Math.min(1, (f * side - 0.5) / (side - 1)));
  return { width: 100 * width, height: 100 * height, x: along(fx, width), y: along(fy, height) };
}

// The part of the picture that the loupe shows, in percentages of the picture.
export function markedPart(placed) {
  const width = 1e4 / placed.width;
  const height = 1e4 / placed.height;
  return {
    left: (placed.x * (100 - width)) / 100,
    top: (placed.y * (100 - height)) / 100,
    width,
    height,
  };
}

// Where a pointer is on a picture: 0..1 from its left and upper edge.
export function placeOf(event, box) {
  const part = (value, start, length) => Math.max(0, Math.min(1, (value - start) / (length || 1)));
  return [part(event.clientX, box.left, box.width), part(event.clientY, box.top, box.height)];
}

export function makeView(document, urlOf) {
  const root = element(document, "div", "imagen-panel imagen-view");
  const bar = element(document, "div", "imagen-bar", root);
  const room = element(document, "div", "imagen-room", root);
  const picture = element(document, "div", "imagen-picture", room);
  const loupes = element(document, "div", "imagen-loupes", root);
  bar.textContent = "run: the stages appear here, over each other";
  const state = { stages: [], top: 0, index: 0, zoom: 4, place: [0.5, 0.5] };

  function look() {
    const stage = state.stages[state.top];
    const placed = behindLoupe(...state.place, stage.width / stage.height, state.zoom);
    for (const pane of loupes.querySelectorAll(".imagen-loupe")) {
      pane.style.backgroundSize = `${placed.width}% ${placed.height}%`;
      pane.style.backgroundPosition = `${placed.x}% ${placed.y}%`;
    }
    const part = markedPart(placed);
    const mark = picture.querySelector(".imagen-mark");
    for (const key of Object.keys(part)) mark.style[key] = `${part[key]}%`;
  }

  function draw() {
    const stage = state.stages[state.top];
    picture.style.setProperty("--aspect", stage.width / stage.height);
    picture.replaceChildren(
      ...state.stages.map((each, i) => layer(document, each, urlOf(fileOf(each)), i === state.top)),
      element(document, "div", "imagen-mark"),
    );
    loupes.replaceChildren(...state.stages.map((each) => loupe(document, each, urlOf(fileOf(each)))));
    bar.replaceChildren(...buttons());
    look();
  }

  const fileOf = (stage) => stage.images[Math.min(state.index, stage.images.length - 1)];
  const change = (part) => () => (Object.assign(state, part), draw());

  function buttons() {
    const count = Math.max(...state.stages.map((stage) => stage.images.length));
    const made = state.stages.map((stage, i) =>
      button(document, stage.stage, i === state.top, change({ top: i }), `on top: ${stage.stage}`),
    );
    const next = ZOOMS[(ZOOMS.indexOf(state.zoom) + 1) % ZOOMS.length];
    made.push(button(document, `× ${state.zoom}`, false, change({ zoom: next }), "loupe"));
    if (count > 1) {
      const step = (by) => change({ index: (state.index + by + count) % count });
      made.push(button(document, "‹", false, step(-1), "picture before"));
      made.push(button(document, `${state.index + 1}/${count}`, false, step(1), "next picture"));
      made.push(button(document, "›", false, step(1), "next picture"));
    }
    return made;
  }

  picture.addEventListener("pointermove", (event) => {
    if (!state.stages.length) return;
    state.place = placeOf(event, picture.getBoundingClientRect());
    look();
  });

  return {
    element: root,
    height: () => HEIGHT,
    maxHeight: undefined,
    // output   of the node; whether there was something to show
    show(output) {
      const stages = output?.imagen_view;
      if (!stages?.length) return false;
      Object.assign(state, { stages, top: stages.length - 1, index: 0 });
      draw();
      return true;
    },
  };
}

const crisp = (stage) => (stage.width <= CRISP ? " imagen-crisp" : "");

function layer(document, stage, url, onTop) {
  const name = onTop ? "imagen-layer imagen-on-top" : "imagen-layer";
  const made = element(document, "img", name + crisp(stage));
  made.src = url;
  made.draggable = false;
  return made;
}

function loupe(document, stage, url) {
  const frame = element(document, "div", "imagen-frame");
  const pane = element(document, "div", `imagen-loupe${crisp(stage)}`, frame);
  pane.style.backgroundImage = `url("${url}")`;
  const label = element(document, "span", "imagen-label", frame);
  label.textContent = `${stage.width} × ${stage.height}`;
  return frame;
}

function button(document, text, pressed, onClick, title) {
  const made = element(document, "button", pressed ? "imagen-pressed" : "");
  made.textContent = text;
  made.title = title;
  made.addEventListener("click", onClick);
  return made;
}
