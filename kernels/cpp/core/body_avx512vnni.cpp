// The avx512vnni body. Compiled with its own instruction set (CMakeLists.txt); called only where the machine has it.
#include <vector>

#include "core/conv.h"
#include "core/problem.h"
#include <immintrin.h>

namespace lowbit {
namespace body_avx512vnni {
namespace {
#include "core/body_bits.h"
#include "core/vec_avx512.h"
#include "core/body_quantize.h"
#include "core/body_store.h"
#include "core/body_integer.h"
#include "core/body_float.h"
#include "core/body_conv.h"
#include "core/body_direct.h"
#include "core/body_table.h"
}  // namespace

// Codes multiply twice as fast as pairs; with few of them, gathering a window costs more than that.
constexpr int64_t kFewInputs = 192;

extern const Body kBody;
const Body kBody = {QuantizeRows, MultiplyRange, ExpandTile, ConvScale, ConvQuantize, ConvGather, Depthwise, Vec::kSeen8,
                    DirectExpand, DirectRows, kFewInputs, 8, 2};

}  // namespace body_avx512vnni
}  // namespace lowbit
