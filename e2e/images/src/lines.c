// Prints numbered lines at full speed: lines COUNT [PAUSE-MICROSECONDS-PER-1000].
// Every line goes out by a write of its own, as from an unbuffered program.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	long count = argc > 1 ? atol(argv[1]) : 1000;
	long rest = argc > 2 ? atol(argv[2]) : 0;
	char line[64];
	for (long n = 1; n <= count; n++) {
		int length = snprintf(line, sizeof line, "line %ld\n", n);
		if (write(1, line, (size_t)length) != length) {
			return 1;
		}
		if (rest > 0 && n % 1000 == 0) {
			usleep((useconds_t)rest);
		}
	}
	return 0;
}
