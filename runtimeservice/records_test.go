package runtimeservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/state"
)

// TestUnusableRecords holds that a record which is there and cannot be used keeps its files,
// with those of the pod's containers, while one that was never whole goes; the others load.
func TestUnusableRecords(t *testing.T) {
	s := &Service{
		inventory: newInventory(state.Paths{DataDir: t.TempDir()}, nil), recoveries: newRecoveries(),
	}
	s.cgroups = new(cgroup.Manager)
	pod := func(id string) string {
		rec := state.PodRecord{ID: id}
		rec.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: id}}
		return recordFor(t, filepath.Join(s.paths.PodRecords(), id), rec)
	}
	container := func(id, pod string) {
		rec := state.ContainerRecord{ID: id, PodID: pod}
		rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: id}}
		recordFor(t, filepath.Join(s.paths.ContainerRecords(), id), rec)
	}
	pod("whole")
	container("of-whole", "whole")
	damaged := map[string]func(record string) error{
		"truncated": func(r string) error { return os.Truncate(r, 20) },
		"foreign":   func(r string) error { return os.WriteFile(r, []byte(`{"ID":"other"}`), 0o600) },
		"version":   func(r string) error { return os.WriteFile(r, []byte(`{"ID":["version"]}`), 0o600) },
		"unreadable": func(r string) error {
			if err := os.Remove(r); err != nil {
				return err
			}
			return os.Mkdir(r, 0o700)
		},
	}
	for id, damage := range damaged {
		record := pod(id)
		container("of-"+id, id)
		if err := damage(record); err != nil {
			t.Fatal(err)
		}
	}
	gone := map[string]func(record string) error{
		"empty":   func(r string) error { return os.Truncate(r, 0) },
		"missing": os.Remove,
	}
	for id, damage := range gone {
		record := pod(id)
		container("of-"+id, id)
		if err := damage(record); err != nil {
			t.Fatal(err)
		}
	}
	for _, load := range []func(context.Context, unusableFunc) error{s.loadPods, s.loadContainers} {
		if err := load(t.Context(), s.setAside); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.containers.Get("of-whole"); err != nil || len(s.pods.All()) != 1 || len(s.containers.All()) != 1 {
		t.Errorf("loaded: %d pods and %d containers, %v", len(s.pods.All()), len(s.containers.All()), err)
	}
	for id := range damaged {
		for name, kind := range map[string]string{id: state.PodKind, "of-" + id: state.ContainerKind} {
			dir := filepath.Join(s.paths.Records(), kind+"s")
			if _, aside := s.unusable.get(kind, name); !aside || !exists(filepath.Join(dir, name, "kept")) {
				t.Errorf("%s: set aside is %v, its files are there is %v", name, aside, exists(filepath.Join(dir, name, "kept")))
			}
		}
	}
	for id := range gone {
		if exists(filepath.Join(s.paths.PodRecords(), id)) || exists(filepath.Join(s.paths.ContainerRecords(), "of-"+id)) {
			t.Errorf("%s: what was never whole is there", id)
		}
	}
	// What a start moves out of the way, with all files, the sweep deletes.
	found, err := s.discarded()
	if err != nil || len(found) != 2*len(gone) {
		t.Errorf("discarded: %d directories, %v", len(found), err)
	}
	for _, l := range found {
		if !exists(filepath.Join(l.where, "kept")) {
			t.Errorf("%s was emptied before the sweep", l.where)
		}
		if err := s.removeLeftover(t.Context(), l); err != nil || exists(l.where) {
			t.Errorf("%s is there after its removal: %v", l.where, err)
		}
	}
	if got, want := s.UnusableRecords(), 2*len(damaged); got != want {
		t.Errorf("%d unusable records, want %d", got, want)
	}
}

// recordFor writes a record with a file beside it.
func recordFor(t *testing.T, dir string, rec any) (path string) {
	t.Helper()
	path = filepath.Join(dir, state.RecordFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := jsonfile.Write(path, rec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The error of a call that gives up waiting for an object's lock names the operation that holds the
// lock, and its stage.
func TestWaitNamesTheRecovery(t *testing.T) {
	j := operations.New()
	l := state.NewLock()
	holder, op := j.Begin(t.Context(), "recover pod", operations.Subject{})
	defer op.End(nil)
	if err := l.Lock(holder, "recover pod x"); err != nil {
		t.Fatal(err)
	}
	operations.Enter(holder, "delete network")
	r := newRecoveries()
	end := r.begin("x", op)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{"lock": l.Lock(ctx, "stop pod x"), "same name": r.wait(ctx, "x")} {
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "delete network for ") {
			t.Errorf("%s: %v, want the stage of the recovery", name, err)
		}
	}
	end()
	if err := r.wait(ctx, "x"); err != nil {
		t.Errorf("wait for what is recovered: %v", err)
	}
}
