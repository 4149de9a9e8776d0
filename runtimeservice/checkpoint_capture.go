package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/oci"
)

// captureArgs is what to capture of a frozen container, and the directory for it.
type captureArgs struct {
	c   *Container
	by  checkpointer
	dir string // is made; gets the content of the archive
	shm bool   // include the pod's shared memory
}

// capture saves a frozen container: its processes by CRIU, its files, its log and its description.
func (s *Service) capture(ctx context.Context, a captureArgs) error {
	for _, dir := range []string{a.dir, filepath.Join(a.dir, checkpoint.ImagesDir)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		what string
		do   func(context.Context, captureArgs) error
	}{
		{"dump processes", s.dumpProcesses},
		{"save root filesystem", s.saveRootfs},
		{"save volumes of the image", s.saveVolumes},
		{"save shared memory", s.saveShm},
		{"save log", s.saveLog},
		{"describe container", s.describe},
	} {
		operations.Enter(ctx, step.what)
		if err := step.do(ctx, a); err != nil {
			return fmt.Errorf("%s of %s: %w", step.what, a.c.ID(), err)
		}
	}
	return nil
}

func (s *Service) dumpProcesses(ctx context.Context, a captureArgs) error {
	err := a.by.Checkpoint(ctx, oci.CheckpointArgs{
		ID: a.c.ID(), Images: filepath.Join(a.dir, checkpoint.ImagesDir), Work: a.dir, Env: a.by.criu.Environment(),
	})
	return checkpoint.WithLogErrors(err, filepath.Join(a.dir, checkpoint.DumpLog))
}

func (s *Service) saveRootfs(ctx context.Context, a captureArgs) error {
	var deleted []string
	err := s.saveFile(filepath.Join(a.dir, checkpoint.RootfsDiffFile), func(w io.Writer) (err error) {
		deleted, err = s.layers.Changes(ctx, a.c.ID(), w)
		return err
	})
	if err != nil || len(deleted) == 0 {
		return err
	}
	return jsonfile.Write(filepath.Join(a.dir, checkpoint.DeletedFile), deleted)
}

// saveVolumes saves the volumes that the image declares, under the numbers of their directories.
func (s *Service) saveVolumes(ctx context.Context, a captureArgs) error {
	from := filepath.Join(a.c.Dir(), volumesDir)
	volumes, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) || len(volumes) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	to := filepath.Join(a.dir, checkpoint.VolumesDir)
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, v := range volumes {
		err := s.saveFile(filepath.Join(to, v.Name()+".tar"), func(w io.Writer) error {
			return overlay.PackTree(ctx, filepath.Join(from, v.Name()), w)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) saveShm(ctx context.Context, a captureArgs) error {
	if !a.shm {
		return nil
	}
	return s.packShm(ctx, a.c.PodID(), filepath.Join(a.dir, checkpoint.ShmFile))
}

// saveFile writes a file of a checkpoint, at most as large as the data root has room for.
func (s *Service) saveFile(path string, write func(io.Writer) error) error {
	room, err := s.room()
	if err != nil {
		return err
	}
	return checkpoint.SaveFile(path, room, write)
}

// room returns how many bytes a checkpoint may use in the data root.
func (s *Service) room() (int64, error) { return checkpoint.Room(s.opts.DataDir) }

func (s *Service) saveLog(ctx context.Context, a captureArgs) error {
	if a.c.Record().LogPath == "" {
		return nil
	}
	if err := s.keeper.Flush(ctx, a.c.ID()); errdefs.IsInvalidArgument(err) {
		klog.FromContext(ctx).Info("Keeper of an older build cannot flush, the log may lack some lines", "container", a.c.ID())
	} else if err != nil {
		return err
	}
	log, err := a.c.log().Read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // rotated, or never made
	}
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	return s.saveFile(filepath.Join(a.dir, checkpoint.LogFile), func(w io.Writer) error {
		_, err := io.Copy(w, log)
		return err
	})
}

// describe writes the descriptions of the container that the supported engines read.
func (s *Service) describe(_ context.Context, a captureArgs) error {
	c, st := a.c, a.c.State()
	pod, err := s.pods.Get(c.PodID())
	if err != nil {
		return err
	}
	ociSpec, err := currentSpec(st, s.paths.Bundle(c.ID()))
	if err != nil {
		return err
	}
	if err := annotate(ociSpec, pod, c); err != nil {
		return err
	}
	for name, value := range map[string]any{
		checkpoint.ConfigFile: checkpoint.Config{
			ID: c.ID(), Name: c.Config().GetMetadata().GetName(), OCIRuntime: a.by.Handler().Type,
			RootfsImage: c.image().GetImage(), RootfsImageName: c.image().GetImage(), RootfsImageRef: c.Record().ImageRef,
			CreatedTime: c.Record().Created, CheckpointedAt: time.Now(), Restored: c.Record().Restored != nil,
		},
		checkpoint.SpecFile:       ociSpec,
		checkpoint.StatusFile:     checkpoint.Status{CreatedAt: c.Record().Created.UnixNano(), StartedAt: st.Started.UnixNano(), Pid: uint32(st.Pid)},
		checkpoint.StatusDumpFile: c.status(),
	} {
		if err := jsonfile.Write(filepath.Join(a.dir, name), value); err != nil {
			return err
		}
	}
	return nil
}

// annotate adds the annotations that CRI-O requires in an archive's specification.
func annotate(ociSpec *specs.Spec, pod *Pod, c *Container) error {
	cfg := c.Config()
	annotations, err := json.Marshal(cfg.GetAnnotations())
	if err != nil {
		return err
	}
	if ociSpec.Annotations == nil {
		ociSpec.Annotations = map[string]string{}
	}
	for key, value := range map[string]string{
		"io.kubernetes.cri-o.Annotations":      string(annotations),
		"io.kubernetes.container.name":         cfg.GetMetadata().GetName(),
		"io.kubernetes.pod.name":               pod.Metadata().GetName(),
		"io.kubernetes.pod.namespace":          pod.Metadata().GetNamespace(),
		"io.kubernetes.pod.uid":                pod.Metadata().GetUid(),
		"io.kubernetes.container.restartCount": strconv.FormatUint(uint64(cfg.GetMetadata().GetAttempt()), 10),
	} {
		ociSpec.Annotations[key] = value
	}
	return nil
}
