package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
)

// abuse runs what a container or a client does to the daemon and the keeper, and checks what it costs
// them. The limits are those of hostile images.
func (j *judge) abuse(t *testing.T, name string, do func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		keeper, err := j.KeeperPid()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{j.Pid(), keeper} {
			if err := node.ResetPeakMemory(pid); err != nil {
				t.Fatal(err)
			}
		}
		before, begin := j.processor(t), time.Now()
		do(t)
		c := j.measure(t, before)
		j.row(name, "", c, time.Since(begin), nil)
		j.within(t, c)
	})
}

// What commands print, however much and for how long, costs little of the daemon.
func TestHostileExecs(t *testing.T) {
	j := startJudge(t)
	id := j.start(j.pod, j.containerConfig(busyboxImage, "sleep", "1000"))
	endless := map[string][]string{
		"endless output":              {"yes", strings.Repeat("x", 1000)},
		"endless on both outputs":     {"sh", "-c", "yes one & yes two >&2"},
		"endless without line breaks": {"cat", "/dev/zero"},
	}
	for name, command := range endless {
		j.abuse(t, "ExecSync: "+name, func(t *testing.T) {
			if _, _, err := j.Runtime.ExecSync(j.ctx, id, command, 2*time.Second); err == nil {
				t.Error("the command ended")
			}
		})
	}
	j.abuse(t, "ExecSync: many with all that an answer takes", func(t *testing.T) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, _, err := j.Runtime.ExecSync(j.ctx, id, []string{"sh", "-c", "head -c 17000000 /dev/zero; head -c 17000000 /dev/zero >&2"}, patience.Of(time.Minute))
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
	j.abuse(t, "ExecSync: a daemon keeps the outputs and writes", func(t *testing.T) {
		begin := time.Now()
		if _, _, err := j.Runtime.ExecSync(j.ctx, id, []string{"sh", "-c", "(while :; do echo more; echo more >&2; done) & exit 0"}, patience.Of(time.Minute)); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > patience.Of(20*time.Second) {
			t.Errorf("the answer took %s", took)
		}
	})
	j.no(j.Runtime.StopContainer(j.ctx, id, 0))
	id = j.start(j.pod, j.containerConfig(busyboxImage, "sleep", "1000"))
	for name, command := range endless {
		j.abuse(t, "streaming exec without a reader: "+name, func(t *testing.T) {
			response, err := j.Runtime.Exec(j.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: command, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			j.unread(t, response.Url)
		})
	}
	j.abuse(t, "endless input that is not read", func(t *testing.T) {
		response, err := j.Runtime.Exec(j.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sleep", "1000"}, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		j.endlessInput(t, response.Url)
	})
	j.works()
}

// endlessInput is a client that sends until the daemon takes no more, and then goes.
func (j *judge) endlessInput(t *testing.T, address string) {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	message := make([]byte, 512<<10) // of channel 0
	for sent := 0; ; sent += len(message) {
		_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if websocket.Message.Send(conn, message) != nil {
			return
		}
		if sent > 500<<20 {
			t.Fatal("the daemon takes input without end")
		}
	}
}

// unread is a client that takes no output for some seconds and then goes.
func (j *judge) unread(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(j.ctx, 4*time.Second)
	defer cancel()
	target, err := url.Parse(address)
	if err != nil {
		t.Error(err)
		return
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
	if err != nil {
		t.Error(err)
		return
	}
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stuck{ctx.Done()}, Stderr: stuck{ctx.Done()}}); err == nil {
		t.Error("the session ended by itself")
	}
}

// Clients that attach and do not read, or send what is not read, cost little and hold up nothing.
func TestHostileAttach(t *testing.T) {
	j := startJudge(t)
	flooding := j.containerConfig(busyboxImage, "sh", "-c", "yes $(seq 100 | tr '\\n' ' ') | head -c 100000000; sleep 1000")
	flooding.Stdin = true
	id := j.start(j.pod, flooding)
	j.abuse(t, "twenty clients that do not read", func(t *testing.T) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				response, err := j.Runtime.Attach(j.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true, Stderr: true})
				if err != nil {
					t.Error(err)
					return
				}
				j.unread(t, response.Url)
			})
		}
		all.Wait()
	})
	j.abuse(t, "endless input to a container that does not read", func(t *testing.T) {
		response, err := j.Runtime.Attach(j.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		j.endlessInput(t, response.Url)
	})
	terminal := j.containerConfig(busyboxImage, "sleep", "1000")
	terminal.Stdin, terminal.Tty = true, true
	id = j.start(j.pod, terminal)
	j.abuse(t, "many terminal sizes", func(t *testing.T) {
		response, err := j.Runtime.Attach(j.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		queue := &sizes{}
		for i := range 20_000 {
			queue.left = append(queue.left, remotecommand.TerminalSize{Width: uint16(i%200 + 1), Height: 50})
		}
		queue.left = append(queue.left, remotecommand.TerminalSize{Width: 77, Height: 55})
		ctx, cancel := context.WithCancel(j.ctx)
		defer cancel()
		target, err := url.Parse(response.Url)
		if err != nil {
			t.Fatal(err)
		}
		executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
		if err != nil {
			t.Fatal(err)
		}
		in, typed := io.Pipe()
		defer typed.Close()
		ended := make(chan error, 1)
		go func() {
			ended <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard, Tty: true, TerminalSizeQueue: queue})
		}()
		j.eventually("the last size is set", func() bool {
			return strings.TrimSpace(j.exec(id, "sh", "-c", "stty size </proc/1/fd/0")) == "55 77"
		})
		cancel()
		<-ended
	})
	j.works()
}

