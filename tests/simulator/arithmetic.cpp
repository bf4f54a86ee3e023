// Instructions that touch registers alone, and the table of all.
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_map>

#include "warp.h"

namespace ptx {

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  uint32_t word;
  if (exponent == 31) {
    word = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent != 0) {
    word = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float value = std::ldexp(static_cast<float>(mantissa), -24);
    std::memcpy(&word, &value, 4);
    word |= sign;
  }
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// Rounds to the nearest, ties to even, in integers.
uint16_t float_to_half(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint32_t sign = word >> 16 & 0x8000, magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536
  uint32_t bits;
  if (magnitude >= 0x38800000) {  // 2 to the -14
    const uint32_t shifted = magnitude - 0x38000000;
    bits = (shifted + 0xfff + (shifted >> 13 & 1)) >> 13;
  } else {
    float absolute;
    std::memcpy(&absolute, &magnitude, 4);
    bits = static_cast<uint32_t>(std::nearbyint(std::ldexp(absolute, 24)));
  }
  return static_cast<uint16_t>(sign | bits);
}

float bfloat16_to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

uint16_t float_to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

namespace {

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Rounded towards minus infinity. The product of two floats is exact in double, and so is the rest of the sum.
float fma_down(float a, float b, float c) {
  const float nearest = std::fma(a, b, c);
  const double product = static_cast<double>(a) * b, wide = c;
  if (std::isnan(nearest) || !std::isfinite(product) || std::isinf(c)) return nearest;
  const double sum = product + wide, part = sum - product, rest = (product - (sum - part)) + (wide - part);
  if (std::isinf(nearest)) return nearest > 0 ? std::numeric_limits<float>::max() : nearest;
  const double error = (sum - nearest) + rest;  // of the exact result above the nearest
  if (error < 0) return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
  if (nearest == 0 && error == 0 && std::signbit(product) != std::signbit(wide)) return -0.0f;
  return nearest;
}

// Of a 64-bit or smaller integer type: towards zero, and to the nearest that there is. What is not a number is 0 or,
// where either type has 64 bits, the lowest signed number.
template <class To, class From>
To truncate(From value) {
  static_assert(std::is_signed_v<To>);
  using Limits = std::numeric_limits<To>;
  if (std::isnan(value)) return sizeof(To) == 8 || sizeof(From) == 8 ? Limits::min() : 0;
  const From whole = std::trunc(value), limit = std::ldexp(static_cast<From>(1), sizeof(To) * 8 - 1);
  return whole >= limit ? Limits::max() : whole < -limit ? Limits::min() : static_cast<To>(whole);
}

float exp2_ftz(float value) {
  const auto flush = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
  return flush(static_cast<float>(std::exp2(static_cast<double>(flush(value)))));
}

// To the nearest with 10 bits of mantissa, ties away from zero.
uint32_t round_tf32(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffff) > 0x7f800000) return 0x7fffe000;
  if ((word & 0x7f800000) == 0x7f800000) return word;
  return (word + 0x1000) & ~0x1fffu;
}

// Of integers of any number a GPU says nothing about division by zero.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  using U = std::make_unsigned_t<T>;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<U>(a));
  return a / b;
}
template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}

