// How the panels look; every name starts with "imagen-".

export const CSS = `
.imagen-panel {
  --s: #f2c14e; --c: #6db3f2;
  box-sizing: border-box; width: 100%; display: flex; flex-direction: column; gap: 4px;
  overflow: hidden; border-radius: 6px; padding: 4px 6px; background: #0006; color: #ddd;
  font: 11px/16px system-ui, sans-serif; user-select: none;
}
.imagen-chart { height: 100%; min-height: 24px; }
.imagen-chart.imagen-filled { min-height: 140px; }
.imagen-head { display: flex; gap: 10px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.imagen-head .imagen-s { color: var(--s); }
.imagen-head .imagen-clipped { color: var(--c); }
.imagen-head .imagen-step { margin-left: auto; opacity: .7; }
.imagen-chart:not(.imagen-filled) .imagen-step { margin: 0 auto; }
.imagen-chart:not(.imagen-filled) > :not(.imagen-head) { display: none; }
.imagen-plot { position: relative; flex: 1; min-height: 0; }
.imagen-plot svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.imagen-plot path { fill: none; vector-effect: non-scaling-stroke; }
.imagen-grid { stroke: #fff2; }
.imagen-line { stroke-width: 2; stroke-linejoin: round; }
.imagen-line.imagen-s { stroke: var(--s); }
.imagen-line.imagen-clipped { stroke: var(--c); }
.imagen-plot .imagen-band { opacity: .22; }
.imagen-plot .imagen-band.imagen-s { fill: var(--s); }
.imagen-plot .imagen-band.imagen-clipped { fill: var(--c); }
.imagen-cursor { stroke: #fff9; stroke-dasharray: 2 2; }
.imagen-end { position: absolute; font-size: 9px; line-height: 10px; text-shadow: 0 0 3px #000, 0 0 3px #000; }
.imagen-end.imagen-s { left: 2px; color: var(--s); }
.imagen-end.imagen-clipped { right: 2px; color: var(--c); }
.imagen-top { top: 1px; }
.imagen-low { bottom: 1px; }
.imagen-strip {
  width: 100%; aspect-ratio: var(--frames, 8); flex: none; max-height: 40px; border-radius: 3px;
  background: no-repeat center / contain; image-rendering: pixelated;
}
.imagen-view { height: 100%; min-height: 340px; }
.imagen-bar { display: flex; flex-wrap: wrap; gap: 4px; justify-content: center; flex: none; opacity: .95; }
.imagen-bar button {
  border: 1px solid #fff3; border-radius: 4px; padding: 0 8px; background: #0004; color: inherit;
  font: inherit; cursor: pointer;
}
.imagen-bar button:hover { background: #fff2; }
.imagen-bar button.imagen-pressed { background: #b48be4; border-color: #b48be4; color: #111; }
.imagen-room { flex: 1; min-height: 120px; container-type: size; display: grid; place-items: center; }
.imagen-picture {
  position: relative; width: min(100cqw, 100cqh * var(--aspect, 1)); aspect-ratio: var(--aspect, 1);
  cursor: crosshair; overflow: hidden; border-radius: 4px; touch-action: none;
}
.imagen-layer { position: absolute; inset: 0; width: 100%; height: 100%; visibility: hidden; }
.imagen-crisp { image-rendering: pixelated; }
.imagen-on-top { visibility: visible; }
.imagen-mark { position: absolute; box-sizing: border-box; border: 1px solid #fff; outline: 1px solid #000a; pointer-events: none; }
.imagen-loupes { flex: none; display: flex; gap: 4px; justify-content: center; }
.imagen-frame { position: relative; flex: 1; max-width: 180px; aspect-ratio: 1; }
.imagen-loupe { width: 100%; height: 100%; border-radius: 4px; background-repeat: no-repeat; }
.imagen-label {
  position: absolute; left: 3px; bottom: 3px; padding: 0 4px; border-radius: 3px; background: #000a;
  font-size: 9px; line-height: 13px; white-space: nowrap;
}
`;