// A port that floods its clients costs little, read or not.
func TestHostilePorts(t *testing.T) {
	j := startJudge(t)
	id := j.start(j.pod, j.containerConfig(busyboxImage, "sh", "-c", "while :; do nc -l -p 7000 -e cat /dev/zero; done"))
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	j.no(err)
	for name, read := range map[string]bool{"a flooding port that is read": true, "a flooding port that is not read": false} {
		// It listens again some time after its last client has gone.
		j.eventually("the port listens", func() bool {
			return strings.Contains(j.exec(id, "netstat", "-ltn"), ":7000 ")
		})
		j.abuse(t, name, func(t *testing.T) {
			stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			dialer := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, j.portForward(j.pod, 7000))
			forwarder, err := portforward.NewForStreaming(dialer, []string{"0:7000"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- forwarder.ForwardPorts() }()
			<-ready
			ports, err := forwarder.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			if read {
				if _, err := io.CopyN(io.Discard, conn, 200<<20); err != nil {
					t.Error(err)
				}
			} else {
				time.Sleep(2 * time.Second)
			}
			_ = conn.Close()
			close(stop)
			<-ended
		})
	}
	j.works()
}

// What a container prints costs the keeper little, in whatever form.
func TestHostileLogs(t *testing.T) {
	j := startJudge(t)
	for name, script := range map[string]string{
		"a line of 300 MB":            "head -c 300000000 /dev/zero",
		"empty lines":                 "yes '' | head -c 10000000",
		"single bytes on both":        "i=0; while [ $i -lt 20000 ]; do printf x; printf y >&2; i=$((i+1)); done",
		"bytes that are no character": "head -c 20000000 /dev/urandom",
	} {
		j.abuse(t, name, func(t *testing.T) {
			config := j.containerConfig(busyboxImage, "sh", "-c", script)
			id := j.create(j.pod, config)
			j.no(j.Runtime.StartContainer(j.ctx, id))
			j.await(id)
			j.no(j.Runtime.RemoveContainer(j.ctx, id))
		})
	}
	j.works()
}

// extent is how large the fields of hostile requests are.
type extent struct {
	name  string
	text  int // bytes of a name or path
	value int // bytes of an argument or annotation
	count int // entries
}

