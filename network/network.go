package network

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"golang.org/x/sync/semaphore"
)

// Options say where a [Network] finds its configuration and keeps its state.
// ConfDir and CacheDir are required.
type Options struct {
	// ConfDir is watched for network configurations (*.conflist, *.conf,
	// *.json); the lexically first valid one is used. It is made if it is
	// not there.
	ConfDir string
	// BinDirs are searched in order for plugin executables.
	// Default: /opt/cni/bin, /usr/lib/cni.
	BinDirs []string
	// CacheDir holds attachment records and cached results. It must survive
	// a reboot so that leases can be given back after one.
	CacheDir string
	// Default is the embedded network for nodes without any configuration;
	// nil leaves such a node without a network.
	Default *DefaultNetwork
	// ConfTemplate is a text/template file from which UpdateRuntimeConfig
	// writes a conflist into ConfDir; "" writes none.
	ConfTemplate string
	// Timeout bounds one ADD, DEL, CHECK or GC of a whole list of plugins.
	// Default: 2 minutes.
	Timeout time.Duration
	// StatusTimeout bounds one STATUS. Default: 10 seconds.
	StatusTimeout time.Duration
	// Exec runs plugins. Default: executables of BinDirs.
	Exec invoke.Exec
}

// Network attaches pods. All methods are safe for concurrent use; operations
// on one pod run one after the other.
type Network struct {
	opts    Options
	cni     *libcni.CNIConfig
	records records
	watch   *watcher
	// gate lets any number of ADD, DEL and CHECK through, or one GC of the
	// plugins, as the CNI specification asks for. It is taken before pods.
	gate   *semaphore.Weighted
	pods   podLocks
	status statusCache

	leftOnce sync.Once // makes left
	left     map[string][]interrupted

	// mu guards what follows. It is held for no longer than a look.
	mu sync.Mutex
	// conf is the configuration in use; what it points to never changes.
	conf *conf
	// claimed holds the pods that were added since Open and not deleted: GC
	// leaves them alone, whatever its caller knew when it made its list.
	claimed map[string]bool
	// warned holds what was logged already and is not to be logged again.
	warned map[string]bool
}

// Open makes the directories, loads the configuration and starts to watch it.
// No configuration, or a broken one, is not an error here but in
// [Network.Status]. Options that cannot work are errdefs.ErrInvalidArgument.
// Logging goes to the logger of ctx for as long as the network is open.
func Open(ctx context.Context, opts Options) (*Network, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	n := &Network{
		opts:    opts,
		cni:     libcni.NewCNIConfigWithCacheDir(opts.BinDirs, opts.CacheDir, opts.Exec),
		records: records{dir: filepath.Join(opts.CacheDir, "attachments")},
		gate:    semaphore.NewWeighted(gateWidth),
		claimed: map[string]bool{},
		warned:  map[string]bool{},
	}
	for _, dir := range []string{n.records.dir, filepath.Join(opts.CacheDir, "results")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if n.watch, err = newWatcher(opts.ConfDir); err != nil {
		return nil, fmt.Errorf("watch %s: %w", opts.ConfDir, err)
	}
	n.reload(ctx)
	n.watch.start(ctx, n.reload)
	return n, nil
}

// Close ends the watching. Attachments stay as they are, for the next Open.
func (n *Network) Close() error { return n.watch.close() }

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

// gateWidth is the number of operations at a time that none ever waits for.
const gateWidth = 1 << 30

// begin waits until an operation on a pod may start.
func (n *Network) begin(ctx context.Context, id string) (end func(), err error) {
	if err := n.gate.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for garbage collection: %w", err)
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

// claim keeps GC from a pod, or lets it.
func (n *Network) claim(id string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if on {
		n.claimed[id] = true
	} else {
		delete(n.claimed, id)
	}
}

// once reports whether what was never passed to it before.
func (n *Network) once(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.warned[what] {
		return false
	}
	n.warned[what] = true
	return true
}
