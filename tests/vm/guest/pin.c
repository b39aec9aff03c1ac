// SPDX-License-Identifier: MIT
// pin BLOCK_MIB MIB: use that much memory and give it back, but for one page in each of eight memory blocks, which
// the kernel cannot move: they are registered as io_uring buffers, pinned as a device driver would. Prints the blocks, then sleeps.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Half of a guest of 2 GiB: each of them takes the time that safemem has patience for, twice.
enum { PAGE = 4096, MOST = 8 };

int main(int argc, char **argv)
{
	uint64_t block = argc > 1 ? strtoull(argv[1], 0, 0) << 20 : 128 << 20, seen[MOST];
	struct io_uring_params parameters = {0};
	struct iovec pinned[MOST];
	long pages = argc > 2 ? strtol(argv[2], 0, 0) << 8 : 64 << 8;
	int pagemap = open("/proc/self/pagemap", O_RDONLY), ring = syscall(SYS_io_uring_setup, 4, &parameters), count = 0;
	char *memory = mmap(0, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (pagemap < 0 || ring < 0 || memory == MAP_FAILED)
		return perror("pin"), 1;
	for (long page = 0; page < pages && count < MOST; page++) {
		uint64_t entry, number;
		int known = 0;

		if (pread(pagemap, &entry, 8, ((uintptr_t)memory / PAGE + page) * 8) != 8)
			return perror("pagemap"), 1;
		number = (entry & ((1ULL << 55) - 1)) * PAGE / block;
		for (int i = 0; i < count; i++)
			known |= seen[i] == number;
		if (known || !(entry >> 63))
			continue;
		seen[count] = number;
		pinned[count++] = (struct iovec){memory + page * PAGE, PAGE};
	}
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, pinned, count))
		return perror("io_uring_register"), 1;
	for (int i = 0; i <= count; i++) {
		char *from = i ? (char *)pinned[i - 1].iov_base + PAGE : memory;
		char *to = i < count ? pinned[i].iov_base : memory + pages * PAGE;

		if (to > from)
			madvise(from, to - from, MADV_DONTNEED);
	}
	for (int i = 0; i < count; i++)
		printf("%llu%c", (unsigned long long)seen[i], i + 1 < count ? ' ' : '\n');
	fflush(stdout);
	for (;;)
		pause();
}
