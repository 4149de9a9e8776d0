// Package userid tells user and group IDs from names, in one way for all of
// Mica: what the image service reports to the kubelet, which decides whether a
// container may run, must be what the container gets.
package userid

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Max is the highest user or group ID; the one above it means "unchanged" to
// the kernel.
const Max = math.MaxUint32 - 1

// Parse reads a user or group ID. A decimal number, with a sign or zeros in
// front, is only ever an ID, as Docker and containerd have it: numeric is true
// for it even where it is out of range, which is the error. Any other text is a
// name.
func Parse(s string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, false, nil
	}
	if err != nil || n < 0 || n > Max {
		return 0, true, fmt.Errorf("ID %q is not in 0..%d", s, uint32(Max))
	}
	return uint32(n), true, nil
}
