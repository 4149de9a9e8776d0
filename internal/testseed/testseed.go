// Package testseed provides random tests with a source of numbers and makes failures repeatable: it
// logs the seed, which can be set by the environment.
//
// A test that draws all its choices from one source repeats them with the same seed. Time, IDs and
// the order of goroutines are not controlled. Only tests import the package. It has no state:
// sources are independent.
package testseed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Variable is the environment variable with the seed that a failed test has logged, an unsigned
// 64-bit decimal number.
const Variable = "MICA_TEST_SEED"

// New returns a source of random numbers for one test and logs its seed. The seed is random unless
// Variable is set; an invalid value fails the test. The source must not be used concurrently.
func New(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if value, set := os.LookupEnv(Variable); set {
		var err error
		if seed, err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatalf("parse %s: %v", Variable, err)
		}
	}
	t.Logf("%s=%d", Variable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}
