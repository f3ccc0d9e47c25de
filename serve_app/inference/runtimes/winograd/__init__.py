"""The runtime of our own for CPUs: convolutions compiled for the CPU's vector units."""
