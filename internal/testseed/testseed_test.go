package testseed

import (
	"math/rand/v2"
	"testing"
)

func TestSeedOfTheEnvironment(t *testing.T) {
	t.Setenv(Variable, "18446744073709551615")
	got, want := New(t).Uint64(), rand.New(rand.NewPCG(18446744073709551615, 0)).Uint64()
	if got != want {
		t.Errorf("first number = %d, want %d", got, want)
	}
}

func TestSeedsDiffer(t *testing.T) {
	if a, b := New(t).Uint64(), New(t).Uint64(); a == b {
		t.Errorf("two sources begin with %d", a)
	}
}
