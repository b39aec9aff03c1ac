// SPDX-License-Identifier: MIT
// fill MIB: use that much memory, or as much as there is, and print how many MiB it was.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	unsigned long wanted = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	volatile unsigned long *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	// In a child, because the kernel may kill whoever takes the last page.
	if (fork() == 0) {
		FILE *score = fopen("/proc/self/oom_score_adj", "w");
		if (score) {
			fputs("1000", score);
			fclose(score);
		}
		for (; *done < wanted; (*done)++) {
			char *at = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (at == MAP_FAILED)
				break;
			memset(at, 0xa5, 1 << 20);
		}
		_exit(0);
	}
	wait(NULL);
	printf("%lu\n", *done);
	return 0;
}
