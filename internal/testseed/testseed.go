// Package testseed gives random tests their source of numbers and makes a failure
// repeatable: the seed is logged, and the environment can set it.
//
// A test that draws all its choices from one source makes the same choices again
// with the same seed. It does not control time, IDs or the order of goroutines.
// Only tests import the package. It keeps nothing: each source stands alone.
package testseed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Variable names the environment variable with the seed, an unsigned decimal
// number of 64 bits: the one that a failed test has logged.
const Variable = "MICA_TEST_SEED"

// New returns a source of random numbers for one test and logs its seed. The seed
// is random unless Variable is set; a value that is no number fails the test.
// The source is not safe for concurrent use.
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
