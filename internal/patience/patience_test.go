package patience

import (
	"testing"
	"time"
)

func TestOf(t *testing.T) {
	for factor, want := range map[string]time.Duration{
		"": time.Second, "1": time.Second, "20": 20 * time.Second, "0": time.Second, "-3": time.Second, "x": time.Second,
	} {
		t.Setenv(Variable, factor)
		if got := Of(time.Second); got != want {
			t.Errorf("with factor %q it is %s, want %s", factor, got, want)
		}
	}
}
