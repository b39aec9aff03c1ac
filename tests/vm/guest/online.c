// SPDX-License-Identifier: MIT
// online FIRST LAST WORD: write WORD to the state of these memory blocks, as fast as can be, and print the microseconds.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec start, end;
	char path[64];
	if (argc != 4)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int n = atoi(argv[1]); n <= atoi(argv[2]); n++) {
		snprintf(path, sizeof path, "/sys/devices/system/memory/memory%d/state", n);
		int fd = open(path, O_WRONLY);
		if (fd < 0 || write(fd, argv[3], strlen(argv[3])) < 0)
			perror(path);
		close(fd);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld\n", (end.tv_sec - start.tv_sec) * 1000000L + (end.tv_nsec - start.tv_nsec) / 1000);
	return 0;
}
