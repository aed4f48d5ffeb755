"""Machine code for CUDA: one thread for each lane, checked against XLA before it is used."""
