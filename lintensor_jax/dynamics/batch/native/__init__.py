"""Machine code for CPUs: a lane's step as LLVM instructions."""