// Requests of the CRI with fields of many bytes or entries are refused with the limit, or work, at a
// bounded cost: both those that the socket lets pass and those that it refuses.
func TestHostileRequests(t *testing.T) {
	j := startJudge(t)
	conn, err := grpc.NewClient("unix://"+j.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	j.no(err)
	defer conn.Close()
	rt := runtimeapi.NewRuntimeServiceClient(conn)
	for _, x := range []extent{
		{name: "largest", text: 4 << 10, value: 1 << 20, count: 8000},
		{name: "too large", text: 7 << 20, value: 7 << 20, count: 300_000},
	} {
		for _, c := range hostilePods() {
			j.abuse(t, "pod, "+x.name+": "+c.name, func(t *testing.T) {
				config := j.podConfig()
				c.spoil(config, x)
				ctx, cancel := context.WithTimeout(j.ctx, patience.Of(time.Minute))
				defer cancel()
				response, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
				j.refusedOrGone(t, err, func() error { return j.RemovePod(j.ctx, response.GetPodSandboxId()) })
			})
		}
		for _, c := range hostileContainers() {
			j.abuse(t, "container, "+x.name+": "+c.name, func(t *testing.T) {
				config := j.containerConfig(busyboxImage, "true")
				c.spoil(config, x)
				ctx, cancel := context.WithTimeout(j.ctx, patience.Of(time.Minute))
				defer cancel()
				response, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: j.pod.id, Config: config, SandboxConfig: j.pod.config})
				j.refusedOrGone(t, err, func() error {
					_, err := rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: response.GetContainerId()})
					j.refusedOrGone(t, err, func() error { return nil })
					return j.Runtime.RemoveContainer(j.ctx, response.GetContainerId()) //nolint:contextcheck // also after ctx's deadline
				})
			})
		}
	}
	j.abuse(t, "bytes that are no message", j.nonsense)
	j.works()
}

// spoiled is a config with a hostile field.
type spoiled[T any] struct {
	name  string
	spoil func(T, extent)
}

func (x extent) long() string { return strings.Repeat("x", x.text) }

func (x extent) parts() string { return strings.Repeat("/x", x.text/2) }

func (x extent) words(word string) []string { return slices.Repeat([]string{word}, x.count) }

func (x extent) entries() map[string]string {
	m := make(map[string]string, x.count)
	for i := range x.count {
		m[fmt.Sprint("k", i)] = "v"
	}
	return m
}

func hostilePods() []spoiled[*runtimeapi.PodSandboxConfig] {
	type pod = *runtimeapi.PodSandboxConfig
	return []spoiled[pod]{
		{"name", func(c pod, x extent) { c.Metadata.Name = x.long() }},
		{"UID", func(c pod, x extent) { c.Metadata.Uid = x.long() }},
		{"namespace", func(c pod, x extent) { c.Metadata.Namespace = x.long() }},
		{"host name", func(c pod, x extent) { c.Hostname = x.long() }},
		{"labels", func(c pod, x extent) { c.Labels = x.entries() }},
		{"annotations", func(c pod, x extent) { c.Annotations = x.entries() }},
		{"annotation", func(c pod, x extent) { c.Annotations = map[string]string{"k": strings.Repeat("x", x.value)} }},
		{"ports", func(c pod, x extent) {
			for range x.count {
				c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{ContainerPort: 80, HostPort: 80})
			}
		}},
		{"negative port", func(c pod, _ extent) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: -1, HostPort: -80}} }},
		{"name servers", func(c pod, x extent) { c.DnsConfig = &runtimeapi.DNSConfig{Servers: x.words("1.1.1.1")} }},
		{"search domain", func(c pod, x extent) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{x.long()}} }},
		{"sysctls", func(c pod, x extent) { c.Linux.Sysctls = x.entries() }},
		{"log directory", func(c pod, x extent) { c.LogDirectory = "/" + x.long() }},
		{"cgroup parent", func(c pod, x extent) { c.Linux.CgroupParent = "/" + x.long() }},
		{"cgroup parent of many parts", func(c pod, x extent) { c.Linux.CgroupParent = x.parts() }},
		{"zero byte", func(c pod, _ extent) { c.Metadata.Name = "a\x00b" }},
		{"line breaks", func(c pod, _ extent) { c.Metadata.Name = "a\nb\r" }},
		{"negative resources", func(c pod, _ extent) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: -1, CpuQuota: -5, CpuShares: -7, MemoryLimitInBytes: -9}
		}},
	}
}

