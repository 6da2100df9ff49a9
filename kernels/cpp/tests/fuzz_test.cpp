// Calls that nobody should make: random matmuls and convolutions, most of them spoilt in one to three places. Each is
// either refused or runs; under the address sanitizer, with every array in an allocation of exactly its size, a call
// that runs has read and written nothing else. Calls that are not spoilt must run, so that the check cannot pass by
// refusing everything.  fuzz_test [calls] [seed]
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/calls.h"
#include "core/conv.h"
#include "core/pair.h"
#include "core/isa.h"
#include "core/matmul.h"

using namespace lowbit;

namespace {

std::mt19937_64 engine;
int64_t Uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
bool Chance(int percent) { return Uniform(0, 99) < percent; }

const int64_t kOdd[] = {-(int64_t{1} << 62), -(int64_t{1} << 31), -1, 0, 1, 2, 3, 5, 15, 16, 17, 64, 127, 128, 255, 256,
                        (int64_t{1} << 31) - 1, int64_t{1} << 31, (int64_t{1} << 32) + 1, int64_t{1} << 61, INT64_MAX,
                        INT64_MIN};
int64_t Odd() { return kOdd[Uniform(0, std::size(kOdd) - 1)]; }
const Type kTypes[] = {Type::kF32, Type::kBF16, Type::kS8, Type::kU8, Type::kS16, Type::kS32, Type::kOther};

struct Unmap {
  int64_t bytes = 0;
  void operator()(void* at) const { munmap(at, bytes); }
};

// An array under construction: dimensions can be spoilt before it is allocated.
struct Array {
  View* view;
  std::vector<int64_t> dims;
  std::unique_ptr<uint8_t[]> data;
  std::unique_ptr<void, Unmap> mapped;
  uint8_t nothing = 0;
  int64_t bytes = 0;

  void Allocate() {
    view->dims = dims.data(), view->rank = dims.size();
    bytes = SizeOf(view->type);
    for (int64_t each : dims) bytes = each < 0 ? 0 : Times(bytes, each);
    if (bytes > 1 << 24) {  // pages that are there when they are touched; or a size that no caller has, seen where it is read
      if (bytes <= int64_t{1} << 40) {
        mapped = {mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), Unmap{bytes}};
      }
      view->data = mapped == nullptr ? &nothing : mapped.get();
      bytes = 0;
      return;
    }
    data.reset(new uint8_t[bytes]);
    for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(engine());
    view->data = data.get();
  }
};

struct Attack {
  std::vector<Array> arrays;
  std::vector<int64_t*> integers;
  std::vector<size_t> batch;
  std::string done;

  void Add(View* view, Type type, std::vector<int64_t> dims, bool result) {
    std::vector<int64_t> all;
    for (size_t each : batch) all.push_back(result || Chance(50) ? static_cast<int64_t>(each) : 1);
    all.insert(all.end(), dims.begin(), dims.end());
    view->type = type;
    arrays.emplace_back();
    arrays.back().view = view, arrays.back().dims = all;
  }

  void Spoil() {
    if (Chance(60)) {
      Array& a = arrays[Uniform(0, arrays.size() - 1)];
      const int64_t kind = Uniform(0, 9);
      if (kind == 0) a.view->type = kTypes[Uniform(0, std::size(kTypes) - 1)];
      if (kind == 1) a.dims.insert(a.dims.begin() + Uniform(0, a.dims.size()), Uniform(0, 2));
      if (kind == 2 && !a.dims.empty()) a.dims.erase(a.dims.begin() + Uniform(0, a.dims.size() - 1));
      if (kind > 2 && !a.dims.empty()) {
        int64_t& d = a.dims[Uniform(0, a.dims.size() - 1)];
        d = kind < 6 && IsExtent(d) ? d + Uniform(0, 1) * 2 - 1 : kind < 8 ? d / 2 : Odd();
      }
    } else {
      int64_t& n = *integers[Uniform(0, integers.size() - 1)];
      n = Chance(50) && IsExtent(n) ? n + Uniform(-2, 2) : Odd();
    }
  }

