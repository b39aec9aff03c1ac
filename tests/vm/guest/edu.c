// SPDX-License-Identifier: MIT
// QEMU's device `edu` (docs/specs/edu) as a device that nobody owns and that writes to memory.
//   edu pages PID FIRST LAST COUNT   print physical addresses between FIRST and LAST of COUNT pages of that process's memfd
//   edu write FOLDER ADDRESS...      have the device of that folder in sysfs write SIZE bytes to each physical address
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

// Registers in BAR 0. The device aborts the emulator if a transfer reaches the last of its 4096 bytes (QEMU 7.2).
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98, BUFFER = 0x40000, SIZE = 2048 };
enum { START = 1, TO_MEMORY = 2 };

static void die(const char *what)
{
	printf("edu: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int pages(char **argv)
{
	char path[64], line[512];
	uint64_t first = strtoull(argv[1], NULL, 0), last = strtoull(argv[2], NULL, 0), start = 0, end = 0;
	long count = atol(argv[3]);
	snprintf(path, sizeof path, "/proc/%s/maps", argv[0]);
	FILE *maps = fopen(path, "r");
	while (maps && fgets(line, sizeof line, maps))
		if (strstr(line, "memfd:"))
			sscanf(line, "%lx-%lx", &start, &end);
	snprintf(path, sizeof path, "/proc/%s/pagemap", argv[0]);
	int fd = open(path, O_RDONLY);
	if (!end || fd < 0)
		die(path);
	// Spread over the file, and of what is left once round.
	uint64_t number = (end - start) / PAGE, step = number / (4 * count) | 1;
	for (uint64_t page = 0; page < number && count; page += step) {
		uint64_t entry;
		if (pread(fd, &entry, 8, (start / PAGE + page) * 8) != 8)
			die("pagemap");
		uint64_t at = (entry & ((1ULL << 55) - 1)) * PAGE;
		if (!(entry >> 63) || at < first || at + PAGE - 1 > last)
			continue;
		printf("0x%lx ", at);
		count--;
	}
	printf("\n");
	return count != 0;
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "pages"))
		return pages(argv + 2);
	if (argc < 4 || strcmp(argv[1], "write"))
		return 2;
	char path[256];
	snprintf(path, sizeof path, "%s/resource0", argv[2]);
	int fd = open(path, O_RDWR);
	volatile char *bar = fd < 0 ? MAP_FAILED : mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (bar == MAP_FAILED)
		die(path);
	for (int i = 3; i < argc; i++) {
		*(volatile uint64_t *)(bar + SOURCE) = BUFFER;
		*(volatile uint64_t *)(bar + TARGET) = strtoull(argv[i], NULL, 0);
		*(volatile uint64_t *)(bar + COUNT) = SIZE;
		*(volatile uint64_t *)(bar + COMMAND) = START | TO_MEMORY;
		// The device takes a tenth of a second.
		while (*(volatile uint64_t *)(bar + COMMAND) & START)
			nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	printf("%d\n", argc - 3);
	return 0;
}
