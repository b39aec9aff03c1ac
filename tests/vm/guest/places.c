// SPDX-License-Identifier: MIT
// places FILE MIB [START END]: run outside the guest; of each page of FILE, which is the guest's memory, between the byte
// offsets START and END, write 32 bits: the number, from 1, of the pattern's page (there are MIB * 256) that stands
// intact in it, or 0.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pattern.h"

int main(int argc, char **argv)
{
	struct stat st;
	int fd = argc > 2 ? open(argv[1], O_RDONLY) : -1;
	if (fd < 0 || fstat(fd, &st))
		return 2;
	off_t start = argc > 4 ? strtoull(argv[3], NULL, 0) : 0;
	off_t end = argc > 4 ? (off_t)strtoull(argv[4], NULL, 0) : st.st_size;
	size_t pages = strtoul(argv[2], NULL, 10) << 8;
	uint32_t *found = calloc((end - start) / PAGE + 1, sizeof *found);
	for (off_t at = start; at < end; ) {
		// Holes hold nothing: skipping them keeps a sparse file quick.
		off_t data = lseek(fd, at, SEEK_DATA);
		if (data < 0 || data >= end)
			break;
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole > end)
			hole = end;
		char *map = mmap(NULL, hole - data, PROT_READ, MAP_SHARED, fd, data);
		if (map == MAP_FAILED)
			return 1;
		for (char *page = map; page + PAGE <= map + (hole - data); page += PAGE)
			if (pattern_intact(page) && pattern_number(page) < pages)
				found[(data - start + (page - map)) / PAGE] = pattern_number(page) + 1;
		munmap(map, hole - data);
		at = hole;
	}
	return fwrite(found, sizeof *found, (end - start) / PAGE, stdout) != (size_t)(end - start) / PAGE;
}
