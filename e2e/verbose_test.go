package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// decode decodes one value of a verbose answer.
func (f *fixture) decode(text string, into any) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		f.t.Fatalf("%v: %q", err, text)
	}
}

// kubeadm, crictl and other tools read these values from `crictl info`.
func TestVerboseStatus(t *testing.T) {
	f := start(t)
	f.join()
	response, err := f.Runtime.Status(f.ctx, true)
	f.no(err)
	var config struct {
		SandboxImage, RootDir, StateDir, DefaultRuntime string
		Runtimes                                        map[string]struct {
			Path     string
			Features struct{ OCIVersionMax string }
		}
		Settings map[string]any
	}
	f.decode(response.Info["config"], &config)
	if !strings.Contains(config.SandboxImage, "/pause:") || config.RootDir != f.Data || config.StateDir != f.State || config.Settings["data_root"] != f.Data {
		t.Errorf("config is %+v", config)
	}
	var versions map[string]string
	f.decode(response.Info["versions"], &versions)
	var handlers []string
	for _, h := range response.GetRuntimeHandlers() {
		if h.GetName() == "" {
			continue
		}
		handlers = append(handlers, h.GetName())
		r := config.Runtimes[h.GetName()]
		if _, err := os.Stat(r.Path); err != nil || r.Features.OCIVersionMax == "" || versions[h.GetName()] == "" {
			t.Errorf("handler %s is %+v, version %q", h.GetName(), r, versions[h.GetName()])
		}
	}
	if len(handlers) != len(config.Runtimes) || !slices.Contains(handlers, config.DefaultRuntime) {
		t.Errorf("handlers are %q, default %q, config has %d", handlers, config.DefaultRuntime, len(config.Runtimes))
	}
	var network struct {
		Networks []struct {
			Config struct{ Name string }
			IFName string
		}
	}
	f.decode(response.Info["cniconfig"], &network)
	if len(network.Networks) != 1 || network.Networks[0].IFName != "eth0" || network.Networks[0].Config.Name != f.Name {
		t.Errorf("cniconfig is %+v", network)
	}
	var golang, loaded, version string
	f.decode(response.Info["golang"], &golang)
	f.decode(response.Info["lastCNILoadStatus"], &loaded)
	f.decode(response.Info["version"], &version)
	if !strings.HasPrefix(golang, "go1.") || loaded != "OK" || version == "" || versions["mica"] != version || versions["kernel"] == "" {
		t.Errorf("golang %q, lastCNILoadStatus %q, version %q of %v", golang, loaded, version, versions)
	}
	var plugins struct{ Socket string }
	f.decode(response.Info["nri"], &plugins)
	if plugins.Socket != f.PluginSocket() {
		t.Errorf("nri is %s", response.Info["nri"])
	}
	// The list has a plugin once the plugin has answered Synchronize.
	f.eventually("the list has the plugin", func() bool {
		response, err := f.Runtime.Status(f.ctx, true)
		f.no(err)
		return strings.Contains(response.Info["nri"], `"plugins":["10-e2e"]`)
	})
}

// verboseObject has the values that tools read from `crictl inspect` and `crictl inspectp`.
type verboseObject struct {
	Pid        int
	SandboxID  string
	Privileged *bool
	Config     struct {
		Metadata struct{ Name string }
		LogPath  string `json:"log_path"`
		LogDir   string `json:"log_directory"`
	}
	RuntimeSpec specs.Spec
	CNIResult   struct {
		Interfaces map[string]struct {
			IPConfigs []struct{ IP, Gateway string }
			Sandbox   string
		}
	}
}

func (f *fixture) inspect(id string) verboseObject {
	f.t.Helper()
	response, err := f.Runtime.ContainerStatus(f.ctx, id, true)
	f.no(err)
	var o verboseObject
	f.decode(response.Info["info"], &o)
	return o
}

func (f *fixture) inspectPod(p pod) verboseObject {
	f.t.Helper()
	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, true)
	f.no(err)
	var o verboseObject
	f.decode(response.Info["info"], &o)
	return o
}

func TestVerboseContainer(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	id := f.start(p, config)
	got := f.inspect(id)
	// The OCI runtime's start returns before its process has executed the container's program.
	f.eventually("the pid is the container's process", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", got.Pid))
		f.no(err)
		return string(line) == "sleep\x001000\x00"
	})
	if got.SandboxID != p.id || got.Privileged == nil || *got.Privileged || got.Config.LogPath != config.LogPath || got.Config.Metadata.Name != config.Metadata.Name {
		t.Errorf("info is %+v", got)
	}
	if _, err := os.Stat(got.RuntimeSpec.Root.Path); err != nil {
		t.Errorf("root filesystem: %v", err)
	}
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	f.eventually("the bundle is removed", func() bool {
		_, err := os.Stat(f.State + "/containers/" + id)
		return os.IsNotExist(err)
	})
	ended := f.inspect(id)
	if ended.Pid != 0 {
		t.Errorf("an ended container has pid %d", ended.Pid)
	}
	if diff := cmp.Diff(got.RuntimeSpec, ended.RuntimeSpec); diff != "" || ended.RuntimeSpec.Process.Args[0] != "sleep" {
		t.Errorf("specification of the ended container (-running +ended):\n%s", diff)
	}
}

func TestVerbosePod(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	got := f.inspectPod(p)
	if got.Pid != 0 {
		t.Errorf("a pod without a process has pid %d", got.Pid)
	}
	eth0 := got.CNIResult.Interfaces["eth0"]
	if len(eth0.IPConfigs) != 1 || eth0.IPConfigs[0].IP != f.ip(p) || eth0.IPConfigs[0].Gateway == "" {
		t.Errorf("cniResult has %+v, the status %s", got.CNIResult, f.ip(p))
	}
	net := slices.IndexFunc(got.RuntimeSpec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if net < 0 || got.RuntimeSpec.Linux.Namespaces[net].Path != eth0.Sandbox || got.Config.LogDir != p.config.LogDirectory {
		t.Errorf("info is %+v", got)
	}
	f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	inside, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", f.inspectPod(p).Pid))
	f.no(err)
	pinned, err := os.Stat(eth0.Sandbox)
	f.no(err)
	if !os.SameFile(inside, pinned) {
		t.Error("the process of the pod is in another network namespace")
	}
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	if got := f.inspectPod(p); got.Pid != 0 || len(got.CNIResult.Interfaces) != 0 {
		t.Errorf("a stopped pod has pid %d and %+v", got.Pid, got.CNIResult)
	}
}

func TestVerboseImage(t *testing.T) {
	f := start(t)
	f.pull(nginxImage)
	response, err := f.Images.ImageStatus(f.ctx, &runtimeapi.ImageSpec{Image: nginxImage}, true)
	f.no(err)
	var info struct {
		ChainID   string
		ChainIDs  []string
		ImageSpec struct {
			Config struct{ Cmd []string }
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
	}
	f.decode(response.Info["info"], &info)
	layers := len(info.ImageSpec.RootFS.DiffIDs)
	if layers == 0 || len(info.ChainIDs) != layers || info.ChainIDs[layers-1] != info.ChainID || info.ChainIDs[0] != info.ImageSpec.RootFS.DiffIDs[0] {
		t.Errorf("layers are %+v", info)
	}
	if len(info.ImageSpec.Config.Cmd) == 0 || info.ImageSpec.Config.Cmd[0] != "nginx" {
		t.Errorf("the image's command is %q", info.ImageSpec.Config.Cmd)
	}
}
