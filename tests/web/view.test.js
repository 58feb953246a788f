import assert from "node:assert/strict";
import { test } from "node:test";

import { behindLoupe, makeView, markedPart, placeOf } from "../../web/lib/view.js";
import { fakeDocument, find } from "./fakes.js";

const file = (name) => ({ filename: `${name}.png`, subfolder: "", type: "temp" });
const STAGES = [
  { stage: "64", width: 64, height: 64, images: [file("a"), file("b")] },
  { stage: "256", width: 256, height: 256, images: [file("c"), file("d")] },
];
const shown = () => {
  const view = makeView(fakeDocument(), (each) => `/view?filename=${each.filename}`);
  assert.equal(view.show({ imagen_view: STAGES }), true);
  return view;
};
const press = (view, text) =>
  find(view.element, "imagen-bar")[0]
    .children.find((each) => each.textContent === text)
    .listeners.click();

test("the loupe shows the place, at the zoom, whatever the shape of the picture", () => {
  assert.deepEqual(behindLoupe(0.5, 0.5, 1, 4), { width: 400, height: 400, x: 50, y: 50 });
  const wide = behindLoupe(0.25, 1, 2, 4);
  assert.deepEqual([wide.width, wide.height, wide.y], [800, 400, 100]);
  // CSS puts the point at x % of the picture on x % of the loupe: solve for what is in its middle.
  const middle = (wide.x / 100) * (8 - 1) + 0.5;
  assert.ok(Math.abs(middle / 8 - 0.25) < 1e-12);
});

test("the loupe stays on the picture", () => {
  assert.deepEqual([behindLoupe(0, 1, 1, 4).x, behindLoupe(0, 1, 1, 4).y], [0, 100]);
  assert.equal(behindLoupe(0.9, 0.9, 1, 1).x, 50);
});

test("the mark is the part that the loupe shows", () => {
  assert.deepEqual(markedPart(behindLoupe(0.5, 0, 1, 4)), { left: 37.5, top: 0, width: 25, height: 25 });
  assert.deepEqual(markedPart(behindLoupe(1, 1, 2, 2)), { left: 75, top: 50, width: 25, height: 50 });
});

test("a pointer's place is a part of the picture, wherever that stands", () => {
  assert.deepEqual(placeOf({ clientX: 60, clientY: 45 }, { left: 10, top: 20, width: 200, height: 100 }), [0.25, 0.25]);
  assert.deepEqual(placeOf({ clientX: -60, clientY: 945 }, { left: 10, top: 20, width: 200, height: 100 }), [0, 1]);
});

test("moving the pointer moves every loupe to the same place, and the mark", () => {
  const view = shown();
  const picture = find(view.element, "imagen-picture")[0];
  const places = () => find(view.element, "imagen-loupe").map((each) => each.style.backgroundPosition);
  assert.deepEqual(places(), ["50% 50%", "50% 50%"]);
  picture.listeners.pointermove({ clientX: 210, clientY: 20 });
  assert.deepEqual(places(), ["100% 0%", "100% 0%"]);
  const mark = find(view.element, "imagen-mark")[0];
  assert.deepEqual([mark.style.left, mark.style.top, mark.style.width], ["75%", "0%", "25%"]);
});

test("the largest stage is on top until another is chosen", () => {
  const view = shown();
  const top = () => find(view.element, "imagen-on-top").map((each) => each.src);
  assert.deepEqual(top(), ["/view?filename=c.png"]);
  press(view, "64");
  assert.deepEqual(top(), ["/view?filename=a.png"]);
});

test("the arrows step through the batch, in all stages at once", () => {
  const view = shown();
  press(view, "›");
  assert.deepEqual(
    find(view.element, "imagen-loupe").map((each) => each.style.backgroundImage),
    ['url("/view?filename=b.png")', 'url("/view?filename=d.png")'],
  );
  press(view, "›");
  assert.equal(find(view.element, "imagen-on-top")[0].src, "/view?filename=c.png");
});

test("the zoom goes round", () => {
  const view = shown();
  const size = () => find(view.element, "imagen-loupe")[0].style.backgroundSize;
  assert.equal(size(), "400% 400%");
  press(view, "× 4");
  assert.equal(size(), "800% 800%");
  press(view, "× 8");
  assert.equal(size(), "200% 200%");
});

test("small pictures keep their pixels, large ones are smoothed", () => {
  const view = makeView(fakeDocument(), String);
  const large = { stage: "1024", width: 1024, height: 1024, images: [file("e")] };
  view.show({ imagen_view: [STAGES[0], large] });
  assert.deepEqual(
    find(view.element, "imagen-loupe").map((each) => each.className.includes("imagen-crisp")),
    [true, false],
  );
});

test("other outputs leave the view as it is", () => {
  const view = makeView(fakeDocument(), String);
  assert.equal(view.show({ images: [] }), false);
  assert.equal(view.show(undefined), false);
});

const RERUN = STAGES.map((each) => ({ ...each, images: each.images.map(({ filename }) => file(`new_${filename}`)) }));

test("a pinned run stays left of the line when another has run, in the picture and under the loupe", () => {
  const view = shown();
  press(view, "pin");
  view.show({ imagen_view: RERUN });
  const picture = find(view.element, "imagen-picture")[0];
  const loupe = () => find(view.element, "imagen-loupe")[1].style.backgroundImage;
  assert.equal(find(view.element, "imagen-pinned")[0].src, "/view?filename=c.png");
  assert.equal(find(view.element, "imagen-on-top")[0].src, "/view?filename=new_c.png.png");
  picture.listeners.pointermove({ clientX: 20, clientY: 20 });
  assert.equal(loupe(), 'url("/view?filename=c.png")');
  const split = find(view.element, "imagen-split")[0];
  split.value = "0";
  split.listeners.input();
  assert.equal(picture.style["--split"], "0%");
  assert.equal(loupe(), 'url("/view?filename=new_c.png.png")');
  press(view, "pin");
  assert.equal(find(view.element, "imagen-pinned").length, 0);
});

test("keys that move the line do not move the loupe", () => {
  const view = shown();
  press(view, "pin");
  const picture = find(view.element, "imagen-picture")[0];
  const split = find(view.element, "imagen-split")[0];
  let passed = true;
  picture.listeners.keydown({ key: "ArrowLeft", target: split, preventDefault: () => (passed = false) });
  assert.ok(passed);
});

test("the view fills the screen, and comes back", () => {
  const document = fakeDocument();
  const view = makeView(document, String);
  view.show({ imagen_view: STAGES });
  view.element.requestFullscreen = () => (document.fullscreenElement = view.element);
  document.exitFullscreen = () => (document.fullscreenElement = null);
  const button = () => find(view.element, "imagen-whole")[0];
  button().listeners.click();
  assert.equal(document.fullscreenElement, view.element);
  button().listeners.click();
  assert.equal(document.fullscreenElement, null);
});
