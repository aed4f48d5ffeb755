"""A sweep on disk: the Zarr store, its description, its status, and the claims of writers."""
