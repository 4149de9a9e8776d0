package residency

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const smaps = `00400000-011af000 r-xp 00000000 fe:00 1234                               /usr/sbin/micad
Size:              14012 kB
Rss:               11900 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
011af000-020d6000 r--p 00daf000 fe:00 1234                               /usr/sbin/micad
Anonymous:             4 kB
020d6000-0216c000 rw-p 01cd6000 fe:00 1234                               /usr/sbin/micad
Anonymous:             0 kB
0216c000-041bb000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
041bb000-041bc000 r--s 00000000 fe:00 1234                               /usr/sbin/micad
Anonymous:             0 kB
7ffff0000000-7ffff0001000 r-xp 00000000 fe:00 77                         /other/usr/sbin/micad
Anonymous:             0 kB
7fffffffd000-7ffffffff000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`

// Only mappings whose content the kernel can read from the file again lose their pages: not what
// can be written, what a debugger or a relocation has changed, or what belongs to other files.
func TestUnchangedMappings(t *testing.T) {
	for file, want := range map[string][]mapping{
		"/usr/sbin/micad":       {{0x400000, 0x11af000}},
		"/other/usr/sbin/micad": {{0x7ffff0000000, 0x7ffff0001000}},
		"/usr/sbin/other":       nil,
	} {
		if got, err := unchanged(strings.NewReader(smaps), file); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %x, %v; want %x", file, got, err, want)
		}
	}
	if _, err := unchanged(strings.NewReader(strings.Repeat("x", 1<<20)), "/x"); err == nil {
		t.Error("a line without end is no error")
	}
}

// The program runs on, and has fewer pages mapped.
func TestRelease(t *testing.T) {
	before := resident(t)
	if err := Release(); err != nil {
		t.Fatal(err)
	}
	after := resident(t)
	t.Logf("%d KiB of the program mapped, then %d KiB", before, after)
	if after >= before {
		t.Errorf("%d KiB of the program are mapped, after %d KiB", after, before)
	}
}

// resident returns how many KiB of the program's unchanged mappings are mapped.
func resident(t *testing.T) int {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	found, err := unchanged(bytes.NewReader(text), executable)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Skip("the test binary has relocations in all of its mappings")
	}
	sum := 0
	for _, m := range found {
		_, entry, _ := strings.Cut(string(text), fmt.Sprintf("%08x-%08x ", m.begin, m.end))
		_, size, _ := strings.Cut(entry, "\nRss:")
		var kib int
		if _, err := fmt.Sscan(size, &kib); err != nil {
			t.Fatal(err)
		}
		sum += kib
	}
	return sum
}
