/* Integers in products: what Sources/Kernels/Codes.swift is put together from.  In C, as instructions for them are named here
 * alone, and Swift's own vectors of integers take minutes to compile in such numbers. */
#ifndef MOEI_CODES_H
#define MOEI_CODES_H

#include "moei.h"

#pragma clang assume_nonnull begin

/* Of 32 bits, or of 16 or 8 where the sums fit; float vectors to integers: those that fit, rounded towards 0. */
typedef int8_t moei_i8x16 __attribute__((ext_vector_type(16)));
typedef int8_t moei_i8x32 __attribute__((ext_vector_type(32)));
typedef int16_t moei_i16x16 __attribute__((ext_vector_type(16)));
typedef int16_t moei_i16x32 __attribute__((ext_vector_type(32)));
typedef int32_t moei_i32x8 __attribute__((ext_vector_type(8)));
typedef uint16_t moei_u16x8 __attribute__((ext_vector_type(8)));
typedef float moei_f32x8 __attribute__((ext_vector_type(8)));
typedef double moei_f64x16 __attribute__((ext_vector_type(16)));
static inline __attribute__((always_inline)) moei_i32x16 moei_to_i32(moei_f32x16 v) {
  return __builtin_convertvector(v, moei_i32x16);
}
static inline __attribute__((always_inline)) moei_f32x16 moei_from_i32(moei_i32x16 v) {
  return __builtin_convertvector(v, moei_f32x16);
}
static inline __attribute__((always_inline)) void moei_store_i8(moei_i32x16 v, void *p) {
  moei_i8x16 bytes = __builtin_convertvector(v, moei_i8x16);
  __builtin_memcpy(p, &bytes, sizeof bytes);
}
/* v * factor + summand in double, rounded to float32. */
static inline __attribute__((always_inline)) moei_f32x16 moei_scale_in_double(moei_f32x16 v, float factor, double summand) {
  return __builtin_convertvector(__builtin_convertvector(v, moei_f64x16) * (double)factor + summand, moei_f32x16);
}

/* Of as many outputs as are taken at once: words of their integers, or sums of products of these; floats.  A register, and
 * the widest where there are instructions for sums. */
