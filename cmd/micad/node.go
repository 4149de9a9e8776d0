package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/cri"
	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice"
	"github.com/micarun/mica/runtimeservice/cdi"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/hooks"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
)

// node holds the components that the daemon has opened. The fields are in order of dependency, and
// close goes backwards. A field is nil until its component is open.
type node struct {
	reaper   *reaper.Reaper
	host     spec.Host
	layers   *overlay.Store
	images   *imageservice.Service
	network  *network.Network
	keeper   *keeper.Client
	cgroups  *cgroup.Manager
	runtimes map[string]*oci.Runtime
	plugins  *nri.Plugins // nil if NRI is disabled
	service  *runtimeservice.Service
	server   *cri.Server

	operations *operations.Tracker
	counted    *operationMetrics
	memory     *memory
	tracing    *tracing // nil if tracing is disabled
}

// open opens all components, independent ones concurrently, and returns when clients may connect.
// On an error it closes everything again.
func open(ctx context.Context, c config.Config) (*node, error) {
	n := &node{counted: newOperationMetrics(), memory: newMemory()}
	observers := []operations.Observer{n.counted, n.memory}
	var err error
	if n.tracing, err = startTracing(ctx); err != nil {
		return nil, err
	}
	if n.tracing != nil {
		observers = append(observers, n.tracing)
		c.CRI.Incoming = incoming
	}
	n.operations = operations.New(observers...)
	if err := n.open(ctx, c); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return nil, errors.Join(err, n.close(closing))
	}
	return n, nil
}

func (n *node) open(ctx context.Context, c config.Config) error {
	var err error
	if n.reaper, err = reaper.New(reaper.Options{Grace: orphanGrace}); err != nil {
		return err
	}
	var steps errgroup.Group
	steps.Go(func() error { return n.openImages(ctx, c) })
	steps.Go(func() error { return n.openNetwork(ctx, c) })
	steps.Go(func() error { return n.openKeeper(ctx, c) })
	steps.Go(func() error { return n.openHost(ctx, c) })
	if err := steps.Wait(); err != nil {
		return err
	}
	options, err := serviceOptions(c)
	if err != nil {
		return err
	}
	settings, err := c.Settings()
	if err != nil {
		return err
	}
	nri.SetLogger(klog.FromContext(ctx).WithName("nri"))
	n.plugins = nri.New(c.NRI)
	n.service, err = runtimeservice.Open(ctx, options, runtimeservice.Deps{
		Images: n.images, Layers: n.layers, Network: n.network, Keeper: n.keeper,
		Runtimes: n.runtimes, Cgroups: n.cgroups, Host: n.host, Plugins: n.plugins, InjectCDI: cdi.New(c.CDI).Inject,
		Hooks: hooks.New(c.Hooks), Settings: settings,
		Operations: n.operations,
	})
	if err != nil {
		return err
	}
	n.server, err = cri.New(ctx, c.CRI, n.service, n.images)
	return err
}

func (n *node) openImages(ctx context.Context, c config.Config) error {
	var err error
	if n.layers, err = overlay.Open(ctx, c.Overlay()); err != nil {
		return fmt.Errorf("open layer store: %w", err)
	}
	options := c.Images
	options.Operations = n.operations
	if n.images, err = imageservice.Open(ctx, options, n.layers); err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	return nil
}

func (n *node) openNetwork(ctx context.Context, c config.Config) error {
	var err error
	if n.network, err = network.Open(ctx, c.Network); err != nil {
		return fmt.Errorf("open network: %w", err)
	}
	return nil
}

func (n *node) openKeeper(ctx context.Context, c config.Config) error {
	options := c.Keeper
	var err error
	if options.Binary, err = helper(options.Binary, keeperName); err != nil {
		return err
	}
	if n.keeper, err = keeper.Connect(ctx, options); err != nil {
		return fmt.Errorf("connect to keeper: %w", err)
	}
	return nil
}

// openHost detects the host's features and the usable OCI runtimes.
func (n *node) openHost(ctx context.Context, c config.Config) error {
	var err error
	if n.host, err = lookup.DetectHost(); err != nil {
		return fmt.Errorf("detect host: %w", err)
	}
	for _, line := range clamped(n.host) {
		klog.FromContext(ctx).Info("Host restricts containers", "what", line)
	}
	if n.host.AppArmorDefault, err = lookup.LoadAppArmor(); err != nil {
		klog.FromContext(ctx).Error(err, "Containers without an AppArmor profile of their own run unconfined")
	}
	mode, err := cgroup.Detect()
	if err != nil {
		return fmt.Errorf("detect cgroups: %w", err)
	}
	if n.cgroups, err = cgroup.New(mode, c.Cgroups); err != nil {
		return fmt.Errorf("manage cgroups: %w", err)
	}
	n.runtimes, err = n.openRuntimes(ctx, c)
	return err
}

// close closes all open components. Containers and keeper keep running. It is called once.
func (n *node) close(ctx context.Context) error {
	var errs []error
	if n.server != nil {
		errs = append(errs, n.server.Close())
	}
	if n.service != nil {
		errs = append(errs, n.service.Close(ctx))
	}
	n.plugins.Close()
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	if n.images != nil {
		errs = append(errs, n.images.Close())
	}
	if n.layers != nil {
		errs = append(errs, n.layers.Close())
	}
	if n.keeper != nil {
		errs = append(errs, n.keeper.Close())
	}
	if n.reaper != nil {
		n.reaper.Close()
	}
	return errors.Join(append(errs, n.tracing.close(ctx))...)
}

// requireEmpty returns errdefs.ErrFailedPrecondition while there are pods.
func (n *node) requireEmpty(ctx context.Context) error {
	pods, err := n.service.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	if count := len(pods.GetItems()); count > 0 {
		return fmt.Errorf("end everything: node has %d pods: %w", count, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// endEverything closes the node, ends the keeper, and removes what pods and the embedded network
// keep on the host. There must be no pods.
func (n *node) endEverything(ctx context.Context) error {
	err := errors.Join(n.server.Close(), n.service.Close(ctx), n.service.RemoveShared(), n.network.RemoveDefault(ctx), n.keeper.Shutdown(ctx))
	n.server, n.service = nil, nil
	return errors.Join(err, n.close(ctx))
}

// check runs the checks of all stores. It waits for the recovery first, because the recovery also
// removes layers.
func (n *node) check(ctx context.Context, args admin.CheckArgs) ([]admin.Problem, error) {
	n.service.AwaitRecovery(ctx)
	checks := []func() ([]overlay.Problem, error){
		func() ([]overlay.Problem, error) {
			return n.layers.Check(ctx, overlay.CheckOptions{Content: args.Content})
		},
		func() ([]overlay.Problem, error) { return n.images.Check(ctx) },
		func() ([]overlay.Problem, error) { return n.service.Check(ctx) },
	}
	problems := []admin.Problem{}
	var errs []error
	for _, check := range checks {
		found, err := check()
		errs = append(errs, err)
		for _, p := range found {
			problems = append(problems, admin.Problem{Path: p.Path, What: p.What})
		}
	}
	return problems, errors.Join(errs...)
}

// registry returns a registry with the metrics of the process and of all components.
func (n *node) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		n.server.Collector(),
		n.counted,
		newInventory(n),
	)
	return r
}
