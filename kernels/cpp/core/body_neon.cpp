// The neon body. Compiled with its own instruction set (CMakeLists.txt); called only where the machine has it.
#include "core/conv.h"
#include "core/pair.h"
#include "core/problem.h"
#include <arm_neon.h>

namespace lowbit {
namespace body_neon {
namespace {
#include "core/body_bits.h"
#include "core/vec_neon.h"
#include "core/body_quantize.h"
#include "core/body_store.h"
#include "core/body_fixed.h"
#include "core/body_integer.h"
#include "core/body_float.h"
#include "core/body_conv.h"
#include "core/body_pair.h"
#include "core/body_table.h"
}  // namespace

extern const Body kBody;
const Body kBody = {QuantizeRows, MultiplyRange, ExpandTile, ConvScale, ConvQuantize, ConvGather, Depthwise, PairRows, PairColumns,
                    Vec::kSeen8};

}  // namespace body_neon
}  // namespace lowbit
