package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refusal is an invalid request with the expected code and part of the expected message.
type refusal struct {
	name string
	call func(*requests) error
	code codes.Code
	text string
}

// requests sends requests unchanged; cri-client rejects some invalid ones itself.
type requests struct {
	ctx     context.Context
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	f       *fixture
	pod     pod    // a ready pod
	stopped string // a stopped pod
	running string // containers of pod, in the states of their names
	created string
	exited  string
	taken   *runtimeapi.ContainerConfig // config of running
}

// connect makes clients for unchanged requests; the kubelet's client may change them.
func (f *fixture) connect() *grpc.ClientConn {
	f.t.Helper()
	conn, err := grpc.NewClient("unix://"+f.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.no(err)
	f.t.Cleanup(func() { f.no(conn.Close()) })
	return conn
}

func newRequests(f *fixture) *requests {
	f.t.Helper()
	conn := f.connect()
	r := &requests{ctx: f.ctx, f: f, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}
	r.pod = f.runPod(f.podConfig())
	r.stopped = f.runPod(f.podConfig()).id
	f.no(f.Runtime.StopPodSandbox(f.ctx, r.stopped))
	r.taken = f.containerConfig(busyboxImage, "sleep", "600")
	r.running = f.start(r.pod, r.taken)
	r.created = f.create(r.pod, f.containerConfig(busyboxImage, "true"))
	r.exited = f.start(r.pod, f.containerConfig(busyboxImage, "true"))
	f.await(r.exited)
	f.eventually("the exited container's resources are released", func() bool {
		_, err := os.Stat(filepath.Join(f.State, "containers", r.exited))
		return os.IsNotExist(err)
	})
	return r
}

// runPod requests a pod whose config was changed by spoil.
func runPod(spoil func(*runtimeapi.PodSandboxConfig)) func(*requests) error {
	return func(r *requests) error {
		config := r.f.podConfig()
		spoil(config)
		_, err := r.runtime.RunPodSandbox(r.ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		return err
	}
}

// createContainer requests a container whose config was changed by spoil.
func createContainer(spoil func(*runtimeapi.ContainerConfig)) func(*requests) error {
	return func(r *requests) error {
		config := r.f.containerConfig(busyboxImage, "true")
		spoil(config)
		_, err := r.runtime.CreateContainer(r.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.pod.id, Config: config, SandboxConfig: r.pod.config})
		return err
	}
}

const unknownID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func podRefusals() []refusal {
	type config = runtimeapi.PodSandboxConfig
	userns := func(u *runtimeapi.UserNamespace) func(*config) {
		return func(c *config) {
			c.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: u}}
		}
	}
	return []refusal{
		{"RunPodSandbox: nil config", func(r *requests) error {
			_, err := r.runtime.RunPodSandbox(r.ctx, &runtimeapi.RunPodSandboxRequest{})
			return err
		}, codes.InvalidArgument, "run pod"},
		{"RunPodSandbox: no metadata", runPod(func(c *config) { c.Metadata = nil }), codes.InvalidArgument, "metadata"},
		{"RunPodSandbox: no name", runPod(func(c *config) { c.Metadata.Name = "" }), codes.InvalidArgument, "name"},
		{"RunPodSandbox: long host name", runPod(func(c *config) { c.Hostname = strings.Repeat("h", 200) }), codes.InvalidArgument, "hostname"},
		{"RunPodSandbox: name in use", func(r *requests) error {
			config := r.f.podConfig()
			config.Metadata = r.pod.config.Metadata
			_, err := r.runtime.RunPodSandbox(r.ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		}, codes.AlreadyExists, "another config"},
		{"RunPodSandbox: unknown handler", func(r *requests) error {
			_, err := r.runtime.RunPodSandbox(r.ctx, &runtimeapi.RunPodSandboxRequest{Config: r.f.podConfig(), RuntimeHandler: "no-such"})
			return err
		}, codes.NotFound, `handler "no-such"`},
		{"RunPodSandbox: cgroup parent with ..", runPod(func(c *config) { c.Linux.CgroupParent = "/../../etc" }), codes.InvalidArgument, "cgroup"},
		{"RunPodSandbox: sysctl of the host", runPod(func(c *config) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} }), codes.InvalidArgument, "kernel.panic"},
		{"RunPodSandbox: unknown sysctl", runPod(func(c *config) { c.Linux.Sysctls = map[string]string{"net.no.such": "1"} }), codes.FailedPrecondition, "net/no/such"},
		{"RunPodSandbox: target PID namespace", runPod(func(c *config) {
			c.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}}
		}), codes.InvalidArgument, "TARGET"},
		{"RunPodSandbox: user namespace without mappings", runPod(userns(&runtimeapi.UserNamespace{})), codes.InvalidArgument, "mapping of ID 0"},
		{"RunPodSandbox: user namespace of the host with mappings", runPod(userns(&runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_NODE, Uids: userNamespace().Uids, Gids: userNamespace().Gids,
		})), codes.InvalidArgument, "NODE with mappings"},
		{"RunPodSandbox: user namespace with overlapping mappings", runPod(userns(&runtimeapi.UserNamespace{
			Uids: append(userNamespace().Uids, &runtimeapi.IDMapping{ContainerId: 7, HostId: 7, Length: 1}), Gids: userNamespace().Gids,
		})), codes.InvalidArgument, "overlap"},
		{"PodSandboxStatus: unknown", func(r *requests) error {
			_, err := r.runtime.PodSandboxStatus(r.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"PodSandboxStatus: no ID", func(r *requests) error {
			_, err := r.runtime.PodSandboxStatus(r.ctx, &runtimeapi.PodSandboxStatusRequest{})
			return err
		}, codes.InvalidArgument, "empty ID"},
		{"PodSandboxStats: unknown", func(r *requests) error {
			_, err := r.runtime.PodSandboxStats(r.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"PortForward: unknown", func(r *requests) error {
			_, err := r.runtime.PortForward(r.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: unknownID, Port: []int32{80}})
			return err
		}, codes.NotFound, unknownID},
		{"PortForward: stopped", func(r *requests) error {
			_, err := r.runtime.PortForward(r.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: r.stopped, Port: []int32{80}})
			return err
		}, codes.FailedPrecondition, "notready"},
		{"UpdatePodSandboxResources: unknown", func(r *requests) error {
			_, err := r.runtime.UpdatePodSandboxResources(r.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"CheckpointPod: unknown", func(r *requests) error {
			_, err := r.runtime.CheckpointPod(r.ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: unknownID})
			return err
		}, codes.NotFound, unknownID},
	}
}

func creationRefusals() []refusal {
	type config = runtimeapi.ContainerConfig
	security := func(c *config) *runtimeapi.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	mount := func(m *runtimeapi.Mount) func(*config) {
		return func(c *config) { c.Mounts = []*runtimeapi.Mount{m} }
	}
	in := func(pod func(*requests) string, spoil func(*requests, *runtimeapi.CreateContainerRequest)) func(*requests) error {
		return func(r *requests) error {
			req := &runtimeapi.CreateContainerRequest{PodSandboxId: pod(r), Config: r.f.containerConfig(busyboxImage, "true"), SandboxConfig: r.pod.config}
			spoil(r, req)
			_, err := r.runtime.CreateContainer(r.ctx, req)
			return err
		}
	}
	nothing := func(*requests, *runtimeapi.CreateContainerRequest) {}
	ready := func(r *requests) string { return r.pod.id }
	return []refusal{
		{"nil config", in(ready, func(_ *requests, q *runtimeapi.CreateContainerRequest) { q.Config = nil }), codes.InvalidArgument, "create container"},
		{"unknown pod", in(func(*requests) string { return unknownID }, nothing), codes.NotFound, unknownID},
		{"stopped pod", in(func(r *requests) string { return r.stopped }, nothing), codes.FailedPrecondition, "notready"},
		{"name in use", in(ready, func(r *requests, q *runtimeapi.CreateContainerRequest) { q.Config = r.taken }), codes.AlreadyExists, "running"},
		{"no metadata", createContainer(func(c *config) { c.Metadata = nil }), codes.InvalidArgument, "metadata"},
		{"no image", createContainer(func(c *config) { c.Image = nil }), codes.InvalidArgument, "image"},
		{"missing image", createContainer(func(c *config) { c.Image.Image = "registry.test/never:pulled" }), codes.NotFound, "registry.test/never:pulled"},
		{"unknown user", createContainer(func(c *config) { security(c).RunAsUsername = "nobody-here" }), codes.InvalidArgument, "nobody-here"},
		{"user as ID and name", createContainer(func(c *config) {
			security(c).RunAsUsername, security(c).RunAsUser = "root", &runtimeapi.Int64Value{Value: 1}
		}), codes.InvalidArgument, "run_as_user"},
		{"group without user", createContainer(func(c *config) { security(c).RunAsGroup = &runtimeapi.Int64Value{Value: 7} }), codes.InvalidArgument, "run_as_group"},
		{"unknown capability", createContainer(func(c *config) {
			security(c).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH"}}
		}), codes.InvalidArgument, "NO_SUCH"},
		{"privileged in an unprivileged pod", createContainer(func(c *config) { security(c).Privileged = true }), codes.InvalidArgument, "privileged"},
		{"log path with ..", createContainer(func(c *config) { c.LogPath = "../../../etc/escaped.log" }), codes.InvalidArgument, "log path"},
		{"relative container path", createContainer(mount(&runtimeapi.Mount{ContainerPath: "x", HostPath: "/tmp"})), codes.InvalidArgument, "container path"},
		{"relative mount source", createContainer(mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "tmp"})), codes.InvalidArgument, "host path"},
		{"mount source below a file", createContainer(mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/etc/passwd/x"})), codes.FailedPrecondition, "/etc/passwd/x"},
		{"mount with two sources", createContainer(mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/tmp", Image: &runtimeapi.ImageSpec{Image: busyboxImage}})), codes.InvalidArgument, "exclude"},
		{"mount of a missing image", createContainer(mount(&runtimeapi.Mount{ContainerPath: "/x", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "registry.test/never:pulled"}})), codes.Unknown, "ImageVolumeMountFailed"},
		{"unknown mount option", createContainer(mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/tmp", MountOptions: []string{"no-such"}})), codes.InvalidArgument, "no-such"},
		{"absent seccomp profile", createContainer(func(c *config) {
			security(c).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/no/such/profile.json")
		}), codes.FailedPrecondition, "/no/such/profile.json"},
		{"seccomp profile without a path", createContainer(func(c *config) {
			security(c).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "")
		}), codes.InvalidArgument, "seccomp"},
		{"unknown kind of AppArmor profile", createContainer(func(c *config) {
			security(c).Apparmor = profile(9, "")
		}), codes.InvalidArgument, "apparmor"},
		{"absent device", createContainer(func(c *config) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x"}}
		}), codes.FailedPrecondition, "/dev/no-such"},
		{"user namespace that the pod does not have", createContainer(func(c *config) {
			security(c).NamespaceOptions.UsernsOptions = userNamespace()
		}), codes.InvalidArgument, "user namespace"},
		{"unknown PID target", createContainer(func(c *config) {
			security(c).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: unknownID}
		}), codes.NotFound, unknownID},
		{"oom_score_adj out of range", createContainer(func(c *config) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 2000}
		}), codes.InvalidArgument, "oom_score_adj"},
	}
}