  void Allocate() {
    for (Array& a : arrays) a.Allocate();
  }
  void SetZero(const View& fixed, int64_t tiles, int32_t value) {  // of x, among the numbers of fixed point
    for (Array& a : arrays) {
      if (a.view != &fixed || fixed.type != Type::kS32) continue;
      for (int64_t i = 0; i < a.bytes / 4; ++i) {
        if (tiles > 0 && i / (tiles * kLanes) % kFixedRows == kInputZero) std::memcpy(a.data.get() + 4 * i, &value, 4);
      }
    }
  }
  void Set(const View& view, int32_t value) {  // of a zero point
    for (Array& a : arrays) {
      if (a.view != &view || view.type != Type::kS32) continue;
      for (int64_t i = 0; i < a.bytes / 4; ++i) std::memcpy(a.data.get() + 4 * i, &value, 4);
    }
  }
};

int64_t AnyIsa() {
  for (;;) {
    const int64_t isa = Uniform(-1, kIsaCount - 1);
    if (isa < 0 || IsaSupported(static_cast<Isa>(isa))) return isa;
  }
}

void AddTail(Attack* a, TailCall* t, std::vector<int64_t>* kinds, int64_t tiles, std::vector<int64_t> shape,
             std::vector<int64_t> empty, std::vector<int64_t> rows, std::vector<int64_t> no_rows, bool fixed) {
  kinds->resize(fixed ? 0 : Uniform(0, 3));
  int64_t rows_of_steps = 0;
  bool residual = false;
  for (int64_t& each : *kinds) {
    each = Uniform(0, residual ? kResidualKind - 1 : kResidualKind), a->integers.push_back(&each);
    residual |= each == kResidualKind;
    rows_of_steps += each < kStepKinds;
  }
  static const float numbers[] = {0.5f, -2.0f, 6.0f};
  t->kinds = kinds->data(), t->kinds_count = kinds->size();
  t->numbers = numbers, t->numbers_count = kinds->size();
  if (!fixed && Chance(50)) t->next_lo = 0, t->next_hi = 255;
  const bool joins = fixed && Chance(50);
  t->rounding = Uniform(0, kRoundings - 1), t->join = Uniform(0, kJoins - 1);
  a->integers.insert(a->integers.end(), {&t->next_lo, &t->next_hi, &t->rounding, &t->join});
  const bool y = !fixed && Chance(70), codes = fixed || Chance(50);
  const bool bf16 = kinds->empty() && !codes && Chance(30);
  a->Add(&t->steps, Type::kF32, {rows_of_steps, tiles, kLanes}, false);
  a->Add(&t->next_scale, Type::kF32, {1}, false);
  a->Add(&t->next_zero, Type::kS32, {1}, false);
  a->Add(&t->y, bf16 ? Type::kBF16 : Type::kF32, y ? shape : empty, true);
  a->Add(&t->codes, t->next_hi > 127 ? Type::kU8 : Type::kS8, codes ? shape : empty, true);
  a->Add(&t->marks, Type::kF32, codes && !fixed ? rows : no_rows, true);
  a->Add(&t->fixed, Type::kS32, {fixed ? int64_t{kFixedRows} : 0, tiles, kLanes}, false);
  a->Add(&t->other, residual ? Type::kF32 : Type::kS8, joins || (residual && (y || codes)) ? shape : empty, false);
  a->Add(&t->joins, Type::kS32, {joins ? int64_t{kJoinNumbers} : 0}, false);
}

