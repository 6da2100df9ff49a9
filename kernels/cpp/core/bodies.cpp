// The table from instruction set to body. A body that was not compiled for this architecture falls to the scalar one;
// IsaSupported() says so first, so this is not reached in practice.
#include "core/problem.h"

namespace lowbit {
namespace body_scalar { extern const Body kBody; }
#if defined(__x86_64__)
namespace body_amx { extern const Body kBody; }
namespace body_avx512vnni { extern const Body kBody; }
namespace body_avxvnni { extern const Body kBody; }
namespace body_avx2 { extern const Body kBody; }
#endif
#if defined(__aarch64__)
namespace body_neon { extern const Body kBody; }
#endif

const Body& BodyOf(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAmx:
      return body_amx::kBody;
    case Isa::kAvx512Vnni:
      return body_avx512vnni::kBody;
    case Isa::kAvxVnni:
      return body_avxvnni::kBody;
    case Isa::kAvx2:
      return body_avx2::kBody;
#endif
#if defined(__aarch64__)
    case Isa::kNeon:
      return body_neon::kBody;
#endif
    default:
      return body_scalar::kBody;
  }
}

}  // namespace lowbit
