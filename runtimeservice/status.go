package runtimeservice

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Status answers with the runtime's conditions and what its handlers can do.
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
	if !req.GetVerbose() {
		return resp, nil
	}
	var err error
	resp.Info, err = s.statusInfo()
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

// statusInfo is the verbose part, with the keys that tools read from other
// runtimes. kubeadm reads sandboxImage from config.
func (s *Service) statusInfo() (map[string]string, error) {
	handlers := map[string]any{}
	for name, h := range s.handlers {
		handlers[name] = map[string]any{"path": h.Handler().Path, "type": h.Handler().Type, "features": h.features.oci}
	}
	config, err := json.Marshal(map[string]any{
		"sandboxImage": s.opts.SandboxImage,
		"dataDir":      s.opts.DataDir,
		"stateDir":     s.opts.StateDir,
		"cgroupDriver": s.cgroups.Driver(),
		"handlers":     handlers,
	})
	if err != nil {
		return nil, fmt.Errorf("encode verbose status: %w", err)
	}
	net := s.network.Info()
	return map[string]string{
		"config":            string(config),
		"cniconfig":         string(net.Config),
		"lastCNILoadStatus": quoted(net.LastLoadStatus),
		"golang":            quoted(runtime.Version()),
		"version":           quoted(s.opts.Version),
	}, nil
}

// quoted makes a JSON string, since clients decode every value as JSON.
func quoted(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		return `""` // a string always encodes
	}
	return string(data)
}
