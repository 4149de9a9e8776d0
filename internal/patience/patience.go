// Package patience says how long tests wait before they give up.
//
// Tests have limits so that one that hangs ends. On an emulated machine, which is
// many times slower, these limits would end tests that only take their time; so
// they are multiplied by a factor of the environment. It is never for what the
// product promises: that is the same on every machine. Nothing is kept: the
// variable is read at each call.
package patience

import (
	"os"
	"strconv"
	"time"
)

// Variable names the environment variable with the factor, a whole number.
// Emulated machines need one.
const Variable = "MICA_PATIENCE"

// Of returns how long to wait for something that may take d: d, times the factor
// of the environment.
func Of(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv(Variable))
	if err != nil || factor < 1 {
		return d
	}
	return d * time.Duration(factor)
}
