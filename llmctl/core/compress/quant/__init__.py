"""Weights in few bits: grids, methods that choose the codes, formats of files, kernels that read them."""
