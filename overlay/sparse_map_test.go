package overlay

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestLongSparseMapsAreInvalid: an unnamed error of archive/tar is the layer's fault too.
func TestLongSparseMapsAreInvalid(t *testing.T) {
	header := make([]byte, 512)
	copy(header, "s")
	copy(header[100:], "0000644\x000000000\x000000000\x0000010000000\x0000000000000\x00")
	header[156] = 'S'
	copy(header[257:], "ustar  \x00")
	header[482] = 1 // another block of the map follows
	copy(header[148:], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	more := make([]byte, 512)
	for n := range 21 {
		copy(more[24*n:], "00000000000\x0000000000000\x00")
	}
	more[504] = 1
	layer := append(header, bytes.Repeat(more, 1<<14)...)
	_, err := newStore(t).Apply(t.Context(), bytes.NewReader(layer))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "sparse map") {
		t.Errorf("Apply: %v, want an invalid argument", err)
	}
}
