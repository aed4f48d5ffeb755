"""Machine code for CUDA: one lane a thread, checked against XLA before it is used."""
