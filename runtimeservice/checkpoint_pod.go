package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/state"
)

// captureWorkers is how many frozen containers are captured at the same time.
const captureWorkers = 4

// CheckpointPod writes the state of the named containers of a pod to an empty directory. The state
// is consistent: all containers are frozen before the first is captured and until the last is. They
// continue before the call returns, whatever its result. After an error the directory is empty.
// There are no options. Errors: ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not ready,
// not running, or this node cannot checkpoint them), the end of ctx, and those of CRIU.
func (s *Service) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	p, err := s.pods.Get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("checkpoint pod: %w", err)
	}
	containers, err := s.selected(p, req.GetContainerIds())
	if err == nil {
		err = checkpoint.RefuseOptions(req.GetOptions())
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint pod %s: %w", p.ID(), err)
	}
	output, err := checkpoint.ClaimOutput(req.GetOutputPath())
	if err != nil {
		return nil, fmt.Errorf("checkpoint pod %s: %w", p.ID(), err)
	}
	defer func() { _ = output.Close() }() // opened for its lock only
	ctx, cancel := context.WithTimeout(ctx, s.opts.CheckpointTimeout)
	defer cancel()
	err = s.whole(ctx, operation{"checkpoint pod", p.Subject()}, func(ctx context.Context) error {
		return s.checkpointPod(ctx, podCapture{pod: p, containers: containers, output: req.GetOutputPath()})
	})
	if err != nil {
		return nil, fmt.Errorf("checkpoint pod %s: %w", p.ID(), err)
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// selected finds the containers to checkpoint.
func (s *Service) selected(p *Pod, ids []string) ([]*Container, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("no containers named: %w", errdefs.ErrInvalidArgument)
	}
	byName := map[string]*Container{}
	var containers []*Container
	for _, id := range ids {
		c, err := s.containers.Get(id)
		if err != nil {
			return nil, err
		}
		name := c.Config().GetMetadata().GetName()
		switch other := byName[name]; {
		case c.PodID() != p.ID():
			return nil, fmt.Errorf("container %s is in pod %s: %w", c.ID(), c.PodID(), errdefs.ErrInvalidArgument)
		case other != nil:
			return nil, fmt.Errorf("containers %s and %s are both called %q: %w", other.ID(), c.ID(), name, errdefs.ErrInvalidArgument)
		}
		byName[name] = c
		containers = append(containers, c)
	}
	return containers, nil
}

// podCapture is what to capture of a pod, and the directory for it.
type podCapture struct {
	pod        *Pod
	containers []*Container
	output     string
}

// archiveOf returns the path of a container's archive in a pod's checkpoint.
func archiveOf(dir, id string) string { return filepath.Join(dir, id+".tar") }

// files returns the files of a pod's checkpoint. The last one makes it complete.
func (a podCapture) files() []string {
	var files []string
	for _, c := range a.containers {
		files = append(files, archiveOf(a.output, c.ID()))
	}
	for _, name := range []string{checkpoint.ShmFile, checkpoint.PodDumpFile, checkpoint.PodOptionsFile} {
		files = append(files, filepath.Join(a.output, name))
	}
	return files
}

func (s *Service) checkpointPod(ctx context.Context, a podCapture) (err error) {
	if err := a.pod.RequireReady("checkpoint"); err != nil {
		return err
	}
	by, err := s.prepareCheckpoint(ctx, a.containers[0])
	if err != nil {
		return err
	}
	for _, c := range a.containers {
		if err := errors.Join(c.Require("checkpoint", state.Running), checkRestore(a.pod.Config(), c.Config())); err != nil {
			return err
		}
	}
	var temp string
	j, err := s.beginJob(ctx, a.containers, func(name string) []string {
		temp = checkpoint.TempName(filepath.Join(a.output, "x"), name)
		return append(a.files(), temp)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.endJob(ctx, j, err != nil)) }()
	if err := s.freeze(ctx, j); err != nil {
		return err
	}
	if err := s.captureAll(ctx, j, a, by); err != nil {
		return err
	}
	if err := failpoint.Hit("checkpoint-pod-captured"); err != nil {
		return err
	}
	if err := s.thaw(j); err != nil {
		return err
	}
	operations.Enter(ctx, "write archives")
	return s.writePod(ctx, j, a, writePodArgs{by: by, temp: temp})
}

