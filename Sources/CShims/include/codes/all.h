/* The list of codes. */
#ifndef MOEI_CODES_ALL_H
#define MOEI_CODES_ALL_H

#include "fp8.h"
#include "int4.h"
#include "int4_bf16.h"
#include "int4_zero.h"
#include "int8.h"
#include "int8_row.h"
#include "iq4_nl.h"
#include "mxfp4.h"
#include "nvfp4.h"
#include "q4_k.h"
#include "q6_k.h"

#pragma clang assume_nonnull begin

static inline moei_codes moei_all_codes(void) {
  moei_codes codes;
  codes.of[MOEI_CODE_INT8] = moei_int8_code();
  codes.of[MOEI_CODE_INT4] = moei_int4_code();
  codes.of[MOEI_CODE_MXFP4] = moei_mxfp4_code();
  codes.of[MOEI_CODE_IQ4_NL] = moei_iq4_nl_code();
  codes.of[MOEI_CODE_Q4_K] = moei_q4_k_code();
  codes.of[MOEI_CODE_Q6_K] = moei_q6_k_code();
  codes.of[MOEI_CODE_INT8_ROW] = moei_int8_row_code();
  codes.of[MOEI_CODE_FP8] = moei_fp8_code();
  codes.of[MOEI_CODE_NVFP4] = moei_nvfp4_code();
  codes.of[MOEI_CODE_INT4_BF16] = moei_int4_bf16_code();
  codes.of[MOEI_CODE_INT4_ZERO] = moei_int4_zero_code();
  return codes;
}

#pragma clang assume_nonnull end

#endif
