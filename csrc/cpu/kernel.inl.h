// The families of kernels. Included inside an ISA region, once for each ISA namespace.
// clang-format off: each builds on the ones before it
#include "cpu/numbers.inl.h"
#include "cpu/epilogue.inl.h"
#include "cpu/driver.inl.h"
#include "cpu/panel.inl.h"
#include "cpu/outputs.inl.h"
#include "cpu/lines.inl.h"
#include "cpu/tokens.inl.h"
#include "cpu/vector.inl.h"
#include "cpu/unwidened_blocks.inl.h"
#include "cpu/picks.inl.h"
#include "cpu/rows.inl.h"
#include "cpu/single_rows.inl.h"
#include "cpu/single.inl.h"
#include "cpu/grad_transpose.inl.h"
#include "cpu/grad_input.inl.h"
#include "cpu/grad_values.inl.h"
// clang-format on
