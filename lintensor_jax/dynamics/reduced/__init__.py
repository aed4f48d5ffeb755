"""Flows in fewer unknowns: the mirror flow in the dual variables, the end-to-end flow."""
