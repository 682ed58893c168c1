// Sixteen numbers at once, whatever the instruction set: each holds them in as many of its own registers as it
// takes. Every operation is that of sixteen numbers one by one, so all instruction sets give the same bits.
#pragma once

#include "../shared/sampling.h"
#include "storage.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace stn::STN_ISA {

using stn::choose;
using stn::floor_of;
using stn::round_of;

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class E>
struct RegisterOf {
  typedef E type __attribute__((vector_size(kRegisterBytes)));
};

// Integers as wide as E: what comparisons give, 0 or -1.
template <class E>
using Mask = std::conditional_t<sizeof(E) == 8, int64_t, int32_t>;

template <class E>
struct Lanes {
  static constexpr int kParts = kLanes * static_cast<int>(sizeof(E)) / kRegisterBytes;
  typename RegisterOf<E>::type part[kParts];

  template <class F>
  STN_MEMBER static Lanes each(F compute) {
    Lanes out;
    for (int p = 0; p < kParts; ++p) out.part[p] = compute(p);
    return out;
  }

  template <class F>
  STN_MEMBER static Lanes<Mask<E>> compare(F compute) {
    Lanes<Mask<E>> out;
    for (int p = 0; p < kParts; ++p) out.part[p] = compute(p);
    return out;
  }

  STN_MEMBER static Lanes all(E value) {
    // Taking 0 away changes no number, not even -0, and costs nothing; adding it does.
    return each([&](int) { return value - typename RegisterOf<E>::type{}; });
  }

#define STN_OPERATOR(op)                                                           \
  STN_MEMBER friend Lanes operator op(const Lanes& a, const Lanes& b) {            \
    return each([&](int p) { return a.part[p] op b.part[p]; });                    \
  }                                                                                \
  STN_MEMBER friend Lanes operator op(const Lanes& a, E b) { return a op all(b); } \
  STN_MEMBER friend Lanes operator op(E a, const Lanes& b) { return all(a) op b; }
  STN_OPERATOR(+)
  STN_OPERATOR(-)
  STN_OPERATOR(*)
  STN_OPERATOR(/)
#undef STN_OPERATOR

#define STN_COMPARISON(op)                                                         \
  STN_MEMBER friend Lanes<Mask<E>> operator op(const Lanes & a, const Lanes & b) { \
    return compare([&](int p) { return a.part[p] op b.part[p]; });                 \
  }
  STN_COMPARISON(==)
  STN_COMPARISON(!=)
  STN_COMPARISON(<)
  STN_COMPARISON(<=)
  STN_COMPARISON(>)
  STN_COMPARISON(>=)
#undef STN_COMPARISON

  STN_MEMBER friend Lanes operator-(const Lanes& a) {
    return each([&](int p) { return -a.part[p]; });
  }
  STN_MEMBER friend Lanes operator&(const Lanes& a, const Lanes& b) {
    return each([&](int p) { return a.part[p] & b.part[p]; });
  }
  STN_MEMBER friend Lanes operator|(const Lanes& a, const Lanes& b) {
    return each([&](int p) { return a.part[p] | b.part[p]; });
  }
  template <class Other>
  STN_MEMBER Lanes& operator+=(const Other& other) {
    return *this = *this + other;
  }
  template <class Other>
  STN_MEMBER Lanes& operator*=(const Other& other) {
    return *this = *this * other;
  }
  STN_MEMBER Lanes& operator&=(const Lanes& other) { return *this = *this & other; }
  STN_MEMBER Lanes& operator|=(const Lanes& other) { return *this = *this | other; }
};

// a where the mask is set, else b.
template <class E>
STN_FUNCTION Lanes<E> choose(const Lanes<Mask<E>>& mask, const Lanes<E>& a, const Lanes<E>& b) {
  return Lanes<E>::each([&](int p) { return mask.part[p] ? a.part[p] : b.part[p]; });
}

// a where the mask is set, else 0.
template <class E>
STN_FUNCTION Lanes<E> masked(const Lanes<Mask<E>>& mask, const Lanes<E>& a) {
  using Part = typename RegisterOf<E>::type;
  using Bits = typename RegisterOf<Mask<E>>::type;
  return Lanes<E>::each(
      [&](int p) { return reinterpret_cast<Part>(reinterpret_cast<Bits>(a.part[p]) & mask.part[p]); });
}

