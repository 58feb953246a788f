// The only file that imports ComfyUI's app; everything else takes what it needs as arguments.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { makeExtension } from "./lib/extension.js";

app.registerExtension(makeExtension(app, api, window));
