package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// templateFile is the name of the conflist that UpdateRuntimeConfig writes.
const templateFile = "10-mica.conflist"

// templateData is what Options.ConfTemplate may use; the names are those of
// containerd's templates.
type templateData struct {
	PodCIDR       string   // the first of PodCIDRRanges
	PodCIDRRanges []string // all subnets of the node's pods
	Routes        []string // one default route for each address family among them
}

// UpdateRuntimeConfig takes the subnets of the node's pods, separated by commas,
// and writes a conflist from Options.ConfTemplate into Options.ConfDir, to be
// loaded as any other. It does nothing without a template, without a subnet, or
// when the directory has a configuration from somebody else. A text that is not
// a list of subnets, and a template that does not give a conflist, are
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
	// What is on disk counts, not what the watcher has seen so far.
	if c := loadConf(n.opts.ConfDir, nil); c.err == nil && c.source != file {
		klog.FromContext(ctx).Info("Network has a configuration, none is written for the pod CIDR", "source", c.source, "podCIDR", podCIDR)
		return nil
	}
	text, err := render(n.opts.ConfTemplate, data)
	if err != nil {
		return fmt.Errorf("update pod CIDR: %w", err)
	}
	if err := replaceFile(file, text); err != nil {
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
		return nil, fmt.Errorf("template %s gives no conflist: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	return out.Bytes(), nil
}

// replaceFile puts text into path by a rename, synced. The temporary file has an
// extension that makes nobody load it.
func replaceFile(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".mica-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