func hostileContainers() []spoiled[*runtimeapi.ContainerConfig] {
	type container = *runtimeapi.ContainerConfig
	return []spoiled[container]{
		{"name", func(c container, x extent) { c.Metadata.Name = x.long() }},
		{"image", func(c container, x extent) { c.Image.Image = x.long() }},
		{"labels", func(c container, x extent) { c.Labels = x.entries() }},
		{"annotations", func(c container, x extent) { c.Annotations = x.entries() }},
		{"log path", func(c container, x extent) { c.LogPath = x.long() }},
		{"log path of many parts", func(c container, x extent) { c.LogPath = strings.TrimPrefix(x.parts(), "/") }},
		{"argument", func(c container, x extent) { c.Args = []string{strings.Repeat("x", x.value)} }},
		{"arguments", func(c container, x extent) { c.Args = x.words("x") }},
		{"working directory", func(c container, x extent) { c.WorkingDir = "/" + x.long() }},
		{"variables", func(c container, x extent) {
			for i := range x.count {
				c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: fmt.Sprint("k", i), Value: []byte("v")})
			}
		}},
		{"mounts", func(c container, x extent) {
			for i := range x.count {
				c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: fmt.Sprint("/m", i), HostPath: "/tmp"})
			}
		}},
		{"devices", func(c container, x extent) {
			for i := range x.count {
				c.Devices = append(c.Devices, &runtimeapi.Device{ContainerPath: fmt.Sprint("/dev/d", i), HostPath: "/dev/null", Permissions: "rw"})
			}
		}},
		{"groups", func(c container, x extent) {
			for i := range x.count {
				c.Linux.SecurityContext.SupplementalGroups = append(c.Linux.SecurityContext.SupplementalGroups, int64(i))
			}
		}},
		{"masked paths", func(c container, x extent) {
			for i := range x.count {
				c.Linux.SecurityContext.MaskedPaths = append(c.Linux.SecurityContext.MaskedPaths, fmt.Sprint("/m", i))
			}
		}},
		{"capabilities", func(c container, x extent) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: x.words("KILL")}
		}},
		{"CDI devices", func(c container, x extent) {
			for i := range x.count {
				c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: fmt.Sprint("v.com/c=d", i)})
			}
		}},
		{"unified limits", func(c container, x extent) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: x.entries()}
		}},
		{"huge page limits", func(c container, x extent) {
			limit := &runtimeapi.HugepageLimit{PageSize: "2MB", Limit: 1}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{HugepageLimits: slices.Repeat([]*runtimeapi.HugepageLimit{limit}, x.count)}
		}},
		{"negative resources", func(c container, _ extent) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: -1, CpuQuota: -5, CpuShares: -7, MemoryLimitInBytes: -9, OomScoreAdj: -100000}
		}},
		{"negative user", func(c container, _ extent) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: -1}
		}},
		{"user beyond 32 bits", func(c container, _ extent) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 40}
		}},
		{"user name", func(c container, x extent) { c.Linux.SecurityContext.RunAsUsername = x.long() }},
		{"seccomp profile", func(c container, x extent) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/" + x.long()}
		}},
	}
}

// refusedOrGone checks an error's size, or removes what the request has made.
func (j *judge) refusedOrGone(t *testing.T, err error, remove func() error) {
	t.Helper()
	if err == nil {
		t.Log("works")
		if err := remove(); err != nil {
			t.Error(err)
		}
		return
	}
	t.Logf("%.300v", err)
	if len(err.Error()) > 8<<10 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "DeadlineExceeded") {
		t.Error("the call took too long")
	}
	if strings.Contains(err.Error(), "panic") {
		t.Error("the call panicked")
	}
}

// nonsense sends what is no gRPC to the socket.
func (j *judge) nonsense(t *testing.T) {
	for _, piece := range [][]byte{
		bytes.Repeat([]byte{0}, 1<<20),
		bytes.Repeat([]byte{0xff}, 1<<20),
		[]byte("GET / HTTP/1.1\r\n\r\n"),
		append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), bytes.Repeat([]byte{0xff}, 1<<20)...),
		append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), bytes.Repeat([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}, 100_000)...),
	} {
		conn, err := net.Dial("unix", j.Socket())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write(piece)
		_ = conn.Close()
	}
}
