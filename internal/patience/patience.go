// Package patience scales the time limits of tests.
//
// A test has time limits so that it ends even if it hangs. On an emulated machine, which is many
// times slower, they would fail tests that merely take longer. So the limits are multiplied by a
// factor from the environment. The factor must not be applied to times that the product promises,
// which are the same on every machine. The package has no state: it reads the variable at each
// call, and Of may be called concurrently.
package patience

import (
	"os"
	"strconv"
	"time"
)

// Variable is the environment variable with the factor, a whole number. Emulated machines need one.
const Variable = "MICA_PATIENCE"

// Of returns d multiplied by the factor. A missing or invalid factor counts as 1.
func Of(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv(Variable))
	if err != nil || factor < 1 {
		return d
	}
	return d * time.Duration(factor)
}
