package streams

import (
	"strings"
	"sync"
	"testing"
)

// text ends a capture and returns what it has kept.
func (c *Capture) text(t *testing.T) string {
	t.Helper()
	text, err := c.Take(c.End())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCaptureKeepsTheBeginning(t *testing.T) {
	long := strings.Repeat("0123456789", inMemory/5)
	for _, limit := range []int{5, inMemory - 1, inMemory, inMemory + 1, len(long) + 7} {
		c := NewCapture(t.TempDir(), limit)
		for _, part := range []string{"abc", "defg", long} {
			if n, err := c.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatalf("Write(%q) = %d, %v: a writer must never block", part, n, err)
			}
		}
		if got, want := c.text(t), ("abcdefg" + long)[:limit]; got != want {
			t.Errorf("kept %d bytes, want the first %d", len(got), len(want))
		}
		if len(c.buf) > inMemory {
			t.Errorf("%d bytes are in memory", len(c.buf))
		}
		c.Close()
	}
}

func TestCaptureWithoutAFileKeepsWhatIsInMemory(t *testing.T) {
	c := NewCapture("/proc", 1<<20)
	defer c.Close()
	long := strings.Repeat("x", 2*inMemory)
	if n, err := c.Write([]byte(long)); n != len(long) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if got := c.text(t); got != long[:inMemory] {
		t.Errorf("kept %d bytes", len(got))
	}
}

func TestCaptureDropsAfterItsEnd(t *testing.T) {
	c := NewCapture(t.TempDir(), 100)
	defer c.Close()
	if _, err := c.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	got := c.text(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { _, _ = c.Write([]byte("after")) })
	}
	group.Wait()
	if got != "before" || c.text(t) != "before" {
		t.Errorf("kept %q, want %q", c.text(t), "before")
	}
}

func TestFit(t *testing.T) {
	tests := []struct{ a, b, budget, wantA, wantB int }{
		{a: 4, b: 6, budget: 10, wantA: 4, wantB: 6},
		{a: 20, b: 0, budget: 10, wantA: 10, wantB: 0},
		{a: 0, b: 20, budget: 10, wantA: 0, wantB: 10},
		{a: 3, b: 20, budget: 10, wantA: 3, wantB: 7},
		{a: 20, b: 3, budget: 10, wantA: 7, wantB: 3},
		{a: 20, b: 20, budget: 10, wantA: 5, wantB: 5},
		{a: 6, b: 6, budget: 10, wantA: 5, wantB: 5},
	}
	for _, tt := range tests {
		if gotA, gotB := Fit(tt.a, tt.b, tt.budget); gotA != tt.wantA || gotB != tt.wantB {
			t.Errorf("Fit(%d, %d, %d) = %d, %d, want %d, %d", tt.a, tt.b, tt.budget, gotA, gotB, tt.wantA, tt.wantB)
		}
	}
}
