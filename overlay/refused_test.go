package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestAttributesBeyondTheFileSystem: more attributes than fit in one inode are the layer's fault,
// although ext4 reports a full disk.
func TestAttributesBeyondTheFileSystem(t *testing.T) {
	s := loopStore(t, 64<<20, "mkfs.ext4", "-q", "-F")
	attributes := map[string]string{}
	for n := range 200 {
		attributes[fmt.Sprintf("%suser.k%d", xattrRecord, n)] = strings.Repeat("v", 100)
	}
	e := file("f", "content")
	e.PAXRecords = attributes
	_, err := s.Apply(t.Context(), bytes.NewReader(buildTar(t, e)))
	if !errdefs.IsInvalidArgument(err) || errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `entry "f"`) {
		t.Errorf("Apply: %v", err)
	}
	noDrafts(t, s)
}

func TestAttributeErrors(t *testing.T) {
	room := func(blocks uint64) func(*unix.Statfs_t) error {
		return func(st *unix.Statfs_t) error { st.Bavail, st.Bsize = blocks, 4096; return nil }
	}
	for _, c := range []struct {
		err     error
		blocks  uint64
		invalid bool
	}{
		{unix.ENOSPC, 1 << 20, true}, {unix.ENOSPC, 3, false}, {unix.E2BIG, 3, true}, {unix.ERANGE, 3, true}, {unix.EIO, 1 << 20, false},
	} {
		err := attributeError(attribute{name: "user.a"}, c.err, room(c.blocks))
		if errdefs.IsInvalidArgument(err) != c.invalid || errors.Is(err, c.err) == c.invalid {
			t.Errorf("%v with %d free blocks: %v", c.err, c.blocks, err)
		}
	}
}

func TestLinkErrors(t *testing.T) {
	if err := linkError("f", unix.EMLINK); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many links: %v", err)
	}
	if err := linkError("f", unix.EIO); errdefs.IsInvalidArgument(err) || !errors.Is(err, unix.EIO) {
		t.Errorf("an error of the disk: %v", err)
	}
}
