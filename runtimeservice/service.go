package runtimeservice

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/events"
	"github.com/micarun/mica/runtimeservice/hooks"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/slots"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// Options say where a Service keeps its files and how long its work may take. The zero value of a
// field means its default.
type Options struct {
	// DataDir is the data root; records lie below DataDir/cri.
	DataDir string
	// StateDir is the directory of files that a reboot makes useless: bundles and pinned
	// namespaces.
	StateDir string
	// InitBinary is the executable of the init process of shared PID namespaces. It also holds a
	// new user namespace until this is pinned.
	InitBinary string
	// Version is the daemon's version, which the CRI's Version call returns.
	Version string
	// SandboxImage is the pause image that verbose status shows, for kubeadm to compare with its
	// own. The service neither pulls nor runs it.
	SandboxImage string
	// PodTimeout bounds the creation of a pod, independent of the caller's deadline; 4 minutes by
	// default.
	PodTimeout time.Duration
	// ContainerTimeout bounds the creation, the start and an update of a container, and the start
	// of an exec, each by itself; 4 minutes by default.
	ContainerTimeout time.Duration
	// TeardownTimeout bounds one tear-down, not counting a container's grace period; 2 minutes by
	// default.
	TeardownTimeout time.Duration
	// ShmSize is the size of a pod's /dev/shm in bytes; 64 MiB by default.
	ShmSize int64
	// Criu is the executable that checkpoints and restores processes: an absolute path, or a name
	// to look up in PATH. Its base name must be criu; "criu" by default.
	Criu string
	// CheckpointTimeout bounds a checkpoint whose request has no timeout, and the restore of a pod;
	// 4 minutes by default.
	CheckpointTimeout time.Duration
	// RestoreImages lets containers be restored from images that are checkpoints. The privileges of
	// restored processes cannot be verified, so every user who may choose an image is trusted like
	// root.
	RestoreImages bool
	// ExecSyncLimit is the maximum number of bytes of each output stream that ExecSync returns; 16
	// MiB by default, the limit of the CRI.
	ExecSyncLimit int
	// ExecByRuntime makes the OCI runtime's exec start every command, instead of mica-init.
	ExecByRuntime bool
	// Ulimits are the resource limits of containers, in the form of spec.ParseUlimits. For limits
	// that are not listed, containers inherit the keeper's.
	Ulimits []string
}

// Validate returns an error that names the first option with an invalid value.
func (o Options) Validate() error {
	if _, err := spec.ParseUlimits(o.Ulimits); err != nil {
		return fmt.Errorf("ulimits: %w", err)
	}
	return nil
}

func (o Options) withDefaults() Options {
	o.Version = cmp.Or(o.Version, "unknown")
	o.SandboxImage = cmp.Or(o.SandboxImage, "registry.k8s.io/pause:3.10.2")
	o.PodTimeout = cmp.Or(o.PodTimeout, 4*time.Minute)
	o.ContainerTimeout = cmp.Or(o.ContainerTimeout, 4*time.Minute)
	o.TeardownTimeout = cmp.Or(o.TeardownTimeout, 2*time.Minute)
	o.ShmSize = cmp.Or(o.ShmSize, 64<<20)
	o.CheckpointTimeout = cmp.Or(o.CheckpointTimeout, 4*time.Minute)
	o.ExecSyncLimit = cmp.Or(o.ExecSyncLimit, 16<<20)
	return o
}

func (o Options) paths() state.Paths { return state.Paths{DataDir: o.DataDir, StateDir: o.StateDir} }

// Deps are the components that a Service uses. It closes none of them.
type Deps struct {
	Images  *imageservice.Service
	Layers  *overlay.Store
	Network *network.Network
	Keeper  *keeper.Client
	Cgroups *cgroup.Manager
	Host    spec.Host
	// Runtimes maps RuntimeClass handlers to OCI runtimes; "" is the default.
	Runtimes map[string]*oci.Runtime
	// Plugins are the NRI plugins, which the service starts; nil for none.
	Plugins *nri.Plugins
	// InjectCDI applies the CDI devices with the given names to a specification; nil refuses every
	// device.
	InjectCDI func(s *specs.Spec, devices []string) error
	// Hooks adds the node's OCI hooks to containers; nil adds none.
	Hooks *hooks.Injector
	// Settings are the node's configuration for verbose status.
	Settings map[string]any
	// Operations tracks operations on pods, containers and images. It may be nil.
	Operations *operations.Tracker
}

// Service is the CRI RuntimeService. It is safe for concurrent use.
type Service struct {
	runtimeapi.UnimplementedRuntimeServiceServer

	*inventory

	opts       Options
	ulimits    []specs.POSIXRlimit
	images     *imageservice.Service
	network    *network.Network
	keeper     *keeper.Client
	host       spec.Host
	handlers   map[string]handler
	plugins    *nri.Plugins
	injectCDI  func(*specs.Spec, []string) error
	hooks      *hooks.Injector
	settings   map[string]any
	operations *operations.Tracker
	// noUserNS is the reason why this node cannot run pods with user namespaces, or nil.
	noUserNS   error
	criu       *checkpoint.Criu
	recoveries *recoveries
	events     *events.Broadcaster
	slots      *slots.Semaphore
	// largeAnswer is held by the one call that is building a large response.
	largeAnswer chan struct{}
	// background counts goroutines that Close waits for.
	background sync.WaitGroup
	stop       context.CancelFunc
}

