// What a node of the pack has against its inputs, as a person reads it before a run.

import { isOwnKind } from "./nodes.js";

const CHECKED = "custom_validation_failed";
const TOLD = "exception_during_inner_validation"; // the only kind of an input whose toast shows the details

// Have what a server answers to a prompt reworded before the frontend reads it.
export function rewordRefusals(api) {
  const queue = api.queuePrompt;
  if (!queue) return;
  const refuse = (error) => {
    reword(error?.response);
    throw error;
  };
  // without await, so that the error's stack names this file nowhere
  api.queuePrompt = function (...given) {
    return queue.apply(this, given).then(reword, refuse);
  };
}

function reword(answer) {
  for (const node of Object.values(answer?.node_errors ?? {}))
    if (isOwnKind(node.class_type)) node.errors = plain(node.errors);
  return answer;
}

// ComfyUI names each argument of the function that checks, so that one fault stands there once for each, under
// names that are no input's. Ours begin with the input's name: "stage: expected ...".
function plain(errors) {
  const told = new Set();
  return errors.filter((error) => {
    if (error.type !== CHECKED) return true;
    const argument = error.extra_info?.input_name ?? "";
    const text = String(error.details).replace(`${argument} - `, "");
    const [, input, reason] = /^(\w+): (.*)$/s.exec(text) ?? [null, argument, text];
    Object.assign(error, { type: TOLD, message: input, details: reason });
    error.extra_info = { ...error.extra_info, input_name: input };
    return !told.has(text) && told.add(text);
  });
}
