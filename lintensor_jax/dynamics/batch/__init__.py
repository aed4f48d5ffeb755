"""Many flows at once: `batched_flow`, its stepper, and the programs that run a step."""
