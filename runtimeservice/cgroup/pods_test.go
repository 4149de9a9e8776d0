package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestListPodsInvertsPodParent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("trusted attributes need root")
	}
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
				if err := m.Mark(want[id], "me"); err != nil {
					t.Fatal(err)
				}
			}
			got, err := m.ListPods("me")
			if err != nil || len(got) != 2 || got["aa"] != want["aa"] || got["bb"] != want["bb"] {
				t.Errorf("ListPods = %v, %v; want %v", got, err, want)
			}
		})
	}
}

// TestListPodsLeavesOthersAlone holds that cgroups without the owner's mark are not found: another
// daemon's pods, and the kubelet's pods below a parent that is also the default one.
func TestListPodsLeavesOthersAlone(t *testing.T) {
	m, path := real(t)
	m, err := New(m.mode, Options{DefaultParent: path})
	if err != nil {
		t.Fatal(err)
	}
	for name, owner := range map[string]string{"mine": "me", "another": "other", "burstable": "", "longer": "me too"} {
		if _, err := m.EnsureParent(t.Context(), path+"/"+name); err != nil {
			t.Fatal(err)
		}
		if owner == "" {
			continue
		}
		if err := m.Mark(path+"/"+name, owner); err != nil {
			t.Fatal(err)
		}
	}
	if pods, err := m.ListPods("me"); err != nil || len(pods) != 1 || pods["mine"] != path+"/mine" {
		t.Errorf("ListPods = %v, %v; want mine alone", pods, err)
	}
	if pods, err := m.ListPods(""); err != nil || len(pods) != 0 {
		t.Errorf("ListPods of nobody = %v, %v", pods, err)
	}
	if err := m.Mark(path+"/none", "me"); err != nil {
		t.Errorf("Mark of an absent cgroup = %v", err)
	}
}