template <class Result, class A, class Function>
void unary(Warp& warp, const Instruction& in, uint32_t lanes, Function function) {
  for_lanes(lanes, [&](int i) { warp.set<Result>(in.operand[0], i, function(warp.get<A>(in.operand[1], i))); });
}
template <class Result, class A, class B, class Function>
void binary(Warp& warp, const Instruction& in, uint32_t lanes, Function function) {
  for_lanes(lanes, [&](int i) {
    warp.set<Result>(in.operand[0], i, function(warp.get<A>(in.operand[1], i), warp.get<B>(in.operand[2], i)));
  });
}
// The type of the first two operands, where it is another than that of the third and the result.
template <class T, class Factor = T, class Function>
void ternary(Warp& warp, const Instruction& in, uint32_t lanes, Function function) {
  for_lanes(lanes, [&](int i) {
    const Factor a = warp.get<Factor>(in.operand[1], i), b = warp.get<Factor>(in.operand[2], i);
    warp.set<T>(in.operand[0], i, function(a, b, warp.get<T>(in.operand[3], i)));
  });
}
template <class T, class Function>
void compare(Warp& warp, const Instruction& in, uint32_t lanes, Function function) {
  uint32_t bits = 0;
  for_lanes(lanes, [&](int i) {
    bits |= static_cast<uint32_t>(function(warp.get<T>(in.operand[1], i), warp.get<T>(in.operand[2], i))) << i;
  });
  warp.set_predicate(in.operand[0], lanes, bits);
}
template <class T>
void select(Warp& warp, const Instruction& in, uint32_t lanes) {
  const uint32_t chosen = warp.predicate(in.operand[3]);
  for_lanes(lanes, [&](int i) { warp.set<T>(in.operand[0], i, warp.get<T>(in.operand[chosen >> i & 1 ? 1 : 2], i)); });
}
template <class Function>
void logic(Warp& warp, const Instruction& in, uint32_t lanes, Function function) {
  warp.set_predicate(in.operand[0], lanes, function(warp.predicate(in.operand[1]), warp.predicate(in.operand[2])));
}
void move_predicate(Warp& warp, const Instruction& in, uint32_t lanes) {
  warp.set_predicate(in.operand[0], lanes, warp.predicate(in.operand[1]));
}
void not_predicate(Warp& warp, const Instruction& in, uint32_t lanes) {
  warp.set_predicate(in.operand[0], lanes, ~warp.predicate(in.operand[1]));
}

template <class Whole, class Part>
void pack(Warp& warp, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int i) {
    const Whole low = warp.get<Part>(in.operand[1], i), high = warp.get<Part>(in.operand[2], i);
    warp.set<Whole>(in.operand[0], i, static_cast<Whole>(low | high << sizeof(Part) * 8));
  });
}
template <class Whole, class Part>
void unpack(Warp& warp, const Instruction& in, uint32_t lanes) {
  for_lanes(lanes, [&](int i) {
    const Whole whole = warp.get<Whole>(in.operand[2], i);
    warp.set<Part>(in.operand[0], i, static_cast<Part>(whole));
    warp.set<Part>(in.operand[1], i, static_cast<Part>(whole >> sizeof(Part) * 8));
  });
}

void nothing(Warp&, const Instruction&, uint32_t) {}

using Table = std::unordered_map<std::string, Operation>;

void add(Table& table, const std::string& name, Compute compute, const char* operands, Kind kind = Kind::compute,
         uint8_t results = 1) {
  table[name] = {compute, operands, results, kind};
}

template <class T>
constexpr const char* three() {
  return sizeof(T) == 8 ? "ddd" : sizeof(T) == 4 ? "www" : "hhh";
}
template <class T>
constexpr const char* two() {
  return sizeof(T) == 8 ? "dd" : sizeof(T) == 4 ? "ww" : "hh";
}
template <class T>
constexpr const char* compared() {
  return sizeof(T) == 8 ? "pdd" : sizeof(T) == 4 ? "pww" : "phh";
}

// Instructions as expressions of their operands a, b and c.
#define DCNZOO_COMPUTE(call, ...) \
  [](Warp& warp, const Instruction& in, uint32_t lanes) { (call)(warp, in, lanes, __VA_ARGS__); }
#define DCNZOO_UNARY(T, expression) \
  DCNZOO_COMPUTE((unary<T, T>), [](T a) -> T { return static_cast<T>(expression); })
#define DCNZOO_BINARY(T, expression) \
  DCNZOO_COMPUTE((binary<T, T, T>), [](T a, T b) -> T { return static_cast<T>(expression); })
#define DCNZOO_BINARY_TO(Result, A, B, expression) \
  DCNZOO_COMPUTE((binary<Result, A, B>), [](A a, B b) -> Result { return static_cast<Result>(expression); })
#define DCNZOO_TERNARY(T, expression) \
  DCNZOO_COMPUTE((ternary<T>), [](T a, T b, T c) -> T { return static_cast<T>(expression); })
