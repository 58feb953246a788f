// How the panels look; every name starts with "imagen-".

// Colours come from the theme alone: text on a widget's ground. Lines are mixed with the text's colour, so that
// they are darker on light ground and lighter on dark.

export const CSS = `
.imagen-panel {
  --text: var(--input-text, #ddd);
  --ground: var(--comfy-input-bg, #222);
  --s: color-mix(in srgb, #e0910a 72%, var(--text));
  --c: color-mix(in srgb, #2f8fe8 72%, var(--text));
  --faint: color-mix(in srgb, var(--text) 20%, transparent);
  --pressed: color-mix(in srgb, var(--text) 78%, var(--ground));
  box-sizing: border-box; width: 100%; display: flex; flex-direction: column; gap: 4px;
  overflow: hidden; border-radius: 6px; padding: 4px 6px; background: var(--ground); color: var(--text);
  font: 11px/16px system-ui, sans-serif; user-select: none;
}
.imagen-panel:not(.imagen-filled) { background: none; justify-content: center; overflow: visible; }
.imagen-panel:not(.imagen-filled) > :not(.imagen-hint):not(.imagen-bar) { display: none; }
.imagen-chart { height: 100%; min-height: 24px; }
.imagen-chart.imagen-filled { min-height: 164px; max-height: 220px; }
.imagen-hint { text-align: center; opacity: .75; flex: none; }
.imagen-hint:empty { display: none; }
.imagen-warning { opacity: 1; color: color-mix(in srgb, var(--error-text, #f44) 70%, var(--text)); }
.imagen-head { display: flex; gap: 10px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.imagen-head .imagen-s { color: var(--s); }
.imagen-head .imagen-clipped { color: var(--c); }
.imagen-head .imagen-step { margin-left: auto; opacity: .75; }
.imagen-plot { position: relative; flex: 1; min-height: 0; margin: 4px 34px; }
.imagen-plot svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.imagen-plot path { fill: none; vector-effect: non-scaling-stroke; }
.imagen-grid { stroke: var(--faint); }
.imagen-line { stroke-width: 2; stroke-linejoin: round; }
.imagen-line.imagen-s { stroke: var(--s); }
.imagen-line.imagen-clipped { stroke: var(--c); }
.imagen-plot .imagen-band { opacity: .22; }
.imagen-plot .imagen-band.imagen-s { fill: var(--s); }
.imagen-plot .imagen-band.imagen-clipped { fill: var(--c); }
.imagen-cursor { stroke: var(--text); stroke-dasharray: 2 2; opacity: .6; }
.imagen-end { position: absolute; font-size: 9px; line-height: 10px; white-space: nowrap; }
.imagen-end.imagen-s { right: calc(100% + 4px); color: var(--s); }
.imagen-end.imagen-clipped { left: calc(100% + 4px); color: var(--c); }
.imagen-top { top: -3px; }
.imagen-low { bottom: -3px; }
.imagen-strip {
  width: 100%; aspect-ratio: var(--frames, 8); flex: none; max-height: 40px; border-radius: 3px;
  background: no-repeat center / contain; image-rendering: pixelated;
}
.imagen-done { text-align: center; opacity: .75; flex: none; font-variant-numeric: tabular-nums; }
.imagen-done:empty { display: none; }
.imagen-reading { height: 100%; min-height: 24px; overflow-y: auto; }
.imagen-outcome { height: 100%; min-height: 24px; overflow-y: auto; }
.imagen-text { flex: none; overflow-wrap: anywhere; user-select: text; text-align: center; }
.imagen-warning:empty { display: none; }
.imagen-reading .imagen-warning { text-align: center; overflow-wrap: anywhere; }
.imagen-view { height: 100%; min-height: 24px; }
.imagen-view.imagen-filled { min-height: 340px; }
[data-node-id]:is(:has(.imagen-view.imagen-filled:not(.imagen-running)), [data-imagen-stopped]) .image-preview,
[data-node-id]:is(:has(.imagen-view.imagen-filled:not(.imagen-running), .imagen-outcome.imagen-filled), [data-imagen-stopped]) :is(
  img.object-contain.contain-size, img.object-contain.contain-size + div,
  div:has(> img.object-contain.object-center), div:has(> img.object-contain.object-center) + div
),
[data-node-id]:has(.imagen-chart) img.object-contain.contain-size + div,
[data-node-id]:has(.imagen-chart) .image-preview > [role="img"] + div,
[data-node-id]:has(.imagen-chart) div:has(> img.object-contain.object-center) + div { display: none; }
.imagen-bar { display: flex; flex-wrap: wrap; gap: 4px; justify-content: center; flex: none; }
.imagen-view:not(.imagen-filled) .imagen-bar { opacity: .75; text-align: center; }
.imagen-bar button {
  border: 1px solid var(--faint); border-radius: 4px; padding: 0 8px; background: none; color: inherit;
  font: inherit; cursor: pointer;
}
.imagen-bar button:hover { background: var(--faint); }
.imagen-bar button:focus-visible, .imagen-picture:focus-visible { outline: 2px solid var(--c); outline-offset: 1px; }
.imagen-bar button.imagen-pressed { background: var(--pressed); border-color: var(--pressed); color: var(--ground); }
.imagen-whole svg { width: 10px; height: 10px; vertical-align: -1px; fill: none; stroke: currentColor; stroke-width: 1.5; }
.imagen-room { flex: 1; min-height: 120px; container-type: size; display: grid; place-items: center; }
.imagen-picture {
  position: relative; width: min(100cqw, 100cqh * var(--aspect, 1)); aspect-ratio: var(--aspect, 1);
  cursor: crosshair; overflow: hidden; border-radius: 4px; touch-action: none;
}
.imagen-layer { position: absolute; inset: 0; width: 100%; height: 100%; visibility: hidden; }
.imagen-crisp { image-rendering: pixelated; }
.imagen-on-top { visibility: visible; }
.imagen-mark { position: absolute; box-sizing: border-box; border: 1px solid #fff; outline: 1px solid #000a; pointer-events: none; }
.imagen-pinned { clip-path: inset(0 calc(100% - var(--split)) 0 0); }
.imagen-divider { position: absolute; inset: 0 auto 0 calc(var(--split) - 1px); width: 2px; background: var(--text); outline: 1px solid var(--ground); pointer-events: none; }
.imagen-split { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; appearance: none; cursor: ew-resize; }
.imagen-split::-webkit-slider-thumb { appearance: none; width: 1px; }
.imagen-split::-moz-range-thumb { width: 1px; border: 0; }
.imagen-picture:has(.imagen-split:focus-visible) .imagen-divider { outline: 2px solid var(--c); }
.imagen-loupes { flex: none; display: flex; gap: 4px; justify-content: center; }
.imagen-frame { position: relative; flex: 1; max-width: 110px; aspect-ratio: 1; }
.imagen-loupe { width: 100%; height: 100%; border-radius: 4px; background-repeat: no-repeat; }
.imagen-label {
  position: absolute; left: 3px; bottom: 3px; padding: 0 4px; border-radius: 3px; opacity: .9;
  background: var(--ground); color: var(--text); font-size: 9px; line-height: 13px; white-space: nowrap;
}
.imagen-picture .imagen-label { top: 3px; bottom: auto; pointer-events: none; }
.imagen-picture .imagen-now { left: auto; right: 3px; }
.imagen-view:fullscreen { padding: 16px; font-size: 14px; }
.imagen-view:fullscreen .imagen-frame { max-width: 24vh; }
`;
