"""From the step of one lane to steps of many: entry by entry, or with the lanes last."""
