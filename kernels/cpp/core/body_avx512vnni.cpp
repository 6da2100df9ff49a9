// The avx512vnni body. Compiled with its own instruction set (CMakeLists.txt); called only where the machine has it.
#include <optional>
#include <vector>

#include "core/conv.h"
#include "core/pair.h"
#include "core/problem.h"
#include <immintrin.h>

namespace lowbit {
namespace body_avx512vnni {
namespace {
#include "core/body_bits.h"
#include "core/vec_avx512.h"
#include "core/body_quantize.h"
#include "core/body_store.h"
#include "core/body_fixed.h"
#include "core/body_integer.h"
#include "core/body_float.h"
#include "core/body_conv.h"
#include "core/body_depthwise.h"
#include "core/body_direct.h"
#include "core/body_pair.h"
#include "core/body_table.h"
}  // namespace

extern const Body kBody;
const Body kBody = {QuantizeRows, MultiplyRange, ExpandTile, ConvScale, ConvQuantize, ConvGather, Depthwise, PairRows, PairColumns,
                    Vec::kSeen8,
                    DirectExpand, DirectRows, Vec::kDirectInputs, 8, 2, DepthwiseCodes};

}  // namespace body_avx512vnni
}  // namespace lowbit