// Open reads the records below o.DataDir, updates the state of every pod and container from the
// keeper, and returns the service, ready to serve. It returns an error if an option is invalid, the
// keeper does not answer, a directory cannot be made or read, or an OCI runtime does not report its
// features.
//
// In the background it repairs or tears down half-made and damaged pods and containers, each by
// itself, and removes what has no record. Until a pod or container is recovered, calls that change
// it wait. [Service.Recovered] is closed when all this is done. Work in the background does not end
// with ctx, but with [Service.Close].
func Open(ctx context.Context, o Options, d Deps) (*Service, error) {
	s := &Service{
		inventory: newInventory(o.paths(), d.Operations),
		opts:      o.withDefaults(), images: d.Images, network: d.Network, keeper: d.Keeper,
		host: d.Host, plugins: d.Plugins, injectCDI: d.InjectCDI, hooks: d.Hooks, settings: d.Settings,
		operations: d.Operations, criu: checkpoint.NewCriu(o.Criu), recoveries: newRecoveries(),
		events: events.NewBroadcaster(), slots: slots.New(), largeAnswer: make(chan struct{}, 1),
	}
	s.layers, s.cgroups = d.Layers, d.Cgroups
	var err error
	if s.ulimits, err = spec.ParseUlimits(o.Ulimits); err != nil {
		return nil, fmt.Errorf("open runtime service: %w", err)
	}
	s.ulimits = spec.WithDefaultUlimits(s.ulimits, s.host)
	if err := s.prepare(ctx, d.Runtimes); err != nil {
		return nil, fmt.Errorf("open runtime service: %w", err)
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// begin recovers pods and containers, and starts the work in the background.
func (s *Service) begin(ctx context.Context) error {
	// The probe waits for a program, meanwhile the records are read.
	var probe sync.WaitGroup
	probe.Go(func() { s.noUserNS = s.probeUserNamespaces(ctx) })
	todo, found, err := s.recover(ctx)
	probe.Wait()
	if err != nil {
		return fmt.Errorf("recover runtime service: %w", err)
	}
	if s.noUserNS != nil {
		klog.FromContext(ctx).Info("Pods with user namespaces will be refused", "reason", s.noUserNS.Error())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = cancel
	// Plugins get exits, so they connect first. Until then the keeper's client queues the exits.
	if err := s.startPlugins(ctx); err != nil {
		cancel()
		return fmt.Errorf("open runtime service: %w", err)
	}
	// Recoveries wait for exits.
	s.background.Go(func() { s.followExits(run) })
	s.finishStart(run, todo, found)
	return nil
}

func (s *Service) prepare(ctx context.Context, runtimes map[string]*oci.Runtime) error {
	if err := s.prepareDirectories(); err != nil {
		return err
	}
	if err := s.makeOwner(); err != nil {
		return err
	}
	// Namespaces pinned here must propagate to the mount namespaces that containers are made in.
	if err := podns.Share(s.paths.PodStates()); err != nil {
		return err
	}
	var err error
	if s.bootID, err = readBootID(); err != nil {
		return err
	}
	if err := s.hooks.Check(); err != nil {
		klog.FromContext(ctx).Error(err, "Containers will be refused until the hook files can be used")
	}
	s.handlers, err = loadHandlers(ctx, runtimes)
	return err
}

func readBootID() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(boot)), nil
}

// Close disconnects event subscribers, ends recoveries and the sweep, and waits for creations and
// tear-downs under way. Pods and containers keep running. If ctx ends first, it returns an error.
func (s *Service) Close(ctx context.Context) error {
	s.stop()
	s.events.Close()
	done := make(chan struct{})
	go func() {
		s.background.Wait()
		close(done)
	}()
	if err := s.pods.Drain(ctx); err != nil {
		return err
	}
	if err := s.containers.Drain(ctx); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for work in the background: %w", ctx.Err())
	}
}

// RemoveShared removes what a closed service leaves on the node without pods: the shared mount for
// pinned namespaces, and the default parent cgroup of pods if the service made it. There must be no
// pods.
func (s *Service) RemoveShared() error {
	return errors.Join(podns.Unshare(s.paths.PodStates()), s.removeDefaultCgroup())
}

func (s *Service) handler(name string) (handler, error) {
	h, ok := s.handlers[name]
	if !ok {
		return handler{}, fmt.Errorf("find runtime handler %q: not configured: %w", name, errdefs.ErrNotFound)
	}
	return h, nil
}

// operation names what detached runs: a verb such as "stop pod", and its object.
type operation struct {
	what string
	on   operations.Subject
}

func (o operation) String() string { return o.what + " " + cmp.Or(o.on.Container, o.on.Pod) }

// detached runs f on a context that outlives the caller's and ends after limit. It waits for f, or
// until the caller's context ends. The retry of a caller that gave up finds the work done, or waits
// for it.
func (s *Service) detached(ctx context.Context, limit time.Duration, o operation, f func(context.Context) error) error {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	work, op := s.operations.Begin(work, o.what, o.on)
	done := make(chan error, 1)
	s.background.Go(func() {
		defer cancel()
		err := f(work)
		op.End(err)
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: still under way%s: %w", o, op.Where(), ctx.Err())
	}
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}
