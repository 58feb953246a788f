// How large a node's picture will be, as far as the graph tells before a run; and what to warn of then.

const NEAR = [40, 112]; // pixels of the longer side that a base stage still draws well
const HUGE = 2048 * 2048; // pixels
const DEEP = 50; // nodes
const LOADER = "ImagenLoadCascade";
const BUNDLED = "emoji";
const FACTOR = 4; // of the bundled SR stages; another stage's stands in its file

const value = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;

function before(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : (node.getInputNode?.(slot) ?? null);
}

// [width, height] of what a node puts out; null where only a run will tell
export function sizeOf(node) {
  return sizeBy(node, (sr) => (originOf(sr)?.cascade === BUNDLED ? FACTOR : NaN));
}

// The same, where an SR node enlarges by factorOf(node), NaN = not known
function sizeBy(node, factorOf, depth = DEEP) {
  if (!node || !depth) return null;
  const kind = node.comfyClass ?? node.type;
  if (node.mode === 4) return sizeBy(before(node, "image"), factorOf, depth - 1); // bypassed
  if (kind === "ImagenBaseSample") {
    const given = before(node, "image");
    return given ? sizeBy(given, factorOf, depth - 1) : [value(node, "width"), value(node, "height")];
  }
  if (kind === "ImagenSR256" || kind === "ImagenSR1024") {
    const size = sizeBy(before(node, "image"), factorOf, depth - 1)?.map((side) => factorOf(node) * side);
    return size?.every((side) => side > 0) ? size : null;
  }
  if (kind === "ImageScale" && value(node, "width") && value(node, "height"))
    return [value(node, "width"), value(node, "height")];
  const loaded = kind === "LoadImage" ? node.imgs?.[0] : null;
  return loaded?.naturalWidth ? [loaded.naturalWidth, loaded.naturalHeight] : null;
}

// What to warn of before a run; "" = nothing
// say   from texts.js
export function warningOf(node, say) {
  return ofStage(node, say) || ofSize(node, say) || ofStrength(node, say);
}

// The cascade that a stage comes from, through LoRAs, and by which output; undefined where it comes from elsewhere.
function originOf(node, depth = DEEP) {
  const slot = node.inputs?.findIndex((input) => input.name === "stage") ?? -1;
  const source = before(node, "stage");
  if (source?.type === LOADER) {
    const { outputs } = source;
    return { cascade: value(source, "cascade"), place: outputs[node.getInputLink(slot).origin_slot], places: outputs };
  }
  return source?.type === "ImagenLoadLoRA" && depth ? originOf(source, depth - 1) : undefined;
}

// A run with a stage in the place of another kind is refused; what to do stands two clicks deep in ComfyUI.
function ofStage(node, say) {
  const { place, places } = originOf(node) ?? {};
  const isBase = (node.comfyClass ?? node.type) === "ImagenBaseSample";
  if (!place || (place.name === "base") === isBase) return "";
  const wanted = (isBase ? ["base"] : ["sr256", "sr1024"]).map((name) => labelOf(places, name)).join(", ");
  return say.wrongStage(labelOf(node.inputs, "stage"), labelOf(places, place.name), wanted);
}

// What a person sees a slot or a widget called, in the language of the frontend.
function labelOf(things, name) {
  const thing = things?.find((each) => each.name === name);
  return thing?.label ?? thing?.localized_name ?? name;
}

// A picture to start from is connected, and by the strength that is the default nothing of it counts.
function ofStrength(node, say) {
  const name = (node.comfyClass ?? node.type) === "ImagenBaseSample" ? "image" : "original";
  return value(node, "strength") === 1 && before(node, name) && !before(node, "mask")
    ? say.allChanged(labelOf(node.widgets, "strength"), labelOf(node.inputs, name))
    : "";
}

// No SR stage that people use enlarges more than the bundled ones.
function ofSize(node, say) {
  const size = sizeBy(node, () => FACTOR);
  if (!size?.every((side) => side > 0)) return "";
  const shown = `${size[0]} x ${size[1]}`;
  if ((node.comfyClass ?? node.type) === "ImagenBaseSample") {
    const longer = Math.max(...size);
    return longer < NEAR[0] || longer > NEAR[1] ? say.farFrom64(shown) : "";
  }
  return size[0] * size[1] > HUGE && !value(node, "tile") ? say.huge(shown, labelOf(node.widgets, "tile")) : "";
}