template <class E>
STN_FUNCTION Lanes<E> load(const E* from) {
  Lanes<E> lanes;
  // Part by part: what is copied as a whole takes the way through memory.
  for (int p = 0; p < Lanes<E>::kParts; ++p)
    std::memcpy(&lanes.part[p], from + p * kLanes / Lanes<E>::kParts, kRegisterBytes);
  return lanes;
}

template <class S>
STN_FUNCTION Lanes<Compute<S>> load_widened(const S* from) {
  if constexpr (std::is_same_v<S, Compute<S>>) return load(from);
  alignas(64) Compute<S> lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = widened(from[l]);
  return load(lanes);
}

template <class E>
STN_FUNCTION void store(const Lanes<E>& lanes, E* to) {
  for (int p = 0; p < Lanes<E>::kParts; ++p)
    std::memcpy(to + p * kLanes / Lanes<E>::kParts, &lanes.part[p], kRegisterBytes);
}

// Numbers of another type; floats become integers by truncation.
template <class To, class E>
STN_FUNCTION Lanes<To> converted(const Lanes<E>& lanes) {
  Lanes<To> out;
  if constexpr (sizeof(To) == sizeof(E) && sizeof(E) == 4) {
    for (int p = 0; p < Lanes<E>::kParts; ++p)
      out.part[p] = __builtin_convertvector(lanes.part[p], typename RegisterOf<To>::type);
  } else {
    alignas(64) E from[kLanes];
    alignas(64) To to[kLanes];
    store(lanes, from);
    for (int l = 0; l < kLanes; ++l) to[l] = static_cast<To>(from[l]);
    out = load(to);
  }
  return out;
}

// Of floats below 2^31; of doubles of any size.
template <class E>
STN_FUNCTION Lanes<E> floor_of(const Lanes<E>& x) {
#if defined(__AVX512F__)
  constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(E) == 4) return Lanes<E>::each([&](int p) { return _mm512_roundscale_ps(x.part[p], down); });
  else return Lanes<E>::each([&](int p) { return _mm512_roundscale_pd(x.part[p], down); });
#elif defined(__AVX2__)
  if constexpr (sizeof(E) == 4) return Lanes<E>::each([&](int p) { return _mm256_floor_ps(x.part[p]); });
  else return Lanes<E>::each([&](int p) { return _mm256_floor_pd(x.part[p]); });
#else
  if constexpr (sizeof(E) == 4) {
    const Lanes<E> truncated = converted<E>(converted<int32_t>(x));
    return choose(truncated > x, truncated - E(1), choose(truncated == x, x, truncated));
  } else {
    alignas(64) E lanes[kLanes];
    store(x, lanes);
    for (int l = 0; l < kLanes; ++l) lanes[l] = std::floor(lanes[l]);
    return load(lanes);
  }
#endif
}

// Half to even, of numbers below 2^22 (2^51): adding and taking away 1.5·2^23 (2^52) leaves no fraction.
template <class E>
STN_FUNCTION Lanes<E> round_of(const Lanes<E>& x) {
  const E shift = static_cast<E>(sizeof(E) == 8 ? 6755399441055744.0 : 12582912.0);
  return (x + shift) - shift;
}

// 0, 1, 2, ...
template <class E>
STN_FUNCTION Lanes<E> counting() {
  alignas(64) constexpr E lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(lanes);
}

template <class M>
STN_FUNCTION bool all_of(const Lanes<M>& masks) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(M) == 4) return _mm512_movepi32_mask(reinterpret_cast<const __m512i&>(masks)) == 0xffff;
#endif
  alignas(64) M lanes[kLanes];
  store(masks, lanes);
  M all = -1;
  for (int l = 0; l < kLanes; ++l) all &= lanes[l];
  return all != 0;
}

template <class M>
STN_FUNCTION bool any_of(const Lanes<M>& masks) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(M) == 4) return _mm512_movepi32_mask(reinterpret_cast<const __m512i&>(masks)) != 0;
#endif
  alignas(64) M lanes[kLanes];
  store(masks, lanes);
  M any = 0;
  for (int l = 0; l < kLanes; ++l) any |= lanes[l];
  return any != 0;
}

// The first `count` lanes, 0 < count <= kLanes.
template <class E>
STN_FUNCTION void store_some(const Lanes<E>& lanes, int count, E* to) {
  if (count == kLanes) return store(lanes, to);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<E, float>)
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<const __m512&>(lanes));
#endif
  alignas(64) E numbers[kLanes];
  store(lanes, numbers);
  for (int l = 0; l < count; ++l) to[l] = numbers[l];
}

}  // namespace stn::STN_ISA
