"""Native CPU kernels in C++ behind XLA's FFI, and the physical order of weights that they read."""
