"""The execution of a sweep: computing chunks, on devices and in clusters; reopening a store."""
