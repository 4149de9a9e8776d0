// Package userid distinguishes user and group IDs from names, in the same way for all of Mica. The
// image service reports an image's user to the kubelet, which decides by it whether the container
// may run, so the container must get the same user.
package userid

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Max is the highest user or group ID. The kernel uses the next number for "unchanged".
const Max = math.MaxUint32 - 1

// Parse parses a user or group ID. As in Docker and containerd, a decimal number, with or without a
// sign and leading zeros, is always an ID. numeric is then true, even if the ID is out of range,
// which is the only error. Any other text is a name. Parse may be called concurrently.
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
