package network

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Pod describes a pod to the network. ID identifies the attachment; usually Del and Check need
// nothing else.
type Pod struct {
	// ID is the pod's ID, which is CNI's container ID.
	ID string
	// Name, Namespace and UID identify the pod in Kubernetes and are passed to the plugins.
	Name, Namespace, UID string
	// NetNS is the path of the pinned network namespace. Add needs it.
	NetNS string
	// PortMappings are the host ports; those with HostPort 0 are ignored.
	PortMappings []PortMapping
	// Annotations may limit bandwidth (kubernetes.io/ingress-bandwidth and egress-bandwidth), and
	// are passed to plugins that ask for them.
	Annotations map[string]string
	// CgroupParent is passed to plugins that ask for it (cgroupPath).
	CgroupParent string
	// DNS is passed to plugins that ask for it.
	DNS DNS
	// IPs are requested addresses, for plugins with the capability ips.
	IPs []netip.Prefix
	// MAC is the requested hardware address, for plugins with the capability mac.
	MAC net.HardwareAddr
}

// PortMapping forwards a port of the node to a port of a pod. Its JSON form is defined by the CNI
// capability portMappings.
type PortMapping struct {
	// HostPort and ContainerPort are 1 to 65535.
	HostPort      int32 `json:"hostPort"`
	ContainerPort int32 `json:"containerPort"`
	// Protocol is tcp, udp or sctp, in any case; "" is tcp.
	Protocol string `json:"protocol"`
	// HostIP is the node's address to forward from; "" means every address.
	HostIP string `json:"hostIP,omitempty"`
}

// DNS is a pod's resolver configuration, in the form of the CNI capability dns.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Capabilities of CNI plugins (CONVENTIONS.md of the CNI project). The last one is containerd's.
const (
	portMappings   = "portMappings"
	bandwidth      = "bandwidth"
	dns            = "dns"
	ips            = "ips"
	mac            = "mac"
	cgroupPath     = "cgroupPath"
	podAnnotations = "io.kubernetes.cri.pod-annotations"
)

// Annotations that limit a pod's bandwidth, in bits per second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// String names the pod in messages.
func (p Pod) String() string { return podString(p.Namespace, p.Name, p.ID) }

func podString(namespace, name, id string) string {
	const enough = 12
	if len(id) > enough {
		id = id[:enough]
	}
	if name == "" {
		return "pod " + id
	}
	return fmt.Sprintf("pod %s/%s (%s)", namespace, name, id)
}

// record validates a pod and returns the record of its attachment by c.
func (p Pod) record(c *conf) (record, error) {
	// A valid CNI container ID is also a safe file name, except for leading dots.
	if err := utils.ValidateContainerID(p.ID); err != nil || strings.HasPrefix(p.ID, ".") {
		return record{}, fmt.Errorf("pod ID %q: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	if !isNamespace(p.NetNS) {
		return record{}, fmt.Errorf("network namespace %q does not exist: %w", p.NetNS, errdefs.ErrInvalidArgument)
	}
	capabilities, err := p.capabilityArgs()
	if err != nil {
		return record{}, err
	}
	return record{
		PodID:          p.ID,
		Name:           p.Name,
		Namespace:      p.Namespace,
		Interface:      podInterface,
		NetNS:          p.NetNS,
		Config:         c.list.Bytes,
		Args:           p.args(),
		CapabilityArgs: capabilities,
	}, nil
}

// args returns CNI_ARGS, with the keys that other Kubernetes runtimes pass.
func (p Pod) args() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
		{"K8S_POD_UID", p.UID},
	}
}

// capabilityArgs returns the arguments of all capabilities; libcni passes each plugin those that it
// declares.
func (p Pod) capabilityArgs() (map[string]any, error) {
	args := map[string]any{}
	ports, err := p.hostPorts()
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		args[portMappings] = ports
	}
	limits, err := p.bandwidth()
	if err != nil {
		return nil, err
	}
	if len(limits) > 0 {
		args[bandwidth] = limits
	}
	if len(p.DNS.Servers)+len(p.DNS.Searches)+len(p.DNS.Options) > 0 {
		args[dns] = p.DNS
	}
	if len(p.IPs) > 0 {
		args[ips] = p.IPs
	}
	if len(p.MAC) > 0 {
		args[mac] = p.MAC.String()
	}
	if p.CgroupParent != "" {
		args[cgroupPath] = p.CgroupParent
	}
	if len(p.Annotations) > 0 {
		args[podAnnotations] = p.Annotations
	}
	return args, nil
}

// hostPorts returns the port mappings with a host port, normalized and validated.
func (p Pod) hostPorts() ([]PortMapping, error) {
	var ports []PortMapping
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		m.Protocol = strings.ToLower(m.Protocol)
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		if err := m.validate(); err != nil {
			return nil, fmt.Errorf("port mapping %+v: %w: %w", m, err, errdefs.ErrInvalidArgument)
		}
		ports = append(ports, m)
	}
	return ports, nil
}

func (m PortMapping) validate() error {
	for _, port := range []int32{m.HostPort, m.ContainerPort} {
		if port < 1 || port > math.MaxUint16 {
			return fmt.Errorf("port %d is not in 1..65535", port)
		}
	}
	switch m.Protocol {
	case "tcp", "udp", "sctp":
	default:
		return fmt.Errorf("unknown protocol %q", m.Protocol)
	}
	if m.HostIP == "" {
		return nil
	}
	_, err := netip.ParseAddr(m.HostIP)
	return err
}

// bandwidth returns the limits from the pod's annotations in the capability's JSON form: rates in
// bits per second, and the largest possible bursts, in bits.
func (p Pod) bandwidth() (map[string]uint64, error) {
	limits := map[string]uint64{}
	for annotation, key := range map[string]string{ingressAnnotation: "ingress", egressAnnotation: "egress"} {
		text := p.Annotations[annotation]
		if text == "" {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", annotation, err, errdefs.ErrInvalidArgument)
		}
		limits[key+"Rate"] = rate
		limits[key+"Burst"] = math.MaxUint32
	}
	return limits, nil
}

// parseRate parses a Kubernetes quantity between 1k and 1P, the documented range of the
// annotations.
func parseRate(text string) (uint64, error) {
	const least, most = 1e3, 1e15
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", text, err)
	}
	if v := q.Value(); v >= least && v <= most {
		return uint64(v), nil
	}
	return 0, fmt.Errorf("%q is not in 1k..1P", text)
}

// hasCapability reports whether a plugin of list declares the capability.
func hasCapability(list *libcni.NetworkConfigList, name string) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities[name] {
			return true
		}
	}
	return false
}
