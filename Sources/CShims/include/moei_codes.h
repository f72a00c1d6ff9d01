/* Weights of few bits: kernels and how blocks are written.  In C, as instructions for integers are named here alone,
 * and Swift's own vectors of integers take minutes to compile in such numbers.
 *
 * A panel is a row of blocks.  A block has 32 outputs and some multiple of 32 contraction indices, "subs" of 32 each: first their
 * numbers, sub after sub, then scales.  Numbers lie in words of 4 bytes, a row of 32 words after the other, one word for each
 * output: 4 contraction indices in bytes, or 8 in half bytes, those of the lower halves first.  Each code has a file in codes/,
 * which says what a word means and how scales lie; codes/kernels.h makes products of it, codes/all.h is the list, and codes/words.h
 * has what they are written in. */
#ifndef MOEI_CODES_H
#define MOEI_CODES_H

#include "codes/all.h"

#endif
