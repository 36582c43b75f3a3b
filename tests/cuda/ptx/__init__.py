"""An interpreter for the PTX that nvcc emits for the kernels: many blocks at once, in numpy."""