#define DCNZOO_CONVERT(To, From, expression) \
  DCNZOO_COMPUTE((unary<To, From>), [](From a) -> To { return static_cast<To>(expression); })
#define DCNZOO_COMPARE(T, expression) DCNZOO_COMPUTE((compare<T>), [](T a, T b) -> bool { return expression; })
#define DCNZOO_LOGIC(expression) DCNZOO_COMPUTE(logic, [](uint32_t a, uint32_t b) { return expression; })

template <class T>
void add_arithmetic(Table& table, const std::string& type) {
  using U = std::make_unsigned_t<T>;  // wraps
  add(table, "add" + type, DCNZOO_BINARY(U, a + b), three<T>());
  add(table, "sub" + type, DCNZOO_BINARY(U, a - b), three<T>());
  add(table, "min" + type, DCNZOO_BINARY(T, a < b ? a : b), three<T>());
  add(table, "max" + type, DCNZOO_BINARY(T, a < b ? b : a), three<T>());
}

template <class T>
void add_integer(Table& table, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  add_arithmetic<T>(table, type);
  add(table, "div" + type, DCNZOO_BINARY(T, divide<T>(a, b)), three<T>());
  add(table, "rem" + type, DCNZOO_BINARY(T, remainder_of<T>(a, b)), three<T>());
  add(table, "mul.lo" + type, DCNZOO_BINARY(U, a * b), three<T>());
  add(table, "mad.lo" + type, DCNZOO_TERNARY(U, a * b + c),
      sizeof(T) == 8 ? "dddd" : "wwww");
  // Amounts beyond the bits that there are shift all of them out.
  add(table, "shr" + type, DCNZOO_BINARY_TO(T, T, uint32_t, b < sizeof(T) * 8 ? a >> b : a < T{0} ? -1 : 0),
      sizeof(T) == 8 ? "ddw" : "www");
  if (std::is_signed_v<T>) {
    add(table, "neg" + type, DCNZOO_UNARY(U, 0 - a), two<T>());
    add(table, "abs" + type, DCNZOO_UNARY(T, a < 0 ? static_cast<T>(0 - static_cast<U>(a)) : a), two<T>());
  }
}

template <class T>
void add_bits(Table& table, const std::string& type) {
  add(table, "and" + type, DCNZOO_BINARY(T, a & b), three<T>());
  add(table, "or" + type, DCNZOO_BINARY(T, a | b), three<T>());
  add(table, "xor" + type, DCNZOO_BINARY(T, a ^ b), three<T>());
  add(table, "not" + type, DCNZOO_UNARY(T, ~a), two<T>());
  if constexpr (sizeof(T) > 2) {
    add(table, "shl" + type, DCNZOO_BINARY_TO(T, T, uint32_t, b < sizeof(T) * 8 ? a << b : 0),
        sizeof(T) == 8 ? "ddw" : "www");
  }
}

template <class T>
void add_comparisons(Table& table, const std::string& type) {
  add(table, "setp.eq" + type, DCNZOO_COMPARE(T, a == b), compared<T>());
  add(table, "setp.lt" + type, DCNZOO_COMPARE(T, a < b), compared<T>());
  add(table, "setp.le" + type, DCNZOO_COMPARE(T, a <= b), compared<T>());
  add(table, "setp.gt" + type, DCNZOO_COMPARE(T, a > b), compared<T>());
  add(table, "setp.ge" + type, DCNZOO_COMPARE(T, a >= b), compared<T>());
  if constexpr (std::is_floating_point_v<T>) {
    // `ne` is false of what is not a number, as all that are ordered are; those with a `u` are true of it.
    add(table, "setp.ne" + type, DCNZOO_COMPARE(T, a < b || a > b), compared<T>());
    add(table, "setp.equ" + type, DCNZOO_COMPARE(T, !(a < b || a > b)), compared<T>());
    add(table, "setp.neu" + type, DCNZOO_COMPARE(T, a != b), compared<T>());
    add(table, "setp.ltu" + type, DCNZOO_COMPARE(T, !(a >= b)), compared<T>());
    add(table, "setp.leu" + type, DCNZOO_COMPARE(T, !(a > b)), compared<T>());
    add(table, "setp.gtu" + type, DCNZOO_COMPARE(T, !(a <= b)), compared<T>());
    add(table, "setp.geu" + type, DCNZOO_COMPARE(T, !(a < b)), compared<T>());
    add(table, "setp.num" + type, DCNZOO_COMPARE(T, !std::isnan(a) && !std::isnan(b)), compared<T>());
    add(table, "setp.nan" + type, DCNZOO_COMPARE(T, std::isnan(a) || std::isnan(b)), compared<T>());
  } else {
    add(table, "setp.ne" + type, DCNZOO_COMPARE(T, a != b), compared<T>());
  }
}

