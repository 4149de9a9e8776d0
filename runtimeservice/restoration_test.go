package runtimeservice

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/state"
)

func TestCheckRestore(t *testing.T) {
	mode := func(m runtimeapi.NamespaceMode) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: m},
		}}}
	}
	for m, ok := range map[runtimeapi.NamespaceMode]bool{
		runtimeapi.NamespaceMode_POD: true, runtimeapi.NamespaceMode_CONTAINER: true, runtimeapi.NamespaceMode_NODE: false, runtimeapi.NamespaceMode_TARGET: false,
	} {
		if err := checkRestore(&runtimeapi.PodSandboxConfig{}, mode(m)); (err == nil) != ok || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%v: %v", m, err)
		}
	}
	mapped := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}},
	}}}
	if err := checkRestore(mapped, mode(runtimeapi.NamespaceMode_CONTAINER)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a user namespace: %v", err)
	}
}

// TestProcessConfig holds that the process is the checkpoint's and all else the
// request's, which itself stays as it was.
func TestProcessConfig(t *testing.T) {
	from := &source{Description: checkpoint.Description{Spec: specs.Spec{Process: &specs.Process{Args: []string{"sh", "-c", "x"}, Cwd: "/", Env: []string{"PATH=/bin", "SECRET=s3cr3t"}}}, Config: checkpoint.Config{RootfsImageName: "registry.test/base:1"}}}
	request := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Labels: map[string]string{"a": "b"}, Args: []string{"ignored"},
		Image: &runtimeapi.ImageSpec{Image: "/x.tar", UserSpecifiedImage: "/x.tar"},
	}
	got := from.processConfig(request)
	if !slices.Equal(got.Command, []string{"sh", "-c", "x"}) || got.Args != nil || got.WorkingDir != "/" || len(got.Envs) != 2 || got.Labels["a"] != "b" {
		t.Errorf("processConfig = %v", got)
	}
	if !slices.Equal(request.Args, []string{"ignored"}) || request.Command != nil {
		t.Errorf("the request has become %v", request)
	}
	recorded := restoredConfig(request, from)
	if recorded.Image.Image != "registry.test/base:1" || recorded.Image.UserSpecifiedImage != "" || request.Image.Image != "/x.tar" {
		t.Errorf("recorded image %v, requested %v", recorded.Image, request.Image)
	}
	from.exact = true
	if got := from.processConfig(request); got != request {
		t.Error("a config that must be right is changed")
	}
}

func TestAnnotate(t *testing.T) {
	s := new(specs.Spec)
	p := testPod(t, state.PodReady, runtimeapi.NamespaceMode_POD)
	c := testContainer(t)
	if err := annotate(s, p, c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Metadata().GetName(), s.Annotations["io.kubernetes.pod.name"]); diff != "" || s.Annotations["io.kubernetes.cri-o.Annotations"] == "" {
		t.Errorf("annotations = %v", s.Annotations)
	}
}

func TestMatchContainers(t *testing.T) {
	config := func(name string) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "x"},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		}
	}
	pod := testPod(t, state.PodReady, runtimeapi.NamespaceMode_POD).Config()
	archives := map[string]string{"a": "1.tar", "b": "2.tar"}
	for says, configs := range map[string][]*runtimeapi.ContainerConfig{
		"":                                {config("b"), config("a")},
		"no container configs":            nil,
		"without a name":                  {config("a"), config("")},
		"two configs for container \"a\"": {config("a"), config("b"), config("a")},
		"has no container \"c\"":          {config("a"), config("b"), config("c")},
		"no config for container \"b\"":   {config("a")},
	} {
		err := matchContainers(pod, configs, archives)
		if says == "" && err != nil || says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v", says, err)
		}
	}
}
