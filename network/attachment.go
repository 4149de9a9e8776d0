package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// verboseResult and its parts have the field names of containerd's cniResult, which tools read.
type verboseResult struct {
	Interfaces map[string]*verboseInterface
	DNS        []types.DNS
	Routes     []*types.Route
}

type verboseInterface struct {
	IPConfigs                       []verboseIP
	Mac, Sandbox, PciID, SocketPath string
}

type verboseIP struct{ IP, Gateway string }

// Attachment returns the plugins' result of the pod's ADD as JSON, in the shape of containerd's
// cniResult. It returns nil for a pod that is not attached.
func (n *Network) Attachment(id string) (json.RawMessage, error) {
	rec, err := n.records.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := rec.list()
	if err != nil {
		return nil, err
	}
	got, err := n.cni.GetNetworkListCachedResult(list, rec.runtimeConf())
	if err != nil {
		return nil, fmt.Errorf("read result of %s: %w", rec, err)
	}
	if got == nil { // an ADD or DEL is in progress
		return nil, nil
	}
	result, err := types100.NewResultFromResult(got)
	if err != nil {
		return nil, fmt.Errorf("read result of %s: %w", rec, err)
	}
	return json.Marshal(verboseResultOf(result))
}

func verboseResultOf(r *types100.Result) verboseResult {
	v := verboseResult{Interfaces: map[string]*verboseInterface{}, DNS: []types.DNS{r.DNS}, Routes: r.Routes}
	for _, i := range r.Interfaces {
		v.Interfaces[i.Name] = &verboseInterface{Mac: i.Mac, Sandbox: i.Sandbox, PciID: i.PciID, SocketPath: i.SocketPath}
	}
	for _, ip := range r.IPs {
		name := podInterface
		if ip.Interface != nil && *ip.Interface >= 0 && *ip.Interface < len(r.Interfaces) {
			name = r.Interfaces[*ip.Interface].Name
		}
		if v.Interfaces[name] == nil {
			v.Interfaces[name] = &verboseInterface{}
		}
		c := verboseIP{IP: ip.Address.IP.String()}
		if ip.Gateway != nil {
			c.Gateway = ip.Gateway.String()
		}
		v.Interfaces[name].IPConfigs = append(v.Interfaces[name].IPConfigs, c)
	}
	return v
}
