// SPDX-License-Identifier: MIT
// Preserve a memfd with a known pattern through the Live Update Orchestrator, or get it back.
//   luo preserve SESSION MIB [NODE]  fill, preserve, print "preserved", then stay alive: closing the session ends it
//   luo retrieve SESSION MIB         get it back and print how many pages are intact
//   luo hold MIB                     fill plain anonymous memory with the pattern and stay alive
// Each page begins with the magic, then its own number, so that a page in the wrong place counts as lost.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pattern.h"

// Interface numbers and layouts of /dev/liveupdate (Linux 6.19, include/uapi/linux/liveupdate.h).
struct session_arg { uint32_t size; int32_t fd; uint8_t name[64]; };
struct fd_arg { uint32_t size; int32_t fd; uint64_t token __attribute__((aligned(8))); };
#define CREATE _IO(0xBA, 0x00)
#define RETRIEVE _IO(0xBA, 0x01)
#define PRESERVE_FD _IO(0xBA, 0x40)
#define RETRIEVE_FD _IO(0xBA, 0x41)

static void die(const char *what)
{
	printf("luo: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int session(unsigned long request, const char *name)
{
	struct session_arg arg = {.size = sizeof arg};
	int dev = open("/dev/liveupdate", O_RDWR);
	if (dev < 0)
		die("open /dev/liveupdate");
	strncpy((char *)arg.name, name, sizeof arg.name - 1);
	if (ioctl(dev, request, &arg))
		die("session");
	return arg.fd;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "hold")) {
		size_t size = strtoul(argv[2], NULL, 10) << 20;
		char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			die("mmap");
		for (size_t page = 0; page < size / PAGE; page++)
			pattern_fill(at + page * PAGE, page);
		printf("held\n");
		pause();
	}
	if (argc != 4 && argc != 5)
		return 2;
	size_t size = strtoul(argv[3], NULL, 10) << 20;
	if (!strcmp(argv[1], "preserve")) {
		// Page by page over all nodes of a guest that has some; a kernel of one node refuses more, and needs none.
		unsigned long nodes = argc == 5 ? 1UL << atoi(argv[4]) : 15;
		int mode = argc == 5 ? 2 /* MPOL_BIND */ : 3 /* MPOL_INTERLEAVE */;
		if (syscall(SYS_set_mempolicy, mode, &nodes, 8 * sizeof nodes) && argc == 5)
			die("set_mempolicy");
		int owner = session(CREATE, argv[2]);
		int fd = memfd_create("guest", 0);
		if (fd < 0 || ftruncate(fd, size))
			die("memfd");
		char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (at == MAP_FAILED)
			die("mmap");
		for (size_t page = 0; page < size / PAGE; page++)
			pattern_fill(at + page * PAGE, page);
		struct fd_arg arg = {.size = sizeof arg, .fd = fd, .token = 1};
		if (ioctl(owner, PRESERVE_FD, &arg))
			die("preserve");
		printf("preserved\n");
		pause();
	}
	int owner = session(RETRIEVE, argv[2]);
	struct fd_arg arg = {.size = sizeof arg, .token = 1};
	if (ioctl(owner, RETRIEVE_FD, &arg))
		die("retrieve");
	char *at = mmap(NULL, size, PROT_READ, MAP_SHARED, arg.fd, 0);
	if (at == MAP_FAILED)
		die("mmap");
	size_t intact = 0;
	for (size_t page = 0; page < size / PAGE; page++)
		intact += pattern_intact(at + page * PAGE) && pattern_number(at + page * PAGE) == page;
	printf("%zu\n", intact);
	return 0;
}
