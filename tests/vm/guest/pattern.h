// SPDX-License-Identifier: MIT
// The pattern that tells an intact page from a used one: every 16 bytes hold the magic and the page's number.
#include <stdint.h>
#include <string.h>

#define PAGE 4096UL
// The word is made at run time, so that no copy of a program that knows it looks like a page of the pattern.
static inline uint64_t pattern_magic(void)
{
	volatile uint64_t half = 0x5afe3e3u;
	return half * 0x9e3779b97f4a7c15u;
}

static inline void pattern_fill(void *page, uint64_t number)
{
	uint64_t *word = page;
	for (unsigned i = 0; i < PAGE / 8; i += 2) {
		word[i] = pattern_magic();
		word[i + 1] = number;
	}
}

static inline uint64_t pattern_number(const void *page)
{
	return ((const uint64_t *)page)[1];
}

static inline int pattern_intact(const void *page)
{
	const uint64_t *word = page;
	if (word[0] != pattern_magic())
		return 0;
	for (unsigned i = 2; i < PAGE / 8; i += 2)
		if (word[i] != word[0] || word[i + 1] != word[1])
			return 0;
	return 1;
}