#if defined(__AVX512VNNI__)
typedef moei_i32x16 moei_sums;
typedef moei_f32x16 moei_sum_floats;
#else
typedef moei_i32x8 moei_sums;
typedef moei_f32x8 moei_sum_floats;
#endif
static inline __attribute__((always_inline)) moei_sums moei_repeat(int32_t x) {
  moei_sums all = x;
  return all;
}
/* Scales from binary16. */
static inline __attribute__((always_inline)) moei_sum_floats moei_load_scales(const void *p) {
#if defined(__AVX512VNNI__)
  moei_u16x16 halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  return moei_from_f16(halves);
#else
  moei_u16x8 halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  moei_u16x16 filled = __builtin_shufflevector(halves, (moei_u16x8)0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return moei_from_f16(filled).lo;
#endif
}
/* sum + x v with one rounding, also where there is no instruction for it. */
static inline __attribute__((always_inline)) moei_sum_floats moei_add_product(moei_sum_floats sum, float x, moei_sum_floats v) {
  moei_sum_floats all = x;
  return __builtin_elementwise_fma(all, v, sum);
}
/* The same of integers: sum + (scales scale) n. */
static inline __attribute__((always_inline)) moei_sum_floats moei_add_scaled(moei_sum_floats sum, moei_sum_floats scales, float scale, moei_sums n) {
  return __builtin_elementwise_fma(scales * scale, __builtin_convertvector(n, moei_sum_floats), sum);
}
/* Signed byte i of words, times a scale; exactly, as byte * 2^24 and scale * 2^-24 are. */
static inline __attribute__((always_inline)) moei_sum_floats moei_byte(moei_sums words, int32_t i, moei_sum_floats scales) {
  moei_sums top = (words << (24 - 8 * i)) & (int32_t)0xFF000000;
  return __builtin_convertvector(top, moei_sum_floats) * (scales * 0x1p-24f);
}
/* Half byte i of words less 8, times a scale: the lower halves of their bytes, then the upper ones. */
static inline __attribute__((always_inline)) moei_sum_floats moei_nibble(moei_sums words, int32_t i, moei_sum_floats scales) {
  const int32_t place = i < 4 ? 8 * i : 8 * i - 28;
#if defined(__AVX512VNNI__)
  typedef float floats __attribute__((__vector_size__(64)));
  typedef int integers __attribute__((__vector_size__(64)));
  const floats values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  return (moei_sum_floats)(floats)__builtin_ia32_permvarsf512(values, (integers)(words >> place)) * scales;
#else
  moei_sums top = ((words ^ (int32_t)0x88888888) << (28 - place)) & (int32_t)0xF0000000;
  return __builtin_convertvector(top, moei_sum_floats) * (scales * 0x1p-28f);
#endif
}
/* sum + the products of the four bytes of words and of x, of which none is -128.  With VNNI bytes of words count 128 more. */
static inline __attribute__((always_inline)) moei_sums moei_add_bytes(moei_sums sum, moei_sums words, int32_t x) {
#if defined(__AVX512VNNI__)
  typedef int integers __attribute__((__vector_size__(64)));
  moei_sums moved = words ^ (int32_t)0x80808080;
  return (moei_sums)(integers)__builtin_ia32_vpdpbusd512((integers)sum, (integers)moved, (integers)moei_repeat(x));
#elif defined(__AVX2__)
  typedef char bytes __attribute__((__vector_size__(32)));
  typedef short shorts __attribute__((__vector_size__(32)));
  typedef int integers __attribute__((__vector_size__(32)));
  const shorts ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  bytes signs = __builtin_ia32_psignb256((bytes)moei_repeat(x), (bytes)words);
  shorts pairs = __builtin_ia32_pmaddubsw256((bytes)__builtin_elementwise_abs((moei_i8x32)words), signs);
  return sum + (moei_sums)(integers)__builtin_ia32_pmaddwd256(pairs, ones);
#else
  typedef int32_t moei_i32x32 __attribute__((ext_vector_type(32)));
  moei_i16x32 products = __builtin_convertvector((moei_i8x32)words, moei_i16x32) * __builtin_convertvector((moei_i8x32)moei_repeat(x), moei_i16x32);
  moei_i32x32 wide = __builtin_convertvector(products, moei_i32x32);
  moei_i32x16 pairs = wide.even + wide.odd;
  return sum + pairs.even + pairs.odd;
#endif
}
/* The same for the lower halves of the bytes of words and the four bytes of x, and for the upper halves and those of y: numbers of
 * 0 ... 15.  Sums of two products have room in 16 bits, four times. */
#if defined(__AVX512VNNI__)
typedef moei_i32x16 moei_nibble_sums;
#else
typedef moei_i16x16 moei_nibble_sums;
#endif
static inline __attribute__((always_inline)) moei_nibble_sums moei_no_nibbles(void) {
  return (moei_nibble_sums)0;
}
static inline __attribute__((always_inline)) moei_nibble_sums moei_add_nibbles(moei_nibble_sums sum, moei_sums words, int32_t x, int32_t y) {
  moei_sums low = words & 0x0F0F0F0F, high = (words >> 4) & 0x0F0F0F0F;
#if defined(__AVX512VNNI__)
  typedef int integers __attribute__((__vector_size__(64)));
  integers first = __builtin_ia32_vpdpbusd512((integers)sum, (integers)low, (integers)moei_repeat(x));
  return (moei_sums)(integers)__builtin_ia32_vpdpbusd512(first, (integers)high, (integers)moei_repeat(y));
#elif defined(__AVX2__)
  typedef char bytes __attribute__((__vector_size__(32)));
  typedef short shorts __attribute__((__vector_size__(32)));
  shorts first = __builtin_ia32_pmaddubsw256((bytes)low, (bytes)moei_repeat(x));
  return sum + (moei_i16x16)first + (moei_i16x16)(shorts)__builtin_ia32_pmaddubsw256((bytes)high, (bytes)moei_repeat(y));
#else
  moei_i16x32 first = __builtin_convertvector((moei_i8x32)low, moei_i16x32) * __builtin_convertvector((moei_i8x32)moei_repeat(x), moei_i16x32);
  moei_i16x32 second = __builtin_convertvector((moei_i8x32)high, moei_i16x32) * __builtin_convertvector((moei_i8x32)moei_repeat(y), moei_i16x32);
  first += second;
  return sum + first.even + first.odd;
#endif
}
/* Their sums, and `beside`. */
static inline __attribute__((always_inline)) moei_sums moei_sum_nibbles(moei_nibble_sums sum, int32_t beside) {
#if defined(__AVX512VNNI__)
  return sum + beside;
#elif defined(__AVX2__)
  typedef short shorts __attribute__((__vector_size__(32)));
  typedef int integers __attribute__((__vector_size__(32)));
  const shorts ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return (moei_sums)(integers)__builtin_ia32_pmaddwd256((shorts)sum, ones) + beside;
#else
  moei_i32x16 wide = __builtin_convertvector(sum, moei_i32x16);
  return wide.even + wide.odd + beside;
#endif
}

#pragma clang assume_nonnull end

#endif
