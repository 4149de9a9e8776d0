package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is the outcome of attaching a pod.
type Result struct {
	// IPs are the addresses of the pod's interface, the primary one first.
	IPs []netip.Addr
	// Interfaces are all interfaces that the plugins reported, including interfaces on the node.
	Interfaces []Interface
	// Raw is the CNI result as JSON, in version 1.0.0 or later.
	Raw json.RawMessage
}

// Interface is one network interface of a [Result].
type Interface struct {
	Name, MAC string
	// Sandbox is the network namespace of a pod's interface. It is "" for an interface on the node,
	// and if the plugin leaves it out.
	Sandbox string
}

// parseResult converts the result of a plugin list and selects the addresses of the pod's
// interface, in the plugins' order. A result without an address is an error, because a pod needs
// one.
func parseResult(got types.Result, ifName string) (Result, error) {
	r, err := types100.NewResultFromResult(got)
	if err != nil {
		return Result{}, fmt.Errorf("read plugin result: %w", err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return Result{}, fmt.Errorf("read plugin result: %w", err)
	}
	result := Result{Raw: raw}
	for _, i := range r.Interfaces {
		result.Interfaces = append(result.Interfaces, Interface{Name: i.Name, MAC: i.Mac, Sandbox: i.Sandbox})
	}
	for _, ip := range r.IPs {
		own, err := belongs(ip.Interface, result.Interfaces, ifName)
		if err != nil {
			return Result{}, fmt.Errorf("read plugin result: address %s: %w", ip.Address.IP, err)
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && own {
			result.IPs = append(result.IPs, addr.Unmap())
		}
	}
	if len(result.IPs) == 0 {
		return Result{}, errors.New("plugins returned no address for the pod")
	}
	return result, nil
}

// belongs reports whether an address belongs to the pod's interface. index is the address's
// interface index; nil if the plugin left it out. The interface's name decides, since some plugins
// leave out the network namespace. If the name is listed twice, with and without a namespace, only
// the one with a namespace is the pod's. An index without an interface is an error, unless the
// plugins list no interfaces at all.
func belongs(index *int, interfaces []Interface, ifName string) (bool, error) {
	if index == nil || len(interfaces) == 0 {
		return true, nil
	}
	if *index < 0 || *index >= len(interfaces) {
		return false, fmt.Errorf("interface index %d is out of range: plugins list %d interfaces", *index, len(interfaces))
	}
	i := interfaces[*index]
	if i.Name != ifName || i.Sandbox != "" {
		return i.Name == ifName, nil
	}
	named := func(other Interface) bool { return other.Name == ifName && other.Sandbox != "" }
	return !slices.ContainsFunc(interfaces, named), nil
}
