"""The native step: a pass of a decoder in C++, for CPUs."""