template <class T>
void add_moves(Table& table, const char* moves, const char* selects, std::initializer_list<const char*> types) {
  for (const std::string type : types) {
    add(table, "mov" + type, DCNZOO_UNARY(T, a), moves);
    add(table, "selp" + type, select<T>, selects);
  }
}

template <class T>
void add_floating(Table& table, const std::string& type) {
  for (const std::string rounding : {"", ".rn"}) {
    add(table, "add" + rounding + type, DCNZOO_BINARY(T, a + b), three<T>());
    add(table, "sub" + rounding + type, DCNZOO_BINARY(T, a - b), three<T>());
    add(table, "mul" + rounding + type, DCNZOO_BINARY(T, a * b), three<T>());
  }
  add(table, "div.rn" + type, DCNZOO_BINARY(T, a / b), three<T>());
  add(table, "rcp.rn" + type, DCNZOO_UNARY(T, 1 / a), two<T>());
  add(table, "fma.rn" + type, DCNZOO_TERNARY(T, std::fma(a, b, c)),
      sizeof(T) == 8 ? "dddd" : "wwww");
  add(table, "neg" + type, DCNZOO_UNARY(T, -a), two<T>());
  add(table, "abs" + type, DCNZOO_UNARY(T, std::fabs(a)), two<T>());
}

void add_conversions(Table& table) {
  add(table, "cvt.s64.s32", DCNZOO_CONVERT(int64_t, int32_t, a), "dw");
  add(table, "cvt.s64.s32 of 64", DCNZOO_CONVERT(int64_t, int64_t, static_cast<int32_t>(a)), "dd");
  add(table, "cvt.u64.u32", DCNZOO_CONVERT(uint64_t, uint32_t, a), "dw");
  add(table, "cvt.u32.u64", DCNZOO_CONVERT(uint32_t, uint64_t, a), "wd");
  add(table, "cvt.u16.u32", DCNZOO_CONVERT(uint16_t, uint32_t, a), "hw");
  add(table, "cvt.u32.u16", DCNZOO_CONVERT(uint32_t, uint16_t, a), "wh");
  add(table, "cvt.rn.f32.s32", DCNZOO_CONVERT(float, int32_t, a), "ww");
  add(table, "cvt.rn.f32.s64", DCNZOO_CONVERT(float, int64_t, a), "wd");
  add(table, "cvt.rn.f64.s32", DCNZOO_CONVERT(double, int32_t, a), "dw");
  add(table, "cvt.rn.f64.s64", DCNZOO_CONVERT(double, int64_t, a), "dd");
  add(table, "cvt.f64.f32", DCNZOO_CONVERT(double, float, a), "dw");
  add(table, "cvt.rn.f32.f64", DCNZOO_CONVERT(float, double, a), "wd");
  add(table, "cvt.rzi.s32.f32", DCNZOO_CONVERT(int32_t, float, (truncate<int32_t, float>(a))), "ww");
  add(table, "cvt.rzi.s32.f64", DCNZOO_CONVERT(int32_t, double, (truncate<int32_t, double>(a))), "wd");
  add(table, "cvt.rzi.s64.f32", DCNZOO_CONVERT(int64_t, float, (truncate<int64_t, float>(a))), "dw");
  add(table, "cvt.rzi.s64.f64", DCNZOO_CONVERT(int64_t, double, (truncate<int64_t, double>(a))), "dd");
  add(table, "cvt.rmi.f32.f32", DCNZOO_CONVERT(float, float, std::floor(a)), "ww");
  add(table, "cvt.rmi.f64.f64", DCNZOO_CONVERT(double, double, std::floor(a)), "dd");
  // What is not a number saturates to 0.
  add(table, "cvt.sat.f32.f32", DCNZOO_CONVERT(float, float, a > 0 ? (a < 1 ? a : 1) : 0), "ww");
  add(table, "cvt.rna.tf32.f32", DCNZOO_CONVERT(uint32_t, float, round_tf32(a)), "ww");
  add(table, "cvt.f32.f16", DCNZOO_CONVERT(float, uint16_t, half_to_float(a)), "wh");
  add(table, "cvt.rn.f16.f32", DCNZOO_CONVERT(uint16_t, float, float_to_half(a)), "hw");
  add(table, "cvt.f32.bf16", DCNZOO_CONVERT(float, uint16_t, bfloat16_to_float(a)), "wh");
  add(table, "cvt.rn.bf16.f32", DCNZOO_CONVERT(uint16_t, float, float_to_bfloat16(a)), "hw");
  // The first source is the upper half.
  add(table, "cvt.rn.f16x2.f32",
      DCNZOO_BINARY_TO(uint32_t, float, float, uint32_t{float_to_half(a)} << 16 | float_to_half(b)), "www");
  add(table, "cvt.rn.bf16x2.f32",
      DCNZOO_BINARY_TO(uint32_t, float, float, uint32_t{float_to_bfloat16(a)} << 16 | float_to_bfloat16(b)), "www");
}

