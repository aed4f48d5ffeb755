"""Running a sweep: the worker that computes chunks, and the order of the work."""
