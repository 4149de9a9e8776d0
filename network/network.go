package network

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
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

// DefaultNetwork is the embedded network: a bridge with addresses of host-local,
// masquerading and host ports, run by the plugins bridge, host-local and
// portmap of BinDirs.
type DefaultNetwork struct {
	// Name is the network's name. Default: mica.
	Name string
	// Bridge is the name of the bridge interface. Default: mica0.
	Bridge string
	// Subnet is the IPv4 subnet of the pods, of which the bridge takes the
	// first address. Default: 10.88.0.0/16.
	Subnet netip.Prefix
	// Subnet6 is an IPv6 subnet beside it; the zero value is none.
	Subnet6 netip.Prefix
	// DataDir holds the leases, as host-local writes them.
	// Default: leases below the CacheDir.
	DataDir string
	// MTU of the pods' interfaces; 0 is the kernel's choice.
	MTU int
}

// Pod is what a network needs to know of a pod. ID names the attachment; Del,
// Check and the records need only it.
type Pod struct {
	// ID is the pod's ID: the container ID of CNI.
	ID string
	// Name, Namespace and UID are Kubernetes' names, passed to the plugins.
	Name, Namespace, UID string
	// NetNS is the path of the pinned network namespace. Add needs it.
	NetNS string
	// PortMappings are the host ports; those with HostPort 0 are ignored.
	PortMappings []PortMapping
	// Annotations are searched for kubernetes.io/ingress-bandwidth and
	// egress-bandwidth.
	Annotations map[string]string
	// CgroupParent is passed to plugins that ask for it (cgroupPath).
	CgroupParent string
	// DNS is passed to plugins that ask for it.
	DNS DNS
	// IPs are addresses asked for; plugins with the capability ips obey.
	IPs []netip.Prefix
	// MAC is the hardware address asked for; plugins with the capability
	// mac obey.
	MAC net.HardwareAddr
}

// PortMapping leads a port of the node to a port of a pod. Its JSON form is
// that of the CNI capability portMappings.
type PortMapping struct {
	// HostPort and ContainerPort are 1 to 65535.
	HostPort      int32 `json:"hostPort"`
	ContainerPort int32 `json:"containerPort"`
	// Protocol is tcp, udp or sctp, in any case; "" is tcp.
	Protocol string `json:"protocol"`
	// HostIP is the address of the node that is led; "" is every one.
	HostIP string `json:"hostIP,omitempty"`
}

// DNS is a pod's resolver configuration, as the CNI capability dns has it.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Result is what an attachment got.
type Result struct {
	// IPs are the addresses of the pod's interface, the primary one first.
	IPs []netip.Addr
	// Interfaces are all interfaces that the plugins named, those of the
	// node too.
	Interfaces []Interface
	// Raw is the CNI result as JSON, in version 1.0.0 or later.
	Raw json.RawMessage
}

// Interface is one network interface of a [Result].
type Interface struct {
	Name, MAC string
	// Sandbox is the network namespace of a pod's interface, "" on the node.
	Sandbox string
}

// Info is what a node's verbose status says about the network.
type Info struct {
	// Config is the loaded configuration as JSON, in the shape that
	// containerd gives it (cniconfig).
	Config json.RawMessage
	// LastLoadStatus is "OK" or the reason why no configuration is loaded
	// or why files were passed over.
	LastLoadStatus string
}

// InterfaceStats are the counters of one interface since it was made.
type InterfaceStats struct {
	Name string
	// RxBytes and the others are seen from the pod.
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Network attaches pods. All methods are safe for concurrent use; operations
// on one pod run one after the other.
type Network struct {
	opts Options
}

// Open loads the configuration and starts to watch it.
func Open(ctx context.Context, opts Options) (*Network, error) { return nil, errUnwritten }

// Close ends the watching. Attachments stay.
func (n *Network) Close() error { return errUnwritten }

// Status returns nil when pods can be attached, and the reason otherwise.
func (n *Network) Status(ctx context.Context) error { return errUnwritten }

// Info returns the loaded configuration and how loading it went.
func (n *Network) Info() Info { return Info{} }

// Add attaches a pod.
func (n *Network) Add(ctx context.Context, pod Pod) (Result, error) { return Result{}, errUnwritten }

// Del detaches a pod. It is idempotent.
func (n *Network) Del(ctx context.Context, pod Pod) error { return errUnwritten }

// Check asks the plugins whether the attachment of a pod is as they made it.
func (n *Network) Check(ctx context.Context, pod Pod) error { return errUnwritten }

// GC detaches every pod that is not in live, and drops leases, cached results
// and host-port rules that none of live claims.
func (n *Network) GC(ctx context.Context, live []string) error { return errUnwritten }

// UpdateRuntimeConfig takes the node's pod CIDRs (comma-separated).
func (n *Network) UpdateRuntimeConfig(ctx context.Context, podCIDR string) error { return errUnwritten }

// Stats returns the counters of every interface but loopback in the network
// namespace pinned at nsPath.
func Stats(nsPath string) ([]InterfaceStats, error) { return nil, errUnwritten }
