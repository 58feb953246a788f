// The stages over each other, a loupe that shows the same place in each of them, and a run kept to compare with.
import { cover, sideOf, splitBar } from "./compare.js";
import { element, svg } from "./elements.js";
import { textsOf } from "./texts.js";

const EMPTY_HEIGHT = 44; // with ComfyUI's margin of 10 around the element
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

// Where a key moves the loupe: steps of the place, from its left and upper edge.
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.05;
const CORNERS = "M1 4V1H4M8 1H11V4M11 8V11H8M4 11H1V8"; // of a screen

export function makeView(document, urlOf, say = textsOf("en")) {
  const root = element(document, "div", "imagen-panel imagen-view");
  const bar = element(document, "div", "imagen-bar", root);
  const room = element(document, "div", "imagen-room", root);
  const picture = element(document, "div", "imagen-picture", room);
  const loupes = element(document, "div", "imagen-loupes", root);
  bar.textContent = say.viewHint;
  picture.tabIndex = 0;
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", say.picture);
  const state = { stages: [], top: 0, index: 0, zoom: 4, place: [0.5, 0.5], pinned: null, split: 0.5 };
  const split = splitBar(document, say, (part) => ((state.split = part), look()));

  function look() {
    const stage = state.stages[state.top];
    const placed = behindLoupe(...state.place, stage.width / stage.height, state.zoom);
    for (const pane of loupes.querySelectorAll(".imagen-loupe")) {
      pane.style.backgroundSize = `${placed.width}% ${placed.height}%`;
      pane.style.backgroundPosition = `${placed.x}% ${placed.y}%`;
      pane.style.backgroundImage = `url("${urlOf(fileOf(underLoupe(pane.stage)))}")`;
    }
    picture.style.setProperty("--split", `${100 * state.split}%`);
    const part = markedPart(placed);
    const mark = picture.querySelector(".imagen-mark");
    for (const key of Object.keys(part)) mark.style[key] = `${part[key]}%`;
  }

  // What a loupe shows of a stage: the kept run's left of the line that divides the two, this run's right of it.
  const underLoupe = (stage) => (sideOf(state) === "pinned" && kept(stage)) || stage;
  const kept = (stage) => state.pinned?.find((each) => each.stage === stage.stage);

  function draw() {
    const stage = state.stages[state.top];
    picture.style.setProperty("--aspect", stage.width / stage.height);
    picture.replaceChildren(
      ...state.stages.map((each, i) => layer(document, each, urlOf(fileOf(each)), i === state.top)),
      ...(kept(stage) ? cover(document, layer(document, kept(stage), urlOf(fileOf(kept(stage))), true), split, say) : []),
      element(document, "div", "imagen-mark"),
    );
    loupes.replaceChildren(...state.stages.map((each) => loupe(document, each)));
    const focused = Array.from(bar.children).indexOf(document.activeElement);
    bar.replaceChildren(...buttons());
    if (focused >= 0) bar.children[focused]?.focus();
    look();
  }

  const fileOf = (stage) => stage.images[Math.min(state.index, stage.images.length - 1)];
  const change = (part) => () => (Object.assign(state, part), draw());

  function buttons() {
    const count = Math.max(...state.stages.map((stage) => stage.images.length));
    const made = state.stages.map((stage, i) =>
      button(document, stage.stage, i === state.top, change({ top: i }), say.onTop(stage.stage)),
    );
    const next = ZOOMS[(ZOOMS.indexOf(state.zoom) + 1) % ZOOMS.length];
    made.push(button(document, `× ${state.zoom}`, false, change({ zoom: next }), say.loupe));
    if (count > 1) {
      const step = (by) => change({ index: (state.index + by + count) % count });
      made.push(button(document, "‹", false, step(-1), say.before));
      made.push(button(document, `${state.index + 1}/${count}`, false, step(1), say.next));
      made.push(button(document, "›", false, step(1), say.next));
    }
    const pin = { pinned: state.pinned ? null : state.stages };
    made.push(button(document, say.pin, Boolean(state.pinned), change(pin), say.pinTip));
    const whole = button(document, "", false, () => fill(document, root), say.fullScreen);
    whole.className = "imagen-whole";
    svg(document, "path", { d: CORNERS }, svg(document, "svg", { viewBox: "0 0 12 12" }, whole));
    made.push(whole);
    return made;
  }

  picture.addEventListener("pointermove", (event) => {
    if (!state.stages.length) return;
    state.place = placeOf(event, picture.getBoundingClientRect());
    look();
  });

  picture.addEventListener("keydown", (event) => {
    const count = state.stages.length;
    if (event.target === split) return; // its keys move the line
    if (!count || event.ctrlKey || event.metaKey || event.altKey) return;
    const zoom = (by) => ({ zoom: ZOOMS[within(ZOOMS.indexOf(state.zoom) + by, ZOOMS.length)] });
    const keys = { "+": zoom(1), "-": zoom(-1) };
    keys.PageUp = { top: within(state.top + 1, count) };
    keys.PageDown = { top: within(state.top - 1, count) };
    const move = MOVES[event.key];
    if (move) state.place = state.place.map((f, i) => Math.max(0, Math.min(1, f + STEP * move[i])));
    else if (keys[event.key]) Object.assign(state, keys[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
    if (move) look();
    else draw();
  });

  return {
    element: root,
    height: () => (state.stages.length ? HEIGHT : EMPTY_HEIGHT),
    maxHeight: undefined,
    filled: () => state.stages.length > 0,
    // While it runs, "Nodes 2.0" shows its live preview below; afterwards that is a second copy of what is here.
    clear(running = false) {
      root.classList.add("imagen-running");
      if (!state.stages.length) bar.textContent = running ? say.running : say.viewHint;
    },
    // output   of the node; whether there was something to show
    show(output) {
      const stages = output?.imagen_view;
      if (!stages?.length) return false;
      Object.assign(state, { stages, top: stages.length - 1, index: 0 });
      root.classList.add("imagen-filled");
      root.classList.remove("imagen-running");
      draw();
      return true;
    },
  };
}

const within = (index, count) => Math.max(0, Math.min(count - 1, index));

const crisp = (stage) => (stage.width <= CRISP ? " imagen-crisp" : "");

function layer(document, stage, url, onTop) {
  const name = onTop ? "imagen-layer imagen-on-top" : "imagen-layer";
  const made = element(document, "img", name + crisp(stage));
  made.src = url;
  made.draggable = false;
  return made;
}

// The panel over the whole screen, or back from there.
function fill(document, root) {
  if (document.fullscreenElement === root) document.exitFullscreen();
  else root.requestFullscreen?.();
}

function loupe(document, stage) {
  const frame = element(document, "div", "imagen-frame");
  const pane = element(document, "div", `imagen-loupe${crisp(stage)}`, frame);
  pane.stage = stage;
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
