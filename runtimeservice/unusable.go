package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/state"
)

// reasonUnusable is the reason of conditions and statuses that report an unusable record.
const reasonUnusable = "RecordUnusable"

// unknownName replaces names that only the record has. CRI clients such as crictl refuse statuses
// without names.
const unknownName = "unknown"

// unusable is a record on disk that cannot be used.
type unusable struct {
	kind string // podKind or containerKind
	dir  string
	id   string
	err  error
	// pod or container is the object if its record can be decoded.
	pod       *Pod
	container *Container

	place containerPlace // of a container, as far as known
	op    *state.Lock    // held by the removal
}

// unusableFunc handles a record that cannot be loaded. Its error ends the loading.
type unusableFunc func(ctx context.Context, u unusable) error

// unusables are the records that the start could not use. The start tears down their processes. The
// records and the writable layers stay on disk until a client removes them by ID. Lists do not show
// them, because the kubelet would act on incomplete objects. It is safe for concurrent use.
type unusables struct {
	mu   sync.Mutex // guards byID
	byID map[string]unusable
}

func newUnusables() *unusables { return &unusables{byID: map[string]unusable{}} }

func (u *unusables) add(r unusable) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byID[r.id] = r
}

func (u *unusables) remove(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.byID, id)
}

// get finds the record of the kind by its ID, or by a prefix that only this ID has.
func (u *unusables) get(kind, id string) (unusable, bool) {
	if id == "" {
		return unusable{}, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if r, ok := u.byID[id]; ok {
		return r, r.kind == kind
	}
	var found []unusable
	for full, r := range u.byID {
		if r.kind == kind && strings.HasPrefix(full, id) {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		return unusable{}, false
	}
	return found[0], true
}

// instead calls get if err, from the table of usable objects, says that the ID was not found.
func (u *unusables) instead(err error, kind, id string) (unusable, bool) {
	if !errdefs.IsNotFound(err) {
		return unusable{}, false
	}
	return u.get(kind, id)
}

// all returns the records, ordered by directory.
func (u *unusables) all() []unusable {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.SortedFunc(maps.Values(u.byID), func(a, b unusable) int { return cmp.Compare(a.dir, b.dir) })
}

// UnusableRecords returns the number of records on disk that cannot be used. It is safe for
// concurrent use.
func (s *Service) UnusableRecords() int { return len(s.unusable.all()) }

// setAside handles a record that cannot be loaded. One that was never written completely belongs to
// no object that a client has seen: its directory is moved away, for the sweep to delete. So the
// start does not wait for volumes with many files. Every other record stays, for an administrator
// to repair.
func (s *Service) setAside(ctx context.Context, u unusable) error {
	log := klog.FromContext(ctx)
	if errors.Is(u.err, state.ErrNoRecord) {
		log.Info("Removing directory without a record", "directory", u.dir, "reason", u.err.Error())
		if err := s.discard(u.dir); err != nil {
			return fmt.Errorf("remove %s: %w", u.dir, err)
		}
		return nil
	}
	log.Error(u.err, "Record cannot be used: its processes are ended, its files stay until it is removed", "record", u.dir)
	u.op = state.NewLock()
	if u.kind == state.ContainerKind {
		u.place = s.placeOf(u)
	}
	s.unusable.add(u)
	return nil
}

// discard moves a directory to the discarded ones, which the sweep deletes.
func (s *Service) discard(dir string) error {
	if err := makeDir(s.paths.Discarded(), privateMode); err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(s.paths.Discarded(), newID()[:16]))
}

// containerStatus returns what is known of the container.
func (u unusable) containerStatus(verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	status := &runtimeapi.ContainerStatus{
		Id: u.id, Metadata: &runtimeapi.ContainerMetadata{Name: cmp.Or(u.place.name, unknownName)}, CreatedAt: u.writtenAt(),
		Image: &runtimeapi.ImageSpec{Image: cmp.Or(u.place.image, unknownName)}, ImageRef: cmp.Or(u.place.image, unknownName),
	}
	if u.container != nil {
		status = u.container.status()
	}
	status.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
	status.Reason, status.Message = reasonUnusable, u.message()
	resp := &runtimeapi.ContainerStatusResponse{Status: status}
	var err error
	if verbose {
		resp.Info, err = u.info()
	}
	return resp, err
}

// podStatus returns what is known of the pod. Only verbose information has a field for the reason.
func (u unusable) podStatus(verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	status := &runtimeapi.PodSandboxStatus{
		Id: u.id, Metadata: &runtimeapi.PodSandboxMetadata{Name: unknownName, Namespace: unknownName, Uid: unknownName},
		CreatedAt: u.writtenAt(), Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{}}},
	}
	if u.pod != nil {
		status = u.pod.status()
		status.Network = &runtimeapi.PodSandboxNetworkStatus{} // the start has detached it
	}
	status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano(), Status: status}
	var err error
	if verbose {
		resp.Info, err = u.info()
	}
	return resp, err
}

// writtenAt returns when the record was last written. It replaces the time of creation, which only
// the record has.
func (u unusable) writtenAt() int64 {
	info, err := os.Lstat(filepath.Join(u.dir, state.RecordFile))
	if err != nil {
		return time.Now().UnixNano() // clients refuse 0
	}
	return info.ModTime().UnixNano()
}

// message names the record and the error.
func (u unusable) message() string {
	return fmt.Sprintf("record %s cannot be used: %v", filepath.Join(u.dir, state.RecordFile), u.err)
}

func (u unusable) info() (map[string]string, error) {
	info := map[string]any{"reason": reasonUnusable, "message": u.message()}
	if u.kind == state.ContainerKind {
		info["sandboxID"] = u.place.podID
	}
	return infoJSON(info)
}
