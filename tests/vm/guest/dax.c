// SPDX-License-Identifier: MIT
// A guest's memory in a dax device:
//   dax fill START MIB     fill it with the pattern
//   dax count START MIB    print how many of the pattern's pages stand intact in their places there
// As a VMM does it, through /dev/dax0.0; of a kernel without CONFIG_ZONE_DEVICE, whose device_dax driver cannot map it, the
// same memory through /dev/mem, from physical address START on. Which one it was goes to standard error.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "pattern.h"

int main(int argc, char **argv)
{
	const char *name = "/dev/dax0.0";
	size_t size = argc == 4 ? strtoul(argv[3], NULL, 10) << 20 : 0, intact = 0;
	off_t start = 0;
	int fd = open(name, O_RDWR);
	if (fd < 0 && size) {
		name = "/dev/mem";
		start = strtoul(argv[2], NULL, 0);
		fd = open(name, O_RDWR);
	}
	char *at = fd < 0 || !size ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);
	if (at == MAP_FAILED) {
		perror(name);
		return 1;
	}
	for (size_t page = 0; page < size / PAGE; page++) {
		if (!strcmp(argv[1], "fill"))
			pattern_fill(at + page * PAGE, page);
		intact += pattern_intact(at + page * PAGE) && pattern_number(at + page * PAGE) == page;
	}
	fprintf(stderr, "%s\n", name);
	printf("%zu\n", intact);
	return 0;
}
