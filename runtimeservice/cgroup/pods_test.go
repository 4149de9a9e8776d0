package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestListPodsInvertsPodParent(t *testing.T) {
	for _, driver := range []Driver{Cgroupfs, Systemd} {
		t.Run(string(driver), func(t *testing.T) {
			root := t.TempDir()
			m, err := newManager(Mode{V2: true, Unified: root}, Options{Driver: driver})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for _, id := range []string{"aa", "bb"} {
				if want[id], err = m.PodParent("", id); err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(root, want[id]), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := m.ListPods()
			if err != nil || len(got) != 2 || got["aa"] != want["aa"] || got["bb"] != want["bb"] {
				t.Errorf("ListPods = %v, %v; want %v", got, err, want)
			}
		})
	}
}
