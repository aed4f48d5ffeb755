"""A sweep on disk: the Zarr store, its description, status, and who writes to it."""
