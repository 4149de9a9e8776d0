package overlay

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TestViewWithoutSetuidAndDevices: setuid files and device nodes of an image have no effect in a
// view on the host.
func TestViewWithoutSetuidAndDevices(t *testing.T) {
	bothAPIs(t, func(t *testing.T, s *Store) {
		base := owned(t, s, Layer{})
		top := register(t, s, base.ID, buildTar(t, file("top", "t")))
		for _, l := range []Layer{base, top} {
			for _, ns := range []string{"", userNS(t)} {
				target := t.TempDir()
				if err := s.MountView(l.ID, target, ns); err != nil {
					t.Fatal(err)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(target, &st); err != nil {
					t.Fatal(err)
				}
				const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_RDONLY
				if st.Flags&want != want {
					t.Errorf("view has mount flags %#x, want %#x among them", st.Flags, want)
				}
				if err := unix.Unmount(target, 0); err != nil {
					t.Fatal(err)
				}
				if is, err := mountinfo.Mounted(target); is || err != nil {
					t.Errorf("mounted after one unmount: %v, %v", is, err)
				}
			}
		}
	})
}

// TestDataRootIsClosed: other users of the host cannot enter the data root, for any umask, and also
// if another program created it. The group of an adopted root keeps its permissions.
func TestDataRootIsClosed(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct{ was, want os.FileMode }{
		"new":             {0, 0o710},
		"of an old build": {0o711, 0o710},
		"open":            {0o755, 0o750},
		"of dockerd":      {0o710, 0o710},
		"closed":          {0o700, 0o700},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(memoryDir(t), "root")
			if tc.was != 0 {
				if err := os.Mkdir(root, tc.was); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(root, tc.was); err != nil {
					t.Fatal(err)
				}
			}
			openStore(t, root)
			st, err := os.Stat(root)
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Mode().Perm(); got != tc.want {
				t.Errorf("mode is %o, want %o", got, tc.want)
			}
		})
	}
}
