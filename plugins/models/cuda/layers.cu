// The layers' kernels, in one image. sm_80 and later.
#include "elements.cuh"
#include "lines.cuh"
#include "sums.cuh"
