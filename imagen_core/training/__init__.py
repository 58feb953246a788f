"""Training of a stage: loss, data, average of weights, and the loop. Nothing in the core imports it."""
