// SPDX-License-Identifier: MIT
// Gigantic pages of 1 GiB, as any program may ask for them.
//   gigantic places            print the address of each
//   gigantic take UID FLAGS [NODE]  as that user map one and touch it; FLAGS 1: with MAP_NORESERVE. Prints what came of it.
//   gigantic keep UID FLAGS [NODE]  the same, and keep it
//   gigantic storm NUMBER      as many processes at once, every second of them with MAP_NORESERVE: print how many got one
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GIB (1UL << 30)
#ifndef MAP_HUGE_1GB
#define MAP_HUGE_1GB (30 << 26)
#endif
// Bits of /proc/kpageflags: KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_HUGE.
enum { HEAD = 1 << 15, TAIL = 1 << 16, HUGE = 1 << 17 };

static uint64_t flags(int fd, uint64_t address)
{
	uint64_t value;

	return pread(fd, &value, 8, address / 4096 * 8) == 8 ? value : 0;
}

static int places(void)
{
	int fd = open("/proc/kpageflags", O_RDONLY);

	if (fd < 0)
		return perror("kpageflags"), 1;
	// 2 MiB in, a page of 2 MiB would begin the next.
	for (uint64_t at = 0; at < 64 * GIB; at += GIB)
		if ((flags(fd, at) & (HEAD | HUGE)) == (HEAD | HUGE) && (flags(fd, at + (2 << 20)) & (TAIL | HUGE)) == (TAIL | HUGE))
			printf("%#llx ", (unsigned long long)at);
	puts("");
	return 0;
}

// Returns 0 if it was taken, or the error; a process that gets one too late ends by SIGBUS.
static int take(int noreserve)
{
	int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB | (noreserve ? MAP_NORESERVE : 0);
	volatile char *page = mmap(NULL, GIB, PROT_READ | PROT_WRITE, kind, -1, 0);

	if (page == MAP_FAILED)
		return errno;
	page[0] = 1;
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int status, got = 0, error;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(what, "places"))
		return places();
	if (!strcmp(what, "storm") && argc == 3) {
		for (int i = 0; i < atoi(argv[2]); i++)
			if (fork() == 0)
				_exit(take(i & 1) != 0);
		while (wait(&status) > 0)
			got += WIFEXITED(status) && WEXITSTATUS(status) == 0;
		printf("%d\n", got);
		return 0;
	}
	if ((strcmp(what, "take") && strcmp(what, "keep")) || (argc != 4 && argc != 5))
		return 2;
	if (argc == 5) {
		unsigned long node = 1UL << atoi(argv[4]);

		if (syscall(SYS_set_mempolicy, 2 /* MPOL_BIND */, &node, 8 * sizeof node))
			return perror("set_mempolicy"), 1;
	}
	if (setgid(atoi(argv[2])) || setuid(atoi(argv[2])))
		return perror("setuid"), 1;
	if (fork() == 0) {
		error = take(atoi(argv[3]));
		puts(error ? strerror(error) : "taken");
		if (!error && !strcmp(what, "keep"))
			pause();
		_exit(0);
	}
	wait(&status);
	if (WIFSIGNALED(status))
		puts(strsignal(WTERMSIG(status)));
	return 0;
}
