// The kernels of convolutions, and what of the others they build on. Included inside an ISA region,
// once for each ISA namespace.
// clang-format off: each builds on the ones before it
#include "cpu/numbers.inl.h"
#include "cpu/epilogue.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/panel.inl.h"
#include "cpu/single_rows.inl.h"
#include "cpu/single_weights.inl.h"
#include "cpu/conv_planes.inl.h"
#include "cpu/conv_output.inl.h"
#include "cpu/conv_panels.inl.h"
#include "cpu/conv_blocks.inl.h"
#include "cpu/conv_outputs.inl.h"
#include "cpu/conv_single.inl.h"
#include "cpu/conv_driver.inl.h"
// clang-format on