std::string OneMatmul(Pool* pool, bool* spoilt) {
  MatmulCall c;
  Attack a;
  for (int64_t i = Uniform(0, 2); i > 0; --i) a.batch.push_back(Uniform(Chance(10) ? 0 : 1, 3));
  Matmul p;
  p.rows = Uniform(Chance(10) ? 0 : 1, 35), p.out = Uniform(Chance(5) ? 0 : 1, 50), p.length = Uniform(1, 90);
  p.bits = 1 << Uniform(1, 3), p.group = Chance(50) ? p.length : Uniform(1, p.length);
  p.groups = CeilDivide(p.length, p.group), p.group_blocks = CeilDivide(p.group, p.span());
  p.blocks = (p.groups - 1) * p.group_blocks + CeilDivide(p.length - (p.groups - 1) * p.group, p.span());
  p.activation = static_cast<Activation>(Uniform(0, 2));
  const bool is_static = p.activation == Activation::kStatic, is_float = p.activation == Activation::kFloat;
  const bool bytes = is_static && Chance(40), wide = is_static && Chance(40);
  p.x_type = bytes ? (wide ? Type::kU8 : Type::kS8) : Chance(70) ? Type::kF32 : Type::kBF16;
  c.x_columns = Uniform(0, 1), c.y_columns = Uniform(0, 1), p.x_columns = c.x_columns != 0;
  const bool fixed = is_static && !wide && p.groups == 1 && Chance(60);
  const bool book = is_float && Chance(40), factors = !fixed && !is_float && p.bits < 8 && Chance(30);
  const bool zeros = !book && !factors && Chance(40);
  const std::vector<int64_t> table = {p.tiles(), p.groups, kLanes};
  c.activation = static_cast<int64_t>(p.activation), c.bits = p.bits, c.offset = Chance(50) ? 0 : 1 << (p.bits - 1);
  if (wide) c.lo = 0, c.hi = 255;
  c.length = p.length, c.group = p.group, c.isa = AnyIsa(), c.threads = Uniform(0, 3);
  c.keeps_nan = Uniform(0, 1);
  a.integers = {&c.activation, &c.lo, &c.hi, &c.bits, &c.offset, &c.length, &c.group, &c.x_columns, &c.y_columns,
                &c.keeps_nan, &c.isa, &c.threads};
  auto columns = [](bool swap, int64_t m, int64_t n) {
    return swap ? std::vector<int64_t>{n, m} : std::vector<int64_t>{m, n};
  };
  a.Add(&c.x, p.x_type, columns(c.x_columns != 0, p.rows, p.length), false);
  a.Add(&c.x_scale, Type::kF32, {!is_static ? 0 : Chance(50) ? 1 : p.rows}, false);
  a.Add(&c.x_zero, Type::kS32, {1}, false);
  a.Add(&c.blocks, Type::kU8, {p.tiles(), p.blocks, kBlockBytes}, false);
  a.Add(&c.scales, Chance(60) ? Type::kF32 : Type::kBF16, factors ? std::vector<int64_t>{p.tiles(), 1, kLanes} : table,
        false);
  a.Add(&c.zeros, Type::kS16, zeros ? table : std::vector<int64_t>{0}, false);
  a.Add(&c.column_sums, Chance(50) ? Type::kS16 : Type::kS32,
        is_static || Chance(50) ? table : std::vector<int64_t>{0}, false);
  a.Add(&c.codebook, Type::kF32, {book ? int64_t{1} << p.bits : 0}, false);
  a.Add(&c.factors, Type::kS8, factors ? table : std::vector<int64_t>{0}, false);
  std::vector<int64_t> kinds;
  const bool flip = c.y_columns != 0;
  AddTail(&a, &c.tail, &kinds, p.tiles(), columns(flip, p.rows, p.out), columns(flip, 0, p.out), {p.rows}, {0}, fixed);
  a.Add(&c.scratch, Type::kU8, {ScratchBytes(p)}, true);
  for (int64_t i = *spoilt ? Uniform(1, 3) : 0; i > 0; --i) a.Spoil();
  a.Allocate();
  if (!*spoilt || Chance(90)) a.SetZero(c.tail.fixed, p.tiles(), static_cast<int32_t>(Uniform(-128, 127)));
  if (!*spoilt || Chance(90)) a.Set(c.x_zero, static_cast<int32_t>(Uniform(-5, 5)));
  if (!*spoilt || Chance(90)) a.Set(c.tail.next_zero, static_cast<int32_t>(Uniform(-5, 5)));
  const char* problem = Call(c, pool);
  return problem == nullptr ? "" : problem;
}

