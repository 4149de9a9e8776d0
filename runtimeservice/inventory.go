package runtimeservice

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

// inventory is what the node has by its records, and where the resources of it are. It compares
// the two and changes neither. A Service has one that changes with its work; CheckRecords reads
// one. It is safe for concurrent use.
type inventory struct {
	paths      state.Paths
	layers     *overlay.Store
	cgroups    *cgroup.Manager
	bootID     string
	pods       *state.Table[*Pod]
	containers *state.Table[*Container]
	unusable   *unusables
	jobs       sync.Map // names of directories of checkpoints under way
}

func newInventory(p state.Paths, o *operations.Tracker) *inventory {
	return &inventory{
		paths: p, unusable: newUnusables(),
		pods: state.NewTable[*Pod](state.PodKind, o), containers: state.NewTable[*Container](state.ContainerKind, o),
	}
}

// loadPods reads all pod records into the table.
func (v *inventory) loadPods(ctx context.Context, bad unusableFunc) error {
	return state.EachRecord(v.paths.PodRecords(), func(dir string) error {
		p, err := v.loadPod(dir)
		if err == nil {
			err = v.pods.Add(p)
		}
		if err != nil {
			return bad(ctx, unusable{kind: state.PodKind, dir: dir, id: filepath.Base(dir), pod: p, err: err})
		}
		return nil
	})
}

// loadPod reads the pod in dir. If only its record can be used, it returns the pod and an error.
// settlePod handles the exception to ReadPod's rule, a pod that lost its state and of which
// podStands is true.
func (v *inventory) loadPod(dir string) (*Pod, error) {
	p, err := state.ReadPod(dir)
	if err != nil {
		return nil, err
	}
	return newPod(p), lookup.ReserveSELinux(p.Record().SELinux)
}

// loadContainers reads all container records into the table. The pods must be loaded.
func (v *inventory) loadContainers(ctx context.Context, bad unusableFunc) error {
	return state.EachRecord(v.paths.ContainerRecords(), func(dir string) error {
		c, err := v.loadContainer(ctx, dir)
		if err == nil {
			err = v.containers.Add(c)
		}
		if err != nil {
			return bad(ctx, unusable{kind: state.ContainerKind, dir: dir, id: filepath.Base(dir), container: c, err: err})
		}
		return nil
	})
}

// loadContainer reads the container in dir. If only its record can be used, it returns the
// container and an error.
func (v *inventory) loadContainer(ctx context.Context, dir string) (*Container, error) {
	read, err := state.ReadContainer(dir)
	if err != nil {
		return nil, err
	}
	c := newContainer(read)
	if _, err := v.pods.Get(c.PodID()); err != nil {
		if _, there := v.unusable.get(state.PodKind, c.PodID()); !there && errdefs.IsNotFound(err) {
			return c, fmt.Errorf("its pod: %w: %w", state.ErrNoRecord, err) // removed with the pod
		}
		return c, fmt.Errorf("its pod: %w", err)
	}
	if err := lookup.ReserveSELinux(c.State().SELinux); err != nil {
		return c, err
	}
	if c.Phase() != state.Exited {
		v.holdMounted(ctx, c)
	}
	return c, nil
}

// holdMounted takes the references to the layers of mounted images again, for a container of an
// earlier run of the daemon.
func (v *inventory) holdMounted(ctx context.Context, c *Container) {
	for _, layer := range c.State().MountedLayers {
		release, err := v.layers.Hold(layer)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Layer of an image volume is lost", "container", c.ID())
			continue
		}
		c.held = append(c.held, release)
	}
}

// claimed reports whether a pod or container with the ID has a record that can be used.
func (v *inventory) claimed(id string) bool {
	_, podErr := v.pods.Get(id)
	_, containerErr := v.containers.Get(id)
	return podErr == nil || containerErr == nil
}

// podStands reports whether everything that a ready pod needs still exists: its namespaces,
// /dev/shm, and the init of a shared PID namespace.
func (v *inventory) podStands(p *Pod, alive map[string]keeper.State) bool {
	dir := v.paths.PodState(p.ID())
	if !exists(dir) {
		return false
	}
	st := p.State()
	for name, promised := range map[string]bool{
		podns.User: p.userNamespace() != nil, podns.Net: !p.hostNetwork(), podns.UTS: !p.hostNetwork(), podns.IPC: !p.hostIPC(), podns.PID: st.InitPid != 0,
	} {
		if promised && !isNamespace(filepath.Join(dir, name)) {
			return false
		}
	}
	if !p.hostIPC() && !isMountPoint(filepath.Join(dir, shmDir)) {
		return false
	}
	return st.InitPid == 0 || alive[p.ID()].Running
}
