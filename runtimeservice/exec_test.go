package runtimeservice

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// inPhases is a service with one container, named after its phase, of each phase.
func inPhases(t *testing.T) *Service {
	t.Helper()
	opts := Options{StateDir: t.TempDir()}.withDefaults()
	s := &Service{inventory: newInventory(opts.paths(), nil), opts: opts, handlers: map[string]handler{"": {}}}
	now := time.Now()
	for phase, st := range map[state.Phase]state.ContainerState{
		state.Created: {Ready: true}, state.Running: {Ready: true, Started: now}, state.Exited: {Ready: true, Started: now, Finished: now},
	} {
		rec := state.ContainerRecord{ID: string(phase), PodID: "pod"}
		rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: string(phase)}}
		if err := s.containers.Add(recordedContainer(t, t.TempDir(), rec, st)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestOnlyRunningContainersAreTalkedTo(t *testing.T) {
	s := inPhases(t)
	calls := map[string]func(context.Context, string) error{
		"CheckExec":   s.CheckExec,
		"CheckAttach": s.CheckAttach,
		"ServeExec": func(ctx context.Context, id string) error {
			return s.ServeExec(ctx, id, []string{"true"}, nil, nil, nil, false, nil)
		},
		"ServeAttach": func(ctx context.Context, id string) error { return s.ServeAttach(ctx, id, nil, nil, nil, false, nil) },
		"ExecSync": func(ctx context.Context, id string) error {
			_, err := s.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog": func(ctx context.Context, id string) error {
			_, err := s.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			for _, phase := range []state.Phase{state.Created, state.Exited} {
				if err := call(t.Context(), string(phase)); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%s container: %v, want that it must be running", phase, err)
				}
			}
			if err := call(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
				t.Errorf("unknown container: %v", err)
			}
			if err := call(t.Context(), ""); !errdefs.IsInvalidArgument(err) {
				t.Errorf("no ID: %v", err)
			}
		})
	}
	for _, name := range []string{"CheckExec", "CheckAttach", "ReopenContainerLog"} { // the last has no log
		if err := calls[name](t.Context(), string(state.Running)); err != nil {
			t.Errorf("%s of a running container: %v", name, err)
		}
	}
}

func TestExecSyncRefuses(t *testing.T) {
	s := inPhases(t)
	_, err := s.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: string(state.Running), Cmd: []string{"true"}, Timeout: -1})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative timeout: %v", err)
	}
	// The exit of the container is not recorded yet, but its bundle has gone.
	_, err = s.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: string(state.Running), Cmd: []string{"true"}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("container that has just ended: %v", err)
	}
}

func TestExecProcess(t *testing.T) {
	s := inPhases(t)
	c, err := s.containers.Get(string(state.Running))
	if err != nil {
		t.Fatal(err)
	}
	bundle := s.paths.Bundle(c.ID())
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	own := &specs.Spec{Process: &specs.Process{
		Args: []string{"server"}, Env: []string{"A=b"}, Cwd: "/srv", User: specs.User{UID: 7, GID: 8}, NoNewPrivileges: true,
	}}
	data, err := json.Marshal(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, specFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	process := func(run execRun) (*specs.Process, error) {
		template, err := s.execTemplate(c)
		if err != nil {
			return nil, err
		}
		return template.with(run)
	}
	p, err := process(execRun{cmd: []string{"ls", "-l"}, tty: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Args, []string{"ls", "-l"}) || !p.Terminal {
		t.Errorf("command is %q on a terminal: %t", p.Args, p.Terminal)
	}
	if p.Cwd != "/srv" || p.User.UID != 7 || p.User.GID != 8 || !p.NoNewPrivileges || !slices.Contains(p.Env, "A=b") {
		t.Errorf("process %+v is not confined as the container's own", p)
	}
	if _, err := process(execRun{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, specFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := process(execRun{cmd: []string{"ls"}}); err == nil || errdefs.IsFailedPrecondition(err) {
		t.Errorf("damaged bundle: %v", err)
	}
}

func TestUpdateNeedsALivingContainer(t *testing.T) {
	s := inPhases(t)
	update := func(id string, req *runtimeapi.UpdateContainerResourcesRequest) error {
		req.ContainerId = id
		_, err := s.UpdateContainerResources(t.Context(), req)
		return err
	}
	change := &runtimeapi.UpdateContainerResourcesRequest{Linux: &criLimits{CpuShares: -1}}
	if err := update(string(state.Exited), change); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ended container: %v", err)
	}
	if err := update("nobody", change); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container: %v", err)
	}
	for _, phase := range []state.Phase{state.Created, state.Running} {
		if err := update(string(phase), change); !errdefs.IsInvalidArgument(err) {
			t.Errorf("negative shares of a %s container: %v", phase, err)
		}
	}
	if err := update(string(state.Running), &runtimeapi.UpdateContainerResourcesRequest{Windows: &runtimeapi.WindowsContainerResources{}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("resources of Windows: %v", err)
	}
}
