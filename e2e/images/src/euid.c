// Prints the effective user, so that a setuid copy of it shows whether
// no_new_privs holds.
#include <stdio.h>
#include <unistd.h>

int main(void) {
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
