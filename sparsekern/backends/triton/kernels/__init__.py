"""The Triton kernels, one file a layout. Importing one imports Triton, so nothing does before the first product."""
