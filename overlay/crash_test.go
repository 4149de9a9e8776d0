package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/micarun/mica/internal/failpoint"
)

const crashVariable = "MICA_OVERLAY_CRASH"

// crashChild is the process that dies. It does each operation once in the store that the variable
// names, and prints what it has done.
func crashChild() int {
	if err := crashScript(os.Getenv(crashVariable)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func crashTars() ([][]byte, error) {
	var tars [][]byte
	for _, entries := range [][]entry{{file("a", "1")}, {file("b", "2"), file("b", "twice")}, {file("d/c", "3")}} {
		data, err := encodeTar(entries)
		if err != nil {
			return nil, err
		}
		tars = append(tars, data)
	}
	return tars, nil
}

func crashScript(root string) error {
	ctx := context.Background()
	s, err := Open(ctx, Options{Root: root})
	if err != nil {
		return err
	}
	if err := s.SweepAbandoned(ctx); err != nil {
		return err
	}
	var drafts []*Draft
	tars, err := crashTars()
	if err != nil {
		return err
	}
	for _, data := range tars {
		d, err := s.Apply(ctx, bytes.NewReader(data))
		if err != nil {
			return err
		}
		drafts = append(drafts, d)
	}
	layers, err := s.Commit(ctx, "", drafts...)
	if err != nil {
		return err
	}
	fmt.Println("committed")
	top := layers[len(layers)-1].ID
	for _, id := range []string{"kept", "removed"} {
		if _, err := s.Create(ctx, CreateArgs{ID: id, Parent: top}); err != nil {
			return err
		}
		if _, err := s.Mount(ctx, MountArgs{ID: id, Volatile: true}); err != nil {
			return err
		}
	}
	fmt.Println("created")
	if err := s.Remove(ctx, "removed"); err != nil {
		return err
	}
	fmt.Println("removed")
	if err := s.Remove(ctx, "kept"); err != nil {
		return err
	}
	if _, err := s.SweepUnused(ctx, nil); err != nil {
		return err
	}
	fmt.Println("swept")
	return s.Close()
}

// TestCrash: the next Open and SweepAbandoned repair the store of a process that died at any point.
// All reported results exist, Check finds nothing, and the same work succeeds.
func TestCrash(t *testing.T) {
	needRoot(t)
	for _, point := range []string{
		"overlay.apply.extracted", "overlay.commit.prepared", "overlay.commit.synced", "overlay.commit.published",
		"overlay.create.init", "overlay.create.upper", "overlay.create.prepared", "overlay.mount.prepared", "overlay.mount.mounted",
		"overlay.remove.retired", "overlay.sweep.retired",
	} {
		t.Run(point, func(t *testing.T) {
			root := t.TempDir()
			done, err := runCrash(t, root, failpoint.Variable+"="+point+"=kill")
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(exit.String(), "killed") {
				t.Fatalf("the process was not killed at %s: %v", point, err)
			}
			// Another process may die while it removes what the first one left.
			_, _ = runCrash(t, root, failpoint.Variable+"=overlay.sweep.directory=kill")
			s := openStore(t, root)
			checkClean(t, s)
			if n := len(s.Layers()); slices.Contains(done, "committed") && point != "overlay.sweep.retired" && n != 3 {
				t.Errorf("%d layers left of those that were reported", n)
			}
			for _, l := range s.Layers() {
				readLayer(t, s, l.ID)
			}
			for _, rw := range s.RWs() {
				if err := s.Remove(context.Background(), rw.ID); err != nil {
					t.Error(err)
				}
			}
			noDrafts(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if done, err = runCrash(t, root); err != nil || !slices.Contains(done, "swept") {
				t.Errorf("second run: %v, %v", done, err)
			}
			s = openStore(t, root)
			noDrafts(t, s)
		})
	}
}

func runCrash(t *testing.T, root string, env ...string) (done []string, err error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), crashVariable+"="+root), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err = cmd.Run()
	t.Logf("%s%s", out.String(), stderr.String())
	return strings.Fields(out.String()), err
}