void add_memory(Table& table) {
  add(table, "cp.async.cg.shared.global", copy_async, "aaiw", Kind::compute, 0);
  add(table, "cp.async.wait_all", wait_for_copies, "", Kind::compute, 0);
  add(table, "atom.global.add.f32", add_atomically_f32, "waw");
  add(table, "atom.global.add.f64", add_atomically_f64, "dad");
  add(table, "mbarrier.init.shared::cta.b64", init_mbarrier, "aw", Kind::compute, 0);
  add(table, "mbarrier.arrive.shared::cta.b64", arrive_mbarrier, "_a");
  add(table, "mbarrier.try_wait.parity.shared::cta.b64", nothing, "paw", Kind::phase_wait);
  add(table, "fence.proxy.async.shared::cta", fence_proxy_async, "", Kind::compute, 0);
  add(table, "bar.sync", nothing, "ww", Kind::block_barrier, 0);
  add(table, "barrier.sync", nothing, "ww", Kind::block_barrier, 0);
  add(table, "bar.warp.sync", nothing, "w", Kind::warp_barrier, 0);
  add(table, "shfl.sync.bfly.b32", shuffle_bfly, "wpwwww", Kind::together, 2);
  add(table, "vote.sync.ballot.b32", vote_ballot, "wpw", Kind::together);
  add(table, "setmaxnreg.inc.sync.aligned.u32", nothing, "i", Kind::take_registers, 0);
  add(table, "setmaxnreg.dec.sync.aligned.u32", nothing, "i", Kind::give_registers, 0);
  const char* fragments = "wwwwwwwwwwwwww";
  add(table, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply_m16n8k16_f16, fragments,
      Kind::together, 4);
  add(table, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply_m16n8k16_bf16, fragments,
      Kind::together, 4);
  add(table, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", multiply_m16n8k8_tf32, fragments,
      Kind::together, 4);
  add(table, "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", wgmma_f16, "", Kind::together, 0);
  add(table, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", wgmma_bf16, "", Kind::together, 0);
  add(table, "wgmma.fence.sync.aligned", wgmma_fence, "", Kind::together, 0);
  add(table, "wgmma.commit_group.sync.aligned", wgmma_commit, "", Kind::together, 0);
  add(table, "wgmma.wait_group.sync.aligned", wgmma_wait, "i", Kind::together, 0);
}

Table make_table() {
  Table table;
  add_integer<int32_t>(table, ".s32");
  add_integer<uint32_t>(table, ".u32");
  add_integer<int64_t>(table, ".s64");
  add_integer<uint64_t>(table, ".u64");
  add(table, "mul.wide.s32", DCNZOO_BINARY_TO(int64_t, int32_t, int32_t, int64_t{a} * b), "dww");
  add(table, "mul.wide.u32", DCNZOO_BINARY_TO(uint64_t, uint32_t, uint32_t, uint64_t{a} * b), "dww");
  // by their own types, for the sums wrap
  add(table, "mad.wide.s32",
      DCNZOO_COMPUTE((ternary<uint64_t, int32_t>),
                     [](int32_t a, int32_t b, uint64_t c) { return static_cast<uint64_t>(int64_t{a} * b) + c; }),
      "dwwd");
  add(table, "mad.wide.u32",
      DCNZOO_COMPUTE((ternary<uint64_t, uint32_t>), [](uint32_t a, uint32_t b, uint64_t c) { return uint64_t{a} * b + c; }),
      "dwwd");
  add(table, "clz.b64", DCNZOO_CONVERT(uint32_t, uint64_t, a == 0 ? 64 : __builtin_clzll(a)), "wd");
  add(table, "clz.b32", DCNZOO_CONVERT(uint32_t, uint32_t, a == 0 ? 32 : __builtin_clz(a)), "ww");
  add_bits<uint16_t>(table, ".b16");
  add_bits<uint32_t>(table, ".b32");
  add_bits<uint64_t>(table, ".b64");
  add_comparisons<int16_t>(table, ".s16");
  add_comparisons<uint16_t>(table, ".u16");
  add_comparisons<int32_t>(table, ".s32");
  add_comparisons<uint32_t>(table, ".u32");
  add_comparisons<int64_t>(table, ".s64");
  add_comparisons<uint64_t>(table, ".u64");
  add_comparisons<float>(table, ".f32");
  add_comparisons<double>(table, ".f64");
  for (const char* which : {"setp.eq", "setp.ne"}) {
    for (const auto& [bits, like] : {std::pair{".b16", ".u16"}, {".b32", ".u32"}, {".b64", ".u64"}}) {
      table[std::string(which) + bits] = table[std::string(which) + like];
    }
  }
  add_moves<uint16_t>(table, "hh", "hhhp", {".b16", ".u16", ".s16"});
  add_moves<uint32_t>(table, "ww", "wwwp", {".b32", ".u32", ".s32", ".f32"});
  add_moves<uint64_t>(table, "dd", "dddp", {".b64", ".u64", ".s64", ".f64"});
  add(table, "mov.pred", move_predicate, "pp");
  add(table, "not.pred", not_predicate, "pp");
  add(table, "and.pred", DCNZOO_LOGIC(a & b), "ppp");
  add(table, "or.pred", DCNZOO_LOGIC(a | b), "ppp");
  add(table, "xor.pred", DCNZOO_LOGIC(a ^ b), "ppp");
  // What the parser makes of moves between a register and its parts.
  add(table, "pack.32", pack<uint32_t, uint16_t>, "");
  add(table, "pack.64", pack<uint64_t, uint32_t>, "");
  add(table, "unpack.32", unpack<uint32_t, uint16_t>, "", Kind::compute, 2);
  add(table, "unpack.64", unpack<uint64_t, uint32_t>, "", Kind::compute, 2);
  add(table, "cvta.to.global.u64", DCNZOO_UNARY(uint64_t, a), "dd");
  add_floating<float>(table, ".f32");
  add_floating<double>(table, ".f64");
  add(table, "fma.rm.f32", DCNZOO_TERNARY(float, fma_down(a, b, c)), "wwww");
  add(table, "ex2.approx.ftz.f32", DCNZOO_CONVERT(float, float, exp2_ftz(a)), "ww");
  add_conversions(table);
  add_memory(table);
  add(table, "ret", nothing, "", Kind::finish, 0);
  add(table, "exit", nothing, "", Kind::finish, 0);
  add(table, "trap", nothing, "", Kind::trap, 0);
  return table;
}

}  // namespace

const Operation* find_operation(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : &found->second;
}

}  // namespace ptx
