package streams

import (
	"bytes"
	"strings"
	"sync"
	"testing"
)

func TestCaptureKeepsTheBeginning(t *testing.T) {
	c := NewCapture(5)
	for _, part := range []string{"abc", "defg", "hij"} {
		if n, err := c.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%q) = %d, %v: writing must never block", part, n, err)
		}
	}
	if got := string(c.Take()); got != "abcde" {
		t.Errorf("kept %q, want %q", got, "abcde")
	}
}

func TestCaptureDropsAfterTake(t *testing.T) {
	c := NewCapture(100)
	if _, err := c.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	got := c.Take()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { _, _ = c.Write([]byte("after")) })
	}
	group.Wait()
	if string(got) != "before" || string(c.Take()) != "before" {
		t.Errorf("kept %q, want %q", c.Take(), "before")
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
		a, b := bytes.Repeat([]byte("a"), tt.a), []byte(strings.Repeat("b", tt.b))
		gotA, gotB := Fit(a, b, tt.budget)
		if len(gotA) != tt.wantA || len(gotB) != tt.wantB {
			t.Errorf("Fit(%d, %d, %d) = %d, %d, want %d, %d", tt.a, tt.b, tt.budget, len(gotA), len(gotB), tt.wantA, tt.wantB)
		}
	}
}
