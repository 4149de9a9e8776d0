package runtimeservice

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/cgroup"
)

// versionTimeout bounds the time for the OCI runtimes to report their versions.
const versionTimeout = 5 * time.Second

// recordsUsable is a condition of the runtime that the CRI does not define. Status reports it only
// while it is false.
const recordsUsable = "RecordsUsable"

// Status returns the runtime's conditions, its handlers and its features. The RuntimeReady
// condition has reason Recovering while recoveries of the start are running. The only error is one
// of encoding verbose information.
func (s *Service) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, network,
		}},
		RuntimeHandlers: s.runtimeHandlers(),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if text := s.Unfinished(); text != "" {
		ready := resp.GetStatus().GetConditions()[0]
		ready.Reason, ready.Message = "Recovering", text
	}
	if bad := s.unusable.all(); len(bad) > 0 {
		resp.Status.Conditions = append(resp.Status.Conditions, &runtimeapi.RuntimeCondition{
			Type: recordsUsable, Reason: reasonUnusable, Message: fmt.Sprintf("%d records cannot be used, among them %s: %v", len(bad), bad[0].dir, bad[0].err),
		})
	}
	if !req.GetVerbose() {
		return resp, nil
	}
	var err error
	resp.Info, err = s.statusInfo(ctx)
	return resp, err
}

func (s *Service) runtimeHandlers() []*runtimeapi.RuntimeHandler {
	var handlers []*runtimeapi.RuntimeHandler
	for name, h := range s.handlers {
		handlers = append(handlers, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.features.recursiveReadOnly && s.host.RecursiveReadOnly,
			UserNamespaces:          s.checkUserNamespaces(h) == nil,
		}})
	}
	slices.SortFunc(handlers, func(a, b *runtimeapi.RuntimeHandler) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return handlers
}

// statusInfo returns the verbose information, with the keys that tools read from other runtimes.
// kubeadm reads sandboxImage from config.
func (s *Service) statusInfo(ctx context.Context) (map[string]string, error) {
	net, plugins := s.network.Info(), s.plugins.Info()
	info := map[string]string{"cniconfig": string(net.Config)}
	for key, value := range map[string]any{
		"config":            s.configInfo(),
		"lastCNILoadStatus": net.LastLoadStatus,
		"golang":            runtime.Version(),
		"version":           s.opts.Version,
		"versions":          s.versions(ctx),
		"nri":               map[string]any{"enabled": plugins.Enabled, "socket": plugins.Socket, "plugins": plugins.Plugins},
	} {
		// Clients decode every value as JSON, even text.
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode verbose status: %w", err)
		}
		info[key] = string(data)
	}
	return info, nil
}

// configInfo returns the configuration that the service uses.
func (s *Service) configInfo() map[string]any {
	runtimes := map[string]any{}
	for name, h := range s.handlers {
		if name == "" {
			continue // the default, which has a name too
		}
		o := h.Handler()
		runtimes[name] = map[string]any{"path": o.Path, "type": o.Type, "root": o.Root, "options": o.Options, "features": h.features.oci}
	}
	return map[string]any{
		"sandboxImage":   s.opts.SandboxImage,
		"rootDir":        s.opts.DataDir,
		"stateDir":       s.opts.StateDir,
		"cgroupDriver":   s.cgroups.Driver(),
		"systemdCgroup":  s.cgroups.Driver() == cgroup.Systemd,
		"defaultRuntime": s.handlers[""].Handler().Name,
		"runtimes":       runtimes,
		"settings":       s.settings,
	}
}

// versions returns the installed versions of the programs that run pods. It leaves out OCI runtimes
// that do not answer.
func (s *Service) versions(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	versions := map[string]string{"mica": s.opts.Version, "kernel": kernelRelease()}
	var mu sync.Mutex // guards versions
	var asked sync.WaitGroup
	for name, h := range s.handlers {
		if name == "" {
			continue
		}
		asked.Go(func() {
			line, err := h.Version(ctx)
			if err != nil {
				klog.FromContext(ctx).Error(err, "Reading the version of an OCI runtime failed", "handler", name)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			versions[name] = line[strings.LastIndexByte(line, ' ')+1:] // of "runc version 1.3.0"
		})
	}
	asked.Wait()
	return versions
}

func kernelRelease() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}