// captureAll captures the frozen containers and their shared memory.
func (s *Service) captureAll(ctx context.Context, j *job, a podCapture, by checkpointer) error {
	operations.Enter(ctx, "capture containers")
	group, parallel := errgroup.WithContext(ctx)
	group.SetLimit(captureWorkers)
	for _, c := range a.containers {
		group.Go(func() error {
			work, op := s.operations.Begin(parallel, "capture container", s.subject(c))
			err := s.capture(work, captureArgs{c: c, by: by, dir: filepath.Join(j.dir, c.ID())})
			op.End(err)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.packShm(ctx, a.pod.ID(), filepath.Join(j.dir, checkpoint.ShmFile)); err != nil {
		return fmt.Errorf("save shared memory: %w", err)
	}
	return nil
}

type writePodArgs struct {
	by   checkpointer
	temp string
}

// writePod writes the checkpoint to the caller's directory. The last file makes it complete. Only
// files that the job lists are written there, so that the clean-up finds all of them.
func (s *Service) writePod(ctx context.Context, j *job, a podCapture, w writePodArgs) error {
	for _, c := range a.containers {
		args := checkpoint.WriteArgs{From: filepath.Join(j.dir, c.ID()), Temp: w.temp, Location: archiveOf(a.output, c.ID())}
		if err := checkpoint.Write(ctx, args); err != nil {
			return err
		}
	}
	dump, err := protojson.Marshal(a.pod.Config())
	if err == nil {
		err = os.WriteFile(filepath.Join(j.dir, checkpoint.PodDumpFile), dump, 0o600)
	}
	if err == nil {
		err = jsonfile.Write(filepath.Join(j.dir, checkpoint.PodOptionsFile), s.podOptions(a, w.by))
	}
	if err != nil {
		return fmt.Errorf("describe pod: %w", err)
	}
	for _, name := range []string{checkpoint.ShmFile, checkpoint.PodDumpFile, checkpoint.PodOptionsFile} {
		from := filepath.Join(j.dir, name)
		if name == checkpoint.ShmFile && !exists(from) {
			continue
		}
		args := checkpoint.WriteArgs{From: from, Temp: w.temp, Location: filepath.Join(a.output, name)}
		if err := checkpoint.CopyFile(ctx, args); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) podOptions(a podCapture, by checkpointer) checkpoint.PodOptions {
	meta := a.pod.Metadata()
	o := checkpoint.PodOptions{
		Version: checkpoint.PodVersion, Containers: map[string]string{},
		Annotations: checkpoint.PodAnnotations(checkpoint.PodFacts{
			Engine: "mica", EngineVersion: s.opts.Version, Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid(), ID: a.pod.ID(),
			Runtime: by.Handler().Type, Criu: by.criu.Version, Arch: runtime.GOARCH, Kernel: kernelRelease(),
		}),
	}
	for _, c := range a.containers {
		o.Containers[c.Config().GetMetadata().GetName()] = c.ID()
	}
	return o
}

// packShm saves the pod's /dev/shm unless it is empty.
func (s *Service) packShm(ctx context.Context, podID, to string) error {
	from := filepath.Join(s.paths.PodState(podID), shmDir)
	names, err := os.ReadDir(from)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(names) == 0 {
		return nil // a pod in the host IPC namespace uses the node's shared memory
	}
	if err != nil {
		return err
	}
	return s.saveFile(to, func(w io.Writer) error { return overlay.PackTree(ctx, from, w) })
}