std::string OneConv(Pool* pool, bool* spoilt) {
  ConvCall c;
  Attack a;
  Conv s;
  s.groups = Chance(50) ? 1 : Uniform(1, 4);
  s.depthwise = Chance(30);
  s.batch = Uniform(Chance(10) ? 0 : 1, 3), s.height = Uniform(0, 7), s.width = Uniform(0, 7);
  s.channels = s.groups * Uniform(1, 9), s.out = s.groups * Uniform(Chance(5) ? 0 : 1, 20);
  if (s.depthwise) s.groups = s.out = s.channels;
  s.bits = s.depthwise ? 8 : 1 << Uniform(1, 3);
  int64_t kernel[2], stride[2], dilation[2], padding[2];
  for (int i = 0; i < 2; ++i) {
    kernel[i] = Uniform(1, 4), stride[i] = Uniform(1, 3), dilation[i] = Uniform(1, 3), padding[i] = Uniform(0, 5);
    a.integers.insert(a.integers.end(), {&kernel[i], &stride[i], &dilation[i], &padding[i]});
  }
  s.kernel_height = kernel[0], s.kernel_width = kernel[1], s.stride_height = stride[0], s.stride_width = stride[1];
  s.dilation_height = dilation[0], s.dilation_width = dilation[1];
  s.out_height = Uniform(Chance(5) ? 0 : 1, 8), s.out_width = Uniform(Chance(5) ? 0 : 1, 8);
  const bool wide = Chance(40), bytes = Chance(40), fixed = !wide && Chance(40);
  if (wide) c.lo = 0, c.hi = 255;
  c.keeps_nan = Uniform(0, 1), c.dynamic = !wide && !bytes && !fixed && Chance(40);
  c.kernel = kernel, c.stride = stride, c.dilation = dilation, c.padding = padding;
  c.kernel_rank = c.stride_rank = c.dilation_rank = c.padding_rank = 2;
  c.groups = s.groups, c.depthwise = s.depthwise, c.bits = s.bits, c.offset = Chance(50) ? 0 : 1 << (s.bits - 1);
  c.x_channels_first = Uniform(0, 1), c.y_channels_first = Uniform(0, 1), c.isa = AnyIsa(), c.threads = Uniform(0, 3);
  a.integers.insert(a.integers.end(), {&c.groups, &c.depthwise, &c.lo, &c.hi, &c.bits, &c.offset, &c.x_channels_first,
                                       &c.y_channels_first, &c.keeps_nan, &c.dynamic, &c.isa, &c.threads});
  auto order = [](bool first, int64_t b, int64_t h, int64_t w, int64_t n) {
    return first ? std::vector<int64_t>{b, n, h, w} : std::vector<int64_t>{b, h, w, n};
  };
  const int64_t tiles = s.depthwise ? CeilDivide(s.out, kLanes) : s.groups * s.group_tiles();
  a.Add(&c.x, bytes ? (wide ? Type::kU8 : Type::kS8) : Chance(70) ? Type::kF32 : Type::kBF16,
        order(c.x_channels_first != 0, s.batch, s.height, s.width, s.channels), false);
  a.Add(&c.x_scale, Type::kF32, Chance(60) ? std::vector<int64_t>{1} : std::vector<int64_t>{s.batch, s.height, s.width},
        false);
  a.Add(&c.x_zero, Type::kS32, {1}, false);
  a.Add(&c.weights, Type::kU8, s.depthwise ? std::vector<int64_t>{s.taps_count(), s.channels}
                                           : std::vector<int64_t>{tiles, s.blocks(), kBlockBytes}, false);
  a.Add(&c.scales, Type::kF32, {tiles, kLanes}, false);
  a.Add(&c.sums, Type::kS32, {tiles, kLanes}, false);
  std::vector<int64_t> kinds;
  const bool first = c.y_channels_first != 0;
  AddTail(&a, &c.tail, &kinds, tiles, order(first, s.batch, s.out_height, s.out_width, s.out),
          order(first, 0, s.out_height, s.out_width, s.out), {s.batch, s.out_height, s.out_width}, {0, 0, 0}, fixed);
  a.Add(&c.scratch, Type::kU8, {ScratchBytes(s)}, true);
  for (int64_t i = *spoilt ? Uniform(1, 3) : 0; i > 0; --i) a.Spoil();
  a.Allocate();
  if (!*spoilt || Chance(90)) a.SetZero(c.tail.fixed, tiles, static_cast<int32_t>(Uniform(-128, 127)));
  if (!*spoilt || Chance(90)) a.Set(c.x_zero, static_cast<int32_t>(c.dynamic != 0 ? 0 : Uniform(0, 5)));
  if (!*spoilt || Chance(90)) a.Set(c.tail.next_zero, static_cast<int32_t>(Uniform(-5, 5)));
  const char* problem = Call(c, pool);
  return problem == nullptr ? "" : problem;
}

