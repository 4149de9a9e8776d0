package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"golang.org/x/sync/semaphore"

	"github.com/micarun/mica/network/builtin"
)

// Options says where a [Network] finds its configuration and keeps its state. ConfDir and CacheDir
// are required.
type Options struct {
	// ConfDir is watched for network configurations (*.conflist, *.conf, *.json); the lexically
	// first valid one is used. Open creates the directory if it is missing.
	ConfDir string
	// BinDirs are searched in order for plugin executables.
	// Default: /opt/cni/bin, /usr/lib/cni.
	BinDirs []string
	// CacheDir holds attachment records and cached results. It must survive a reboot, so that
	// leases can be released afterwards.
	CacheDir string
	// Default is the embedded network of a node without any CNI configuration. If it is nil, such a
	// node has no network.
	Default *DefaultNetwork
	// ConfTemplate is a text/template file from which UpdateRuntimeConfig writes a conflist into
	// ConfDir; "" disables that.
	ConfTemplate string
	// Timeout bounds one ADD, DEL, CHECK or GC of a whole plugin list. Default: 2 minutes.
	Timeout time.Duration
	// StatusTimeout bounds one STATUS. Default: 10 seconds.
	StatusTimeout time.Duration
	// InProcess runs the plugins loopback, bridge (with host-local) and portmap in this process, where
	// package builtin supports the configuration.
	InProcess bool
	// Exec runs the other plugins. Default: the executables in BinDirs.
	Exec invoke.Exec
}

// Network attaches pods to their network. Its methods may be called concurrently; operations on the
// same pod run one after the other.
type Network struct {
	opts Options
	// cni executes plugins and reads cached results; mixed runs built-in plugins in this process.
	cni, mixed *libcni.CNIConfig
	builtin    *builtin.Plugins
	// probe tests whether the kernel has what built-in rules need, until it has.
	probe   func() error
	records records
	watch   *watcher
	// gate admits any number of ADD, DEL and CHECK, or one GC of the plugins, as the CNI
	// specification requires. Lock order: gate, then pods.
	gate   *semaphore.Weighted
	pods   podLocks
	status statusCache

	leftOnce sync.Once // fills left
	left     map[string][]interrupted

	// mu guards the fields below. It is never held during I/O.
	mu sync.Mutex
	// conf is the configuration in use. The struct that it points to is never changed.
	conf *conf
	// claimed holds the pods that were added since Open and not deleted. GC skips them, even if
	// they are missing from its caller's list of live pods.
	claimed map[string]bool
	// warned holds the messages that were logged already and must not be repeated.
	warned map[string]bool
}

// Open creates the directories, loads the configuration and starts to watch it. A missing or
// invalid configuration is no error of Open: [Network.Status] reports it. Invalid options are
// errdefs.ErrInvalidArgument. The logger of ctx is used until Close.
func Open(ctx context.Context, opts Options) (*Network, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	n := &Network{
		opts:    opts,
		cni:     libcni.NewCNIConfigWithCacheDir(opts.BinDirs, opts.CacheDir, opts.Exec),
		builtin: builtin.New(filepath.Join(opts.CacheDir, "tables")),
		records: records{dir: filepath.Join(opts.CacheDir, "attachments")},
		gate:    semaphore.NewWeighted(gateWidth),
		claimed: map[string]bool{},
		warned:  map[string]bool{},
	}
	n.probe = untilSuccess(n.builtin.Probe)
	n.mixed = libcni.NewCNIConfigWithCacheDir(opts.BinDirs, opts.CacheDir, &inProcess{Exec: opts.Exec, plugins: n.builtin})
	for _, dir := range []string{n.records.dir, filepath.Join(opts.CacheDir, "results")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if n.watch, err = newWatcher(opts.ConfDir); err != nil {
		return nil, fmt.Errorf("watch %s: %w", opts.ConfDir, err)
	}
	if opts.InProcess {
		_ = n.builtin.Open() // the first call that needs the socket returns the error
	}
	n.reload(ctx)
	n.watch.start(ctx, n.reload)
	return n, nil
}

// Close stops watching the configuration. Attachments stay, for the next Open.
func (n *Network) Close() error { return errors.Join(n.watch.close(), n.builtin.Close()) }

func (o Options) complete() (Options, error) {
	if o.ConfDir == "" || o.CacheDir == "" {
		return o, fmt.Errorf("network: ConfDir and CacheDir are required: %w", errdefs.ErrInvalidArgument)
	}
	if len(o.BinDirs) == 0 {
		o.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.StatusTimeout == 0 {
		o.StatusTimeout = 10 * time.Second
	}
	if o.Exec == nil {
		o.Exec = &executables{cacheDir: o.CacheDir}
	}
	if o.Default == nil {
		return o, nil
	}
	d, err := o.Default.complete(o.CacheDir)
	o.Default = &d
	return o, err
}

// gateWidth is the capacity of the gate. GC acquires all of it; any other operation acquires 1.
const gateWidth = 1 << 30

// begin waits until an operation on the pod may start.
func (n *Network) begin(ctx context.Context, id string) (end func(), err error) {
	if err := n.gate.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the sweep: %w", err)
	}
	unlock, err := n.pods.lock(ctx, id)
	if err != nil {
		n.gate.Release(1)
		return nil, fmt.Errorf("wait for another operation: %w", err)
	}
	return func() { unlock(); n.gate.Release(1) }, nil
}

// current returns the configuration in use.
func (n *Network) current() *conf {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conf
}

// claim makes GC skip a pod, or no longer skip it.
func (n *Network) claim(id string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if on {
		n.claimed[id] = true
	} else {
		delete(n.claimed, id)
	}
}

// once reports whether this is the first call with what.
func (n *Network) once(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.warned[what] {
		return false
	}
	n.warned[what] = true
	return true
}
