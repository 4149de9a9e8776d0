package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInitLayerWhereEtcIsALink: an image's /etc that is a symbolic link to a directory stays a
// link. The files of /etc are created in its target, never outside the image.
func TestInitLayerWhereEtcIsALink(t *testing.T) {
	links := func(n int) []entry {
		entries := []entry{symlink("etc", "l0"), dir("store")}
		for i := range n {
			entries = append(entries, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
		}
		return append(entries, symlink(fmt.Sprintf("l%d", n), "store"))
	}
	long := strings.Repeat("./", 600)
	for _, tc := range []struct {
		name  string
		image []entry
		at    string // where the files are; "etc": a directory has replaced the link
	}{
		{"absolute", []entry{symlink("etc", "/store/x/etc"), dir("store"), dir("store/x"), dir("store/x/etc"), file("store/x/etc/passwd", "me")}, "store/x/etc"},
		{"relative", []entry{symlink("etc", "usr/../usr/etc"), dir("usr"), dir("usr/etc")}, "usr/etc"},
		{"over a link", []entry{symlink("etc", "usr/local/etc"), dir("usr"), symlink("usr/local", "/opt/./local"), dir("opt"), dir("opt/local"), dir("opt/local/etc")}, "opt/local/etc"},
		{"dots above the root", []entry{symlink("etc", "../../../../../../store"), dir("store")}, "store"},
		{"links above the root", []entry{symlink("etc", "a/b"), symlink("a", "/../.."), symlink("b", "../../store"), dir("store")}, "store"},
		{"the root", []entry{symlink("etc", "/")}, "."},
		{"a path of the host", []entry{symlink("etc", "/var/tmp")}, "etc"},
		{"nothing", []entry{symlink("etc", "store/etc"), dir("store")}, "etc"},
		{"a file", []entry{symlink("etc", "store"), file("store", "a file")}, "etc"},
		{"below a file", []entry{symlink("etc", "store/etc"), file("store", "a file")}, "etc"},
		{"itself", []entry{symlink("etc", "etc")}, "etc"},
		{"a cycle", []entry{symlink("etc", "a"), symlink("a", "b/c"), symlink("b", "a")}, "etc"},
		{"many links", links(30), "store"},
		{"too many links", links(50), "etc"},
		{"a long way", []entry{symlink("etc", long+"a"), symlink("a", long+"store"), dir("store")}, "etc"},
		{"a long name", []entry{symlink("etc", strings.Repeat("n", 300))}, "etc"},
		{"proc", []entry{symlink("etc", "proc/x"), dir("proc"), dir("proc/x")}, "etc"},
		{"dev, which is a link", []entry{symlink("etc", "dev"), symlink("dev", "store"), dir("store")}, "store"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			// In two layers: the link is above its target.
			below := register(t, s, "", buildTar(t, tc.image[1:]...))
			create(t, s, "c", register(t, s, below.ID, buildTar(t, tc.image[0])).ID)
			root := mount(t, s, MountArgs{ID: "c"})
			info, err := os.Lstat(filepath.Join(root, "etc"))
			if err != nil {
				t.Fatal(err)
			}
			if isLink := info.Mode()&os.ModeSymlink != 0; isLink != (tc.at != "etc") {
				t.Errorf("/etc is %v", info.Mode())
			}
			got := tree(t, root)
			is := map[string]string{}
			for _, name := range []string{"hosts", "hostname", "resolv.conf", "mtab"} {
				is[name] = got[filepath.Join(tc.at, name)]
			}
			want := map[string]string{"hosts": "file ", "hostname": "file ", "resolv.conf": "file ", "mtab": "-> /proc/mounts"}
			if d := cmp.Diff(want, is); d != "" {
				t.Errorf("in %s (-want +got):\n%s", tc.at, d)
			}
			for _, name := range []string{"dev", "proc", "sys"} {
				if got[name] != "dir" {
					t.Errorf("/%s is %q", name, got[name])
				}
			}
			if tc.name == "absolute" && got["store/x/etc/passwd"] != "file me" {
				t.Errorf("the image's users are gone: %v", got)
			}
		})
	}
}

// TestInitLayerKeepsWhereEtcLeads: the directories of the target of /etc keep their owners and
// modes.
func TestInitLayerKeepsWhereEtcLeads(t *testing.T) {
	s := newStore(t)
	store, etc := dir("store"), dir("store/etc")
	store.Mode, store.Uid, etc.Mode, etc.Gid = 0o711, 5, 0o2750, 6
	create(t, s, "c", register(t, s, "", buildTar(t, symlink("etc", "store/etc"), store, etc)).ID)
	root := mount(t, s, MountArgs{ID: "c"})
	if st := stat(t, filepath.Join(root, "store")); st.Mode&0o7777 != 0o711 || st.Uid != 5 || st.Mtim.Nano() != stamp.UnixNano() {
		t.Errorf("store: mode %o owner %d time %d", st.Mode&0o7777, st.Uid, st.Mtim.Nano())
	}
	if st := stat(t, filepath.Join(root, "store/etc")); st.Mode&0o7777 != 0o2750 || st.Gid != 6 || st.Mtim.Nano() != stamp.UnixNano() {
		t.Errorf("store/etc: mode %o group %d time %d", st.Mode&0o7777, st.Gid, st.Mtim.Nano())
	}
}
