package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/atomicfile"
)

// templateFile is the name of the conflist that UpdateRuntimeConfig writes.
const templateFile = "10-mica.conflist"

// templateData is the data of Options.ConfTemplate; its field names are those of containerd's
// templates.
type templateData struct {
	PodCIDR       string   // the first of PodCIDRRanges
	PodCIDRRanges []string // all subnets of the node's pods
	Routes        []string // one default route per address family of the subnets
}

// UpdateRuntimeConfig renders Options.ConfTemplate with the subnets of the node's pods, separated
// by commas, and writes the conflist into Options.ConfDir. The watcher loads it like any other
// file. UpdateRuntimeConfig does nothing without a template or a subnet, or if the directory has
// another valid configuration. An invalid subnet, or a template that renders no valid conflist, is
// errdefs.ErrInvalidArgument.
func (n *Network) UpdateRuntimeConfig(ctx context.Context, podCIDR string) error {
	if podCIDR == "" || n.opts.ConfTemplate == "" {
		return nil
	}
	data, err := parsePodCIDR(podCIDR)
	if err != nil {
		return fmt.Errorf("update pod CIDR: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	file := filepath.Join(n.opts.ConfDir, templateFile)
	// Read the disk: the watcher may lag behind.
	if c := loadConf(n.opts.ConfDir, nil); c.err == nil && c.source != file {
		klog.FromContext(ctx).Info("Network already has a configuration, not writing one for the pod CIDR", "source", c.source, "podCIDR", podCIDR)
		return nil
	}
	text, err := render(n.opts.ConfTemplate, data)
	if err != nil {
		return fmt.Errorf("update pod CIDR: %w", err)
	}
	if err := atomicfile.Write(file, text, atomicfile.Options{Mode: 0o644, Sync: true}); err != nil {
		return fmt.Errorf("update pod CIDR: write %s: %w", file, err)
	}
	return nil
}

func parsePodCIDR(text string) (templateData, error) {
	var data templateData
	routes := map[string]bool{}
	for item := range strings.SplitSeq(text, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(item))
		if err != nil {
			return templateData{}, err
		}
		data.PodCIDRRanges = append(data.PodCIDRRanges, prefix.String())
		route := netip.PrefixFrom(prefix.Addr(), 0).Masked().String()
		if !routes[route] {
			routes[route] = true
			data.Routes = append(data.Routes, route)
		}
	}
	data.PodCIDR = data.PodCIDRRanges[0]
	return data, nil
}

func render(file string, data templateData) ([]byte, error) {
	t, err := template.ParseFiles(file)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("fill template: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	list, err := libcni.NetworkConfFromBytes(out.Bytes())
	if err == nil {
		err = new(conf).use(list, file)
	}
	if err != nil {
		return nil, fmt.Errorf("template %s renders no conflist: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	return out.Bytes(), nil
}