func containerRefusals() []refusal {
	exec := func(id string, cmd ...string) *runtimeapi.ExecSyncRequest {
		return &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 10}
	}
	return []refusal{
		{"StartContainer: unknown", func(r *requests) error {
			_, err := r.runtime.StartContainer(r.ctx, &runtimeapi.StartContainerRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"StartContainer: exited", func(r *requests) error {
			_, err := r.runtime.StartContainer(r.ctx, &runtimeapi.StartContainerRequest{ContainerId: r.exited})
			return err
		}, codes.FailedPrecondition, "exited"},
		{"ContainerStatus: unknown", func(r *requests) error {
			_, err := r.runtime.ContainerStatus(r.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"UpdateContainerResources: unknown", func(r *requests) error {
			_, err := r.runtime.UpdateContainerResources(r.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"UpdateContainerResources: exited", func(r *requests) error {
			_, err := r.runtime.UpdateContainerResources(r.ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: r.exited, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100},
			})
			return err
		}, codes.FailedPrecondition, "exited"},
		{"ReopenContainerLog: unknown", func(r *requests) error {
			_, err := r.runtime.ReopenContainerLog(r.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"ReopenContainerLog: exited", func(r *requests) error {
			_, err := r.runtime.ReopenContainerLog(r.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: r.exited})
			return err
		}, codes.FailedPrecondition, "exited"},
		{"ExecSync: unknown", func(r *requests) error {
			_, err := r.runtime.ExecSync(r.ctx, exec(unknownID, "true"))
			return err
		}, codes.NotFound, unknownID},
		{"ExecSync: created", func(r *requests) error {
			_, err := r.runtime.ExecSync(r.ctx, exec(r.created, "true"))
			return err
		}, codes.FailedPrecondition, "created"},
		{"ExecSync: no command", func(r *requests) error {
			_, err := r.runtime.ExecSync(r.ctx, exec(r.running))
			return err
		}, codes.InvalidArgument, "command"},
		{"Exec: unknown", func(r *requests) error {
			_, err := r.runtime.Exec(r.ctx, &runtimeapi.ExecRequest{ContainerId: unknownID, Cmd: []string{"true"}, Stdout: true})
			return err
		}, codes.NotFound, unknownID},
		{"Exec: no stream", func(r *requests) error {
			_, err := r.runtime.Exec(r.ctx, &runtimeapi.ExecRequest{ContainerId: r.running, Cmd: []string{"true"}})
			return err
		}, codes.InvalidArgument, "std"},
		{"Attach: exited", func(r *requests) error {
			_, err := r.runtime.Attach(r.ctx, &runtimeapi.AttachRequest{ContainerId: r.exited, Stdout: true})
			return err
		}, codes.FailedPrecondition, "exited"},
		{"ContainerStats: unknown", func(r *requests) error {
			_, err := r.runtime.ContainerStats(r.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
		{"CheckpointContainer: negative timeout", func(r *requests) error {
			_, err := r.runtime.CheckpointContainer(r.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: r.running, Location: "/tmp/x.tar", Timeout: -1})
			return err
		}, codes.InvalidArgument, "timeout -1"},
		{"CheckpointContainer: no location", func(r *requests) error {
			_, err := r.runtime.CheckpointContainer(r.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: r.running})
			return err
		}, codes.InvalidArgument, "location"},
		{"CheckpointContainer: not started", func(r *requests) error {
			_, err := r.runtime.CheckpointContainer(r.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: r.created, Location: "/tmp/x.tar"})
			return err
		}, codes.FailedPrecondition, "created"},
		{"CreateContainer: missing archive", func(r *requests) error {
			_, err := r.runtime.CreateContainer(r.ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: r.pod.id, Config: r.f.containerConfig("/none/x.tar"), SandboxConfig: r.pod.config,
			})
			return err
		}, codes.NotFound, "/none/x.tar"},
		{"CheckpointContainer: unknown", func(r *requests) error {
			_, err := r.runtime.CheckpointContainer(r.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: unknownID})
			return err
		}, codes.NotFound, unknownID},
	}
}

func imageRefusals() []refusal {
	pull := func(spec *runtimeapi.ImageSpec) func(*requests) error {
		return func(r *requests) error {
			_, err := r.images.PullImage(r.ctx, &runtimeapi.PullImageRequest{Image: spec})
			return err
		}
	}
	return []refusal{
		{"PullImage: nil image", pull(nil), codes.InvalidArgument, "image"},
		{"PullImage: bad reference", pull(&runtimeapi.ImageSpec{Image: "Not A Reference"}), codes.InvalidArgument, "Not A Reference"},
		{"PullImage: missing", pull(&runtimeapi.ImageSpec{Image: "registry.test/mica/no-such:latest"}), codes.NotFound, "no-such"},
		{"ImageStatus: nil image", func(r *requests) error {
			_, err := r.images.ImageStatus(r.ctx, &runtimeapi.ImageStatusRequest{})
			return err
		}, codes.InvalidArgument, "image"},
		{"RemoveImage: nil image", func(r *requests) error {
			_, err := r.images.RemoveImage(r.ctx, &runtimeapi.RemoveImageRequest{})
			return err
		}, codes.InvalidArgument, "image"},
	}
}

// Every invalid request is rejected with a code that distinguishes the client's errors from the
// node's, and with a message that names the invalid part. It leaves nothing behind. (Requests that
// must succeed for an unknown object have other tests.)
func TestRefusals(t *testing.T) {
	f := start(t)
	r := newRequests(f)
	before := f.objects()
	for _, group := range [][]refusal{podRefusals(), creationRefusals(), containerRefusals(), imageRefusals()} {
		for _, c := range group {
			err := c.call(r)
			if got := status.Code(err); got != c.code {
				t.Errorf("%s: code %v, want %v: %v", c.name, got, c.code, err)
			} else if !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: the message does not contain %q: %v", c.name, c.text, err)
			}
		}
	}
	if after := f.objects(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// objects returns the node's records, bundles and layers.
func (f *fixture) objects() string {
	f.t.Helper()
	var all []string
	for _, pattern := range []string{
		filepath.Join(f.Data, "cri", "*", "*"), filepath.Join(f.Data, "overlay2", "*"),
		filepath.Join(f.State, "pods", "*"), filepath.Join(f.State, "containers", "*"), "/sys/fs/cgroup/*/" + f.Name + "/*",
	} {
		found, err := filepath.Glob(pattern)
		f.no(err)
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				all = append(all, path)
			}
		}
	}
	return strings.Join(all, "\n")
}