std::string OnePair(Pool* pool, bool* spoilt) {
  PairCall c;
  Attack a;
  const int64_t outer = Uniform(Chance(10) ? 0 : 1, 3), inner = Uniform(1, 3), rows = Uniform(1, 20), out = Uniform(1, 40);
  c.length = Uniform(1, 70);
  const bool across = Chance(50);  // of w: along N side by side
  c.x_strides[0] = rows * inner * c.length, c.x_strides[1] = c.length, c.x_strides[2] = inner * c.length;
  c.w_strides[0] = inner * out * c.length, c.w_strides[1] = out * c.length;
  c.w_strides[2] = across ? 1 : c.length, c.w_strides[3] = across ? out : 1;
  c.x_dynamic = Uniform(0, 1), c.w_dynamic = Uniform(0, 1), c.keeps_nan = Uniform(0, 1);
  if (c.x_dynamic == 0 && Chance(40)) c.lo = 0, c.hi = 255;
  if (c.w_dynamic == 0 && Chance(40)) c.w_lo = 0, c.w_hi = 255;
  c.isa = AnyIsa(), c.threads = Uniform(0, 3);
  a.integers.insert(a.integers.end(), {&c.length, &c.x_strides[0], &c.x_strides[1], &c.x_strides[2], &c.w_strides[0],
                                       &c.w_strides[1], &c.w_strides[2], &c.w_strides[3], &c.lo, &c.hi, &c.w_lo, &c.w_hi,
                                       &c.x_dynamic, &c.w_dynamic, &c.keeps_nan, &c.isa, &c.threads});
  a.Add(&c.x, Type::kF32, {outer, rows, inner, c.length}, false);
  a.Add(&c.w, Type::kF32, {outer, inner, across ? c.length : out, across ? out : c.length}, false);
  for (View* each : {&c.x_scale, &c.w_scale}) a.Add(each, Type::kF32, {1}, false);
  for (View* each : {&c.x_zero, &c.w_zero}) a.Add(each, Type::kS32, {1}, false);
  a.Add(&c.y, Type::kF32, {outer, inner, rows, out}, true);
  for (int64_t i = *spoilt ? Uniform(1, 3) : 0; i > 0; --i) a.Spoil();
  a.Allocate();
  if (!*spoilt || Chance(90)) a.Set(c.x_zero, static_cast<int32_t>(c.x_dynamic != 0 ? 0 : Uniform(-5, 5)));
  if (!*spoilt || Chance(90)) a.Set(c.w_zero, static_cast<int32_t>(c.w_dynamic != 0 ? 0 : Uniform(-5, 5)));
  const char* problem = Call(c, pool);
  return problem == nullptr ? "" : problem;
}

// Runs tasks at once: the fuzzer looks for reads and writes, core_test for races.
class Now : public Pool {
 public:
  int64_t threads() const override { return 3; }
  void Schedule(std::function<void()> task) override { task(); }
};

}  // namespace

int main(int argc, char** argv) {
  const int64_t calls = argc > 1 ? std::atoll(argv[1]) : 2000, seed = argc > 2 ? std::atoll(argv[2]) : 0;
  Now pool;
  int64_t ran = 0, refused = 0;
  for (int64_t i = 0; i < calls; ++i) {
    engine.seed(seed * 1000003 + i);
    bool spoilt = i % 3 != 0;
    const auto one = i % 7 == 0 ? OnePair : i % 2 ? OneConv : OneMatmul;
    const std::string problem = one(&pool, &spoilt);
    if (!problem.empty() && !spoilt) {
      std::fprintf(stderr, "call %lld is right and was refused: %s\n", static_cast<long long>(i), problem.c_str());
      return 1;
    }
    (problem.empty() ? ran : refused) += 1;
  }
  std::printf("%lld calls ran, %lld were refused\n", static_cast<long long>(ran), static_cast<long long>(refused));
  return refused > calls / 4 && ran > calls / 3 ? 0 : 1;
}
